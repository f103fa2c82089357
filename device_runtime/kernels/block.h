/* Blocks: the inner products of four pixels with all rows of packed weights, and what follows.
 *
 * *Columns* hold what four output pixels see, or the scaled errors of four pixels. For DSP
 * instructions they are interleaved: two values of pixel 0, the same two of pixels 1, 2, 3, then
 * the next two of pixel 0. Every word of weights (two values of two rows) then meets the next four
 * words of columns: 16 products of 13 instructions, and all registers of the core in use. The
 * portable twins keep four plain columns, and so do vectors, for which they hold codes as they are:
 * 16 bytes of a column meet 16 of a row.
 */
#ifndef TINYFLEET_BLOCK_H
#define TINYFLEET_BLOCK_H

#include "pairs.h"
#include "tinyfleet/kernels.h"
#include "tinyfleet/row_pairs.h"

#define TF_BLOCK_PIXELS 4u

#if TF_MVE
typedef int8_t tf_column; /* a code; sums have the zero point taken out of them afterwards */
#else
typedef int16_t tf_column; /* a code less the zero point, or a scaled error */
#endif

/* Output pixels see one input pixel each, in the same order: blocks may go on from row to row.
 * Equal sizes say that no side has padding, of which the layer holds only top and left. */
static inline uint32_t tf_is_pointwise(const tf_convolution *layer) {
    return layer->kernel_height == 1 && layer->kernel_width == 1 && layer->stride_height == 1 &&
           layer->stride_width == 1 && layer->out_height == layer->in_height &&
           layer->out_width == layer->in_width;
}

/* Place of value `at` of `pixel` in columns of `length` values each: a packed length, like that of
 * the rows that they meet. */
static inline uint32_t tf_column_index(uint32_t length, uint32_t pixel, uint32_t at) {
#if TF_DSP && !TF_MVE
    (void)length;
    return (at >> 1) * 8u + pixel * 2u + (at & 1u);
#else
    return pixel * length + at;
#endif
}

#if TF_DSP && !TF_MVE
/* src[i] + minus (twice -zero) for 4 * `quads` values of four pixels, `step` apart, to columns. */
void tf_block_widen(int16_t *columns, const int8_t *src, uint32_t step, uint32_t quads,
                    uint32_t minus);
#endif

/* What tf_block_forward works on, made by tf_block_prepare for a layer; whoever calls sets output,
 * requantize, pre_shift, steps, weights, bias and output_end for every block, and what belongs to
 * the mask where there is one. block_dsp.c knows the place of every field. */
typedef struct {
    int32_t offsets[24]; /* by shift: half a step and the output's zero point */
    int8_t *output;
    const tf_multiplier *requantize;
    int32_t steps[3]; /* from the first pixel's output to the others': without a mask s, 2 s, 3 s */
    const int8_t *weights;
    const tf_column *columns;
    const int32_t *bias;
    const tf_column *columns_end; /* with DSP instructions: of those that the loop takes */
    const int8_t *output_end;     /* an even number of channels */
    const uint8_t *pre_shift;     /* NULL: no sum goes left */
    /* The mask: every eight channels, and at the end, a byte per pixel is written at mask and
     * mask + mask_steps; the last channel's bit is the highest. */
    const int8_t *mask_end; /* output of the first pixel where the first byte is full, or NULL */
    uint8_t *mask;
    int32_t mask_steps[3];
#if TF_MVE
    uint32_t values, step; /* of a column; from one to the next */
    uint32_t length;       /* of a row of weights, packed */
    int32_t in_zero, out_zero;
#elif TF_DSP
    uint32_t bits;              /* on the way */
    uint32_t loop, after, each; /* addresses of code */
#endif
} tf_forward_block;

static inline void tf_fill_offsets(int32_t offsets[24], int32_t zero) {
    offsets[0] = 0;
    for (int32_t shift = 1; shift < 24; shift++) {
        offsets[shift] = tf_requantize_offset(zero, shift);
    }
}

/* Sets the fields that a whole layer shares; `length` is a packed length. */
void tf_block_prepare(tf_forward_block *block, const tf_convolution *layer,
                      const tf_column *columns, uint32_t length, uint32_t with_mask);

/* Codes, and mask bits, of all channels of four pixels. */
void tf_block_forward(const tf_forward_block *block);

/* Gradients of weights are made of four input channels and two output channels at a time. */
#define TF_BLOCK_LANES 4u

typedef struct {
    int32_t of[2][TF_BLOCK_LANES]; /* output channel, input channel */
} tf_gradients;

/* Place of the input of `lane` at `pixel` in *planes* of `pixels` (an even number) each: for DSP
 * instructions interleaved like columns, two pixels of lane 0, of lane 1, … */
static inline uint32_t tf_plane_index(uint32_t pixels, uint32_t lane, uint32_t pixel) {
#if TF_DSP
    (void)pixels;
    return (pixel >> 1) * 2u * TF_BLOCK_LANES + 2u * lane + (pixel & 1u);
#else
    return lane * pixels + pixel;
#endif
}

#if TF_DSP
/* Sums of the products of planes and the errors of two output channels, `step` bytes from pixel to
 * pixel, over `pairs` (at least 1) of pixels. */
void tf_block_correlate(const int16_t *planes, const int16_t *error, uint32_t step, uint32_t pairs,
                        tf_gradients *sums);
#endif

#if TF_MVE

/* Errors of `count` channels times their multipliers, rounded, `shift` bits down. */
void tf_block_scale(const int16_t *error, const int16_t *multiplier, uint32_t count, int32_t shift,
                    int16_t *to);

#endif

/* A *stream* is what tf_block_gradient reads: for every two output channels of every tap, where
 * their weights begin (32 bits: bytes behind block->weights), then their scaled errors at the four
 * pixels. For vectors there are no offsets, and for each tap four rows with the errors of all
 * output channels, an even number of them. In int16: */
#define TF_STREAM_STEP (2u + 2u * TF_BLOCK_PIXELS)

typedef struct {
    int16_t *output;
    int32_t steps[3]; /* in bytes */
    const int16_t *stream, *stream_end;
    const int8_t *weights, *weights_end; /* four bytes per two input channels */
    int32_t half, shift;                 /* of the sums: half a step */
    uint32_t largest; /* |value| so far, at even and at odd channels: 16 bits each */
#if TF_MVE
    const uint16_t *taps;        /* those in the stream */
    uint32_t tap_bytes;          /* from the weights of one to those of the next */
    uint32_t outputs, row_bytes; /* channels, an even number; the weights of two of them */
#elif TF_DSP
    uint32_t loop; /* address of code */
#endif
} tf_gradient_block;

#if !TF_MVE
/* Sets the fields that follow from stream and stream_end. */
void tf_block_set_stream(tf_gradient_block *block, const int16_t *stream, uint32_t count);
#endif

/* Errors of an even number of input channels of four pixels; where `largest` becomes 32768, those
 * that are -32768 have still to be saturated to -32767. */
void tf_block_gradient(tf_gradient_block *block);

#endif
