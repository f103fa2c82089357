/* Products of errors with what lies under the taps of a kernel's row: the inner loops of gradients of
 * depthwise weights.
 *
 * With DSP instructions they are written in assembler, for the reason of slide.c. A word of errors
 * meets the words of the plane that it lies on, and for every other tap those that begin in the
 * middle of a word. SMLADX wants these with their halves exchanged, which takes one PKHBT: the lower
 * half of a word and the upper one of the word before it. Two words of errors at a time:
 *
 *     r0  errors                         r1  plane
 *     r2, r3  words of errors            r4 … r7, r12  sums
 *     r8 … r11  words of the plane       lr  end of the row's errors
 *
 * and on the stack the end of the errors, bytes of a row, those to the plane's next row, sums.
 */
#include "planes.h"

#if TF_DSP

TF_AT(tf_correlation, end, 8);
TF_AT(tf_correlation, rest_bytes, 16);

#define ENTER                        \
    "push {r1, r4-r11, lr}\n"        \
    "ldm r0, {r0, r1, r2, r3, r8}\n" \
    "push {r2, r3, r8}\n"

/* clang-format off */
/* `one`, for a row's odd word of errors, leaves r3 alone. */
#define ROWS(one, two)            \
    "cmp r0, r2\n"                \
    "beq 5f\n"                    \
    "1: lsls lr, r3, #29\n"       \
    "bpl 2f\n"                    \
    one                           \
    "bics r3, #4\n"               \
    "beq 4f\n"                    \
    "2: add lr, r0, r3\n"         \
    "3:\n"                        \
    two                           \
    "cmp r0, lr\n"                \
    "bne 3b\n"                    \
    "4: ldm sp, {r2, r3, r8}\n"   \
    "add r1, r8\n"                \
    "cmp r0, r2\n"                \
    "bne 1b\n"

#define LEAVE(store)              \
    "5: ldr r0, [sp, #12]\n"      \
    store "\n"                    \
    "add sp, #16\n"               \
    "pop {r4-r11, pc}\n"
/* clang-format on */

#define CLEAR(sum) "mov r" #sum ", #0\n"

/* sum += both products of errors and a word; of errors and an exchanged one. */
#define BOTH(sum, errors, word) "smlad r" #sum ", r" #errors ", r" #word ", r" #sum "\n"
#define CROSSED(sum, errors, word) "smladx r" #sum ", r" #errors ", r" #word ", r" #sum "\n"
/* What begins in the middle of `word`, in its place. */
#define EXCHANGE(word, next) "pkhbt r" #word ", r" #next ", r" #word "\n"

#define ONE_ERROR "ldr r2, [r0], #4\n"
#define TWO_ERRORS "ldrd r2, r3, [r0], #8\n"

/* clang-format off */
#define ONE_1 ONE_ERROR "ldr r8, [r1], #4\n" BOTH(4, 2, 8)
#define ONE_2 ONE_1 "ldr r9, [r1]\n" EXCHANGE(8, 9) CROSSED(5, 2, 8)
#define ONE_3 ONE_2 BOTH(6, 2, 9)
#define ONE_4 ONE_3 "ldr r10, [r1, #4]\n" EXCHANGE(9, 10) CROSSED(7, 2, 9)
#define ONE_5 ONE_4 BOTH(12, 2, 10)

#define TWO_1 TWO_ERRORS "ldrd r8, r9, [r1], #8\n" BOTH(4, 2, 8) BOTH(4, 3, 9)
#define TWO_2                                                                                      \
    TWO_1 "ldr r10, [r1]\n"                                                                        \
    EXCHANGE(8, 9) CROSSED(5, 2, 8) EXCHANGE(9, 10) CROSSED(5, 3, 9)
#define TWO_3                                                                                      \
    TWO_1 "ldr r10, [r1]\n"                                                                        \
    EXCHANGE(8, 9) CROSSED(5, 2, 8) BOTH(6, 2, 9) BOTH(6, 3, 10)                                   \
    EXCHANGE(9, 10) CROSSED(5, 3, 9)
#define FOUR_TAPS                                                                                  \
    TWO_1 "ldrd r10, r11, [r1]\n"                                                                  \
    EXCHANGE(8, 9) CROSSED(5, 2, 8) BOTH(6, 2, 9) BOTH(6, 3, 10)                                   \
    EXCHANGE(9, 10) CROSSED(5, 3, 9) CROSSED(7, 2, 9)
#define TWO_4 FOUR_TAPS EXCHANGE(10, 11) CROSSED(7, 3, 10)
#define TWO_5 FOUR_TAPS BOTH(12, 2, 10) BOTH(12, 3, 11) EXCHANGE(10, 11) CROSSED(7, 3, 10)
/* clang-format on */

#define CORRELATE(taps, clear, store)                                          \
    static __attribute__((naked, noinline)) void correlate_##taps(             \
        const tf_correlation *by __attribute__((unused)),                      \
        int32_t *of_taps __attribute__((unused))) {                            \
        __asm volatile(ENTER clear ROWS(ONE_##taps, TWO_##taps) LEAVE(store)); \
    }

CORRELATE(1, CLEAR(4), "str r4, [r0]")
CORRELATE(2, CLEAR(4) CLEAR(5), "strd r4, r5, [r0]")
CORRELATE(3, CLEAR(4) CLEAR(5) CLEAR(6), "stm r0, {r4-r6}")
CORRELATE(4, CLEAR(4) CLEAR(5) CLEAR(6) CLEAR(7), "stm r0, {r4-r7}")
CORRELATE(5, CLEAR(4) CLEAR(5) CLEAR(6) CLEAR(7) CLEAR(12), "stm r0, {r4-r7, r12}")

#else

static inline __attribute__((always_inline)) void correlate(const tf_correlation *by,
                                                            const uint32_t taps, int32_t *sums) {
    const int16_t *plane = by->plane;
    const uint32_t count = by->row_bytes / sizeof *plane;
    int32_t s[TF_TAPS_AT_ONCE] = {0};
    for (const int16_t *error = by->error; error != by->end; error += count) {
#if TF_SMALL_CORE
        /* What is loaded counts. */
        for (uint32_t x = 0; x < count; x++) {
            const int32_t e = error[x];
            for (uint32_t i = 0; i < taps; i++) {
                s[i] += e * plane[i + x];
            }
        }
#else
        /* Compilers for this machine have vectors along x. */
        for (uint32_t i = 0; i < taps; i++) {
            int32_t sum = 0;
            for (uint32_t x = 0; x < count; x++) {
                sum += error[x] * plane[i + x];
            }
            s[i] += sum;
        }
#endif
        plane += count + by->rest_bytes / sizeof *plane;
    }
    for (uint32_t i = 0; i < taps; i++) {
        sums[i] = s[i];
    }
}

#define CORRELATE(taps)                                                     \
    static void correlate_##taps(const tf_correlation *by, int32_t *sums) { \
        correlate(by, taps, sums);                                          \
    }

CORRELATE(1)
CORRELATE(2)
CORRELATE(3)
CORRELATE(4)
CORRELATE(5)

#endif

void tf_correlate(const tf_correlation *by, uint32_t taps, int32_t *sums) {
    static void (*const of_taps[TF_TAPS_AT_ONCE])(const tf_correlation *, int32_t *) = {
        correlate_1, correlate_2, correlate_3, correlate_4, correlate_5};
    of_taps[taps - 1u](by, sums);
}
