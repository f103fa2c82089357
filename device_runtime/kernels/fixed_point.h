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

/* How sums of one channel become output codes: ((high word of sum * word) + offset) >> shift,
 * where the offset holds half a step and the zero point. */
typedef struct {
    int32_t word, offset, shift;
} tf_requantizer;

/* Shifts are 1 … 23. */
static inline int32_t tf_requantize_offset(int32_t zero, int32_t shift) {
    return (2 * zero + 1) * (1 << (shift - 1));
}

static inline tf_requantizer tf_make_requantizer(tf_multiplier word, int32_t zero) {
    const int32_t shift = word & 31;
    const tf_requantizer r = {word, tf_requantize_offset(zero, shift), shift};
    return r;
}

/* Upper word of a product. */
static inline int32_t tf_high_product(int32_t a, int32_t b) {
#if defined(__ARM_ARCH) && __ARM_ARCH == 6
    /* By halves: Armv6-M multiplies 32 bits by 32 bits to 32, and its library takes its time. */
    const uint32_t a_low = (uint32_t)a & 0xffffu, b_low = (uint32_t)b & 0xffffu;
    const int32_t a_high = a >> 16, b_high = b >> 16;
    const int32_t middle = a_high * (int32_t)b_low + (int32_t)(a_low * b_low >> 16);
    const int32_t rest = (int32_t)a_low * b_high + (middle & 0xffff);
    return a_high * b_high + (middle >> 16) + (rest >> 16);
#else
    return (int32_t)(((int64_t)a * b) >> 32);
#endif
}

/* The output code before the clamp; `raised` is the sum after its pre_shift. */
static inline int32_t tf_requantize(const tf_requantizer *by, int32_t raised) {
#if defined(__ARM_FEATURE_DSP)
    int32_t sum;
    __asm("smmla %0, %1, %2, %3" : "=r"(sum) : "r"(raised), "r"(by->word), "r"(by->offset));
    return sum >> by->shift;
#else
    return (tf_high_product(raised, by->word) + by->offset) >> by->shift;
#endif
}

static inline int32_t tf_raise(int32_t sum, int32_t pre_shift) {
    return (int32_t)((uint32_t)sum << pre_shift);
}

/* The same for sums that may not fit: what saturates is far outside of the output's codes. */
static inline int32_t tf_raise_saturating(int32_t sum, int32_t pre_shift) {
    const int32_t limit = INT32_MAX >> pre_shift;
    return tf_raise(tf_clamp(sum, -limit, limit), pre_shift);
}

static inline int32_t tf_clamp8(int32_t value) {
#if defined(__ARM_FEATURE_DSP)
    int32_t clamped;
    __asm("ssat %0, #8, %1" : "=r"(clamped) : "r"(value));
    return clamped;
#else
    return tf_clamp(value, -128, 127);
#endif
}

/* To -32768 … 32767. */
static inline int32_t tf_saturate16(int32_t value) {
#if defined(__ARM_FEATURE_DSP)
    int32_t clamped;
    __asm("ssat %0, #16, %1" : "=r"(clamped) : "r"(value));
    return clamped;
#else
    return tf_clamp(value, -32768, 32767);
#endif
}

/* Mean code of `count` codes, halves to even; `sum` is that of the codes less `zero`. */
static inline int32_t tf_mean_code(int32_t sum, int32_t zero, int32_t count) {
    const int32_t raised = sum + (zero + 128) * count; /* not negative: / floors */
    int32_t mean = raised / count;
    const int32_t rest = 2 * (raised - mean * count);
    if (rest > count || (rest == count && (mean & 1) != 0)) {
        mean++;
    }
    return mean - 128;
}

/* ORs `count` (at most 8) bits into a mask from bit `index` on. */
static inline void tf_put_bits(uint8_t *mask, uint32_t index, uint32_t bits, uint32_t count) {
    const uint32_t first = index & 7u;
    mask[index >> 3] |= (uint8_t)(bits << first);
    if (first + count > 8u) {
        mask[(index >> 3) + 1u] |= (uint8_t)(bits >> (8u - first));
    }
}

/* A mask that is written bit by bit; `bytes` is NULL where none is wanted. */
typedef struct {
    uint8_t *bytes;
    uint32_t bits, count;
} tf_mask_writer;

static inline void tf_mask_put(tf_mask_writer *mask, uint32_t bit) {
    mask->bits |= bit << mask->count;
    if (++mask->count == 8u) {
        if (mask->bytes != NULL) {
            *mask->bytes++ = (uint8_t)mask->bits;
        }
        mask->bits = mask->count = 0;
    }
}

static inline void tf_mask_end(const tf_mask_writer *mask) {
    if (mask->bytes != NULL && mask->count > 0u) {
        *mask->bytes = (uint8_t)mask->bits;
    }
}

/* A gradient's factor for one step: gain * learning rate * 2^exponent, as mantissa * 2^-shift. */
typedef struct {
    int32_t mantissa; /* below 2^31 */
    int32_t shift;
} tf_step;

static inline tf_step tf_make_step(tf_gain gain, uint32_t learning_rate_q20, int32_t exponent) {
    const uint64_t product = (uint64_t)(gain >> 8) * learning_rate_q20;
    const int32_t gain_exponent = (int8_t)(gain & 0xffu);
    /* Word by word: variable shifts of 64 bits are long on 32-bit cores. */
    const uint32_t high = (uint32_t)(product >> 32), low = (uint32_t)product;
    const int32_t cut = high != 0 ? tf_bit_length(high) + 1 : (int32_t)(low >> 31);
    const uint32_t mantissa = high << (32 - cut) % 32 | low >> cut;
    const tf_step step = {(int32_t)mantissa, -(gain_exponent - 20 + cut + exponent)};
    return step;
}

static inline int32_t tf_saturate32(int64_t value) {
    return value > INT32_MAX ? INT32_MAX : (value < -INT32_MAX ? -INT32_MAX : (int32_t)value);
}

/* gradient * step for shifts that keep part of the low word (1 … 32), or go left. */
static inline int32_t tf_apply_large_step(int32_t gradient, tf_step step) {
    const int64_t product = (int64_t)gradient * step.mantissa;
    if (step.shift > 0) {
        /* Word by word: variable shifts of 64 bits are long on 32-bit cores. */
        const int64_t sum = product + (int64_t)(1u << (step.shift - 1));
        const int32_t high = (int32_t)(sum >> 32), sign = high < 0 ? -1 : 0;
        const uint32_t low = (uint32_t)sum >> 1 >> (step.shift - 1);
        const int32_t value = (int32_t)((uint32_t)high << (32 - step.shift) | low);
        if (high >> (step.shift - 1) != sign || value == INT32_MIN) {
            return sign < 0 ? -INT32_MAX : INT32_MAX;
        }
        return value;
    }
    if (product == 0) {
        return 0; /* whatever the shift */
    }
    const uint64_t size = (uint64_t)(product < 0 ? -product : product);
    if (tf_bit_length64(size) - step.shift > 31) {
        return product < 0 ? -INT32_MAX : INT32_MAX;
    }
    return tf_saturate32(tf_round_shift(product, step.shift));
}

/* gradient * step, rounded, saturated to 32 bits. */
static inline int32_t tf_apply_step(int32_t gradient, tf_step step) {
    if (step.shift >= 33 && step.shift <= 62) {
        /* Below the kept bits only the high word matters: the same value in 32-bit steps. */
        const int32_t high = tf_high_product(gradient, step.mantissa);
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

/* Of an error that grew in `out` piece by piece, once it is whole. */
static inline int32_t tf_largest_error(const int16_t *out, uint32_t size) {
    int32_t magnitude = 0;
    for (uint32_t i = 0; i < size; i++) {
        tf_note_magnitude(&magnitude, out[i]);
    }
    return magnitude;
}

/* Bits by which an error tensor can go left and still fit 15 bits and a sign. */
static inline int32_t tf_headroom(const tf_scale *scale) {
    return 15 - tf_bit_length((uint32_t)scale->magnitude);
}

/* How far it has to go right to leave so many bits free, so that sums of 2^bits of its values fit. */
static inline int32_t tf_shift_to_leave(const tf_scale *scale, int32_t bits) {
    const int32_t missing = bits - tf_headroom(scale);
    return missing > 0 ? missing : 0;
}

#endif
