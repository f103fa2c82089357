/* Blocks with DSP instructions. In assembly, since eight sums, two words of columns, two of weights
 * and two pointers are all registers there are: everything else waits on the stack. The loops are
 * unrolled and entered where what is left over takes them to their end.
 *
 * Naked functions: compilers make no code of their own for them. The numbers in brackets are
 * offsets of fields of the copied block, then of what the prologue puts behind it. */
#include "block.h"

#if TF_DSP_BLOCKS

TF_AT(tf_block_run, output, 12);
TF_AT(tf_block_run, second, 20);
TF_AT(tf_block_run, pair, 40);
TF_AT(tf_block_run, bits, 56);
TF_AT(tf_block_run, output_end, 68);
TF_AT(tf_block_run, each, 84);
TF_AT(tf_block_run, packed, 96);
TF_AT(tf_block_run, twice_zero, 112);
TF_AT(tf_block_run, second_any, 132);

/* Four bytes at `src` to two words: low and high, by way of `even`. */
#define WIDEN(src, even, low, high)                     \
    "ldr r6, [" #src "], #4\n\t"                        \
    "sxtab16 " #high ", r1, r6, ror #8\n\t"             \
    "sxtab16 " #even ", r1, r6\n\t"                     \
    "pkhbt " #low ", " #even ", " #high ", lsl #16\n\t" \
    "pkhtb " #high ", " #high ", " #even ", asr #16\n\t"

__attribute__((naked)) void
tf_block_widen(int16_t *columns __attribute__((unused)), const int8_t *src __attribute__((unused)),
               uint32_t step __attribute__((unused)), uint32_t quads __attribute__((unused)),
               uint32_t minus __attribute__((unused)), uint32_t blocks __attribute__((unused))) {
    __asm volatile("push {r4-r11, lr}\n\t"
                   "ldr r12, [sp, #36]\n\t"
                   "sub sp, sp, #20\n\t"
                   "strd r2, r3, [sp, #8]\n\t" /* step, quads */
                   "str r12, [sp, #4]\n\t"     /* minus */
                   "mov r5, r1\n\t"
                   "2:\n\t"
                   "ldrd lr, r3, [sp, #8]\n\t"
                   "mov r2, r5\n\t"
                   "add r10, r2, r3, lsl #2\n\t"
                   "str r10, [sp]\n\t" /* where the first pixel's values end */
                   "add r3, r2, lr\n\t"
                   "add r4, r3, lr\n\t"
                   "add r5, r4, lr\n\t"
                   "ldr r1, [sp, #4]\n\t"
                   "1:\n\t" WIDEN(r5, r6, r9, lr) WIDEN(r4, r6, r8, r12) WIDEN(r3, r6, r7, r11)
                       WIDEN(r2, r1, r6, r10) /* the last one takes the place of minus */
                   "stmia r0!, {r6-r9}\n\t"
                   "stmia r0!, {r10, r11, r12, lr}\n\t"
                   "ldrd r6, r1, [sp]\n\t"
                   "cmp r2, r6\n\t"
                   "bne 1b\n\t"
                   "ldr r6, [sp, #60]\n\t"
                   "subs r6, r6, #1\n\t"
                   "str r6, [sp, #60]\n\t"
                   "bgt 2b\n\t"
                   "add sp, sp, #20\n\t"
                   "pop {r4-r11, pc}\n\t");
}

/* Two words of packed weights to four of a pair, by way of r8 and r9. */
#define WIDEN_TWO               \
    "ldm r1!, {r8, r9}\n\t"     \
    "sxtb16 r4, r8\n\t"         \
    "sxtb16 r5, r8, ror #8\n\t" \
    "sxtb16 r6, r9\n\t"         \
    "sxtb16 r7, r9, ror #8\n\t" \
    "stmia r0!, {r4-r7}\n\t"

/* Four words to eight. */
#define WIDEN_FOUR               \
    "ldm r1!, {r8-r11}\n\t"      \
    "sxtb16 r2, r8\n\t"          \
    "sxtb16 r3, r8, ror #8\n\t"  \
    "sxtb16 r4, r9\n\t"          \
    "sxtb16 r5, r9, ror #8\n\t"  \
    "sxtb16 r6, r10\n\t"         \
    "sxtb16 r7, r10, ror #8\n\t" \
    "sxtb16 r8, r11\n\t"         \
    "sxtb16 r9, r11, ror #8\n\t" \
    "stmia r0!, {r2-r9}\n\t"

__attribute__((naked)) void tf_block_widen_pair(int16_t *pair __attribute__((unused)),
                                                const int8_t *packed __attribute__((unused)),
                                                uint32_t length __attribute__((unused))) {
    __asm volatile("push {r4-r11}\n\t"
                   "lsrs r12, r2, #3\n\t" /* lengths are multiples of 4 */
                   "bcc 1f\n\t" WIDEN_TWO "cmp r12, #0\n\t"
                   "beq 2f\n\t"
                   "1:\n\t" WIDEN_FOUR "subs r12, r12, #1\n\t"
                   "bne 1b\n\t"
                   "2:\n\t"
                   "pop {r4-r11}\n\t"
                   "bx lr\n\t");
}

/* Two words of packed weights, two values of rows 0, 1 and of rows 2, 3, to the first values of rows
 * 0, 2, the second ones, the first ones of rows 1, 3 and the second ones. */
#define WIDEN_ACROSS(word, next, a, b, c, d)          \
    "pkhbt " #a ", " #word ", " #next ", lsl #16\n\t" \
    "pkhtb " #b ", " #next ", " #word ", asr #16\n\t" \
    "sxtb16 " #c ", " #a ", ror #8\n\t"               \
    "sxtb16 " #d ", " #b ", ror #8\n\t"               \
    "sxtb16 " #a ", " #a "\n\t"                       \
    "sxtb16 " #b ", " #b "\n\t"

__attribute__((naked)) void tf_block_widen_columns(int16_t *pair __attribute__((unused)),
                                                   const int8_t *packed __attribute__((unused)),
                                                   uint32_t step __attribute__((unused)),
                                                   uint32_t count __attribute__((unused))) {
    __asm volatile(
        "push {r4-r11, lr}\n\t"
        "add r12, r2, r2, lsl #1\n\t"
        "lsrs lr, r3, #3\n\t"
        "beq 2f\n\t"
        "1:\n\t" /* eight rows */
        "ldr r8, [r1]\n\t"
        "ldr r9, [r1, r2]\n\t"
        "ldr r10, [r1, r2, lsl #1]\n\t"
        "ldr r11, [r1, r12]\n\t"
        "add r1, r1, r2, lsl #2\n\t" WIDEN_ACROSS(
            r8, r9, r4, r5, r6,
            r7) "stmia r0!, {r4-r7}\n\t" WIDEN_ACROSS(r10, r11, r4, r5, r6,
                                                      r7) "stmia r0!, {r4-r7}\n\t"
                                                          "subs lr, lr, #1\n\t"
                                                          "bne 1b\n\t"
                                                          "2:\n\t"
                                                          "ands r3, r3, #7\n\t"
                                                          "beq 4f\n\t"
                                                          "3:\n\t" /* four rows, or two and zeros */
                                                          "ldr r8, [r1]\n\t"
                                                          "mov r9, #0\n\t"
                                                          "cmp r3, #2\n\t"
                                                          "it ne\n\t"
                                                          "ldrne r9, [r1, r2]\n\t"
                                                          "add r1, r1, r2, lsl #1\n\t" WIDEN_ACROSS(
                                                              r8, r9, r4, r5, r6,
                                                              r7) "stmia r0!, {r4-r7}\n\t"
                                                                  "subs r3, r3, #4\n\t"
                                                                  "bgt 3b\n\t"
                                                                  "4:\n\t"
                                                                  "pop {r4-r11, pc}\n\t");
}

/* The last steps of every block, behind the loop: nothing is counted there. */
#define TAIL_STEPS 8u

#define STEP_BYTES 44u

/* 11 instructions of 4 bytes for two values; r4-r7 and r8-r11: sums of two rows. */
#define RUN_STEP                  \
    "ldrd r2, r3, [r1], #8\n\t"   \
    "ldrd r12, lr, [r0], #8\n\t"  \
    "smlad r4, r12, r2, r4\n\t"   \
    "smlad r5, lr, r2, r5\n\t"    \
    "smlad r8, r12, r3, r8\n\t"   \
    "smlad r9, lr, r3, r9\n\t"    \
    "ldrd r12, lr, [r0], #8\n\t"  \
    "smlad r6, r12, r2, r6\n\t"   \
    "smlad r7, lr, r2, r7\n\t"    \
    "smlad r10, r12, r3, r10\n\t" \
    "smlad r11, lr, r3, r11\n\t"

/* Four sums to what codes are before the clamp; r1, r2, r3: word, offset, shift of their row. */
#define REQUANTIZE(a, b, c, d)         \
    "smmla " #a ", " #a ", r1, r2\n\t" \
    "smmla " #b ", " #b ", r1, r2\n\t" \
    "smmla " #c ", " #c ", r1, r2\n\t" \
    "smmla " #d ", " #d ", r1, r2\n\t" \
    "asr " #a ", " #a ", r3\n\t"       \
    "asr " #b ", " #b ", r3\n\t"       \
    "asr " #c ", " #c ", r3\n\t"       \
    "asr " #d ", " #d ", r3\n\t"

#define CLAMP(a, b, c, d)         \
    "ssat " #a ", #8, " #a "\n\t" \
    "ssat " #b ", #8, " #b "\n\t" \
    "ssat " #c ", #8, " #c "\n\t" \
    "ssat " #d ", #8, " #d "\n\t"

/* Both at once, by a shift that the code knows: most are between 3 and 8. */
#define MAKE_CODES(a, b, c, d, shift)              \
    "smmla " #a ", " #a ", r1, r2\n\t"             \
    "smmla " #b ", " #b ", r1, r2\n\t"             \
    "smmla " #c ", " #c ", r1, r2\n\t"             \
    "smmla " #d ", " #d ", r1, r2\n\t"             \
    "ssat " #a ", #8, " #a ", asr #" #shift "\n\t" \
    "ssat " #b ", #8, " #b ", asr #" #shift "\n\t" \
    "ssat " #c ", #8, " #c ", asr #" #shift "\n\t" \
    "ssat " #d ", #8, " #d ", asr #" #shift "\n\t"

/* A block's codes, from r4-r7 and r8-r11, to r12 and lr, twice lr and r3, three times lr, behind it. */
#define STORE_CODES                  \
    "bfi r4, r8, #8, #8\n\t"         \
    "bfi r5, r9, #8, #8\n\t"         \
    "bfi r6, r10, #8, #8\n\t"        \
    "bfi r7, r11, #8, #8\n\t"        \
    "strh r4, [r12]\n\t"             \
    "strh r5, [r12, lr]\n\t"         \
    "strh r6, [r12, lr, lsl #1]\n\t" \
    "strh r7, [r12, r3]\n\t"

/* r12, the output of a block, goes to the next one's: out of the function at label 9 behind the
 * last. */
#define NEXT_BLOCK                 \
    "add r12, r12, lr, lsl #2\n\t" \
    "ldr.w r2, [sp, #68]\n\t"      \
    "str r12, [sp, #12]\n\t"       \
    "cmp.w r12, r2\n\t"            \
    "bne.w 1b\n\t"

/* Instructions of four bytes each: those of the first row end at the code of the second one's. What
 * is its shift elsewhere is three steps here. */
#define FIRST_CODES(shift)                                                               \
    "ldm.w sp, {r1, r2, r3, r12, lr}\n\t" MAKE_CODES(r4, r5, r6, r7,                     \
                                                     shift) "ldrd r1, r2, [sp, #20]\n\t" \
                                                            "ldr.w pc, [sp, #88]\n\t"
#define SECOND_CODES(shift)             \
    MAKE_CODES(r8, r9, r10, r11, shift) \
    STORE_CODES NEXT_BLOCK "b.w 9f\n\t"

/* The codes of a pixel to r2; bits of r1 where the clamp leaves them alone. */
#define MASK_CODES(a, b, bit_a, bit_b) \
    "ssat r2, #8, " #a "\n\t"          \
    "ssat r3, #8, " #b "\n\t"          \
    "cmp r2, " #a "\n\t"               \
    "it eq\n\t"                        \
    "orreq r1, r1, #" #bit_a "\n\t"    \
    "cmp r3, " #b "\n\t"               \
    "it eq\n\t"                        \
    "orreq r1, r1, #" #bit_b "\n\t"    \
    "bfi r2, r3, #8, #8\n\t"

/* clang-format off */
/* Takes as many pairs as r1 says; without any, the run's own one. */
__attribute__((naked)) void tf_block_run_all(tf_block_run *run __attribute__((unused))) {
    __asm volatile(
        "movs r1, #0\n\t"
        ".global tf_block_run_pairs\n\t"
        ".thumb_func\n\t"
        "tf_block_run_pairs:\n\t"
        "push {r0, r1, r4-r11, lr}\n\t"
        "sub sp, sp, #96\n\t"
        "mov r9, r1\n\t"
        "mov r12, sp\n\t"
        "ldmia r0!, {r1-r8}\n\t"
        "stmia r12!, {r1-r8}\n\t" /* 0: first, output, step, second */
        "ldmia r0!, {r1-r8}\n\t"
        "stmia r12!, {r1-r8}\n\t" /* 32: start, pair, its end, columns, blocks, bits, pre_shift */
        "ldmia r0, {r1-r7}\n\t"
        "stmia r12, {r1-r7}\n\t" /* 64: the same, output_end, loop_end, loop, after, each, second */
        "cmp r9, #0\n\t"
        "bne 7f\n\t"
        "ldr r0, [sp, #48]\n\t"

        "1:\n\t" /* a block: all sums start from the same */
        "ldrd r4, r8, [sp, #32]\n\t"
        "ldr r1, [sp, #40]\n\t"
        "ldrd r12, lr, [r0], #8\n\t"
        "ldrd r2, r3, [r1], #8\n\t"
        "ldrd r6, r7, [r0], #8\n\t"
        "smlad r5, lr, r2, r4\n\t"
        "smlad r9, lr, r3, r8\n\t"
        "smlad r10, r6, r3, r8\n\t"
        "smlad r11, r7, r3, r8\n\t"
        "smlad r6, r6, r2, r4\n\t"
        "smlad r7, r7, r2, r4\n\t"
        "smlad r4, r12, r2, r4\n\t"
        "smlad r8, r12, r3, r8\n\t"
        "ldr pc, [sp, #76]\n\t"

        "tf_block_loop:\n\t"
        ".rept 16\n\t" RUN_STEP ".endr\n\t"
        "ldr r2, [sp, #72]\n\t"
        "cmp r1, r2\n\t"
        "bne tf_block_loop\n\t"

        "tf_block_tail:\n\t"
        ".rept 8\n\t" RUN_STEP ".endr\n\t"
        "ldr pc, [sp, #80]\n\t"

        "tf_block_raise:\n\t" /* doubled as often as the rows' pre_shift says */
        "ldrd r2, r12, [sp, #60]\n\t"
        "b 3f\n\t"
        "2:\n\t"
        "qadd r4, r4, r4\n\t"
        "qadd r5, r5, r5\n\t"
        "qadd r6, r6, r6\n\t"
        "qadd r7, r7, r7\n\t"
        "3:\n\t"
        "subs r2, r2, #1\n\t"
        "bpl 2b\n\t"
        "b 5f\n\t"
        "4:\n\t"
        "qadd r8, r8, r8\n\t"
        "qadd r9, r9, r9\n\t"
        "qadd r10, r10, r10\n\t"
        "qadd r11, r11, r11\n\t"
        "5:\n\t"
        "subs r12, r12, #1\n\t"
        "bpl 4b\n\t"
        "ldr pc, [sp, #84]\n\t"

        "tf_block_first_by_shift:\n\t"
        FIRST_CODES(3) FIRST_CODES(4) FIRST_CODES(5) FIRST_CODES(6) FIRST_CODES(7) FIRST_CODES(8)
        "tf_block_second_by_shift:\n\t"
        SECOND_CODES(3) SECOND_CODES(4) SECOND_CODES(5) SECOND_CODES(6) SECOND_CODES(7)
        SECOND_CODES(8)

        "tf_block_first_codes:\n\t"
        "ldm sp, {r1, r2, r3, r12, lr}\n\t"
        REQUANTIZE(r4, r5, r6, r7)
        CLAMP(r4, r5, r6, r7)
        "ldrd r1, r2, [sp, #20]\n\t"
        "add r3, lr, lr, lsl #1\n\t"
        "ldr pc, [sp, #88]\n\t"
        "tf_block_second_codes:\n\t"
        "ldr r3, [sp, #28]\n\t"
        REQUANTIZE(r8, r9, r10, r11)
        CLAMP(r8, r9, r10, r11)
        "add r3, lr, lr, lsl #1\n\t"
        STORE_CODES NEXT_BLOCK
        "b 9f\n\t"

        "tf_block_codes_and_mask:\n\t"
        "ldm sp, {r1, r2, r3, r12, lr}\n\t"
        REQUANTIZE(r4, r5, r6, r7)
        "ldrd r1, r2, [sp, #20]\n\t"
        "ldr r3, [sp, #28]\n\t"
        REQUANTIZE(r8, r9, r10, r11)
        "ldr r2, [sp, #56]\n\t"
        "ldr r1, [r2]\n\t"
        "lsr r1, r1, #2\n\t"
        "and r1, r1, #0x3f3f3f3f\n\t"
        MASK_CODES(r4, r8, 0x40, 0x80)
        "strh r2, [r12]\n\t"
        MASK_CODES(r5, r9, 0x4000, 0x8000)
        "strh r2, [r12, lr]\n\t"
        MASK_CODES(r6, r10, 0x400000, 0x800000)
        "strh r2, [r12, lr, lsl #1]\n\t"
        MASK_CODES(r7, r11, 0x40000000, 0x80000000)
        "add r6, lr, lr, lsl #1\n\t"
        "strh r2, [r12, r6]\n\t"
        "ldr r2, [sp, #56]\n\t"
        "str r1, [r2], #4\n\t"
        "str r2, [sp, #56]\n\t"
        NEXT_BLOCK
        "b 9f\n\t"

        "tf_block_errors:\n\t"
        "ldm sp, {r1, r2, r3, r12}\n\t"
        TF_MAKE_ERRORS(r4, r8, r3, r2, r1)
        TF_MAKE_ERRORS(r5, r9, r3, r2, r1)
        TF_MAKE_ERRORS(r6, r10, r3, r2, r1)
        TF_MAKE_ERRORS(r7, r11, r3, r2, r1)
        "ldr lr, [sp, #16]\n\t"
        "str r1, [sp]\n\t"
        "str r4, [r12]\n\t"
        "str r5, [r12, lr]\n\t"
        "str r6, [r12, lr, lsl #1]\n\t"
        "add r6, lr, lr, lsl #1\n\t"
        "str r7, [r12, r6]\n\t"
        NEXT_BLOCK
        "ldr r0, [sp, #96]\n\t"
        "str r1, [r0]\n\t"
        "9:\n\t"
        "ldr r1, [sp, #100]\n\t"
        "subs r1, r1, #1\n\t"
        "str r1, [sp, #100]\n\t"
        "bgt 7f\n\t"
        "add sp, sp, #96\n\t"
        "pop {r0, r1, r4-r11, pc}\n\t"

        "7:\n\t" /* the next pair of the run at lr is widened */
        "ldr lr, [sp, #96]\n\t"
        "ldr r0, [sp, #40]\n\t"
        "ldr r1, [lr, #96]\n\t"
        "ldr r12, [lr, #116]\n\t"
        "lsrs r12, r12, #3\n\t"
        "bcc 8f\n\t" WIDEN_TWO
        "cmp r12, #0\n\t"
        "beq 2f\n\t"
        "8:\n\t" WIDEN_FOUR
        "subs r12, r12, #1\n\t"
        "bne 8b\n\t"
        "2:\n\t"
        "str r1, [lr, #96]\n\t"
        "ldrd r0, r1, [lr, #100]\n\t" /* requantize, bias */
        "ldrd r2, r3, [r0], #8\n\t"
        "ldrd r4, r5, [r1], #8\n\t"
        "strd r0, r1, [lr, #100]\n\t"
        "ldrd r0, r6, [lr, #108]\n\t" /* raised, twice_zero */
        "and r7, r2, #31\n\t"
        "and r9, r3, #31\n\t"
        "sub r8, r7, #1\n\t"
        "sub r10, r9, #1\n\t"
        "lsl r8, r6, r8\n\t"
        "lsl r10, r6, r10\n\t"
        "str r2, [sp]\n\t"
        "strd r8, r7, [sp, #4]\n\t"
        "strd r3, r10, [sp, #20]\n\t"
        "str r9, [sp, #28]\n\t"
        "strd r4, r5, [sp, #32]\n\t"
        "ldrb r4, [lr, #92]\n\t" /* an enumeration may have one byte */
        "cbnz r4, 4f\n\t" /* codes: pieces for both shifts, of 44 and of 88 bytes */
        "ldrd r1, r2, [lr, #120]\n\t"
        "ldrd r3, r4, [lr, #128]\n\t"
        "movs r5, #44\n\t"
        "movs r6, #88\n\t"
        "ldr r8, [lr, #16]\n\t"
        "add r8, r8, r8, lsl #1\n\t"
        "sub r7, r7, #3\n\t"
        "sub r9, r9, #3\n\t"
        "cmp r7, #5\n\t"
        "itt ls\n\t"
        "mlals r3, r7, r5, r1\n\t"
        "strls r8, [sp, #8]\n\t"
        "cmp r9, #5\n\t"
        "it ls\n\t"
        "mlals r4, r9, r6, r2\n\t"
        "strd r3, r4, [sp, #84]\n\t"
        "cbnz r0, 4f\n\t"
        "str r3, [sp, #80]\n\t"
        "4:\n\t"
        "cbz r0, 5f\n\t"
        "ldrb r1, [r0], #1\n\t"
        "ldrb r2, [r0], #1\n\t"
        "str r0, [lr, #108]\n\t"
        "strd r1, r2, [sp, #60]\n\t"
        "5:\n\t"
        "ldr r1, [lr, #12]\n\t"
        "ldr r2, [lr, #68]\n\t"
        "ldr r3, [lr, #56]\n\t"
        "str r1, [sp, #12]\n\t"
        "str r2, [sp, #68]\n\t"
        "str r3, [sp, #56]\n\t"
        "adds r1, r1, #2\n\t"
        "adds r2, r2, #2\n\t"
        "str r1, [lr, #12]\n\t"
        "str r2, [lr, #68]\n\t"
        "ldr r0, [sp, #48]\n\t"
        "b.w 1b\n\t");
}
/* clang-format on */

extern const uint8_t tf_block_loop[], tf_block_tail[], tf_block_raise[], tf_block_first_codes[],
    tf_block_second_codes[], tf_block_first_by_shift[], tf_block_second_by_shift[],
    tf_block_codes_and_mask[], tf_block_errors[];

/* The address of code, as branches to a register want it. */
static uint32_t address_of(const uint8_t *label) {
    return (uint32_t)label | 1u;
}

void tf_block_prepare(tf_block_run *run, tf_run_kind kind, uint32_t length) {
    const uint32_t steps = length / 2u - 1u; /* one step goes before the loop */
    const uint32_t looped = steps > TAIL_STEPS ? steps - TAIL_STEPS : 0u;
    run->pair_end = run->pair + 2u * length;
    run->loop_end = run->pair + 4u * (looped + 1u);
    run->each = address_of(kind == TF_RUN_ERRORS ? tf_block_errors : tf_block_codes_and_mask);
    run->after = run->raised != NULL ? address_of(tf_block_raise) : run->each;
    run->loop = looped > 0u ? address_of(tf_block_loop) + ((0u - looped) & 15u) * STEP_BYTES
                            : address_of(tf_block_tail) + (TAIL_STEPS - steps) * STEP_BYTES;
    run->kind = kind;
    run->length = length;
    run->first_by_shift = address_of(tf_block_first_by_shift);
    run->second_by_shift = address_of(tf_block_second_by_shift);
    run->first_any = address_of(tf_block_first_codes);
    run->second_any = address_of(tf_block_second_codes);
}

void tf_block_single(const tf_block_run *by, const void *of, uint32_t pixel, int32_t sums[2]) {
    const int16_t *pair = by->pair, *end = by->pair_end;
    int32_t a = by->start[0], b = by->start[1];
    const int16_t *columns = (const int16_t *)of + tf_column_index(0, pixel, 0);
    while (pair != end) {
        uint32_t low, high;
        __asm volatile("ldmia %[pair]!, {r4, r5, r6, r8}\n\t"
                       "ldr %[low], [%[columns]], #16\n\t"
                       "ldr %[high], [%[columns]], #16\n\t"
                       "smlad %[a], %[low], r4, %[a]\n\t"
                       "smlad %[b], %[low], r5, %[b]\n\t"
                       "smlad %[a], %[high], r6, %[a]\n\t"
                       "smlad %[b], %[high], r8, %[b]"
                       : [pair] "+&r"(pair), [columns] "+&r"(columns), [a] "+&r"(a), [b] "+&r"(b),
                         [low] "=&r"(low), [high] "=&r"(high)
                       :
                       : "r4", "r5", "r6", "r8", "memory");
    }
    sums[0] = a;
    sums[1] = b;
}

#endif
