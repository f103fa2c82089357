/* Gains and shifts by constants along any axes. */
#include "broadcast.h"

void tf_scaling_forward(const tf_scaling *layer, const int8_t *input, int8_t *output,
                        uint8_t *mask) {
    const int32_t in_zero = layer->in_zero, out_zero = layer->out_zero, shift = layer->shift;
    const uint32_t channels = layer->by.channels, step = layer->by.channel;
    tf_mask_writer written = {mask, 0, 0};
    for (uint32_t y = 0; y < layer->by.height; y++) {
        for (uint32_t x = 0; x < layer->by.width; x++) {
            uint32_t i = tf_broadcast_place(&layer->by, y, x);
            for (uint32_t c = 0; c < channels; c++, i += step) {
                const int32_t steps = *input++ - in_zero;
                const int32_t *factors =
                    steps < 0 && layer->below != NULL ? layer->below : layer->multiplier;
                const int32_t total = steps * factors[i] + layer->offset[i];
                const int32_t value = tf_round_shift32(total, shift) + out_zero;
                const int32_t code = tf_clamp8(value);
                *output++ = (int8_t)code;
                tf_mask_put(&written, code == value);
            }
        }
    }
    tf_mask_end(&written);
}

void tf_scaling_input_gradient(const tf_scaling *layer, const int16_t *error, const tf_scale *scale,
                               const int8_t *input, int16_t *out, tf_scale *out_scale) {
    const int32_t headroom = tf_headroom(scale), shift = 15 - headroom, zero = layer->in_zero;
    const uint32_t channels = layer->by.channels, step = layer->by.channel;
    int32_t magnitude = 0;
    for (uint32_t y = 0; y < layer->by.height; y++) {
        for (uint32_t x = 0; x < layer->by.width; x++) {
            uint32_t i = tf_broadcast_place(&layer->by, y, x);
            for (uint32_t c = 0; c < channels; c++, i += step) {
                const int16_t *factors = layer->errors;
                if (layer->errors_below != NULL && *input++ < zero) {
                    factors = layer->errors_below;
                }
                const int32_t value = tf_round_shift32(*error++ * factors[i], shift);
                *out++ = (int16_t)value;
                tf_note_magnitude(&magnitude, value);
            }
        }
    }
    out_scale->exponent = scale->exponent + layer->error_exponent - headroom;
    out_scale->magnitude = magnitude;
}
