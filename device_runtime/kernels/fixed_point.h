/* Rounding and scaling that several kernels share (docs/specification/arithmetic.md). */
#ifndef TINYFLEET_FIXED_POINT_H
#define TINYFLEET_FIXED_POINT_H

#include <stddef.h>
#include <stdint.h>

#include "tinyfleet/kernels.h"

#define TF_Q88_LIMIT 32512 /* 127 in q8.8 */

static inline int32_t tf_clamp(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : (value > high ? high : value);
}

/* Number of bits of |value|: 0 for 0, 15 for 32767. */
static inline int32_t tf_bit_length(uint32_t value) {
    return value == 0 ? 0 : 32 - __builtin_clz(value);
}

static inline int32_t tf_bit_length64(uint64_t value) {
    const uint32_t high = (uint32_t)(value >> 32);
    return high != 0 ? 32 + tf_bit_length(high) : tf_bit_length((uint32_t)value);
}

/* Round half up by `shift` bits; negative shifts go left. |shift| <= 62, no overflow. */
static inline int64_t tf_round_shift(int64_t value, int32_t shift) {
    if (shift <= 0) {
        return value * ((int64_t)1 << -shift);
    }
    return (value + ((int64_t)1 << (shift - 1))) >> shift;
}

/* The same for 32 bits: 0 <= shift <= 30, |value| + 2^(shift-1) fits. */
static inline int32_t tf_round_shift32(int32_t value, int32_t shift) {
    return shift == 0 ? value : (value + (1 << (shift - 1))) >> shift;
}

/* The output code of channel `channel` before the clamp. */
static inline int32_t tf_requantize(const tf_convolution *layer, uint32_t channel, int32_t sum) {
    const tf_multiplier *by = &layer->requantize[channel];
    const int32_t raised = (int32_t)((uint32_t)sum << layer->pre_shift);
    const int32_t high = (int32_t)(((int64_t)raised * by->mantissa) >> 32);
    return ((high + (1 << (by->shift - 1))) >> by->shift) + layer->out_zero;
}

/* Stores the clamped value and, where asked for, whether the clamp let it through. */
static inline void tf_store_clamped(int32_t value, int8_t *output, uint8_t *mask, uint32_t index) {
    const int32_t clamped = tf_clamp(value, -128, 127);
    output[index] = (int8_t)clamped;
    if (mask != NULL && clamped == value) {
        mask[index >> 3] |= (uint8_t)(1u << (index & 7u));
    }
}

/* A gradient's factor for one step: gain * learning rate * 2^exponent, as mantissa * 2^-shift. */
typedef struct {
    int32_t mantissa; /* below 2^31 */
    int32_t shift;
} tf_step;

static inline tf_step tf_make_step(tf_gain gain, uint32_t learning_rate_q20, int32_t exponent) {
    const uint64_t product = (uint64_t)gain.mantissa * learning_rate_q20;
    const int32_t excess = tf_bit_length64(product) - 31;
    const int32_t cut = excess > 0 ? excess : 0;
    const tf_step step = {(int32_t)(product >> cut), -(gain.exponent - 20 + cut + exponent)};
    return step;
}

static inline int32_t tf_saturate32(int64_t value) {
    return value > INT32_MAX ? INT32_MAX : (value < -INT32_MAX ? -INT32_MAX : (int32_t)value);
}

/* gradient * step for shifts that keep part of the low word, or go left. */
static inline int32_t tf_apply_large_step(int32_t gradient, tf_step step) {
    const int64_t product = (int64_t)gradient * step.mantissa;
    if (step.shift < 0) {
        const uint64_t size = (uint64_t)(product < 0 ? -product : product);
        if (size != 0 && tf_bit_length64(size) - step.shift > 31) {
            return product < 0 ? -INT32_MAX : INT32_MAX;
        }
    }
    return tf_saturate32(tf_round_shift(product, step.shift));
}

/* gradient * step, rounded, saturated to 32 bits. */
static inline int32_t tf_apply_step(int32_t gradient, tf_step step) {
    if (step.shift >= 33 && step.shift <= 62) {
        /* Below the kept bits only the high word matters: the same value in 32-bit steps. */
        const int32_t high = (int32_t)(((int64_t)gradient * step.mantissa) >> 32);
        return (high + (1 << (step.shift - 33))) >> (step.shift - 32);
    }
    return step.shift > 62 ? 0 : tf_apply_large_step(gradient, step);
}

static inline void tf_note_magnitude(int32_t *magnitude, int32_t value) {
    const int32_t size = value < 0 ? -value : value;
    if (size > *magnitude) {
        *magnitude = size;
    }
}

/* Bits by which an error tensor can go left and still fit 15 bits and a sign. */
static inline int32_t tf_headroom(const tf_scale *scale) {
    return 15 - tf_bit_length((uint32_t)scale->magnitude);
}

#endif
