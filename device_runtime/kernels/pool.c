/* Global average pooling and its gradient. */
#include "fixed_point.h"

void tf_pool_forward(const tf_pooling *layer, const int8_t *input, int8_t *output) {
    const int32_t pixels = layer->pixels;
    for (uint32_t c = 0; c < layer->channels; c++) {
        int32_t sum = 0;
        for (int32_t p = 0; p < pixels; p++) {
            sum += input[(uint32_t)p * layer->channels + c];
        }
        output[c] = (int8_t)tf_mean_code(sum, 0, pixels);
    }
}

void tf_pool_input_gradient(const tf_pooling *layer, const int16_t *error, const tf_scale *scale,
                            int16_t *out, tf_scale *out_scale) {
    int32_t magnitude = 0;
    for (uint32_t c = 0; c < layer->channels; c++) {
        const int32_t value = tf_round_shift32(error[c] * layer->error_multiplier, 14);
        tf_note_magnitude(&magnitude, value);
        for (uint32_t p = 0; p < layer->pixels; p++) {
            out[p * layer->channels + c] = (int16_t)value;
        }
    }
    out_scale->exponent = scale->exponent + layer->error_exponent;
    out_scale->magnitude = magnitude;
}
