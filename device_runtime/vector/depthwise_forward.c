/* Depthwise convolution on the host, forward: the same results as depthwise.c. */
#include "ring.h"

/* What all channels have in common. */
typedef struct {
    const tf_convolution *layer;
    const tf_span *span;
    uint32_t line;  /* pairs of columns of a row of the ring */
    uint32_t step;  /* columns from one pair to the next */
    uint32_t pairs; /* of taps in a row */
    tf_lanes *taps, *ring;
} forward_job;

static void make_taps(const forward_job *job, const tf_tile_taps *tile) {
    const uint32_t width = job->layer->kernel_width;
    tf_lanes *to = job->taps;
    for (uint32_t row = 0; row < job->layer->kernel_height; row++) {
        for (uint32_t col = 0; col < width; col += 2u) {
            const tf_lanes first = tf_tile_tap(tile, row * width + col);
            const tf_lanes second =
                col + 1u < width ? tf_tile_tap(tile, row * width + col + 1u) : tf_lanes_all(0);
            *to++ = tf_pairs_of(first, second);
        }
    }
}

/* A row of the input, `from` its first pixel's tile, less the zero point and with the padding. */
static void keep_row(const forward_job *job, const int8_t *from, uint32_t count, tf_lanes *to) {
    const tf_convolution *layer = job->layer;
    const tf_lanes minus = tf_lanes_all(-layer->in_zero), none = tf_lanes_all(0);
    const uint32_t before = layer->pad_left, width = layer->in_width;
    const uint32_t channels = layer->in_channels, columns = job->line * job->step;
    tf_lanes last = none;
    for (uint32_t column = 0; column <= columns; column++) {
        tf_lanes value = none;
        if (column - before < width) {
            value = tf_lanes_add(tf_lanes_widen8(from, count), minus);
            from += channels;
        }
        if (column > 0u && (job->step == 1u || column % 2u == 1u)) {
            *to++ = tf_pairs_of(last, value);
        }
        last = value;
    }
}

/* Row y of the output, whose rows of the input are in the ring. */
static void make_row(const forward_job *job, uint32_t y, const tf_lanes_requantizer *by,
                     tf_lanes bias, int8_t *output, uint8_t *mask, uint32_t index) {
    const tf_convolution *layer = job->layer;
    const uint32_t height = layer->kernel_height, width = layer->out_width;
    const int32_t top = (int32_t)(y * layer->stride_height) - layer->pad_top;
    const int32_t first = tf_clamp(top, 0, layer->in_height);
    const int32_t end = tf_clamp(top + layer->kernel_height, first, layer->in_height);
    const tf_lanes *rows[UINT8_MAX];
    const tf_lanes *taps = job->taps + (uint32_t)(first - top) * job->pairs;
    const uint32_t apart = layer->stride_width / job->step, next = 2u / job->step;
    const uint32_t count = (uint32_t)(end - first), channels = layer->out_channels;
    for (uint32_t i = 0; i < count; i++) {
        rows[i] = tf_ring_row(job->ring, (uint32_t)first + i, height, job->line);
    }
    for (uint32_t x = 0; x < width; x += TF_RING_PIXELS) {
        const uint32_t left = width - x;
        const uint32_t pixels = left < TF_RING_PIXELS ? left : TF_RING_PIXELS;
        tf_lanes sums[TF_RING_PIXELS] = {bias, bias, bias, bias};
        tf_ring_add_any(rows, count, taps, job->pairs, apart, next, sums);
        for (uint32_t i = 0; i < pixels; i++, output += channels, index += channels) {
            const uint32_t bits = tf_lanes_requantize(by, sums[i], output);
            if (mask != NULL) {
                tf_lanes_put_bits(mask, index, bits, by->count);
            }
        }
        for (uint32_t i = 0; i < count; i++) {
            rows[i] += TF_RING_PIXELS * apart;
        }
    }
}

static void run_tile(const forward_job *job, const int8_t *input, const int32_t *bias,
                     int8_t *output, uint8_t *mask, const tf_tile_taps *tile) {
    const tf_convolution *layer = job->layer;
    const tf_span *span = job->span;
    const uint32_t channel = tile->channel, channels = layer->out_channels;
    const uint8_t *pre_shift = layer->pre_shift == NULL ? NULL : layer->pre_shift + channel;
    const tf_lanes_requantizer by = tf_lanes_make_requantizer(
        layer->requantize + channel, pre_shift, layer->out_zero, tile->count);
    const tf_lanes start = tf_lanes_load_some(bias + channel, tile->count);
    const uint32_t in_row = (uint32_t)layer->in_width * channels;
    const uint32_t out_row = (uint32_t)layer->out_width * channels;
    const int32_t low = (int32_t)(span->first * layer->stride_height) - layer->pad_top;
    uint32_t kept = low > 0 ? (uint32_t)low : 0u;
    make_taps(job, tile);
    for (uint32_t y = span->first; y < span->end; y++) {
        const int32_t end =
            (int32_t)(y * layer->stride_height) - layer->pad_top + layer->kernel_height;
        for (; (int32_t)kept < end && kept < layer->in_height; kept++) {
            keep_row(job, input + kept % span->in_ring * in_row + channel, tile->count,
                     tf_ring_row(job->ring, kept, layer->kernel_height, job->line));
        }
        make_row(job, y, &by, start, output + y % span->out_ring * out_row + channel, mask,
                 y * out_row + channel);
    }
}

/* Rows of the output may lie over those of the input where these are in the ring by then. Parts of a
 * layer, whose tensors are rings themselves, lie beside each other. */
static uint32_t rows_may_replace(const tf_convolution *layer, const tf_span *span,
                                 const int8_t *input, const int8_t *output) {
    const uint32_t whole = span->in_ring == layer->in_height && span->out_ring == layer->out_height;
    for (uint32_t y = 0; y < layer->out_height && whole; y++) {
        const int32_t seen =
            (int32_t)(y * layer->stride_height) - layer->pad_top + layer->kernel_height;
        const uint32_t channels = layer->out_channels, kept = seen < 0 ? 0u : (uint32_t)seen;
        if (!tf_row_spares(output, y, layer->out_width * channels, input, kept, layer->in_height,
                           layer->in_width * channels)) {
            return 0;
        }
    }
    return 1;
}

uint32_t tf_depthwise_forward_in_lanes(const tf_convolution *layer, const tf_span *span,
                                       const int8_t *input, const tf_weights *weights,
                                       const int32_t *bias, int8_t *output, uint8_t *mask) {
    tf_lanes memory[TF_RING_BYTES / sizeof(tf_lanes)];
    forward_job job = {layer, span, 0, 0, (layer->kernel_width + 1u) / 2u, memory, NULL};
    job.step = layer->stride_width % 2u == 0u ? 2u : 1u;
    const uint32_t outputs = (layer->out_width + TF_RING_PIXELS - 1u) & ~(TF_RING_PIXELS - 1u);
    const uint32_t seen = (outputs - 1u) * layer->stride_width + 2u * job.pairs;
    job.line = (seen + job.step - 1u) / job.step;
    const uint32_t taps = layer->kernel_height * job.pairs;
    if (taps + layer->kernel_height * job.line > TF_RING_BYTES / sizeof(tf_lanes) ||
        !rows_may_replace(layer, span, input, output)) {
        return 0;
    }
    job.ring = memory + taps;
    const uint32_t channels = layer->out_channels;
    if (mask != NULL) {
        const uint32_t size = (uint32_t)layer->out_height * layer->out_width * channels;
        memset(mask, 0, (size + 7u) / 8u);
    }
    tf_tile_taps tile = {weights, channels, 0, 0, 0, 0};
    for (uint32_t channel = 0; channel < channels; channel += TF_LANES) {
        const uint32_t left = channels - channel;
        tf_next_tile_taps(&tile, channel, left < TF_LANES ? left : TF_LANES);
        run_tile(&job, input, bias, output, mask, &tile);
    }
    return 1;
}
