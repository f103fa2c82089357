/* One input's channels in the output of a concatenation, and the way back. */
#include <string.h>

#include "fixed_point.h"

void tf_concat_forward(const tf_slice *slice, const int8_t *input, int8_t *output) {
    const uint32_t whole = slice->all_channels, part = slice->channels;
    output += slice->first;
    for (uint32_t p = 0; p < slice->pixels; p++) {
        memcpy(output + p * whole, input + p * part, part);
    }
}

void tf_concat_input_gradient(const tf_slice *slice, const int16_t *error, const tf_scale *scale,
                              int16_t *out, tf_scale *out_scale) {
    int32_t magnitude = 0;
    error += slice->first;
    for (uint32_t p = 0; p < slice->pixels; p++) {
        for (uint32_t c = 0; c < slice->channels; c++) {
            const int16_t value = error[p * slice->all_channels + c];
            *out++ = value;
            tf_note_magnitude(&magnitude, value);
        }
    }
    out_scale->exponent = scale->exponent;
    out_scale->magnitude = magnitude;
}
