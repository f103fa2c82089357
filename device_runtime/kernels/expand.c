/* A tensor of one row, column or channel as a larger one, and the way back. */
#include "broadcast.h"

void tf_expand_forward(const tf_broadcast *layer, const int8_t *input, int8_t *output) {
    const uint32_t channels = layer->channels;
    for (uint32_t y = 0; y < layer->height; y++) {
        for (uint32_t x = 0; x < layer->width; x++, output += channels) {
            const int8_t *source = input + tf_broadcast_place(layer, y, x);
            if (layer->channel == 0u) {
                memset(output, *source, channels);
            } else {
                memcpy(output, source, channels);
            }
        }
    }
}

void tf_expand_input_gradient(const tf_broadcast *layer, const int16_t *error,
                              const tf_scale *scale, int16_t *out, tf_scale *out_scale,
                              int32_t *scratch) {
    const uint32_t size = tf_broadcast_size(layer);
    const int32_t headroom = tf_headroom(scale), right = layer->sum_shift;
    memset(scratch, 0, size * sizeof *scratch);
    for (uint32_t y = 0; y < layer->height; y++) {
        for (uint32_t x = 0; x < layer->width; x++) {
            int32_t *sum = scratch + tf_broadcast_place(layer, y, x);
            for (uint32_t c = 0; c < layer->channels; c++, sum += layer->channel) {
                *sum += tf_round_shift32(*error++ * (1 << headroom), right);
            }
        }
    }
    const int32_t excess = tf_bits_of_sums(scratch, size) - 15;
    const int32_t shift = excess > 0 ? excess : 0;
    int32_t magnitude = 0;
    for (uint32_t i = 0; i < size; i++) {
        const int32_t value = tf_clamp((int32_t)tf_round_shift(scratch[i], shift), -32767, 32767);
        out[i] = (int16_t)value;
        tf_note_magnitude(&magnitude, value);
    }
    out_scale->exponent = scale->exponent - headroom + right + shift;
    out_scale->magnitude = magnitude;
}
