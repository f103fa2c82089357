/* Full convolution, forward: the widened inputs of two output pixels times all rows of weights. */
#include "dot.h"
#include "fixed_point.h"

static uint32_t column_length(const tf_convolution *layer) {
    return (uint32_t)layer->kernel_height * layer->kernel_width * layer->in_channels;
}

/* Collects what output pixel (y, x) sees, minus the zero point; outside the input is zero. */
static void gather(const tf_convolution *layer, const int8_t *input, int32_t y, int32_t x,
                   int16_t *pair, uint32_t slot) {
    const uint32_t channels = layer->in_channels;
    const uint32_t length = column_length(layer);
    const int32_t top = y * layer->stride_height - layer->pad_top;
    const int32_t left = x * layer->stride_width - layer->pad_left;
    uint32_t at = 0;
    for (int32_t row = top; row < top + layer->kernel_height; row++) {
        for (int32_t col = left; col < left + layer->kernel_width; col++, at += channels) {
            if (row < 0 || row >= layer->in_height || col < 0 || col >= layer->in_width) {
                tf_pair_clear(pair, length, slot, at, channels);
                continue;
            }
            const int8_t *pixel =
                input + ((uint32_t)row * layer->in_width + (uint32_t)col) * channels;
            tf_pair_widen(pair, length, slot, at, pixel, channels, layer->in_zero);
        }
    }
    tf_pair_clear(pair, length, slot, length, tf_pair_length(length) - length);
}

/* Where a pair of pixels goes: `index` and `second` are the places of their first channels. */
typedef struct {
    int8_t *output;
    uint8_t *mask;
    uint32_t index, second;
} target;

/* A byte of the mask holds eight channels; so do the sums that wait to be requantized. */
#define CHUNK 8u

/* Sums of channels `from` … `from + count - 1` of both pixels to codes and mask bits. Apart from
 * the products, since both want all registers of the core. */
static __attribute__((noinline)) void finish(const tf_convolution *layer, const int32_t *sums,
                                             const int32_t *bias, const target *to, uint32_t from,
                                             uint32_t count) {
    int8_t *first = to->output + to->index + from;
    int8_t *second = to->output + to->second + from;
    const tf_multiplier *by = layer->requantize + from;
    const int32_t pre_shift = layer->pre_shift, zero = layer->out_zero;
    uint32_t bits0 = 0, bits1 = 0, bit = 1;
    bias += from;
    for (uint32_t i = 0; i < count; i++, bit <<= 1) {
        const tf_requantizer r = tf_make_requantizer(by++, zero);
        const int32_t raise = *bias++;
        const int32_t value0 = tf_requantize(&r, tf_raise(sums[0] + raise, pre_shift));
        const int32_t value1 = tf_requantize(&r, tf_raise(sums[1] + raise, pre_shift));
        const int32_t clamped0 = tf_clamp8(value0), clamped1 = tf_clamp8(value1);
        sums += 2;
        *first++ = (int8_t)clamped0;
        *second++ = (int8_t)clamped1;
        bits0 |= clamped0 == value0 ? bit : 0u;
        bits1 |= clamped1 == value1 ? bit : 0u;
    }
    if (to->mask != NULL) {
        tf_put_bits(to->mask, to->index + from, bits0, count);
        tf_put_bits(to->mask, to->second + from, bits1, count);
    }
}

/* All output channels of a pair of pixels. */
static void multiply(const tf_convolution *layer, const int16_t *pair, const int8_t *weights,
                     const int32_t *bias, const target *to) {
    const uint32_t length = column_length(layer);
    const uint32_t channels = layer->out_channels;
    int32_t sums[2u * CHUNK]; /* channel by channel, both pixels */
    for (uint32_t from = 0; from < channels; from += CHUNK) {
        const uint32_t count = channels - from < CHUNK ? channels - from : CHUNK;
        uint32_t i = 0;
        for (; i + 2u <= count; i += 2u, weights += 2u * length) {
            tf_pair_dot(pair, weights, length, length, sums + 2u * i);
        }
        if (i < count) { /* an odd last row goes with itself */
            int32_t twice[4];
            tf_pair_dot(pair, weights, 0, length, twice);
            sums[2u * i] = twice[0];
            sums[2u * i + 1u] = twice[1];
        }
        finish(layer, sums, bias, to, from, count);
    }
}

void tf_convolution_forward(const tf_convolution *layer, const int8_t *input, const int8_t *weights,
                            const int32_t *bias, int8_t *output, uint8_t *mask, void *scratch) {
    const uint32_t channels = layer->out_channels;
    const uint32_t pixels = (uint32_t)layer->out_height * layer->out_width;
    int16_t *pair = scratch;
    if (mask != NULL) {
        memset(mask, 0, (pixels * channels + 7u) / 8u);
    }
    int32_t y = 0, x = 0;
    for (uint32_t p = 0; p < pixels; p++) {
        gather(layer, input, y, x, pair, p & 1u);
        if (++x == layer->out_width) {
            x = 0;
            y++;
        }
        const uint32_t even = p & ~1u;
        if (even == p && p + 1u < pixels) {
            continue;
        }
        if (even == p) { /* an odd last pixel goes with a copy of itself */
            gather(layer, input, (int32_t)(p / layer->out_width), (int32_t)(p % layer->out_width),
                   pair, 1u);
        }
        const target to = {output, mask, even * channels, p * channels};
        multiply(layer, pair, weights, bias, &to);
    }
}
