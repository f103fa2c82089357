/* Products with recurrent weights with DSP instructions. In assembly, since a block's sums, terms and
 * words of weights are all registers that there are. */
#include "recurrence.h"

#if TF_DSP

/* Two words of weights, of the rows of sums `a` and `b`, by terms 0, 2 in r8 and 1, 3 in r9. */
#define ROWS(a, b)                      \
    "sxtb16 lr, r10\n\t"                \
    "smlad " #a ", lr, r8, " #a "\n\t"  \
    "sxtb16 lr, r11\n\t"                \
    "smlad " #b ", lr, r8, " #b "\n\t"  \
    "sxtb16 r10, r10, ror #8\n\t"       \
    "sxtb16 r11, r11, ror #8\n\t"       \
    "smlad " #a ", r10, r9, " #a "\n\t" \
    "smlad " #b ", r11, r9, " #b "\n\t"

/* Four columns of four rows; r12: three times the step between these. */
#define QUAD                                                              \
    "ldrd r8, r9, [r2], #8\n\t"                                           \
    "ldr r10, [r0, r1]\n\t"                                               \
    "ldr r11, [r0, r1, lsl #1]\n\t" ROWS(r5, r6) "ldr r11, [r0, r12]\n\t" \
                                                 "ldr r10, [r0], #4\n\t" ROWS(r4, r7)

/* clang-format off */
__attribute__((naked)) void
tf_recurrent_rows(const int8_t *weights __attribute__((unused)),
                  uint32_t step __attribute__((unused)),
                  const int16_t *paired __attribute__((unused)),
                  uint32_t quads __attribute__((unused)),
                  int32_t *sums __attribute__((unused)),
                  uint32_t blocks __attribute__((unused))) {
    __asm volatile(
        "push {r2-r11, lr}\n\t"
        "add r12, r1, r1, lsl #1\n\t"
        "1:\n\t"
        "ldrd r2, r3, [sp]\n\t"
        "movs r4, #0\n\t"
        "movs r5, #0\n\t"
        "movs r6, #0\n\t"
        "movs r7, #0\n\t"
        "tst r3, #1\n\t"
        "bne 3f\n\t"
        "2:\n\t" QUAD
        "3:\n\t" QUAD
        "subs r3, r3, #2\n\t"
        "bgt 2b\n\t"
        "ldrd r2, r3, [sp, #44]\n\t"
        "stmia r2!, {r4-r7}\n\t"
        "ldr r4, [sp, #4]\n\t"
        "add r0, r0, r1, lsl #2\n\t"
        "sub r0, r0, r4, lsl #2\n\t" /* back to the first column */
        "subs r3, r3, #1\n\t"
        "strd r2, r3, [sp, #44]\n\t"
        "bne 1b\n\t"
        "pop {r2-r11, pc}\n\t");
}

/* Two words of weights, r10 and r11, of the rows whose terms are in `by`. */
#define COLUMNS(by)                        \
    "pkhbt lr, r10, r11, lsl #16\n\t"      \
    "pkhtb r11, r11, r10, asr #16\n\t"     \
    "sxtb16 r10, lr\n\t"                   \
    "smlad r4, r10, " #by ", r4\n\t"       \
    "sxtb16 lr, lr, ror #8\n\t"            \
    "sxtb16 r10, r11\n\t"                  \
    "smlad r5, lr, " #by ", r5\n\t"        \
    "smlad r6, r10, " #by ", r6\n\t"       \
    "sxtb16 r11, r11, ror #8\n\t"          \
    "smlad r7, r11, " #by ", r7\n\t"

__attribute__((naked)) void
tf_recurrent_columns(const int8_t *weights __attribute__((unused)),
                     uint32_t step __attribute__((unused)),
                     const int16_t *terms __attribute__((unused)),
                     uint32_t quads __attribute__((unused)),
                     int32_t *sums __attribute__((unused)),
                     uint32_t blocks __attribute__((unused))) {
    __asm volatile(
        "push {r0, r2-r11, lr}\n\t"
        "add r12, r1, r1, lsl #1\n\t"
        "1:\n\t"
        "ldrd r2, r3, [sp, #4]\n\t"
        "movs r4, #0\n\t"
        "movs r5, #0\n\t"
        "movs r6, #0\n\t"
        "movs r7, #0\n\t"
        "2:\n\t"
        "ldrd r8, r9, [r2], #8\n\t"
        "ldr r10, [r0]\n\t"
        "ldr r11, [r0, r1]\n\t" COLUMNS(r8)
        "ldr r10, [r0, r1, lsl #1]\n\t"
        "ldr r11, [r0, r12]\n\t" COLUMNS(r9)
        "add r0, r0, r1, lsl #2\n\t"
        "subs r3, r3, #1\n\t"
        "bne 2b\n\t"
        "ldrd r2, r3, [sp, #48]\n\t"
        "stmia r2!, {r4-r7}\n\t"
        "ldr r0, [sp]\n\t"
        "adds r0, r0, #4\n\t"
        "str r0, [sp]\n\t"
        "subs r3, r3, #1\n\t"
        "strd r2, r3, [sp, #48]\n\t"
        "bne 1b\n\t"
        "pop {r0, r2-r11, pc}\n\t");
}
/* clang-format on */

#endif
