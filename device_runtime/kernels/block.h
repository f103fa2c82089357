/* Blocks: the inner products of four pixels with all rows of packed weights, and what follows.
 *
 * *Columns* hold what four output pixels see, or the scaled errors of four pixels. For DSP
 * instructions they are interleaved: two values of pixel 0, the same two of pixels 1, 2, 3, then
 * the next two of pixel 0. Every word of weights (two values of two rows) then meets the next four
 * words of columns: 16 products of 13 instructions, and all registers of the core in use. The
 * portable twins keep four plain columns.
 */
#ifndef TINYFLEET_BLOCK_H
#define TINYFLEET_BLOCK_H

#include "dot.h"
#include "tinyfleet/kernels.h"

#define TF_BLOCK_PIXELS 4u

/* Rows of packed weights, and columns, are filled up to this. */
static inline uint32_t tf_packed_length(uint32_t length) {
    return (length + 3u) & ~3u;
}

/* Place of value `at` of `pixel` in columns of `length` values (tf_packed_length) each. */
static inline uint32_t tf_column_index(uint32_t length, uint32_t pixel, uint32_t at) {
#if TF_DSP
    (void)length;
    return (at >> 1) * 8u + pixel * 2u + (at & 1u);
#else
    return pixel * length + at;
#endif
}

/* What tf_block_forward works on, made by tf_block_prepare for a layer; whoever calls sets output,
 * steps, weights, trained, bias, requantize and output_end for every block, and what belongs to the
 * mask where there is one. block_dsp.c knows the place of every field. */
typedef struct {
    int8_t *output;
    int32_t steps[3]; /* from the first pixel's output to the others' */
    const int16_t *columns;
    const int8_t *weights;
    const int32_t *bias;
    const tf_multiplier *requantize;
    const int8_t *trained;
    const int16_t *columns_end, *trained_end; /* columns of the trained channels lie behind */
    const int8_t *output_end;                 /* an even number of channels */
    int32_t twice_zero_plus1;                 /* of the output's zero point */
    int32_t pre_shift;
    /* The mask: every eight channels, and at the end, a byte per pixel is written at mask and
     * mask + mask_steps; the last channel's bit is the highest. */
    const int8_t *mask_end; /* output of the first pixel where the first byte is full, or NULL */
    uint8_t *mask;
    int32_t mask_steps[3];
#if TF_DSP
    uint32_t bits, words[2];                        /* on the way */
    uint32_t loop, trained_loop, after, last, each; /* addresses of code */
#endif
} tf_forward_block;

/* Sets the fields that a whole layer shares. `length` and `trained_length` are packed lengths. */
void tf_block_prepare(tf_forward_block *block, const tf_convolution *layer, const int16_t *columns,
                      uint32_t length, uint32_t trained_length, uint32_t with_mask);

/* Codes, and mask bits, of all channels of four pixels. */
void tf_block_forward(const tf_forward_block *block);

/* What tf_block_gradient works on: columns of scaled errors, in `taps` pieces of `pairs` * 2
 * values. Weights of a piece begin `offsets` (32 bits each) bytes behind `weights`, and those of
 * the next two output channels row_bytes later. */
typedef struct {
    int16_t *output;
    int32_t steps[3]; /* in bytes */
    const int16_t *columns;
    const int16_t *offsets;
    uint32_t taps, pairs;
    const int8_t *weights, *weights_end; /* four bytes per two input channels */
    uint32_t row_bytes;
    int32_t shift, half;        /* of the sums; half a step */
    uint32_t largest, smallest; /* int16 pairs: of all values so far, at even and odd channels */
} tf_gradient_block;

/* Errors of an even number of input channels of four pixels. */
void tf_block_gradient(tf_gradient_block *block);

#endif
