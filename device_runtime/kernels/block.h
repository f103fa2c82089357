/* Blocks: the inner products of two rows of weights with what four pixels see, and what follows.
 *
 * *Columns* hold what four output pixels see, or the scaled errors of four pixels. For DSP
 * instructions they are interleaved: two values of pixel 0, the same two of pixels 1, 2, 3, then
 * the next two of pixel 0. Two rows of weights are widened once for many blocks: two values of the
 * one, the same two of the other. Every four words of columns then meet two of weights: 16 products
 * of 11 instructions, and all registers of the core in use. The portable twins keep four plain
 * columns and two plain rows, and so do vectors, for which codes stay what they are: 16 bytes of a
 * column meet 16 of a row.
 */
#ifndef TINYFLEET_BLOCK_H
#define TINYFLEET_BLOCK_H

#include "fixed_point.h"
#include "pairs.h"
#include "tinyfleet/kernels.h"
#include "tinyfleet/row_pairs.h"

#define TF_BLOCK_PIXELS 4u

/* Vectors take the place of DSP instructions. */
#define TF_DSP_BLOCKS (TF_DSP && !TF_MVE)

/* What a forward pass sees. */
#if TF_MVE
typedef int8_t tf_column; /* codes: sums have the zero point taken out of them beforehand */
#else
typedef int16_t tf_column; /* codes less the zero point */
#endif

/* A pair's values: what codes meet, and what errors meet. */
#if TF_SMALL_CORE
typedef int8_t tf_forward_weight, tf_backward_weight; /* no instruction is saved by wider ones */
#elif TF_MVE
typedef int8_t tf_forward_weight;
typedef int16_t tf_backward_weight;
#else
typedef int16_t tf_forward_weight, tf_backward_weight;
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
#if TF_DSP_BLOCKS
    (void)length;
    return (at >> 1) * 8u + pixel * 2u + (at & 1u);
#else
    return pixel * length + at;
#endif
}

#if TF_DSP_BLOCKS
/* src[i] + minus (twice -zero) for 4 * `quads` values of four pixels, `step` apart, to columns; of
 * so many `blocks`, of which the next begins where the last pixel of one ends. */
void tf_block_widen(int16_t *columns, const int8_t *src, uint32_t step, uint32_t quads,
                    uint32_t minus, uint32_t blocks);
#endif

/* Place of value `at` of the first (0) or second (1) row of a widened pair of this packed length. */
static inline uint32_t tf_pair_index(uint32_t length, uint32_t row, uint32_t at) {
#if TF_DSP_BLOCKS
    (void)length;
    return 2u * at - (at & 1u) + 2u * row;
#elif TF_SMALL_CORE
    (void)length;
    return 2u * at + row; /* one register points at both */
#else
    return row * length + at;
#endif
}

/* For DSP instructions, of four rows those that lie in one word of packed weights are apart in columns:
 * 0, 2, 1, 3. */
static inline uint32_t tf_crossed(uint32_t at) {
#if TF_DSP_BLOCKS
    return (at & ~3u) | (at & 1u) << 1 | (at & 2u) >> 1;
#else
    return at;
#endif
}

/* Two rows of packed weights, widened. */
void tf_block_widen_pair(int16_t *pair, const int8_t *packed, uint32_t length);

/* Values 0 and 1 of `count` (even) rows of packed weights, `step` bytes from two rows to the next two:
 * a pair of two such columns, in which row `o` is value tf_crossed(o). */
void tf_block_widen_columns(int16_t *pair, const int8_t *packed, uint32_t step, uint32_t count);

#if TF_DSP
/* Assembler: two sums of a pixel to a word of errors in `a`, by way of `b` and lr. Registers: shift;
 * zero, which is 0; largest |error| so far, 16 bits for each of the two. */
#define TF_MAKE_ERRORS(a, b, shift, zero, largest) \
    "asr " #a ", " #a ", " #shift "\n\t"           \
    "asr " #b ", " #b ", " #shift "\n\t"           \
    "ssat " #a ", #16, " #a "\n\t"                 \
    "ssat " #b ", #16, " #b "\n\t"                 \
    "pkhbt " #a ", " #a ", " #b ", lsl #16\n\t"    \
    "ssub16 " #b ", " #zero ", " #a "\n\t"         \
    "sel " #b ", " #b ", " #a "\n\t"               \
    "usub16 lr, " #b ", " #largest "\n\t"          \
    "sel " #largest ", " #b ", " #largest "\n\t"
#endif

/* What becomes of the sums of a run. */
typedef enum {
    TF_RUN_CODES,          /* output codes */
    TF_RUN_CODES_AND_MASK, /* the same, and a bit for each that the clamp leaves alone */
    TF_RUN_ERRORS,         /* int16 errors */
} tf_run_kind;

/* A widened pair of rows with some blocks. block_dsp.c knows the place of every field. */
typedef struct {
    tf_requantizer first; /* errors: largest |error| so far, 16 bits for each row; 0; shift */
    void *output;         /* of the first pixel and row */
    uint32_t step;        /* bytes from a pixel's output to the next one's */
    tf_requantizer second;
    int32_t start[2]; /* of the sums */
    int16_t *pair;    /* widened: tf_forward_weight or tf_backward_weight */
    const int16_t *pair_end;
    const void *columns; /* tf_column, or int16 errors */
    uint32_t blocks;
    uint32_t *bits; /* mask: a word per block, a byte per pixel: goes right, new bits are highest */
    uint32_t pre_shift[2]; /* sums go left before they become codes, saturating */
#if TF_DSP_BLOCKS
    const int8_t *output_end;
    const int16_t *loop_end;
    uint32_t loop, after, each, second_codes; /* addresses of code */
#endif
    tf_run_kind kind;
    /* Of the pair that tf_block_run_pairs takes next: */
    const int8_t *packed;
    const tf_multiplier *requantize;
    const int32_t *bias;
    const uint8_t *raised; /* pre_shift, or NULL */
    int32_t twice_zero;    /* twice the output's zero point, and one */
    uint32_t length;
#if TF_MVE
    int32_t in_zero;
#elif TF_DSP
    uint32_t first_by_shift, second_by_shift, first_any, second_any; /* addresses of code */
#endif
} tf_block_run;

/* Sets what follows from the kind and from the fields that stay for a whole layer: pair, columns,
 * raised. */
void tf_block_prepare(tf_block_run *run, tf_run_kind kind, uint32_t length);

static inline void tf_block_aim(tf_block_run *run, void *output, uint32_t step) {
    run->output = output;
    run->step = step;
#if TF_DSP_BLOCKS
    run->output_end = (const int8_t *)output + TF_BLOCK_PIXELS * run->blocks * step;
#endif
}

/* Outputs of both rows for all blocks, which it has been aimed at. Errors: where the largest becomes
 * 32768, those that are -32768 have still to be saturated to -32767. */
void tf_block_run_all(tf_block_run *run);

/* Codes of the next `count` pairs of rows, which it widens; the run's output is the first one's. */
void tf_block_run_pairs(tf_block_run *run, uint32_t count);

/* Sets what becomes of the sums of channels whose words are these. */
static inline void tf_block_set_codes(tf_block_run *run, tf_multiplier first, tf_multiplier second,
                                      int32_t zero) {
    run->first = tf_make_requantizer(first, zero);
    run->second = tf_make_requantizer(second, zero);
#if TF_DSP_BLOCKS
    if (run->kind == TF_RUN_CODES) {
        run->each = run->first_any;
        run->second_codes = run->second_any;
        run->after = run->raised == NULL ? run->each : run->after;
    }
#endif
}

/* Sums of both rows for pixel `pixel` of the block at `columns`. */
void tf_block_single(const tf_block_run *run, const void *columns, uint32_t pixel, int32_t sums[2]);

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
