/* Error tensors: masks, sums at forks, scaling. */
#include "fixed_point.h"

void tf_error_mask(int16_t *error, tf_scale *scale, const uint8_t *mask, uint32_t size) {
    int32_t magnitude = 0;
    for (uint32_t i = 0; i < size; i++) {
        if ((mask[i >> 3] >> (i & 7u) & 1u) == 0u) {
            error[i] = 0;
        } else {
            tf_note_magnitude(&magnitude, error[i]);
        }
    }
    scale->magnitude = magnitude;
}

static int32_t shifted(int32_t value, int32_t shift) {
    if (shift > 30) {
        return 0;
    }
    return shift < 0 ? value * (1 << -shift) : tf_round_shift32(value, shift);
}

void tf_error_sum(int16_t *a, tf_scale *a_scale, const int16_t *b, const tf_scale *b_scale,
                  uint32_t size) {
    if (b_scale->magnitude == 0) {
        return;
    }
    /* One bit above the larger of the two, so that the sum fits 15 bits and a sign. */
    int32_t top = b_scale->exponent + tf_bit_length((uint32_t)b_scale->magnitude);
    if (a_scale->magnitude != 0) {
        const int32_t a_top = a_scale->exponent + tf_bit_length((uint32_t)a_scale->magnitude);
        top = a_top > top ? a_top : top;
    }
    const int32_t exponent = top + 1 - 15;
    const int32_t a_shift = a_scale->magnitude == 0 ? 0 : exponent - a_scale->exponent;
    const int32_t b_shift = exponent - b_scale->exponent;
    int32_t magnitude = 0;
    for (uint32_t i = 0; i < size; i++) {
        const int32_t sum = shifted(a[i], a_shift) + shifted(b[i], b_shift);
        const int32_t value = tf_clamp(sum, -32767, 32767);
        a[i] = (int16_t)value;
        tf_note_magnitude(&magnitude, value);
    }
    a_scale->exponent = exponent;
    a_scale->magnitude = magnitude;
}

void tf_error_scale(const int16_t *error, const tf_scale *scale, int16_t multiplier,
                    int32_t exponent, uint32_t size, int16_t *out, tf_scale *out_scale) {
    const int32_t headroom = tf_headroom(scale);
    const int32_t shift = 15 - headroom;
    int32_t magnitude = 0;
    for (uint32_t i = 0; i < size; i++) {
        const int32_t value = tf_round_shift32(error[i] * multiplier, shift);
        out[i] = (int16_t)value;
        tf_note_magnitude(&magnitude, value);
    }
    out_scale->exponent = scale->exponent + exponent - headroom;
    out_scale->magnitude = magnitude;
}
