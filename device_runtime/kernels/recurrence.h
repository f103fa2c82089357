/* What recurrent cells share: gates from a table, products with the state, errors through time. */
#ifndef TINYFLEET_RECURRENCE_H
#define TINYFLEET_RECURRENCE_H

#include "pairs.h"

#define TF_ONE (1 << 15) /* 1 in Q15 */
#define TF_LARGEST_GRADIENT (1 << 30)

/* sigmoid((i - 256) / 32) in Q15, i = 0 … 512. */
extern const int16_t tf_sigmoid_table[513];

/* Q15 of an argument in Q12. What lies halfway is rounded towards where it saturates. */
static inline int32_t tf_sigmoid(int32_t x) {
    const int32_t held = tf_saturate16(x), rest = held & 127;
    const int16_t *entry = tf_sigmoid_table + 256 + (held >> 7);
    const int32_t half = 64 + (held >> 16); /* less one below zero */
#if TF_DSP
    const uint32_t shares = (uint32_t)(128 + rest * 65535); /* 128 - rest, rest */
    return __smlad((int16x2_t)tf_load32(entry), (int16x2_t)shares, half) >> 7;
#else
    return entry[0] + (((entry[1] - entry[0]) * rest + half) >> 7);
#endif
}

/* Q15 of half of an argument in Q12. */
static inline int32_t tf_tanh(int32_t twice) {
    return 2 * tf_sigmoid(twice) - TF_ONE;
}

/* Twice an argument in Q12, saturating. */
static inline int32_t tf_twice(int32_t x) {
#if TF_DSP
    return __qadd(x, x);
#else
    return 2 * tf_clamp(x, -16384, 16384);
#endif
}

/* a * b in Q15; |a * b| < 2^31 - 2^14. */
static inline int32_t tf_q15(int32_t a, int32_t b) {
    return (a * b + (1 << 14)) >> 15;
}

static inline int64_t tf_q15_wide(int64_t a, int32_t b) {
    return (a * b + (1 << 14)) >> 15;
}

static inline int32_t tf_hold_gradient(int64_t value) {
    return value > TF_LARGEST_GRADIENT    ? TF_LARGEST_GRADIENT
           : value < -TF_LARGEST_GRADIENT ? -TF_LARGEST_GRADIENT
                                          : (int32_t)value;
}

/* Q12 of a gate's argument, from a code of the input and a sum of products with the state. */
typedef struct {
    int32_t multiplier, offset, shift;
    const tf_multiplier *words;
} tf_gates;

/* From row `first` on. */
static inline tf_gates tf_gates_of(const tf_recurrence *layer, uint32_t first) {
    const int32_t half = 1 << (layer->input_shift - 1);
    const tf_gates gates = {
        .multiplier = layer->input_multiplier,
        .offset = half - layer->in_zero * layer->input_multiplier,
        .shift = layer->input_shift,
        .words = layer->words + first,
    };
    return gates;
}

/* What the input adds. */
static inline int32_t tf_gate_input(const tf_gates *by, int8_t code) {
    return (code * by->multiplier + by->offset) >> by->shift;
}

/* What the state adds. */
static inline int32_t tf_gate_state(const tf_gates *by, uint32_t row, int32_t sum) {
    const tf_requantizer to = tf_make_requantizer(by->words[row], 0);
    return tf_requantize(&to, sum);
}

/* Errors of a state, `size` codes of 15 bits: real = code * 2^exponent; zeros of any. */
typedef struct {
    int16_t *codes;
    uint32_t size;
    int32_t exponent, magnitude;
} tf_carried;

/* sums[r] = products of `rows` rows of weights with a vector of `units`; `paired` is room for one. */
void tf_recurrent_products(const int8_t *weights, uint32_t rows, uint32_t units,
                           const int16_t *vector, int16_t *paired, int32_t *sums);

#if TF_DSP

/* Of `blocks` times four rows, `step` apart, with a vector's first values, `quads` times four. */
void tf_recurrent_rows(const int8_t *weights, uint32_t step, const int16_t *paired, uint32_t quads,
                       int32_t *sums, uint32_t blocks);

/* Of `blocks` times four columns with terms of the first rows, `quads` times four. */
void tf_recurrent_columns(const int8_t *weights, uint32_t step, const int16_t *terms,
                          uint32_t quads, int32_t *sums, uint32_t blocks);

#endif

/* Values as codes of 15 bits; returns the power of two of these. */
int32_t tf_normalize(const int32_t *values, uint32_t size, int16_t *codes, int32_t *magnitude);

/* Adds what arrives, `units` codes, to the first of what is carried; room: 4 bytes for each of it. */
void tf_merge_errors(tf_carried *carried, const int16_t *arriving, uint32_t units, int32_t headroom,
                     int32_t exponent, int32_t *room);

/* sums[k] = what the state gets of errors of `rows` rows from `first` on; `exponent` is that of their
 * codes, relative to the sums'. */
void tf_recurrent_back(const tf_recurrence *layer, uint32_t first, uint32_t rows, int16_t *codes,
                       int32_t exponent, int32_t *sums);

/* The cell's codes of one state, behind those so far. */
void tf_write_state(const tf_recurrence *layer, const int16_t *state, int8_t *output,
                    tf_mask_writer *mask);

/* Brings the errors of all steps, `width` codes each, from exponents of their own to one. */
void tf_gather_steps(const tf_recurrence *layer, const int32_t *exponents, uint32_t width,
                     int16_t *out, tf_scale *out_scale);

/* Of a step whose errors are all zero. */
#define TF_NO_EXPONENT INT32_MIN

#endif
