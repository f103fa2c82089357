/* The same values in another scale, between two codes: activations of their own. */
#include "fixed_point.h"

void tf_requantize_forward(const tf_requantization *layer, const int8_t *input, int8_t *output,
                           uint8_t *mask, uint32_t size) {
    const tf_requantizer by = tf_make_requantizer(layer->requantize, layer->out_zero);
    for (uint32_t from = 0; from < size; from += 8u) {
        const uint32_t end = size - from < 8u ? size : from + 8u;
        uint32_t bits = 0;
        for (uint32_t i = from; i < end; i++) {
            const int32_t raised = tf_raise(input[i] - layer->in_zero, layer->pre_shift);
            const int32_t value = tf_requantize(&by, raised);
            const int32_t clamped = tf_clamp(value, layer->low, layer->high);
            output[i] = (int8_t)clamped;
            bits |= (uint32_t)(clamped == value) << (i - from);
        }
        if (mask != NULL) {
            mask[from >> 3] = (uint8_t)bits;
        }
    }
}
