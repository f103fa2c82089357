/* Pixels in other places, and the sum of the errors of a pixel's copies. */
#include <string.h>

#include "fixed_point.h"

/* Where the pixel for (y, x) lies in the input, or -1. */
static inline int32_t source_of(const tf_rearrangement *layer, uint32_t y, uint32_t x) {
    const int32_t row = layer->row_by_y[y] + layer->row_by_x[x];
    const int32_t column = layer->column_by_y[y] + layer->column_by_x[x];
    if (row < 0 || row >= layer->in_height || column < 0 || column >= layer->in_width) {
        return -1;
    }
    return (row * layer->in_width + column) * layer->channels;
}

void tf_rearrange_forward(const tf_rearrangement *layer, const int8_t *input, int8_t *output) {
    const uint32_t channels = layer->channels;
    for (uint32_t y = 0; y < layer->out_height; y++) {
        for (uint32_t x = 0; x < layer->out_width; x++, output += channels) {
            const int32_t source = source_of(layer, y, x);
            if (source < 0) {
                memset(output, layer->zero, channels);
            } else {
                memcpy(output, input + source, channels);
            }
        }
    }
}

void tf_rearrange_input_gradient(const tf_rearrangement *layer, const int16_t *error,
                                 const tf_scale *scale, int16_t *out, tf_scale *out_scale) {
    const uint32_t channels = layer->channels;
    const int32_t shift = tf_shift_to_leave(scale, layer->repeat_bits);
    const uint32_t size = (uint32_t)layer->in_height * layer->in_width * channels;
    memset(out, 0, size * sizeof *out);
    for (uint32_t y = 0; y < layer->out_height; y++) {
        for (uint32_t x = 0; x < layer->out_width; x++, error += channels) {
            const int32_t source = source_of(layer, y, x);
            if (source < 0) {
                continue;
            }
            int16_t *target = out + source;
            if (layer->repeat_bits == 0u) {
                memcpy(target, error, channels * sizeof *target);
                continue;
            }
            for (uint32_t c = 0; c < channels; c++) {
                target[c] = (int16_t)(target[c] + tf_round_shift32(error[c], shift));
            }
        }
    }
    out_scale->exponent = scale->exponent + shift;
    out_scale->magnitude = tf_largest_error(out, size);
}
