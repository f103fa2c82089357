/* Elementwise product of two tensors, of which the second may stand for more than it has. */
#include "broadcast.h"

void tf_product_forward(const tf_product *layer, const int8_t *a, const int8_t *b, int8_t *output,
                        uint8_t *mask) {
    const tf_requantizer by = tf_make_requantizer(layer->requantize, layer->out_zero);
    const int32_t a_zero = layer->a_zero, b_zero = layer->b_zero, left = layer->pre_shift;
    const uint32_t channels = layer->b.channels, step = layer->b.channel;
    tf_mask_writer written = {mask, 0, 0};
    for (uint32_t y = 0; y < layer->b.height; y++) {
        for (uint32_t x = 0; x < layer->b.width; x++) {
            const int8_t *factor = b + tf_broadcast_place(&layer->b, y, x);
            for (uint32_t c = 0; c < channels; c++, factor += step) {
                const int32_t product = (*a++ - a_zero) * (*factor - b_zero);
                const int32_t value = tf_requantize(&by, tf_raise_saturating(product, left));
                const int32_t code = tf_clamp8(value);
                *output++ = (int8_t)code;
                tf_mask_put(&written, code == value);
            }
        }
    }
    tf_mask_end(&written);
}

void tf_product_input_gradient(const tf_product *layer, const int16_t *error, const tf_scale *scale,
                               const int8_t *other, int32_t zero, int16_t *out,
                               tf_scale *out_scale) {
    const int32_t headroom = tf_headroom(scale), multiplier = layer->error_multiplier;
    const uint32_t channels = layer->b.channels, step = layer->b.channel;
    int32_t magnitude = 0;
    for (uint32_t y = 0; y < layer->b.height; y++) {
        for (uint32_t x = 0; x < layer->b.width; x++) {
            const int8_t *factor = other + tf_broadcast_place(&layer->b, y, x);
            for (uint32_t c = 0; c < channels; c++, factor += step) {
                const int32_t product = *error++ * (1 << headroom) * (*factor - zero);
                const int32_t value = (int32_t)tf_round_shift((int64_t)product * multiplier, 23);
                *out++ = (int16_t)value;
                tf_note_magnitude(&magnitude, value);
            }
        }
    }
    out_scale->exponent = scale->exponent - headroom + layer->error_exponent + 8;
    out_scale->magnitude = magnitude;
}

void tf_product_reduced_gradient(const tf_product *layer, const int16_t *error,
                                 const tf_scale *scale, const int8_t *a, int16_t *out,
                                 tf_scale *out_scale, int32_t *scratch) {
    const uint32_t size = tf_broadcast_size(&layer->b);
    const uint32_t channels = layer->b.channels, step = layer->b.channel;
    const int32_t headroom = tf_headroom(scale), right = layer->b.sum_shift;
    const int32_t zero = layer->a_zero;
    memset(scratch, 0, size * sizeof *scratch);
    for (uint32_t y = 0; y < layer->b.height; y++) {
        for (uint32_t x = 0; x < layer->b.width; x++) {
            int32_t *sum = scratch + tf_broadcast_place(&layer->b, y, x);
            for (uint32_t c = 0; c < channels; c++, sum += step) {
                const int32_t product = *error++ * (1 << headroom) * (*a++ - zero);
                *sum += tf_round_shift32(product, right);
            }
        }
    }
    const int32_t bits = tf_bits_of_sums(scratch, size);
    int32_t magnitude = 0;
    for (uint32_t i = 0; i < size; i++) {
        const int64_t product = (int64_t)scratch[i] * layer->error_multiplier;
        const int32_t value = (int32_t)tf_round_shift(product, bits);
        out[i] = (int16_t)value;
        tf_note_magnitude(&magnitude, value);
    }
    out_scale->exponent = scale->exponent - headroom + right + layer->error_exponent + bits - 15;
    out_scale->magnitude = magnitude;
}
