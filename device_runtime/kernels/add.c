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

/* At most eight elements; returns a bit for each that the clamp leaves alone. */
static inline __attribute__((always_inline)) uint32_t sum_some(const constants *by, const int8_t *a,
                                                               const int8_t *b, int8_t *output,
                                                               uint32_t count) {
    uint32_t bits = 0;
    for (uint32_t i = 0; i < count; i++) {
        const int32_t value = value_of(by, a[i], b[i]);
        const int32_t code = tf_clamp8(value);
        output[i] = (int8_t)code;
        bits |= (uint32_t)(code == value) << i;
    }
    return bits;
}

static __attribute__((noinline, cold)) uint32_t sum_rest(const constants *by, const int8_t *a,
                                                         const int8_t *b, int8_t *output,
                                                         uint32_t count) {
    return sum_some(by, a, b, output, count);
}

void tf_add_forward(const tf_addition *layer, const int8_t *a, const int8_t *b, int8_t *output,
                    uint8_t *mask, uint32_t size) {
    const uint32_t zeros = (uint32_t)layer->a_zero * (uint32_t)layer->a_multiplier +
                           (uint32_t)layer->b_zero * (uint32_t)layer->b_multiplier;
    const constants by = {layer->a_multiplier, layer->b_multiplier,
                          (int32_t)((1u << layer->shift >> 1) - zeros), layer->shift,
                          layer->out_zero};
    const int8_t *end = a + (size & ~7u);
    if (mask == NULL) {
        for (; a != end; a += 8, b += 8, output += 8) {
            sum_some(&by, a, b, output, 8u);
        }
    } else {
        for (; a != end; a += 8, b += 8, output += 8) {
            *mask++ = (uint8_t)sum_some(&by, a, b, output, 8u);
        }
    }
    const uint32_t rest = size & 7u;
    if (rest > 0u) {
        const uint32_t bits = sum_rest(&by, a, b, output, rest);
        if (mask != NULL) {
            *mask = (uint8_t)bits;
        }
    }
}
