/* Mean squared error of a reconstruction against the model's input. */
#include "fixed_point.h"

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

/* Output less input in units of the output. */
static inline int32_t difference(const tf_reconstruction *layer, const int32_t *values,
                                 const int8_t *input, uint32_t i) {
    const int64_t wanted = scaled(layer->input_scale, input[i] - layer->input_zero);
    return tf_saturate32(values[i] - wanted);
}

uint32_t tf_mean_squared_error(const tf_reconstruction *layer, const int32_t *values,
                               const int8_t *input, int16_t *error, tf_scale *scale) {
    uint64_t largest = 0;
    for (uint32_t i = 0; i < layer->size; i++) {
        const int64_t d = difference(layer, values, input, i);
        const uint64_t size = (uint64_t)(d < 0 ? -d : d);
        largest = size > largest ? size : largest;
    }
    const int64_t mantissa = mantissa_of(layer->error_scale);
    const int32_t shift = tf_bit_length64(largest * (uint64_t)mantissa) - 15;
    int32_t magnitude = 0;
    uint64_t squares = 0;
    for (uint32_t i = 0; i < layer->size; i++) {
        const int64_t exact = difference(layer, values, input, i) * mantissa;
        const int32_t code = tf_clamp((int32_t)tf_round_shift(exact, shift), -32767, 32767);
        error[i] = (int16_t)code;
        tf_note_magnitude(&magnitude, code);
        squares += (uint64_t)(code * code);
    }
    scale->exponent = exponent_of(layer->error_scale) + shift;
    scale->magnitude = magnitude;
    /* error = 2 / size * d, so the mean of d^2 is the sum of the squared errors * size / 4. */
    const uint64_t total = squares * layer->size;
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
