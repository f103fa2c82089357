/* Four channels at once: products of int8 or int16 lanes, DSP instructions and portable twins. */
#ifndef TINYFLEET_LANES_H
#define TINYFLEET_LANES_H

#include "dot.h"

/* Weights of four channels for all taps of a depthwise kernel, split for the DSP instructions
 * once and used for every pixel. The portable twin reads the weights where they are. */
typedef struct {
    uint32_t taps; /* 0: not to be used */
    uint32_t channels;
    const int8_t *weights;
    const uint32_t *halves; /* two words a tap: channels (0, 2) and (1, 3) */
} tf_wide_taps;

/* `storage`: two words a tap; weights: [taps][channels], from the first of the four on. */
static inline void tf_widen_taps(tf_wide_taps *wide, uint32_t *storage, const int8_t *weights,
                                 uint32_t channels, uint32_t taps) {
    wide->taps = taps;
    wide->channels = channels;
    wide->weights = weights;
    wide->halves = storage;
#if TF_DSP
    for (uint32_t tap = 0; tap < taps; tap++) {
        const uint32_t word = tf_load32(weights + tap * channels);
        storage[2u * tap] = (uint32_t)tf_even(word);
        storage[2u * tap + 1u] = (uint32_t)tf_odd(word);
    }
#endif
}

/* sums[i] += (values[j * step + i] - zero) * weight[tap + j][i] for j < count, i = 0 … 3. */
static inline __attribute__((always_inline)) void
tf_accumulate_taps(const tf_wide_taps *wide, uint32_t tap, const int8_t *values, uint32_t step,
                   int32_t zero, const uint32_t count, int32_t sums[4]) {
#if TF_DSP
    const uint32_t minus = tf_minus(zero);
    const uint32_t *halves = wide->halves + 2u * tap;
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
    for (uint32_t j = 0; j < count; j++, values += step, halves += 2) {
        const uint32_t word = tf_load32(values);
        const int32_t x02 = (int32_t)tf_even_plus(minus, word);
        const int32_t x13 = (int32_t)tf_odd_plus(minus, word);
        s0 = __smlabb(x02, (int32_t)halves[0], s0);
        s1 = __smlabb(x13, (int32_t)halves[1], s1);
        s2 = __smlatt(x02, (int32_t)halves[0], s2);
        s3 = __smlatt(x13, (int32_t)halves[1], s3);
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
#else
    const int8_t *weights = wide->weights + tap * wide->channels;
    for (uint32_t j = 0; j < count; j++, values += step, weights += wide->channels) {
        for (uint32_t i = 0; i < 4u; i++) {
            sums[i] += (values[i] - zero) * weights[i];
        }
    }
#endif
}

/* sums[i] += errors[i] * (values[i] - zero) for int16 errors and int8 values, i = 0 ... 3. */
static inline void tf_accumulate_s16(const int16_t *errors, const int8_t *values, int32_t zero,
                                     int32_t sums[4]) {
#if TF_DSP
    const uint32_t minus = tf_minus(zero);
    const int32_t e01 = (int32_t)tf_load32(errors), e23 = (int32_t)tf_load32(errors + 2);
    const uint32_t x = tf_load32(values);
    const int32_t x02 = (int32_t)tf_even_plus(minus, x);
    const int32_t x13 = (int32_t)tf_odd_plus(minus, x);
    sums[0] = __smlabb(e01, x02, sums[0]);
    sums[1] = __smlatb(e01, x13, sums[1]);
    sums[2] = __smlabt(e23, x02, sums[2]);
    sums[3] = __smlatt(e23, x13, sums[3]);
#else
    for (uint32_t i = 0; i < 4u; i++) {
        sums[i] += errors[i] * (values[i] - zero);
    }
#endif
}

#endif
