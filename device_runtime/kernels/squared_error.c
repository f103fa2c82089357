/* Mean squared error of the model's outputs against its input, or against targets. */
#include "fixed_point.h"

#include <stdbool.h>
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

/* What the outputs are: wide values, or codes of a tensor, of which 2^8 units are one step. */
typedef struct {
    const int32_t *values;
    const int8_t *codes;
    int32_t zero_point;
    bool coded;
} outputs;

/* Output less target in units of the output. */
static inline int32_t difference(const tf_target *target, outputs made, const int8_t *sample,
                                 uint32_t i) {
    const int64_t wanted = scaled(target->target_scale, wanted_steps(target, sample, i));
    const int32_t output = made.coded ? (made.codes[i] - made.zero_point) * 256 : made.values[i];
    return tf_saturate32(output - wanted);
}

/* Writes the error and its scale; returns the sum of the squared error codes. */
static inline __attribute__((always_inline)) uint64_t write_error(const tf_target *target,
                                                                  outputs made,
                                                                  const int8_t *sample,
                                                                  int16_t *error, tf_scale *scale) {
    uint64_t largest = 0;
    for (uint32_t i = 0; i < target->size; i++) {
        const int64_t d = difference(target, made, sample, i);
        const uint64_t size = (uint64_t)(d < 0 ? -d : d);
        largest = size > largest ? size : largest;
    }
    const int64_t mantissa = mantissa_of(target->error_scale);
    const int32_t shift = tf_bit_length64(largest * (uint64_t)mantissa) - 15;
    int32_t magnitude = 0;
    uint64_t squares = 0;
    for (uint32_t i = 0; i < target->size; i++) {
        const int64_t exact = difference(target, made, sample, i) * mantissa;
        const int32_t code = tf_clamp((int32_t)tf_round_shift(exact, shift), -32767, 32767);
        error[i] = (int16_t)code;
        tf_note_magnitude(&magnitude, code);
        squares += (uint64_t)(code * code);
    }
    scale->exponent = exponent_of(target->error_scale) + shift;
    scale->magnitude = magnitude;
    return squares;
}

/* total * 2^left, at most 2^32 - 1. */
static uint32_t shifted(uint64_t total, int32_t left) {
    if (left < -63 || total == 0u) {
        return 0;
    }
    if (left <= 0) {
        const uint64_t loss = total >> -left;
        return loss > UINT32_MAX ? UINT32_MAX : (uint32_t)loss;
    }
    return tf_bit_length64(total) + left > 32 ? UINT32_MAX : (uint32_t)(total << left);
}

uint32_t tf_mean_squared_error(const tf_target *target, const int32_t *values, const int8_t *sample,
                               int16_t *error, tf_scale *scale) {
    const outputs made = {values, NULL, 0, false};
    const uint64_t squares = write_error(target, made, sample, error, scale);
    /* error = 2 / size * d, so the mean of d^2 is the sum of the squared errors * size / 4. */
    return shifted(squares * target->size, 2 * scale->exponent - 2 + 16);
}

uint32_t tf_coded_squared_error(const tf_coded_target *target, const int8_t *codes,
                                const int8_t *sample, int16_t *error, tf_scale *scale) {
    const outputs made = {NULL, codes, target->zero_point, true};
    const uint64_t squares = write_error(&target->target, made, sample, error, scale);
    /* Of the sum, 40 bits leave room for the mantissa's 24. */
    const int32_t length = tf_bit_length64(squares), dropped = length > 40 ? length - 40 : 0;
    const uint64_t total = (squares >> dropped) * (uint64_t)mantissa_of(target->loss_scale);
    return shifted(total, 2 * scale->exponent + exponent_of(target->loss_scale) + dropped + 16);
}
