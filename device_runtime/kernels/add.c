/* Elementwise addition of two tensors with scales of their own. */
#include "fixed_point.h"

/* Elements `from` … from + count - 1; with a mask, their bits are those of one byte. */
static inline __attribute__((always_inline)) void sum_some(const tf_addition *layer, int32_t offset,
                                                           const int8_t *a, const int8_t *b,
                                                           int8_t *output, uint8_t *mask,
                                                           uint32_t from, const uint32_t count) {
    const int32_t a_multiplier = layer->a_multiplier, b_multiplier = layer->b_multiplier;
    uint32_t bits = 0;
    for (uint32_t i = 0; i < count; i++) {
        /* Zero points and half a step are in the offset; it wraps around, the sum fits. */
        const uint32_t sum = (uint32_t)(a[from + i] * a_multiplier) +
                             (uint32_t)(b[from + i] * b_multiplier) + (uint32_t)offset;
        const int32_t value = ((int32_t)sum >> layer->shift) + layer->out_zero;
        const int32_t code = tf_clamp8(value);
        output[from + i] = (int8_t)code;
        if (mask != NULL) {
            bits |= (uint32_t)(code == value) << i;
        }
    }
    if (mask != NULL) {
        mask[from >> 3] = (uint8_t)bits;
    }
}

static inline __attribute__((always_inline)) void sum_all(const tf_addition *layer, const int8_t *a,
                                                          const int8_t *b, int8_t *output,
                                                          uint8_t *mask, uint32_t size) {
    const uint32_t whole = size & ~7u;
    const uint32_t zeros = (uint32_t)layer->a_zero * (uint32_t)layer->a_multiplier +
                           (uint32_t)layer->b_zero * (uint32_t)layer->b_multiplier;
    const int32_t offset = (int32_t)((1u << layer->shift >> 1) - zeros);
    for (uint32_t from = 0; from < whole; from += 8u) {
        sum_some(layer, offset, a, b, output, mask, from, 8u);
    }
    if (whole < size) {
        sum_some(layer, offset, a, b, output, mask, whole, size - whole);
    }
}

void tf_add_forward(const tf_addition *layer, const int8_t *a, const int8_t *b, int8_t *output,
                    uint8_t *mask, uint32_t size) {
    if (mask == NULL) {
        sum_all(layer, a, b, output, NULL, size);
    } else {
        sum_all(layer, a, b, output, mask, size);
    }
}
