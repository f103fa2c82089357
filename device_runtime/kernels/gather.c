/* Chosen entries of an axis, and the way back. */
#include <string.h>

#include "fixed_point.h"

void tf_gather_forward(const tf_selection *layer, const int8_t *input, int8_t *output) {
    const uint16_t *first = layer->first;
    const uint32_t runs = layer->runs, inner = layer->inner, length = layer->run * inner;
    const uint32_t whole = layer->size * inner;
    for (uint32_t place = 0; place < layer->outer; place++, input += whole) {
        if (length == 1u) {
            for (uint32_t i = 0; i < runs; i++) {
                *output++ = input[first[i]];
            }
            continue;
        }
        for (uint32_t i = 0; i < runs; i++, output += length) {
            memcpy(output, input + first[i] * inner, length);
        }
    }
}

void tf_gather_input_gradient(const tf_selection *layer, const int16_t *error,
                              const tf_scale *scale, int16_t *out, tf_scale *out_scale) {
    const uint16_t *first = layer->first;
    const uint32_t runs = layer->runs, inner = layer->inner, length = layer->run * inner;
    const uint32_t whole = layer->size * inner;
    const int32_t shift = tf_shift_to_leave(scale, layer->overlap_bits);
    memset(out, 0, layer->outer * whole * sizeof *out);
    int16_t *into = out;
    if (layer->overlap_bits == 0u) { /* each error goes to a place of its own */
        for (uint32_t place = 0; place < layer->outer; place++, into += whole) {
            for (uint32_t i = 0; i < runs; i++, error += length) {
                int16_t *target = into + first[i] * inner;
                if (length == 1u) {
                    *target = *error;
                } else {
                    memcpy(target, error, length * sizeof *target);
                }
            }
        }
        *out_scale = *scale;
        return;
    }
    for (uint32_t place = 0; place < layer->outer; place++, into += whole) {
        for (uint32_t i = 0; i < runs; i++) {
            int16_t *target = into + first[i] * inner;
            for (uint32_t j = 0; j < length; j++) {
                target[j] = (int16_t)(target[j] + tf_round_shift32(*error++, shift));
            }
        }
    }
    out_scale->exponent = scale->exponent + shift;
    out_scale->magnitude = tf_largest_error(out, layer->outer * whole);
}
