/* Mean squared error of the head's outputs against the model's input, or against targets. */
#include "fixed_point.h"

#include <string.h>

static inline int32_t mantissa_of(tf_gain gain) {
    return (int32_t)(gain >> 8);
}

static inline int32_t exponent_of(tf_gain gain) {
    return (int8_t)(gain & 0xffu);
}

/* factor * value, rounded; the shift is known to be small when the model is compiled. */
static inline int64_t scaled(tf_gain factor, int32_t value) {
    const int64_t product = (int64_t)value * mantissa_of(factor);
    return tf_round_shift(product, -exponent_of(factor));
}

static inline int32_t wanted_steps(const tf_target *target, const int8_t *sample, uint32_t i) {
    if (target->targets_at == 0u) {
        return sample[i] - target->zero_point;
    }
    int16_t code; /* an input of odd size leaves it unaligned */
    memcpy(&code, sample + target->targets_at + sizeof code * i, sizeof code);
    return code;
}

/* Output less target in units of the output. */
static inline int32_t difference(const tf_target *target, const int32_t *values,
                                 const int8_t *sample, uint32_t i) {
    const int64_t wanted = scaled(target->target_scale, wanted_steps(target, sample, i));
    return tf_saturate32(values[i] - wanted);
}

uint32_t tf_mean_squared_error(const tf_target *target, const int32_t *values, const int8_t *sample,
                               int16_t *error, tf_scale *scale) {
    uint64_t largest = 0;
    for (uint32_t i = 0; i < target->size; i++) {
        const int64_t d = difference(target, values, sample, i);
        const uint64_t size = (uint64_t)(d < 0 ? -d : d);
        largest = size > largest ? size : largest;
    }
    const int64_t mantissa = mantissa_of(target->error_scale);
    const int32_t shift = tf_bit_length64(largest * (uint64_t)mantissa) - 15;
    int32_t magnitude = 0;
    uint64_t squares = 0;
    for (uint32_t i = 0; i < target->size; i++) {
        const int64_t exact = difference(target, values, sample, i) * mantissa;
        const int32_t code = tf_clamp((int32_t)tf_round_shift(exact, shift), -32767, 32767);
        error[i] = (int16_t)code;
        tf_note_magnitude(&magnitude, code);
        squares += (uint64_t)(code * code);
    }
    scale->exponent = exponent_of(target->error_scale) + shift;
    scale->magnitude = magnitude;
    /* error = 2 / size * d, so the mean of d^2 is the sum of the squared errors * size / 4. */
    const uint64_t total = squares * target->size;
    const int32_t left = 2 * scale->exponent - 2 + 16;
    if (left < -63 || total == 0u) {
        return 0;
    }
    if (left <= 0) {
        const uint64_t loss = total >> -left;
        return loss > UINT32_MAX ? UINT32_MAX : (uint32_t)loss;
    }
    return tf_bit_length64(total) + left > 32 ? UINT32_MAX : (uint32_t)(total << left);
}
