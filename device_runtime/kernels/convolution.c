/* Full convolution, forward: a column of widened input per output pixel, two at a time. */
#include "dot.h"
#include "fixed_point.h"

static uint32_t column_length(const tf_convolution *layer) {
    return (uint32_t)layer->kernel_height * layer->kernel_width * layer->in_channels;
}

uint32_t tf_convolution_scratch_bytes(const tf_convolution *layer) {
    const uint32_t forward = 2u * 2u * ((column_length(layer) + 1u) & ~1u);
    const uint32_t gradient = 2u * 2u * ((layer->out_channels + 1u) & ~1u);
    return forward > gradient ? forward : gradient;
}

/* Collects what output pixel (y, x) sees, minus the zero point; outside the input is zero. */
static void gather(const tf_convolution *layer, const int8_t *input, int32_t y, int32_t x,
                   int16_t *column) {
    const uint32_t channels = layer->in_channels;
    const int32_t top = y * layer->stride_height - layer->pad_top;
    const int32_t left = x * layer->stride_width - layer->pad_left;
    int16_t *next = column;
    for (int32_t row = top; row < top + layer->kernel_height; row++) {
        for (int32_t col = left; col < left + layer->kernel_width; col++, next += channels) {
            if (row < 0 || row >= layer->in_height || col < 0 || col >= layer->in_width) {
                memset(next, 0, channels * sizeof *next);
                continue;
            }
            const int8_t *pixel =
                input + ((uint32_t)row * layer->in_width + (uint32_t)col) * channels;
            if (channels % 4u == 0u) {
                tf_widen(pixel, channels, layer->in_zero, next);
            } else {
                for (uint32_t i = 0; i < channels; i++) {
                    next[i] = (int16_t)(pixel[i] - layer->in_zero);
                }
            }
        }
    }
    if (channels % 4u != 0u) {
        tf_order_column(column, column_length(layer));
    }
}

/* All output channels of one pixel; `index` is the place of the first. */
static void one_pixel(const tf_convolution *layer, const int16_t *column, const int8_t *weights,
                      const int32_t *bias, int8_t *output, uint8_t *mask, uint32_t index) {
    const uint32_t length = column_length(layer);
    for (uint32_t o = 0; o < layer->out_channels; o++) {
        const int32_t sum = tf_dot(column, weights + o * length, length) + bias[o];
        tf_store_clamped(tf_requantize(layer, o, sum), output, mask, index + o);
    }
}

static void two_pixels(const tf_convolution *layer, const int16_t *column0, const int16_t *column1,
                       const int8_t *weights, const int32_t *bias, int8_t *output, uint8_t *mask,
                       uint32_t index) {
    const uint32_t length = column_length(layer);
    const uint32_t channels = layer->out_channels;
    uint32_t o = 0;
    for (; o + 2 <= channels; o += 2) {
        const int8_t *row = weights + o * length;
        int32_t sums[4];
        tf_dot_2x2(column0, column1, row, row + length, length, sums);
        for (uint32_t i = 0; i < 2u; i++) {
            const int32_t first = tf_requantize(layer, o + i, sums[i] + bias[o + i]);
            const int32_t second = tf_requantize(layer, o + i, sums[2 + i] + bias[o + i]);
            tf_store_clamped(first, output, mask, index + o + i);
            tf_store_clamped(second, output, mask, index + channels + o + i);
        }
    }
    for (; o < channels; o++) {
        const int8_t *row = weights + o * length;
        const int32_t first = tf_dot(column0, row, length) + bias[o];
        const int32_t second = tf_dot(column1, row, length) + bias[o];
        tf_store_clamped(tf_requantize(layer, o, first), output, mask, index + o);
        tf_store_clamped(tf_requantize(layer, o, second), output, mask, index + channels + o);
    }
}

void tf_convolution_forward(const tf_convolution *layer, const int8_t *input, const int8_t *weights,
                            const int32_t *bias, int8_t *output, uint8_t *mask, void *scratch) {
    const uint32_t length = column_length(layer);
    const uint32_t pixels = (uint32_t)layer->out_height * layer->out_width;
    int16_t *column0 = scratch;
    int16_t *column1 = column0 + ((length + 1u) & ~1u);
    if (mask != NULL) {
        memset(mask, 0, (pixels * layer->out_channels + 7u) / 8u);
    }
    uint32_t p = 0;
    int32_t y = 0, x = 0;
    for (; p < pixels; p++) {
        gather(layer, input, y, x, (p & 1u) == 0u ? column0 : column1);
        if ((p & 1u) == 1u) {
            two_pixels(layer, column0, column1, weights, bias, output, mask,
                       (p - 1u) * layer->out_channels);
        }
        if (++x == layer->out_width) {
            x = 0;
            y++;
        }
    }
    if ((pixels & 1u) == 1u) {
        one_pixel(layer, column0, weights, bias, output, mask, (pixels - 1u) * layer->out_channels);
    }
}
