/* Kernels: what the steps of a generated program call.
 *
 * Activations are int8 in HWC order, errors int16 in HWC order with one power-of-two scale
 * per tensor. Weights of depthwise layers are [Kh][Kw][C], of the head [O][I]. Those of full
 * convolutions are *packed*: a matrix of O rows of Kh * Kw * I values in row pairs (row_pairs.h).
 * The rules of every rounding stand in docs/specification/arithmetic.md. All pointers are
 * caller-owned; buffers may not overlap unless a function says so. Packed weights, biases and
 * scratch are aligned to 4 bytes, activations and errors need not be (errors: to 2).
 */
#ifndef TINYFLEET_KERNELS_H
#define TINYFLEET_KERNELS_H

#include <stdint.h>

#ifdef TF_KERNEL_SET
#include "tinyfleet/kernel_names.h"
#endif

/* Real factor word * 2^-(32 + shift), where the shift (1 … 22) is the word's lowest five bits: they
 * are part of the factor as well, which was rounded so that they come out right. */
typedef int32_t tf_multiplier;

/* Real factor mantissa * 2^exponent: mantissa in the upper 24 bits ([2^23, 2^24), or 0), signed
 * exponent in the lowest 8. */
typedef uint32_t tf_gain;

/* Scale of an error tensor: real = code * 2^exponent; magnitude = largest |code|. */
typedef struct {
    int32_t exponent;
    int32_t magnitude;
} tf_scale;

/* Size and arithmetic of a convolution, full or depthwise. Arrays have one entry per output
 * channel. What serves only the backward pass is NULL where no plan needs it. */
typedef struct {
    uint16_t in_height, in_width, in_channels;
    uint16_t out_height, out_width, out_channels;
    uint8_t kernel_height, kernel_width;
    uint8_t stride_height, stride_width;
    uint8_t pad_top, pad_left;
    int16_t in_zero, out_zero;
    const tf_multiplier *requantize;
    const uint8_t *pre_shift;        /* sums go left by this first, saturating; NULL: none does */
    int32_t bias_limit;              /* largest |bias| for which no accumulator overflows */
    const int16_t *error_multiplier; /* Q15, relative to 2^error_exponent */
    int8_t error_exponent;
    uint8_t error_headroom;     /* bits kept free in the scaled error, so that sums fit 32 bits */
    uint8_t error_shift;        /* from the sum to int16 */
    uint8_t gradient_shift;     /* > 0: weight gradients are summed in 64 bits, then shifted */
    const tf_gain *weight_gain; /* input scale / (output scale * weight scale) */
    const tf_gain *bias_gain;   /* 1 / (output scale * bias scale) */
} tf_convolution;

typedef struct {
    int16_t a_zero, b_zero, out_zero;
    int32_t a_multiplier, b_multiplier; /* real factor times 2^shift, at most 2^22 */
    uint8_t shift;
    int16_t a_error_multiplier, b_error_multiplier; /* Q15 */
    int8_t a_error_exponent, b_error_exponent;
} tf_addition;

typedef struct {
    uint16_t pixels, channels;
    int16_t error_multiplier; /* Q14: 1/pixels relative to 2^error_exponent, at most 2^14 */
    int8_t error_exponent;
} tf_pooling;

/* Windows of a pool; none lies in the padding altogether. `overlap_bits` are kept free in an error,
 * so that the sum of all windows on one pixel fits 15 bits and a sign. */
typedef struct {
    uint16_t in_height, in_width, channels;
    uint16_t out_height, out_width;
    uint16_t height, width;
    uint16_t stride_height, stride_width;
    uint16_t pad_top, pad_left;
    uint8_t overlap_bits;
} tf_pool_window;

/* Mean under each window. Padding counts as zeros as far as `counted_...` goes. Tables have one
 * entry for each number of positions that a window counts, from `least_count` on. */
typedef struct {
    tf_pool_window window;
    uint16_t counted_top, counted_left, counted_bottom, counted_right;
    int16_t in_zero, out_zero;
    int32_t least_count;
    const tf_multiplier *requantize; /* NULL: the output has the input's scale, halves to even */
    uint8_t pre_shift;               /* sums go left by this before they are requantized */
    const int16_t *error_multiplier; /* Q15, relative to 2^error_exponent */
    int8_t error_exponent;
} tf_average_pooling;

/* `channels` channels from `first` on of a concatenation that has `all_channels`. */
typedef struct {
    uint32_t pixels;
    uint16_t all_channels, first, channels;
} tf_slice;

/* Entries of an axis: `runs` times `run` of them that lie side by side, from first[i] on. */
typedef struct {
    uint32_t outer, inner; /* places before the axis, elements behind it */
    uint16_t size;         /* of the axis in the input */
    uint16_t run, runs;
    const uint16_t *first;
    uint8_t overlap_bits; /* kept free in an error, so that the sum of an entry's copies fits */
} tf_selection;

/* All elements in another order: the output goes through `loops` axes, the outermost first, each of
 * so many entries that lie so far apart in the input, and finds `run` elements side by side at each
 * place. */
#define TF_MOST_LOOPS 8
typedef struct {
    uint32_t run;
    uint8_t loops; /* 1 to TF_MOST_LOOPS */
    const uint16_t *counts;
    const uint32_t *strides;
} tf_transposition;

/* A tensor that stands for a larger one: steps to its next row, column and channel, 0 where it has
 * one for all. Sums of all that an element stands for go right by `sum_shift` before they are added,
 * so that they fit 32 bits. */
typedef struct {
    uint16_t height, width, channels; /* of the larger one */
    uint32_t row, column;
    uint16_t channel, sum_shift;
} tf_broadcast;

/* Constants that stand for all elements: output code = (steps of the input * multiplier + offset),
 * rounded, >> shift; tables by the smaller tensor's place. What lies below zero has factors of its
 * own, or NULL. */
typedef struct {
    tf_broadcast by;
    const int32_t *multiplier; /* at most 2^22 */
    const int32_t *offset;     /* at most 2^29 */
    const int32_t *below;
    const int16_t *errors; /* Q15, relative to 2^error_exponent; NULL where no plan needs them */
    const int16_t *errors_below;
    int16_t in_zero, out_zero;
    uint8_t shift;
    int8_t error_exponent;
} tf_scaling;

/* Groups of `count` (at most 2^14) elements that lie one behind the other, each less its mean and by
 * its deviation, or where they aren't `centred` by the root of its mean square, then by constants:
 * output code = ((value * multiplier >> drop) + offset), rounded, >> shift, where a standardized value
 * has `bits` behind the point. */
typedef struct {
    uint32_t groups;
    uint16_t count;
    uint8_t lift; /* by which count times a code, less their sum or zero, may go left */
    uint8_t bits;
    uint64_t epsilon;          /* in steps of the input times count, squared, times 2^16 */
    const int16_t *multiplier; /* count of them, Q15, relative to 2^exponent */
    const int32_t *offset;     /* count of them, at most 2^29 */
    int16_t in_zero, out_zero;
    uint8_t drop, shift;
    int8_t exponent;
    uint8_t centred;
} tf_layer_normalization;

/* Elementwise product; `b` may be a smaller tensor. */
typedef struct {
    tf_broadcast b;
    int16_t a_zero, b_zero, out_zero;
    tf_multiplier requantize;
    uint8_t pre_shift;        /* products go left by this first, saturating */
    int16_t error_multiplier; /* Q15 */
    int8_t error_exponent;
} tf_product;

/* The same real values in another scale, clamped to the codes low … high. */
typedef struct {
    int16_t in_zero, out_zero;
    int8_t low, high;
    tf_multiplier requantize;
    uint8_t pre_shift;
    int16_t error_multiplier; /* Q15 */
    int8_t error_exponent;
} tf_requantization;

/* A function of each element. Tables have an entry for each code of the input, from -128 on. */
typedef struct {
    const int8_t *codes;
    const int16_t *slopes; /* Q15, relative to 2^slope_exponent; NULL where no plan needs them */
    int8_t slope_exponent;
} tf_lookup;

/* A recurrent cell over `steps` steps, from a state of zeros; the input has what it makes of the
 * input in all gates, in the order of ONNX's operator. Weights are [gate][unit][unit]. */
typedef struct {
    uint16_t steps, units;
    uint8_t last; /* 1: the output is the last state, not all of them */
    int16_t in_zero, out_zero;
    const int8_t *recurrent;
    const tf_multiplier *words; /* per row: from sums with states in Q15 to Q12 */
    const int32_t *inner_bias;  /* of a GRU whose reset comes after the product, else NULL */
    int32_t input_multiplier; /* at most 2^22: times a step of the input, >> input_shift, is Q12 */
    uint8_t input_shift;
    tf_multiplier requantize; /* from a state in Q15 to a code */
    uint8_t pre_shift;        /* states go left by this first, saturating */
    const int16_t *rows; /* their scales in Q15, relative to 2^row_exponent; NULL: not needed */
    int16_t row_exponent;
    uint8_t row_headroom;     /* bits kept free in errors, so that sums over rows fit 32 bits */
    int16_t error_multiplier; /* Q15 */
    int16_t error_exponent;
} tf_recurrence;

/* The output's pixel (y, x) is the input's in row row_by_y[y] + row_by_x[x] and column
 * column_by_y[y] + column_by_x[x], or real zeros where the input has none. `repeat_bits` are kept
 * free in an error, so that the sum over all copies of a pixel fits 15 bits and a sign. */
typedef struct {
    uint16_t in_height, in_width, channels;
    uint16_t out_height, out_width;
    int8_t zero;
    uint8_t repeat_bits;
    const int16_t *row_by_y, *row_by_x, *column_by_y, *column_by_x;
} tf_rearrangement;

/* What a head's outputs should be: the model's input, which has as many elements, or the sample's
 * targets, int16, little-endian, behind the input. */
typedef struct {
    uint16_t size;
    int16_t zero_point;   /* of the codes; targets have 0 */
    uint32_t targets_at;  /* bytes of the input before the targets; 0: it is the target itself */
    tf_gain target_scale; /* one step of a target in units of the head's output */
    tf_gain error_scale;  /* 2 * unit / size: real derivative per unit of difference */
} tf_target;

/* The same for outputs that are a tensor's codes: one unit is 1/256 of their scale, and errors are
 * those of the tensor, so that error_scale has its scale as a further factor. */
typedef struct {
    tf_target target;
    int16_t zero_point; /* of the tensor */
    tf_gain loss_scale; /* size / (2 * scale)^2: mean of squares from the sum of squared errors */
} tf_coded_target;

typedef struct {
    uint16_t in_channels, classes;
    int16_t in_zero;
    tf_gain loss;             /* logit unit * log2(e), to Q16 */
    int16_t error_multiplier; /* Q15 of the logit unit relative to 2^error_exponent */
    int8_t error_exponent;
    tf_gain weight_gain; /* logit unit / (weight step)^2 */
    tf_gain bias_gain;   /* 1 / logit unit */
} tf_head;

/* The rows of its output that a forward step computes, and how many rows of a tensor its buffers
 * hold: row y lies at y % ring. Whole tensors have ring == height. */
typedef struct {
    uint16_t first, end;
    uint16_t in_ring, out_ring;
} tf_span;

/* Weights of a convolution: those of the blob, and instead of those of `channels` (ascending
 * positions of the last axis) the current ones, which a plan trains. Both are packed (full
 * convolution: `trained` has rows of Kh * Kw * count) or plain (depthwise: [Kh][Kw][count]).
 * count == 0: nothing of it is trained, or everything, and then `fixed` points to that. */
typedef struct {
    const int8_t *fixed;
    const int8_t *trained;
    const uint16_t *channels;
    uint16_t count;
} tf_weights;

/* Where a plan's trained weights live. */
typedef struct {
    int8_t *weights;      /* of the trained channels only, packed or plain like tf_weights */
    int8_t *fractions;    /* q8.8: fractions in the same order; else NULL */
    int32_t *velocity;    /* see tf_update; same order; NULL where every step counts by itself */
    uint32_t first_value; /* index in the delta of the first value: counter of random bits */
    const uint16_t *channels; /* trained positions of the last axis, ascending */
    uint16_t count;
    uint16_t
        in_channels; /* of the layer's input as the update gets it: all of them or, `count`, the
                             trained ones, as tf_keep_channels leaves them */
} tf_trained;

/* One step of SGD. With velocities (gradients added up over several samples, or momentum), a step
 * adds its change to the velocity; the last sample of a batch applies it and then keeps
 * momentum_q8 / 256 of it. */
typedef struct {
    uint32_t learning_rate_q20;
    uint32_t seed; /* seed, step_index and the value's index in the delta make the random bits */
    uint32_t step_index;
    uint16_t momentum_q8;
    uint8_t apply; /* 1: last sample of a batch */
} tf_update;

/* ---- forward. `mask` (size/8 bytes, rounded up) gets a 1 where the clamp lets gradients
 * through; NULL where nothing needs it. ---- */

/* Rows span->first … span->end - 1 of the output; a mask only with all of them. `at_once` pixels (a
 * multiple of four) are taken at a time, whose inputs are read before their outputs are written: the
 * output of a pointwise layer (1 x 1, stride 1, no padding) may lie in its input's place, or up to
 * any amount before it so long as no later input is overwritten. The same goes for rows of other
 * layers. */
void tf_convolution_forward(const tf_convolution *layer, const tf_span *span, const int8_t *input,
                            const tf_weights *weights, const int32_t *bias, int8_t *output,
                            uint8_t *mask, int16_t *scratch, uint32_t at_once);
/* Channel by channel, each as a plane of its own: where all rows are asked for, the output may begin
 * where the input does. */
void tf_depthwise_forward(const tf_convolution *layer, const tf_span *span, const int8_t *input,
                          const tf_weights *weights, const int32_t *bias, int8_t *output,
                          uint8_t *mask, int16_t *scratch);
/* The first `size` elements; output may be a or b. */
void tf_add_forward(const tf_addition *layer, const int8_t *a, const int8_t *b, int8_t *output,
                    uint8_t *mask, uint32_t size);
void tf_pool_forward(const tf_pooling *layer, const int8_t *input, int8_t *output);
/* places: where the first of the largest lies in its window (row * width + column), for the gradient;
 * one byte per output, two where a window has more than 256 positions; or NULL. Pixels of the output
 * may lie over the input's as codegen/program/streaming.py says (pools). */
void tf_max_pool_forward(const tf_pool_window *window, const int8_t *input, int8_t *output,
                         uint8_t *places);
void tf_average_pool_forward(const tf_average_pooling *layer, const int8_t *input, int8_t *output,
                             uint8_t *mask);
/* Copies one input of a concatenation to its channels of the output. */
void tf_concat_forward(const tf_slice *slice, const int8_t *input, int8_t *output);
/* Copies `count` channels, ascending, of an input of `all`, for a later update of their weights. */
void tf_keep_channels(const uint16_t *channels, uint32_t count, const int8_t *input, uint32_t all,
                      uint32_t pixels, int8_t *kept);
void tf_expand_forward(const tf_broadcast *layer, const int8_t *input, int8_t *output);
/* output may be a; b as well, where both are of one size. */
void tf_product_forward(const tf_product *layer, const int8_t *a, const int8_t *b, int8_t *output,
                        uint8_t *mask);
/* states: NULL, or room for what the gradient needs, 2 bytes for each unit and step. scratch: 18 bytes
 * for each unit. */
void tf_gru_forward(const tf_recurrence *layer, const int8_t *input, int8_t *output, uint8_t *mask,
                    int32_t *states, int32_t *scratch);
/* The same; states: 6 bytes for each unit and step, scratch: 24 for each unit. */
void tf_lstm_forward(const tf_recurrence *layer, const int8_t *input, int8_t *output, uint8_t *mask,
                     int32_t *states, int32_t *scratch);
void tf_rearrange_forward(const tf_rearrangement *layer, const int8_t *input, int8_t *output);
/* output may be the input itself. */
void tf_scaling_forward(const tf_scaling *layer, const int8_t *input, int8_t *output,
                        uint8_t *mask);
/* output may be the input itself. */
void tf_layer_normalization_forward(const tf_layer_normalization *layer, const int8_t *input,
                                    int8_t *output, uint8_t *mask);
void tf_gather_forward(const tf_selection *layer, const int8_t *input, int8_t *output);
void tf_transpose_forward(const tf_transposition *layer, const int8_t *input, int8_t *output);
/* output may be the input itself. */
void tf_lookup_forward(const tf_lookup *layer, const int8_t *input, int8_t *output, uint32_t size);
/* output may be the input itself. */
void tf_requantize_forward(const tf_requantization *layer, const int8_t *input, int8_t *output,
                           uint8_t *mask, uint32_t size);
void tf_head_forward(const tf_head *layer, const int8_t *input, const int16_t *weights,
                     const int32_t *bias, int32_t *logits);

/* Cross entropy of softmax(logits) against `label`: returns nats times 2^16 and writes the
 * error of the logits (probability minus target; real units, not steps). */
uint32_t tf_cross_entropy(const tf_head *layer, const int32_t *logits, int32_t label,
                          int16_t *error, tf_scale *scale);

/* Mean over the outputs, at most 16, of the binary cross entropy of sigmoid(logit) against their
 * bits of `label` (output 0: the lowest): as above. */
uint32_t tf_binary_cross_entropy(const tf_head *layer, const int32_t *logits, int32_t label,
                                 int16_t *error, tf_scale *scale);

/* Mean of (values - target)^2 in real units: returns it times 2^16 (at most 2^32 - 1) and writes the
 * error of the values (in real units, not steps). `sample` is the input, and what follows it. */
uint32_t tf_mean_squared_error(const tf_target *target, const int32_t *values, const int8_t *sample,
                               int16_t *error, tf_scale *scale);
/* The same of outputs that are a tensor's codes; writes the tensor's error. */
uint32_t tf_coded_squared_error(const tf_coded_target *target, const int8_t *codes,
                                const int8_t *sample, int16_t *error, tf_scale *scale);

/* ---- backward. Errors come with their scale and leave with one. ---- */

/* error[i] = 0 where the mask has no bit; in place. */
void tf_error_mask(int16_t *error, tf_scale *scale, const uint8_t *mask, uint32_t size);
/* a += b, both as real values; in place in a. */
void tf_error_sum(int16_t *a, tf_scale *a_scale, const int16_t *b, const tf_scale *b_scale,
                  uint32_t size);
/* out = error * multiplier * 2^(exponent - 15); out may be error itself. */
void tf_error_scale(const int16_t *error, const tf_scale *scale, int16_t multiplier,
                    int32_t exponent, uint32_t size, int16_t *out, tf_scale *out_scale);
/* input: the codes that the forward kernel has seen; out may be error itself. */
void tf_lookup_input_gradient(const tf_lookup *layer, const int16_t *error, const tf_scale *scale,
                              const int8_t *input, uint32_t size, int16_t *out,
                              tf_scale *out_scale);
void tf_pool_input_gradient(const tf_pooling *layer, const int16_t *error, const tf_scale *scale,
                            int16_t *out, tf_scale *out_scale);
void tf_max_pool_input_gradient(const tf_pool_window *window, const int16_t *error,
                                const tf_scale *scale, const uint8_t *places, int16_t *out,
                                tf_scale *out_scale);
void tf_average_pool_input_gradient(const tf_average_pooling *layer, const int16_t *error,
                                    const tf_scale *scale, int16_t *out, tf_scale *out_scale);
void tf_concat_input_gradient(const tf_slice *slice, const int16_t *error, const tf_scale *scale,
                              int16_t *out, tf_scale *out_scale);
/* scratch: 4 bytes for each element of out. */
void tf_expand_input_gradient(const tf_broadcast *layer, const int16_t *error,
                              const tf_scale *scale, int16_t *out, tf_scale *out_scale,
                              int32_t *scratch);
/* input, states: what the forward kernel has seen and kept. scratch: 32 bytes for each unit, and 4 for
 * each step. */
void tf_gru_input_gradient(const tf_recurrence *layer, const int16_t *error, const tf_scale *scale,
                           const int8_t *input, const int32_t *states, int16_t *out,
                           tf_scale *out_scale, int32_t *scratch);
/* The same; scratch: 38 bytes for each unit, and 4 for each step. */
void tf_lstm_input_gradient(const tf_recurrence *layer, const int16_t *error, const tf_scale *scale,
                            const int8_t *input, const int32_t *states, int16_t *out,
                            tf_scale *out_scale, int32_t *scratch);
/* Of the input that is as large as the output; `other` are the codes of the other one, `zero` its
 * zero point. out may be error itself. */
void tf_product_input_gradient(const tf_product *layer, const int16_t *error, const tf_scale *scale,
                               const int8_t *other, int32_t zero, int16_t *out,
                               tf_scale *out_scale);
/* Of `b` where it is smaller. scratch: 4 bytes for each of its elements. */
void tf_product_reduced_gradient(const tf_product *layer, const int16_t *error,
                                 const tf_scale *scale, const int8_t *a, int16_t *out,
                                 tf_scale *out_scale, int32_t *scratch);
void tf_rearrange_input_gradient(const tf_rearrangement *layer, const int16_t *error,
                                 const tf_scale *scale, int16_t *out, tf_scale *out_scale);
/* input: the codes that the forward kernel has seen, read where there are factors below zero. out may
 * be error itself. */
void tf_scaling_input_gradient(const tf_scaling *layer, const int16_t *error, const tf_scale *scale,
                               const int8_t *input, int16_t *out, tf_scale *out_scale);
/* input: the codes that the forward kernel has seen. out may be error itself. */
void tf_layer_normalization_input_gradient(const tf_layer_normalization *layer,
                                           const int16_t *error, const tf_scale *scale,
                                           const int8_t *input, int16_t *out, tf_scale *out_scale);
/* An entry's error is the sum of those of its copies, 0 where it has none. */
void tf_gather_input_gradient(const tf_selection *layer, const int16_t *error,
                              const tf_scale *scale, int16_t *out, tf_scale *out_scale);
void tf_transpose_input_gradient(const tf_transposition *layer, const int16_t *error,
                                 const tf_scale *scale, int16_t *out, tf_scale *out_scale);
void tf_head_input_gradient(const tf_head *layer, const int16_t *error, const tf_scale *scale,
                            const int16_t *weights, int16_t *out, tf_scale *out_scale);
/* Working copies of a tensor that trains as a whole. */
typedef struct {
    int32_t *velocity;    /* see tf_update; or NULL */
    uint32_t first_value; /* index in the delta of the first value: counter of random bits */
} tf_whole;

void tf_head_update(const tf_head *layer, const int16_t *error, const tf_scale *scale,
                    const int8_t *input, int16_t *weights, const tf_whole *of_weights,
                    int32_t *bias, const tf_whole *of_bias, const tf_update *update);

/* Pointwise: `at_once` pixels (a multiple of four) are taken at a time, and out may lie over the error
 * like a forward output over its input; other layers have no use for it. With a single input channel,
 * two bytes behind the weights are read, too. */
void tf_convolution_input_gradient(const tf_convolution *layer, const int16_t *error,
                                   const tf_scale *scale, const tf_weights *weights, int16_t *out,
                                   tf_scale *out_scale, int16_t *scratch, uint32_t at_once);
/* Channel by channel, too: out may begin some pixels before the error, or at it. */
void tf_depthwise_input_gradient(const tf_convolution *layer, const int16_t *error,
                                 const tf_scale *scale, const tf_weights *weights, int16_t *out,
                                 tf_scale *out_scale, int16_t *scratch);
void tf_bias_update(const tf_convolution *layer, const int16_t *error, const tf_scale *scale,
                    int32_t *bias, const tf_whole *of_bias, const tf_update *update);
void tf_convolution_weight_update(const tf_convolution *layer, const int16_t *error,
                                  const tf_scale *scale, const int8_t *input,
                                  const tf_trained *trained, const tf_update *update,
                                  int16_t *scratch);
void tf_depthwise_weight_update(const tf_convolution *layer, const int16_t *error,
                                const tf_scale *scale, const int8_t *input,
                                const tf_trained *trained, const tf_update *update,
                                int16_t *scratch);

/* ---- scratch: bytes that a kernel needs beside its buffers, from the layer's sizes alone, the same
 * on all machines. The compiler asks these functions; they are in no firmware. `trained`: trained
 * channels of the weights (tf_weights' count); `rows`: the most that a span has. ---- */

uint32_t tf_convolution_forward_scratch_bytes(const tf_convolution *layer, uint32_t at_once);
uint32_t tf_convolution_input_gradient_scratch_bytes(const tf_convolution *layer, uint32_t trained,
                                                     uint32_t at_once);
uint32_t tf_convolution_weight_update_scratch_bytes(const tf_convolution *layer);
uint32_t tf_depthwise_forward_scratch_bytes(const tf_convolution *layer, uint32_t rows);
uint32_t tf_depthwise_input_gradient_scratch_bytes(const tf_convolution *layer);
uint32_t tf_depthwise_weight_update_scratch_bytes(const tf_convolution *layer);

#if defined(TF_KERNEL_SET) || defined(TF_KERNEL_SETS)
#include "tinyfleet/kernel_table.h"
#endif

#if defined(TF_KERNEL_SETS)
#include "tinyfleet/kernel_names.h"
#endif

#endif
