/* Elements in another order, and the way back. */
#include <string.h>

#include "fixed_point.h"

/* Goes on to the next place of the outer loops: 0 behind the last one. */
static uint32_t goes_on(const tf_transposition *layer, uint16_t *at, uint32_t *place) {
    for (uint32_t loop = layer->loops - 1u; loop-- > 0u;) {
        *place += layer->strides[loop];
        if (++at[loop] < layer->counts[loop]) {
            return 1u;
        }
        *place -= layer->counts[loop] * layer->strides[loop];
        at[loop] = 0u;
    }
    return 0u;
}

void tf_transpose_forward(const tf_transposition *layer, const int8_t *input, int8_t *output) {
    const uint32_t count = layer->counts[layer->loops - 1u], run = layer->run;
    const uint32_t stride = layer->strides[layer->loops - 1u];
    uint16_t at[TF_MOST_LOOPS] = {0};
    uint32_t place = 0;
    do {
        const int8_t *from = input + place;
        for (uint32_t i = 0; i < count; i++, from += stride, output += run) {
            if (run == 1u) {
                *output = *from;
            } else {
                memcpy(output, from, run);
            }
        }
    } while (goes_on(layer, at, &place));
}

void tf_transpose_input_gradient(const tf_transposition *layer, const int16_t *error,
                                 const tf_scale *scale, int16_t *out, tf_scale *out_scale) {
    const uint32_t count = layer->counts[layer->loops - 1u], run = layer->run;
    const uint32_t stride = layer->strides[layer->loops - 1u];
    uint16_t at[TF_MOST_LOOPS] = {0};
    uint32_t place = 0;
    do {
        int16_t *to = out + place;
        for (uint32_t i = 0; i < count; i++, to += stride, error += run) {
            if (run == 1u) {
                *to = *error;
            } else {
                memcpy(to, error, run * sizeof *to);
            }
        }
    } while (goes_on(layer, at, &place));
    *out_scale = *scale;
}
