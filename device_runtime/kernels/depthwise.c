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

static inline __attribute__((always_inline)) void store(const lane_group *g, uint32_t index,
                                                        const int32_t *sums, const uint32_t lanes) {
    const int32_t pre_shift = g->layer->pre_shift;
    uint32_t bits = 0;
    for (uint32_t lane = 0; lane < lanes; lane++) {
        const int32_t value = tf_requantize(&g->by[lane], tf_raise(sums[lane], pre_shift));
        const int32_t clamped = tf_clamp8(value);
        g->output[index + lane] = (int8_t)clamped;
        bits |= clamped == value ? 1u << lane : 0u;
    }
    if (g->mask != NULL) {
        tf_put_bits(g->mask, index, bits, lanes);
    }
}

/* The part of an output row whose windows have `cols` columns inside the input, from tap
 * (row, col) on; `pixel` lies under the first tap of the first window. */
typedef struct {
    const int8_t *pixel;
    uint32_t index; /* of the first output, channel of the group included */
    int32_t count;
    int32_t row, rows, col;
} stretch;

static inline __attribute__((always_inline)) void
four_lanes(const lane_group *g, const stretch *part, const int32_t cols) {
    const tf_convolution *layer = g->layer;
    const uint32_t channels = layer->out_channels;
    const uint32_t line = (uint32_t)layer->in_width * channels;
    const uint32_t step = (uint32_t)layer->stride_width * channels;
    const uint32_t first = (uint32_t)(part->row * layer->kernel_width + part->col);
    const int8_t *pixel = part->pixel;
    uint32_t index = part->index;
    for (int32_t n = 0; n < part->count; n++, pixel += step, index += channels) {
        int32_t sums[4] = {g->bias[0], g->bias[1], g->bias[2], g->bias[3]};
        const int8_t *next = pixel;
        uint32_t tap = first;
        for (int32_t i = 0; i < part->rows; i++, next += line, tap += layer->kernel_width) {
            tf_accumulate_taps(&g->wide, tap, next, channels, layer->in_zero, (uint32_t)cols, sums);
        }
        store(g, index, sums, 4u);
    }
}

static void any_lanes(const lane_group *g, const stretch *part, int32_t cols) {
    const tf_convolution *layer = g->layer;
    const uint32_t channels = layer->out_channels;
    for (int32_t n = 0; n < part->count; n++) {
        const int8_t *pixel = part->pixel + (uint32_t)(n * layer->stride_width) * channels;
        int32_t sums[4];
        sum_plainly(g, pixel, part->row, part->rows, part->col, cols, sums);
        for (uint32_t lane = 0; lane < g->lanes; lane++) {
            sums[lane] += g->bias[lane];
        }
        store(g, part->index + (uint32_t)n * channels, sums, g->lanes);
    }
}

static void run_stretch(const lane_group *g, const stretch *part, int32_t cols) {
    if (g->wide.taps == 0u) {
        any_lanes(g, part, cols);
    } else if (cols == 3) {
        four_lanes(g, part, 3);
    } else if (cols == 5) {
        four_lanes(g, part, 5);
    } else if (cols == 7) {
        four_lanes(g, part, 7);
    } else {
        four_lanes(g, part, cols);
    }
}

static void one_row(const lane_group *g, int32_t y) {
    const tf_convolution *layer = g->layer;
    const uint32_t channels = layer->out_channels;
    const int32_t top = y * layer->stride_height - layer->pad_top;
    stretch part;
    part.rows = taps_inside(top, layer->kernel_height, layer->in_height, &part.row);
    const int8_t *line = g->input + (uint32_t)((top + part.row) * layer->in_width) * channels;
    int32_t x = 0;
    while (x < layer->out_width) {
        const int32_t left = x * layer->stride_width - layer->pad_left;
        const int32_t cols = taps_inside(left, layer->kernel_width, layer->in_width, &part.col);
        /* Windows that lie inside as a whole are alike; the others go one by one. */
        const int32_t room = layer->in_width - layer->kernel_width - left;
        part.count = left < 0 || room < 0 ? 1 : room / layer->stride_width + 1;
        if (part.count > layer->out_width - x) {
            part.count = layer->out_width - x;
        }
        part.pixel = line + (uint32_t)(left + part.col) * channels;
        part.index = (uint32_t)(y * layer->out_width + x) * channels + g->channel;
        run_stretch(g, &part, cols);
        x += part.count;
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
