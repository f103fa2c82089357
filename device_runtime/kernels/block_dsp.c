/* Blocks with DSP instructions. In assembly, since eight sums, two words of columns, two of weights
 * and two pointers are all registers there are: everything else waits on the stack. The loops are
 * unrolled and entered where what is left over takes them to their end.
 *
 * Naked functions: compilers make no code of their own for them. The numbers in brackets are
 * offsets of fields of the copied block, then of what the prologue puts behind it. */
#include "block.h"

#if TF_DSP

#if !TF_MVE

TF_AT(tf_forward_block, output, 96);
TF_AT(tf_forward_block, weights, 116);
TF_AT(tf_forward_block, columns_end, 128);
TF_AT(tf_forward_block, mask_end, 140);
TF_AT(tf_forward_block, each, 172);
TF_AT(tf_gradient_block, stream, 16);
TF_AT(tf_gradient_block, half, 32);
TF_AT(tf_gradient_block, loop, 44);

/* Four bytes at `src` to two words: low and high, by way of `even`. */
#define WIDEN(src, even, low, high)                     \
    "ldr r6, [" #src "], #4\n\t"                        \
    "sxtab16 " #high ", r1, r6, ror #8\n\t"             \
    "sxtab16 " #even ", r1, r6\n\t"                     \
    "pkhbt " #low ", " #even ", " #high ", lsl #16\n\t" \
    "pkhtb " #high ", " #high ", " #even ", asr #16\n\t"

__attribute__((naked)) void tf_block_widen(int16_t *columns __attribute__((unused)),
                                           const int8_t *src __attribute__((unused)),
                                           uint32_t step __attribute__((unused)),
                                           uint32_t quads __attribute__((unused)),
                                           uint32_t minus __attribute__((unused))) {
    __asm volatile("push {r4-r11, lr}\n\t"
                   "ldr r12, [sp, #36]\n\t"
                   "add r10, r1, r3, lsl #2\n\t"
                   "sub sp, sp, #8\n\t"
                   "strd r10, r12, [sp]\n\t" /* where the first pixel's values end; minus */
                   "mov lr, r2\n\t"
                   "mov r2, r1\n\t"
                   "add r3, r2, lr\n\t"
                   "add r4, r3, lr\n\t"
                   "add r5, r4, lr\n\t"
                   "mov r1, r12\n\t"
                   "1:\n\t" WIDEN(r5, r6, r9, lr) WIDEN(r4, r6, r8, r12) WIDEN(r3, r6, r7, r11)
                       WIDEN(r2, r1, r6, r10) /* the last one takes the place of minus */
                   "stmia r0!, {r6-r9}\n\t"
                   "stmia r0!, {r10, r11, r12, lr}\n\t"
                   "ldrd r6, r1, [sp]\n\t"
                   "cmp r2, r6\n\t"
                   "bne 1b\n\t"
                   "add sp, sp, #8\n\t"
                   "pop {r4-r11, pc}\n\t");
}

/* The last steps of every block, behind the loop: nothing is counted there. */
#define TAIL_STEPS 16u

#define STEP_BYTES 52u

/* 13 instructions of 4 bytes for one word of weights; r4-r7 and r8-r11: sums of two rows. */
#define FORWARD_STEP              \
    "ldr r12, [r1], #4\n\t"       \
    "ldrd r2, r3, [r0], #8\n\t"   \
    "sxtb16 lr, r12\n\t"          \
    "sxtb16 r12, r12, ror #8\n\t" \
    "smlad r4, r2, lr, r4\n\t"    \
    "smlad r5, r3, lr, r5\n\t"    \
    "smlad r8, r2, r12, r8\n\t"   \
    "smlad r9, r3, r12, r9\n\t"   \
    "ldrd r2, r3, [r0], #8\n\t"   \
    "smlad r6, r2, lr, r6\n\t"    \
    "smlad r7, r3, lr, r7\n\t"    \
    "smlad r10, r2, r12, r10\n\t" \
    "smlad r11, r3, r12, r11\n\t"

/* Four sums to codes; r0 and `offset` of their channel, r12 its shift. */
#define MAKE_CODES(a, b, c, d, offset)          \
    "smmla " #a ", " #a ", r0, " #offset "\n\t" \
    "smmla " #b ", " #b ", r0, " #offset "\n\t" \
    "smmla " #c ", " #c ", r0, " #offset "\n\t" \
    "smmla " #d ", " #d ", r0, " #offset "\n\t" \
    "asr " #a ", " #a ", r12\n\t"               \
    "asr " #b ", " #b ", r12\n\t"               \
    "asr " #c ", " #c ", r12\n\t"               \
    "asr " #d ", " #d ", r12\n\t"               \
    "ssat " #a ", #8, " #a "\n\t"               \
    "ssat " #b ", #8, " #b "\n\t"               \
    "ssat " #c ", #8, " #c "\n\t"               \
    "ssat " #d ", #8, " #d "\n\t"

/* One sum to a code in lr; `bit` of r12 if the clamp leaves it alone. */
#define MASK_CODE(a, bit)              \
    "smmla " #a ", " #a ", r0, r2\n\t" \
    "asr " #a ", " #a ", r1\n\t"       \
    "ssat lr, #8, " #a "\n\t"          \
    "cmp lr, " #a "\n\t"               \
    "it eq\n\t"                        \
    "orreq r12, r12, #" #bit "\n\t"

/* clang-format off */
__attribute__((naked)) void tf_block_forward(const tf_forward_block *block
                                             __attribute__((unused))) {
    __asm volatile(
        "push {r4-r11, lr}\n\t"
        "sub sp, sp, #196\n\t"
        "mov r12, sp\n\t"
        "ldmia r0!, {r1-r8}\n\t"
        "stmia r12!, {r1-r8}\n\t"
        "ldmia r0!, {r1-r8}\n\t"
        "stmia r12!, {r1-r8}\n\t"
        "ldmia r0!, {r1-r8}\n\t"
        "stmia r12!, {r1-r8}\n\t" /* 0: offsets */
        "ldmia r0!, {r1-r8}\n\t"
        "stmia r12!, {r1-r8}\n\t" /* 96: output, requantize, steps, weights, columns, bias */
        "ldmia r0, {r1-r11, lr}\n\t"
        "stmia r12, {r1-r11, lr}\n\t" /* 128: columns_end, output_end, pre_shift, mask_end, mask,
                                         mask_steps, bits, addresses */
        "ldr r1, [sp, #116]\n\t"

        "1:\n\t" /* two channels: all sums start from the biases */
        "ldrd r0, r2, [sp, #120]\n\t"
        "ldrd r4, r8, [r2], #8\n\t"
        "str r2, [sp, #124]\n\t"
        "ldr r12, [r1], #4\n\t"
        "ldrd r2, r3, [r0], #8\n\t"
        "sxtb16 lr, r12\n\t"
        "sxtb16 r12, r12, ror #8\n\t"
        "smlad r5, r3, lr, r4\n\t"
        "smlad r9, r3, r12, r8\n\t"
        "ldrd r6, r7, [r0], #8\n\t"
        "smlad r10, r6, r12, r8\n\t"
        "smlad r11, r7, r12, r8\n\t"
        "smlad r6, r6, lr, r4\n\t"
        "smlad r7, r7, lr, r4\n\t"
        "smlad r4, r2, lr, r4\n\t"
        "smlad r8, r2, r12, r8\n\t"
        "ldr pc, [sp, #164]\n\t"

        "tf_block_loop:\n\t"
        ".rept 16\n\t" FORWARD_STEP ".endr\n\t"
        "ldr r2, [sp, #128]\n\t"
        "cmp r0, r2\n\t"
        "bne tf_block_loop\n\t"

        "tf_block_tail:\n\t"
        ".rept 16\n\t" FORWARD_STEP ".endr\n\t"
        "ldr pc, [sp, #168]\n\t"

        "tf_block_raise:\n\t" /* doubled as often as the two channels' pre_shift says */
        "ldr r3, [sp, #136]\n\t"
        "ldrb r2, [r3], #1\n\t"
        "ldrb r12, [r3], #1\n\t"
        "str r3, [sp, #136]\n\t"
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
        "ldr pc, [sp, #172]\n\t"

        "tf_block_codes:\n\t"
        "ldrd r3, lr, [sp, #96]\n\t" /* output, requantize */
        "ldr r0, [lr], #4\n\t"
        "and r12, r0, #31\n\t"
        "ldr r2, [sp, r12, lsl #2]\n\t"
        MAKE_CODES(r4, r5, r6, r7, r2)
        "ldr r2, [sp, #104]\n\t"
        "strb r5, [r3, r2]\n\t"
        "add r5, r2, r2, lsl #1\n\t"
        "strb r6, [r3, r2, lsl #1]\n\t"
        "strb r7, [r3, r5]\n\t"
        "strb r4, [r3], #1\n\t"
        "ldr r0, [lr], #4\n\t"
        "and r12, r0, #31\n\t"
        "ldr r4, [sp, r12, lsl #2]\n\t"
        MAKE_CODES(r8, r9, r10, r11, r4)
        "ldr r0, [sp, #132]\n\t"
        "strb r9, [r3, r2]\n\t"
        "strb r10, [r3, r2, lsl #1]\n\t"
        "strb r11, [r3, r5]\n\t"
        "strb r8, [r3], #1\n\t"
        "strd r3, lr, [sp, #96]\n\t"
        "cmp r3, r0\n\t"
        "bne 1b\n\t"
        "add sp, sp, #196\n\t"
        "pop {r4-r11, pc}\n\t"

        "tf_block_codes_and_mask:\n\t"
        "str r1, [sp, #116]\n\t"
        "ldrd r3, r1, [sp, #96]\n\t"
        "ldrd r0, lr, [r1], #8\n\t"
        "str r1, [sp, #100]\n\t"
        "str lr, [sp]\n\t" /* the other factor, in the place of an offset that is none */
        "ldr r12, [sp, #160]\n\t"
        "lsr r12, r12, #2\n\t"
        "and r12, r12, #0x3f3f3f3f\n\t"
        "and r1, r0, #31\n\t"
        "ldr r2, [sp, r1, lsl #2]\n\t"
        MASK_CODE(r4, 0x40)
        "ldr r4, [sp, #104]\n\t"
        "strb lr, [r3]\n\t"
        MASK_CODE(r5, 0x4000)
        "ldr r5, [sp, #108]\n\t"
        "strb lr, [r3, r4]\n\t"
        MASK_CODE(r6, 0x400000)
        "ldr r6, [sp, #112]\n\t"
        "strb lr, [r3, r5]\n\t"
        MASK_CODE(r7, 0x40000000)
        "strb lr, [r3, r6]\n\t"
        "ldr r0, [sp]\n\t"
        "add r3, r3, #1\n\t"
        "and r1, r0, #31\n\t"
        "ldr r2, [sp, r1, lsl #2]\n\t"
        MASK_CODE(r8, 0x80)
        "strb lr, [r3]\n\t"
        MASK_CODE(r9, 0x8000)
        "strb lr, [r3, r4]\n\t"
        MASK_CODE(r10, 0x800000)
        "strb lr, [r3, r5]\n\t"
        MASK_CODE(r11, 0x80000000)
        "strb lr, [r3, r6]\n\t"
        "ldr r1, [sp, #116]\n\t"
        "add r3, r3, #1\n\t"
        "str r3, [sp, #96]\n\t"
        "str r12, [sp, #160]\n\t"
        "ldr r0, [sp, #140]\n\t"
        "cmp r3, r0\n\t"
        "bne 1b\n\t"
        "add r0, r0, #8\n\t" /* a byte of every pixel is full */
        "ldrd r2, r4, [sp, #144]\n\t"
        "ldrd r5, r6, [sp, #152]\n\t"
        "strb r12, [r2]\n\t"
        "lsr r12, r12, #8\n\t"
        "strb r12, [r2, r4]\n\t"
        "lsr r12, r12, #8\n\t"
        "strb r12, [r2, r5]\n\t"
        "lsr r12, r12, #8\n\t"
        "strb r12, [r2, r6]\n\t"
        "add r2, r2, #1\n\t"
        "strd r0, r2, [sp, #140]\n\t"
        "ldr r0, [sp, #132]\n\t"
        "cmp r3, r0\n\t"
        "bne 1b\n\t"
        "add sp, sp, #196\n\t"
        "pop {r4-r11, pc}\n\t");
}
/* clang-format on */

extern const uint8_t tf_block_loop[], tf_block_tail[], tf_block_raise[], tf_block_codes[],
    tf_block_codes_and_mask[];

/* The address of code, as branches to a register want it. */
static uint32_t address_of(const uint8_t *label) {
    return (uint32_t)label | 1u;
}

void tf_block_prepare(tf_forward_block *block, const tf_convolution *layer, const int16_t *columns,
                      uint32_t length, uint32_t with_mask) {
    const uint32_t steps = length / 2u - 1u; /* one step goes before the loop */
    const uint32_t looped = steps > TAIL_STEPS ? steps - TAIL_STEPS : 0u;
    tf_fill_offsets(block->offsets, layer->out_zero);
    block->columns = columns;
    block->columns_end = columns + 2u * TF_BLOCK_PIXELS * (looped + 1u);
    block->each = address_of(with_mask ? tf_block_codes_and_mask : tf_block_codes);
    block->after = layer->pre_shift != NULL ? address_of(tf_block_raise) : block->each;
    block->loop = looped > 0u ? address_of(tf_block_loop) + ((0u - looped) & 15u) * STEP_BYTES
                              : address_of(tf_block_tail) + (TAIL_STEPS - steps) * STEP_BYTES;
}

/* 16 instructions of 4 bytes for one word of weights: what lies side by side in it are two input
 * channels of one output channel; the products want two output channels side by side. */
#define GRADIENT_STEP                \
    "ldr.w r2, [r0], #4\n\t"         \
    "ldr.w r12, [r1, r2]\n\t"        \
    "sxtb16 lr, r12\n\t"             \
    "sxtb16 r12, r12, ror #8\n\t"    \
    "pkhbt r3, lr, r12, lsl #16\n\t" \
    "pkhtb lr, r12, lr, asr #16\n\t" \
    "ldrd r2, r12, [r0], #8\n\t"     \
    "smlad r4, r2, r3, r4\n\t"       \
    "smlad r5, r12, r3, r5\n\t"      \
    "smlad r8, r2, lr, r8\n\t"       \
    "smlad r9, r12, lr, r9\n\t"      \
    "ldrd r2, r12, [r0], #8\n\t"     \
    "smlad r6, r2, r3, r6\n\t"       \
    "smlad r7, r12, r3, r7\n\t"      \
    "smlad r10, r2, lr, r10\n\t"     \
    "smlad r11, r12, lr, r11\n\t"

/* The sums of two channels of a pixel to a word of errors in `a`; r2: largest |error| so far. */
#define MAKE_ERRORS(a, b)                       \
    "asr " #a ", " #a ", r0\n\t"                \
    "asr " #b ", " #b ", r0\n\t"                \
    "ssat " #a ", #16, " #a "\n\t"              \
    "ssat " #b ", #16, " #b "\n\t"              \
    "pkhbt " #a ", " #a ", " #b ", lsl #16\n\t" \
    "ssub16 " #b ", r3, " #a "\n\t"             \
    "sel " #b ", " #b ", " #a "\n\t"            \
    "usub16 lr, " #b ", r2\n\t"                 \
    "sel r2, " #b ", r2\n\t"

/* clang-format off */
__attribute__((naked)) void tf_block_gradient(tf_gradient_block *block __attribute__((unused))) {
    __asm volatile(
        "push {r0, r4-r11, lr}\n\t"
        "sub sp, sp, #84\n\t"
        "mov r12, sp\n\t"
        "ldmia r0!, {r1-r8}\n\t"
        "stmia r12!, {r1-r8}\n\t" /* 0: output, steps, stream, its end, weights, their end */
        "ldmia r0, {r1-r4}\n\t"
        "stmia r12!, {r1-r4}\n\t" /* 32: half, shift, largest, loop */
        "mov r2, r1\n\t"
        "mov r3, r1\n\t"
        "mov r4, r1\n\t"
        "mov r5, r1\n\t"
        "mov r6, r1\n\t"
        "mov r7, r1\n\t"
        "mov r8, r1\n\t"
        "stmia r12, {r1-r8}\n\t" /* 48: half, eight times */
        "ldr r1, [sp, #24]\n\t"

        "1:\n\t" /* two input channels */
        "add r0, sp, #48\n\t"
        "ldmia r0, {r4-r11}\n\t"
        "ldr r0, [sp, #16]\n\t"
        "ldr pc, [sp, #44]\n\t"

        "tf_block_gradient_loop:\n\t"
        ".rept 16\n\t" GRADIENT_STEP ".endr\n\t"
        "ldr r2, [sp, #20]\n\t"
        "cmp r0, r2\n\t"
        "bne tf_block_gradient_loop\n\t"

        "ldrd r0, r2, [sp, #36]\n\t" /* shift, largest */
        "mov r3, #0\n\t"
        "ldr r12, [sp]\n\t"
        MAKE_ERRORS(r4, r8)
        "str r4, [r12]\n\t"
        MAKE_ERRORS(r5, r9)
        "ldrd r4, r8, [sp, #4]\n\t"
        "str r5, [r12, r4]\n\t"
        MAKE_ERRORS(r6, r10)
        "ldr r5, [sp, #12]\n\t"
        "str r6, [r12, r8]\n\t"
        MAKE_ERRORS(r7, r11)
        "str r7, [r12, r5]\n\t"
        "ldr r0, [sp, #28]\n\t"
        "add r1, r1, #4\n\t"
        "add r12, r12, #4\n\t"
        "str r2, [sp, #40]\n\t"
        "str r12, [sp]\n\t"
        "cmp r1, r0\n\t"
        "bne 1b\n\t"
        "add sp, sp, #84\n\t"
        "pop {r0, r4-r11, lr}\n\t"
        "str r2, [r0, #40]\n\t"
        "bx lr\n\t");
}
/* clang-format on */

extern const uint8_t tf_block_gradient_loop[];

void tf_block_set_stream(tf_gradient_block *block, const int16_t *stream, uint32_t count) {
    block->stream = stream;
    block->stream_end = stream + TF_STREAM_STEP * count;
    block->loop = address_of(tf_block_gradient_loop) + ((0u - count) & 15u) * 64u;
}

#endif

/* 16 instructions of 4 bytes for two pixels: their errors of two channels, then the inputs. */
#define CORRELATE_STEP              \
    "ldr.w r12, [sp]\n\t"           \
    "ldr.w r2, [r1]\n\t"            \
    "ldr.w r3, [r1, r12]\n\t"       \
    "add.w r1, r1, r12, lsl #1\n\t" \
    "pkhbt lr, r2, r3, lsl #16\n\t" \
    "pkhtb r2, r3, r2, asr #16\n\t" \
    "ldrd r3, r12, [r0], #8\n\t"    \
    "smlad r4, lr, r3, r4\n\t"      \
    "smlad r5, lr, r12, r5\n\t"     \
    "smlad r8, r2, r3, r8\n\t"      \
    "smlad r9, r2, r12, r9\n\t"     \
    "ldrd r3, r12, [r0], #8\n\t"    \
    "smlad r6, lr, r3, r6\n\t"      \
    "smlad r7, lr, r12, r7\n\t"     \
    "smlad r10, r2, r3, r10\n\t"    \
    "smlad r11, r2, r12, r11\n\t"

__attribute__((naked)) void tf_block_correlate(const int16_t *planes __attribute__((unused)),
                                               const int16_t *error __attribute__((unused)),
                                               uint32_t step __attribute__((unused)),
                                               uint32_t pairs __attribute__((unused)),
                                               tf_gradients *sums __attribute__((unused))) {
    __asm volatile("push {r4-r11, lr}\n\t"
                   "sub sp, sp, #8\n\t"
                   "add r12, r0, r3, lsl #4\n\t"
                   "strd r2, r12, [sp]\n\t" /* step; end of the planes */
                   "rsb r2, r3, #0\n\t"
                   "and r2, r2, #7\n\t"
                   "adr r3, 1f\n\t"
                   "add r3, r3, r2, lsl #6\n\t"
                   "mov r4, #0\n\t"
                   "mov r5, #0\n\t"
                   "mov r6, #0\n\t"
                   "mov r7, #0\n\t"
                   "mov r8, #0\n\t"
                   "mov r9, #0\n\t"
                   "mov r10, #0\n\t"
                   "mov r11, #0\n\t"
                   "add r3, r3, #1\n\t"
                   "bx r3\n\t"
                   ".balign 4\n\t"
                   "1:\n\t"
                   ".rept 8\n\t" CORRELATE_STEP ".endr\n\t"
                   "ldr r2, [sp, #4]\n\t"
                   "cmp r0, r2\n\t"
                   "bne 1b\n\t"
                   "ldr lr, [sp, #44]\n\t"
                   "stmia lr, {r4-r11}\n\t"
                   "add sp, sp, #8\n\t"
                   "pop {r4-r11, pc}\n\t");
}

#endif
