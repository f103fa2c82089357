/* Four channels at once: products of int8 or int16 lanes, DSP instructions and portable twins. */
#ifndef TINYFLEET_LANES_H
#define TINYFLEET_LANES_H

#include "dot.h"

/* sums[i] += (values[i] - zero) * factors[i] for int8 values and factors, i = 0 ... 3. */
static inline void tf_accumulate_s8(const int8_t *values, int32_t zero, const int8_t *factors,
                                    int32_t sums[4]) {
#if TF_DSP
    const uint32_t zeros = ((uint32_t)zero & 0xffffu) | ((uint32_t)zero << 16);
    const uint32_t x = tf_load32(values), w = tf_load32(factors);
    const int32_t x02 = (int32_t)__ssub16(tf_even(x), (int16x2_t)zeros);
    const int32_t x13 = (int32_t)__ssub16(tf_odd(x), (int16x2_t)zeros);
    const int32_t w02 = (int32_t)tf_even(w), w13 = (int32_t)tf_odd(w);
    sums[0] = __smlabb(x02, w02, sums[0]);
    sums[1] = __smlabb(x13, w13, sums[1]);
    sums[2] = __smlatt(x02, w02, sums[2]);
    sums[3] = __smlatt(x13, w13, sums[3]);
#else
    for (uint32_t i = 0; i < 4u; i++) {
        sums[i] += (values[i] - zero) * factors[i];
    }
#endif
}

/* sums[i] += errors[i] * (values[i] - zero) for int16 errors and int8 values, i = 0 ... 3. */
static inline void tf_accumulate_s16(const int16_t *errors, const int8_t *values, int32_t zero,
                                     int32_t sums[4]) {
#if TF_DSP
    const uint32_t zeros = ((uint32_t)zero & 0xffffu) | ((uint32_t)zero << 16);
    const int32_t e01 = (int32_t)tf_load32(errors), e23 = (int32_t)tf_load32(errors + 2);
    const uint32_t x = tf_load32(values);
    const int32_t x02 = (int32_t)__ssub16(tf_even(x), (int16x2_t)zeros);
    const int32_t x13 = (int32_t)__ssub16(tf_odd(x), (int16x2_t)zeros);
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
