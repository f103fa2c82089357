/* A function of each element: one table of codes, one of slopes. */
#include "pairs.h"

void tf_lookup_forward(const tf_lookup *layer, const int8_t *input, int8_t *output, uint32_t size) {
    const int8_t *codes = layer->codes + 128;
    uint32_t i = 0;
    for (; i + 4u <= size; i += 4u) {
        output[i] = codes[input[i]];
        output[i + 1u] = codes[input[i + 1u]];
        output[i + 2u] = codes[input[i + 2u]];
        output[i + 3u] = codes[input[i + 3u]];
    }
    for (; i < size; i++) {
        output[i] = codes[input[i]];
    }
}

void tf_lookup_input_gradient(const tf_lookup *layer, const int16_t *error, const tf_scale *scale,
                              const int8_t *input, uint32_t size, int16_t *out,
                              tf_scale *out_scale) {
    const int16_t *slopes = layer->slopes + 128;
    const int32_t headroom = tf_headroom(scale);
    const int32_t shift = 15 - headroom;
    const int32_t half = shift == 0 ? 0 : 1 << (shift - 1);
    int32_t magnitude = 0;
    uint32_t i = 0;
#if TF_DSP
    tf_extremes seen = {0, 0};
    for (; i + 4u <= size; i += 4u) {
        uint32_t pairs[2];
        for (uint32_t j = 0; j < 2u; j++) {
            const uint32_t at = i + 2u * j;
            pairs[j] = tf_scale_pair(tf_load32(error + at), slopes[input[at]],
                                     slopes[input[at + 1u]], half, shift);
            tf_store32(out + at, pairs[j]);
        }
        tf_note_pairs(&seen, pairs[0], pairs[1]);
    }
    magnitude = tf_magnitude_of(&seen);
#endif
    for (; i < size; i++) {
        const int32_t value = (error[i] * slopes[input[i]] + half) >> shift;
        out[i] = (int16_t)value;
        tf_note_magnitude(&magnitude, value);
    }
    out_scale->exponent = scale->exponent + layer->slope_exponent - headroom;
    out_scale->magnitude = magnitude;
}
