/* Depthwise convolution, forward: four channels at a time. */
#include <string.h>

#include "fixed_point.h"
#include "lanes.h"

/* The taps of one output pixel that lie inside the input. */
typedef struct {
    const int8_t *pixel; /* input under the first tap, channel 0 */
    const int8_t *tap;   /* weight of the first tap, channel 0 */
    int32_t rows, cols;
} window;

static int32_t inside(int32_t start, int32_t kernel, int32_t size, int32_t *skipped) {
    *skipped = start < 0 ? -start : 0;
    const int32_t last = size - start < kernel ? size - start : kernel;
    return last - *skipped;
}

static window window_at(const tf_convolution *layer, const int8_t *input, const int8_t *weights,
                        int32_t y, int32_t x) {
    const int32_t top = y * layer->stride_height - layer->pad_top;
    const int32_t left = x * layer->stride_width - layer->pad_left;
    int32_t row, col;
    window w;
    w.rows = inside(top, layer->kernel_height, layer->in_height, &row);
    w.cols = inside(left, layer->kernel_width, layer->in_width, &col);
    w.pixel = input + ((top + row) * layer->in_width + left + col) * layer->in_channels;
    w.tap = weights + (row * layer->kernel_width + col) * layer->in_channels;
    return w;
}

static void four_channels(const tf_convolution *layer, const window *w, uint32_t channel,
                          int32_t sums[4]) {
    const uint32_t channels = layer->out_channels;
    int32_t local[4] = {0, 0, 0, 0};
    for (int32_t i = 0; i < w->rows; i++) {
        const int8_t *pixel = w->pixel + (uint32_t)i * layer->in_width * channels + channel;
        const int8_t *tap = w->tap + (uint32_t)i * layer->kernel_width * channels + channel;
        for (int32_t j = 0; j < w->cols; j++, pixel += channels, tap += channels) {
            tf_accumulate_s8(pixel, layer->in_zero, tap, local);
        }
    }
    memcpy(sums, local, sizeof local);
}

static int32_t one_channel(const tf_convolution *layer, const window *w, uint32_t channel) {
    const uint32_t channels = layer->out_channels;
    int32_t sum = 0;
    for (int32_t i = 0; i < w->rows; i++) {
        const int8_t *pixel = w->pixel + (uint32_t)i * layer->in_width * channels + channel;
        const int8_t *tap = w->tap + (uint32_t)i * layer->kernel_width * channels + channel;
        for (int32_t j = 0; j < w->cols; j++, pixel += channels, tap += channels) {
            sum += (*pixel - layer->in_zero) * *tap;
        }
    }
    return sum;
}

void tf_depthwise_forward(const tf_convolution *layer, const int8_t *input, const int8_t *weights,
                          const int32_t *bias, int8_t *output, uint8_t *mask) {
    const uint32_t channels = layer->out_channels;
    if (mask != NULL) {
        const uint32_t size = (uint32_t)layer->out_height * layer->out_width * channels;
        memset(mask, 0, (size + 7u) / 8u);
    }
    uint32_t index = 0;
    for (int32_t y = 0; y < layer->out_height; y++) {
        for (int32_t x = 0; x < layer->out_width; x++, index += channels) {
            const window w = window_at(layer, input, weights, y, x);
            uint32_t c = 0;
            for (; c + 4 <= channels; c += 4) {
                int32_t sums[4];
                four_channels(layer, &w, c, sums);
                for (uint32_t lane = 0; lane < 4u; lane++) {
                    const uint32_t at = c + lane;
                    tf_store_clamped(tf_requantize(layer, at, sums[lane] + bias[at]), output, mask,
                                     index + at);
                }
            }
            for (; c < channels; c++) {
                tf_store_clamped(tf_requantize(layer, c, one_channel(layer, &w, c) + bias[c]),
                                 output, mask, index + c);
            }
        }
    }
}
