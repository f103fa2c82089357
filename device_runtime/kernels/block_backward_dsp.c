/* Blocks of the backward pass with DSP instructions: input errors of layers with several taps, and
 * gradients of weights. In assembly for the reason of block_dsp.c, and entered in the same way. */
#include "block.h"

#if TF_DSP

#if !TF_MVE

TF_AT(tf_gradient_block, stream, 16);
TF_AT(tf_gradient_block, half, 32);
TF_AT(tf_gradient_block, loop, 44);

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
        ".rept 8\n\t" GRADIENT_STEP ".endr\n\t"
        "ldr r2, [sp, #20]\n\t"
        "cmp r0, r2\n\t"
        "bne tf_block_gradient_loop\n\t"

        "ldrd r0, r2, [sp, #36]\n\t" /* shift, largest */
        "mov r3, #0\n\t"
        "ldr r12, [sp]\n\t"
        TF_MAKE_ERRORS(r4, r8, r0, r3, r2)
        "str r4, [r12]\n\t"
        TF_MAKE_ERRORS(r5, r9, r0, r3, r2)
        "ldrd r4, r8, [sp, #4]\n\t"
        "str r5, [r12, r4]\n\t"
        TF_MAKE_ERRORS(r6, r10, r0, r3, r2)
        "ldr r5, [sp, #12]\n\t"
        "str r6, [r12, r8]\n\t"
        TF_MAKE_ERRORS(r7, r11, r0, r3, r2)
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
    block->loop = ((uint32_t)tf_block_gradient_loop | 1u) + ((0u - count) & 7u) * 64u;
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
                   "and r2, r2, #3\n\t"
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
                   ".rept 4\n\t" CORRELATE_STEP ".endr\n\t"
                   "ldr r2, [sp, #4]\n\t"
                   "cmp r0, r2\n\t"
                   "bne 1b\n\t"
                   "ldr lr, [sp, #44]\n\t"
                   "stmia lr, {r4-r11}\n\t"
                   "add sp, sp, #8\n\t"
                   "pop {r4-r11, pc}\n\t");
}

#endif
