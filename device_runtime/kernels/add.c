/* Elementwise addition of two tensors with scales of their own. */
#include <string.h>

#include "fixed_point.h"

void tf_add_forward(const tf_addition *layer, const int8_t *a, const int8_t *b, int8_t *output,
                    uint8_t *mask) {
    if (mask != NULL) {
        memset(mask, 0, (layer->size + 7u) / 8u);
    }
    for (uint32_t i = 0; i < layer->size; i++) {
        const int32_t sum = (a[i] - layer->a_zero) * layer->a_multiplier +
                            (b[i] - layer->b_zero) * layer->b_multiplier;
        tf_store_clamped(tf_round_shift32(sum, layer->shift) + layer->out_zero, output, mask, i);
    }
}
