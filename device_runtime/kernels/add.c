/* Elementwise addition of two tensors with scales of their own. */
#include "fixed_point.h"

static inline __attribute__((always_inline)) void sum_eight(const tf_addition *layer,
                                                            const int8_t *a, const int8_t *b,
                                                            int8_t *output, uint8_t *mask,
                                                            uint32_t from, const uint32_t count) {
    uint32_t bits = 0;
    for (uint32_t i = 0; i < count; i++) {
        const int32_t sum = (a[from + i] - layer->a_zero) * layer->a_multiplier +
                            (b[from + i] - layer->b_zero) * layer->b_multiplier;
        const int32_t value = tf_round_shift32(sum, layer->shift) + layer->out_zero;
        const int32_t clamped = tf_clamp8(value);
        output[from + i] = (int8_t)clamped;
        bits |= (uint32_t)(clamped == value) << i;
    }
    if (mask != NULL) {
        mask[from >> 3] = (uint8_t)bits;
    }
}

void tf_add_forward(const tf_addition *layer, const int8_t *a, const int8_t *b, int8_t *output,
                    uint8_t *mask, uint32_t size) {
    const uint32_t whole = size & ~7u;
    for (uint32_t from = 0; from < whole; from += 8u) {
        sum_eight(layer, a, b, output, mask, from, 8u);
    }
    if (whole < size) {
        sum_eight(layer, a, b, output, mask, whole, size - whole);
    }
}
