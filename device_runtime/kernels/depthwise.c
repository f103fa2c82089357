/* Depthwise convolution, forward: four channels at a time, all pixels of them in turn. */
#include "fixed_point.h"
#include "lanes.h"

/* Taps of kernels up to 7 x 7 are widened once for all pixels; larger ones go tap by tap. */
#define WIDE_TAPS 49u

typedef struct {
    const tf_convolution *layer;
    const int8_t *input, *weights; /* of the first of the channels at hand */
    const int32_t *bias;
    int8_t *output;
    uint8_t *mask;
    uint32_t channel, lanes;
    tf_wide_taps wide; /* of all taps, with DSP instructions */
    tf_requantizer by[4];
} lane_group;

/* Range of taps from `start` on that lie inside `size`. */
static int32_t taps_inside(int32_t start, int32_t kernel, int32_t size, int32_t *skipped) {
    *skipped = start < 0 ? -start : 0;
    return (size - start < kernel ? size - start : kernel) - *skipped;
}

/* Sums of one output pixel over rows x cols taps from tap (row, col) on. */
static inline __attribute__((always_inline)) void sum_window(const lane_group *g,
                                                             const int8_t *pixel, int32_t row,
                                                             int32_t rows, int32_t col,
                                                             const int32_t cols, int32_t sums[4]) {
    const tf_convolution *layer = g->layer;
    const uint32_t channels = layer->out_channels;
    int32_t local[4] = {0, 0, 0, 0};
    for (int32_t i = 0; i < rows; i++) {
        const int8_t *next = pixel + (uint32_t)i * layer->in_width * channels;
        const uint32_t tap = (uint32_t)((row + i) * layer->kernel_width + col);
        tf_accumulate_taps(&g->wide, tap, next, channels, layer->in_zero, (uint32_t)cols, local);
    }
    memcpy(sums, local, sizeof local);
}

static void sum_plainly(const lane_group *g, const int8_t *pixel, int32_t row, int32_t rows,
                        int32_t col, int32_t cols, int32_t sums[4]) {
    const tf_convolution *layer = g->layer;
    const uint32_t channels = layer->out_channels;
    for (uint32_t lane = 0; lane < g->lanes; lane++) {
        sums[lane] = 0;
        for (int32_t i = 0; i < rows; i++) {
            const int8_t *next = pixel + (uint32_t)i * layer->in_width * channels + lane;
            const int8_t *tap =
                g->weights + (uint32_t)((row + i) * layer->kernel_width + col) * channels + lane;
            for (int32_t j = 0; j < cols; j++, next += channels, tap += channels) {
                sums[lane] += (*next - layer->in_zero) * *tap;
            }
        }
    }
}

static void store(const lane_group *g, uint32_t pixel, const int32_t sums[4]) {
    const uint32_t index = pixel * g->layer->out_channels + g->channel;
    uint32_t bits = 0;
    for (uint32_t lane = 0; lane < g->lanes; lane++) {
        const int32_t raised = tf_raise(sums[lane] + g->bias[lane], g->layer->pre_shift);
        const int32_t value = tf_requantize(&g->by[lane], raised);
        const int32_t clamped = tf_clamp8(value);
        g->output[index + lane] = (int8_t)clamped;
        bits |= (uint32_t)(clamped == value) << lane;
    }
    if (g->mask != NULL) {
        tf_put_bits(g->mask, index, bits, g->lanes);
    }
}

static void one_row(const lane_group *g, int32_t y) {
    const tf_convolution *layer = g->layer;
    const int32_t top = y * layer->stride_height - layer->pad_top;
    int32_t row;
    const int32_t rows = taps_inside(top, layer->kernel_height, layer->in_height, &row);
    for (int32_t x = 0; x < layer->out_width; x++) {
        const int32_t left = x * layer->stride_width - layer->pad_left;
        int32_t col;
        const int32_t cols = taps_inside(left, layer->kernel_width, layer->in_width, &col);
        const int8_t *pixel =
            g->input + ((top + row) * layer->in_width + left + col) * layer->out_channels;
        int32_t sums[4];
        if (g->lanes < 4u || g->wide.taps == 0u) {
            sum_plainly(g, pixel, row, rows, col, cols, sums);
        } else if (cols == 3) {
            sum_window(g, pixel, row, rows, col, 3, sums);
        } else if (cols == 5) {
            sum_window(g, pixel, row, rows, col, 5, sums);
        } else if (cols == 7) {
            sum_window(g, pixel, row, rows, col, 7, sums);
        } else {
            sum_window(g, pixel, row, rows, col, cols, sums);
        }
        store(g, (uint32_t)(y * layer->out_width + x), sums);
    }
}

void tf_depthwise_forward(const tf_convolution *layer, const int8_t *input, const int8_t *weights,
                          const int32_t *bias, int8_t *output, uint8_t *mask) {
    const uint32_t channels = layer->out_channels;
    const uint32_t taps = (uint32_t)layer->kernel_height * layer->kernel_width;
    uint32_t storage[2u * WIDE_TAPS];
    if (mask != NULL) {
        const uint32_t size = (uint32_t)layer->out_height * layer->out_width * channels;
        memset(mask, 0, (size + 7u) / 8u);
    }
    lane_group g;
    g.layer = layer;
    g.output = output;
    g.mask = mask;
    for (uint32_t c = 0; c < channels; c += 4u) {
        g.input = input + c;
        g.weights = weights + c;
        g.bias = bias + c;
        g.channel = c;
        g.lanes = channels - c < 4u ? channels - c : 4u;
        tf_widen_taps(&g.wide, storage, g.weights, channels,
                      g.lanes == 4u && taps <= WIDE_TAPS ? taps : 0u);
        for (uint32_t lane = 0; lane < g.lanes; lane++) {
            g.by[lane] = tf_make_requantizer(&layer->requantize[c + lane], layer->out_zero);
        }
        for (int32_t y = 0; y < layer->out_height; y++) {
            one_row(&g, y);
        }
    }
}
