/* Depthwise convolution, forward: four channels at a time. */
#include <string.h>

#include "fixed_point.h"

typedef struct {
    int32_t first_row, last_row, first_col, last_col; /* taps inside the input, last excluded */
    int32_t top, left;
} window;

static window taps_inside(const tf_convolution *layer, int32_t y, int32_t x)
{
    window w;
    w.top = y * layer->stride_height - layer->pad_top;
    w.left = x * layer->stride_width - layer->pad_left;
    w.first_row = w.top < 0 ? -w.top : 0;
    w.first_col = w.left < 0 ? -w.left : 0;
    w.last_row = layer->in_height - w.top;
    w.last_col = layer->in_width - w.left;
    if (w.last_row > layer->kernel_height) {
        w.last_row = layer->kernel_height;
    }
    if (w.last_col > layer->kernel_width) {
        w.last_col = layer->kernel_width;
    }
    return w;
}

void tf_depthwise_forward(const tf_convolution *layer, const int8_t *input,
                          const int8_t *weights, const int32_t *bias, int8_t *output,
                          uint8_t *mask)
{
    const uint32_t channels = layer->out_channels;
    const int32_t zero = layer->in_zero;
    if (mask != NULL) {
        const uint32_t size = (uint32_t)layer->out_height * layer->out_width * channels;
        memset(mask, 0, (size + 7u) / 8u);
    }
    uint32_t index = 0;
    for (int32_t y = 0; y < layer->out_height; y++) {
        for (int32_t x = 0; x < layer->out_width; x++, index += channels) {
            const window w = taps_inside(layer, y, x);
            for (uint32_t c = 0; c < channels; c += 4) {
                const uint32_t lanes = channels - c < 4u ? channels - c : 4u;
                int32_t sums[4] = {0, 0, 0, 0};
                for (int32_t i = w.first_row; i < w.last_row; i++) {
                    const int8_t *pixel =
                        input +
                        ((uint32_t)(w.top + i) * layer->in_width + (uint32_t)(w.left + w.first_col)) *
                            channels + c;
                    const int8_t *tap =
                        weights + (uint32_t)(i * layer->kernel_width + w.first_col) * channels + c;
                    for (int32_t j = w.first_col; j < w.last_col; j++) {
                        if (lanes == 4u) {
                            sums[0] += (pixel[0] - zero) * tap[0];
                            sums[1] += (pixel[1] - zero) * tap[1];
                            sums[2] += (pixel[2] - zero) * tap[2];
                            sums[3] += (pixel[3] - zero) * tap[3];
                        } else {
                            for (uint32_t lane = 0; lane < lanes; lane++) {
                                sums[lane] += (pixel[lane] - zero) * tap[lane];
                            }
                        }
                        pixel += channels;
                        tap += channels;
                    }
                }
                for (uint32_t lane = 0; lane < lanes; lane++) {
                    const int32_t value =
                        tf_requantize(layer, c + lane, sums[lane] + bias[c + lane]);
                    tf_store_clamped(value, output, mask, index + c + lane);
                }
            }
        }
    }
}
