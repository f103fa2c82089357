/* Elementwise addition of two tensors with scales of their own. */
#include "fixed_point.h"

/* The layer's constants where no store can change them. */
typedef struct {
    int32_t a_multiplier, b_multiplier;
    int32_t offset; /* zero points of the inputs and half a step; it may wrap around, sums fit */
    int32_t shift, out_zero;
} constants;

/* The code before the clamp. */
static inline __attribute__((always_inline)) int32_t value_of(const constants *by, int32_t a,
                                                              int32_t b) {
#if defined(__ARM_FEATURE_DSP)
    /* Compilers make three instructions of it. */
    int32_t sum;
    __asm("mla %0, %1, %2, %3\n\tmla %0, %4, %5, %0"
          : "=&r"(sum)
          : "r"(a), "r"(by->a_multiplier), "r"(by->offset), "r"(b), "r"(by->b_multiplier));
    return (sum >> by->shift) + by->out_zero;
#else
    const uint32_t first = (uint32_t)by->offset + (uint32_t)(a * by->a_multiplier);
    return ((int32_t)(first + (uint32_t)(b * by->b_multiplier)) >> by->shift) + by->out_zero;
#endif
}

static inline __attribute__((always_inline)) void sum_all(const tf_addition *layer, const int8_t *a,
                                                          const int8_t *b, int8_t *output,
                                                          uint8_t *mask, uint32_t size) {
    const uint32_t zeros = (uint32_t)layer->a_zero * (uint32_t)layer->a_multiplier +
                           (uint32_t)layer->b_zero * (uint32_t)layer->b_multiplier;
    const constants by = {layer->a_multiplier, layer->b_multiplier,
                          (int32_t)((1u << layer->shift >> 1) - zeros), layer->shift,
                          layer->out_zero};
    uint32_t left = size;
    for (; left >= 8u; left -= 8u, a += 8, b += 8, output += 8) {
        uint32_t bits = 0;
        for (uint32_t i = 0; i < 8u; i++) {
            const int32_t value = value_of(&by, a[i], b[i]);
            const int32_t code = tf_clamp8(value);
            output[i] = (int8_t)code;
            bits |= (uint32_t)(code == value) << i;
        }
        if (mask != NULL) {
            *mask++ = (uint8_t)bits;
        }
    }
    uint32_t bits = 0;
    for (uint32_t i = 0; i < left; i++) {
        const int32_t value = value_of(&by, a[i], b[i]);
        const int32_t code = tf_clamp8(value);
        output[i] = (int8_t)code;
        bits |= (uint32_t)(code == value) << i;
    }
    if (mask != NULL && left > 0u) {
        *mask = (uint8_t)bits;
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
