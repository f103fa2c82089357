/* Depthwise convolution on the host, backward: the same errors as depthwise_gradient.c. */
#include "ring.h"

/* What all channels have in common. Phases are those of depthwise_gradient.c. */
typedef struct {
    const tf_convolution *layer;
    int32_t shift;  /* from the product with the channel's factor to a code */
    uint32_t most;  /* taps of a row that a phase of the columns sees at most, filled up to pairs */
    uint32_t rows;  /* the same of columns; of the ring */
    uint32_t line;  /* pairs of columns of a row of the ring */
    uint32_t zeros; /* columns of zeros at its beginning */
    tf_lanes *taps; /* by phase of rows, by phase of columns: rows of most / 2 pairs, in reverse */
    tf_lanes *ring;
} gradient_job;

/* Taps of a kernel of `size` that phase `phase` sees. */
static uint32_t phase_taps(uint32_t size, uint32_t stride, uint32_t phase) {
    return phase < size ? (size - 1u - phase) / stride + 1u : 0u;
}

static tf_lanes *taps_of(const gradient_job *job, uint32_t row_phase, uint32_t column_phase) {
    const uint32_t phase = row_phase * job->layer->stride_width + column_phase;
    return job->taps + phase * job->rows * (job->most / 2u);
}

/* All rows of one phase of rows and one of columns, the last of each first. */
static void make_taps(const gradient_job *job, const tf_tile_taps *tile, uint32_t row_phase,
                      uint32_t column_phase) {
    const tf_convolution *layer = job->layer;
    const uint32_t rows = phase_taps(layer->kernel_height, layer->stride_height, row_phase);
    const uint32_t taps = phase_taps(layer->kernel_width, layer->stride_width, column_phase);
    tf_lanes *to = taps_of(job, row_phase, column_phase);
    for (uint32_t row = rows; row-- > 0u;) {
        const uint32_t first =
            (row_phase + row * layer->stride_height) * layer->kernel_width + column_phase;
        for (uint32_t left = taps; left > 0u;) {
            const tf_lanes a = tf_tile_tap(tile, first + (left - 1u) * layer->stride_width);
            tf_lanes b = tf_lanes_all(0);
            left--;
            if (left > 0u) {
                b = tf_tile_tap(tile, first + (left - 1u) * layer->stride_width);
                left--;
            }
            *to++ = tf_pairs_of(a, b);
        }
    }
}

/* A row of the errors, `from` its first pixel's tile. */
static void keep_row(const gradient_job *job, const int16_t *from, uint32_t count, tf_lanes *to) {
    const tf_convolution *layer = job->layer;
    const tf_lanes none = tf_lanes_all(0);
    tf_lanes last = none;
    for (uint32_t column = 0; column <= job->line; column++) {
        tf_lanes value = none;
        if (column - job->zeros < layer->out_width) {
            value = tf_lanes_widen16(from, count);
            from += layer->out_channels;
        }
        if (column > 0u) {
            *to++ = tf_pairs_of(last, value);
        }
        last = value;
    }
}

/* Codes of sums for factors that are multiplied with by their high words, as those of all shifts
 * from 16 to 32 are, or one by one. */
static inline tf_lanes codes_of(tf_lanes sums, tf_lanes factors, int32_t shift) {
    if (shift >= 16 && shift <= 32) {
        const tf_lanes values = tf_lanes_rounded_product(sums, factors);
        return tf_lanes_clamp(values, tf_lanes_all(-32767), tf_lanes_all(32767));
    }
    int32_t each[TF_LANES], by[TF_LANES];
    tf_lanes_store(each, sums);
    tf_lanes_store(by, factors);
    for (uint32_t i = 0; i < TF_LANES; i++) {
        const int64_t product = (int64_t)each[i] * by[i];
        each[i] = tf_clamp((int32_t)tf_round_shift(product, shift), -32767, 32767);
    }
    return tf_lanes_load(each);
}

/* Row y of the input's error, whose rows of errors are in the ring; returns the largest |code|. */
static tf_lanes make_row(const gradient_job *job, uint32_t y, tf_lanes factors, uint32_t lanes,
                         int16_t *out, tf_lanes largest) {
    const tf_convolution *layer = job->layer;
    const uint32_t stride = layer->stride_width, channels = layer->in_channels;
    const uint32_t row_phase = (y + layer->pad_top) % layer->stride_height;
    const int32_t last = (int32_t)((y + layer->pad_top) / layer->stride_height);
    const int32_t top =
        last + 1 - (int32_t)phase_taps(layer->kernel_height, layer->stride_height, row_phase);
    const int32_t first = tf_clamp(top, 0, layer->out_height);
    const int32_t end = tf_clamp(last + 1, first, layer->out_height);
    const uint32_t count = (uint32_t)(end - first);
    for (uint32_t column = 0; column < stride && column < layer->in_width; column++) {
        const uint32_t at = column + layer->pad_left, phase = at % stride;
        const uint32_t taps = phase_taps(layer->kernel_width, stride, phase);
        const uint32_t pairs = (taps + 1u) / 2u;
        const tf_lanes *by = taps_of(job, row_phase, phase) + (uint32_t)(first - top) * pairs;
        const tf_lanes *rows[UINT8_MAX];
        for (uint32_t i = 0; i < count; i++) {
            rows[i] = tf_ring_row(job->ring, (uint32_t)first + i, job->rows, job->line) +
                      (job->zeros + at / stride + 1u - taps);
        }
        for (uint32_t x = column; x < layer->in_width; x += TF_RING_PIXELS * stride) {
            const tf_lanes none = tf_lanes_all(0);
            tf_lanes sums[TF_RING_PIXELS] = {none, none, none, none};
            tf_ring_add_any(rows, count, by, pairs, 1u, 2u, sums);
            for (uint32_t i = 0; i < TF_RING_PIXELS && x + i * stride < layer->in_width; i++) {
                const tf_lanes codes = codes_of(sums[i], factors, job->shift);
                tf_lanes_store16(out + (x + i * stride) * channels, codes, lanes);
                largest = tf_lanes_largest(largest, tf_lanes_magnitude(codes));
            }
            for (uint32_t i = 0; i < count; i++) {
                rows[i] += TF_RING_PIXELS;
            }
        }
    }
    return largest;
}

static tf_lanes run_tile(const gradient_job *job, const int16_t *error, int16_t *out,
                         const tf_tile_taps *tile, tf_lanes largest) {
    const tf_convolution *layer = job->layer;
    const uint32_t channel = tile->channel, channels = layer->in_channels;
    const tf_lanes multipliers = tf_lanes_widen16(layer->error_multiplier + channel, tile->count);
    const tf_lanes factors = job->shift >= 16 && job->shift <= 32
                                 ? tf_lanes_left(multipliers, tf_lanes_all(32 - job->shift))
                                 : multipliers;
    uint32_t kept = 0;
    for (uint32_t row = 0; row < layer->stride_height; row++) {
        for (uint32_t column = 0; column < layer->stride_width; column++) {
            make_taps(job, tile, row, column);
        }
    }
    for (uint32_t y = 0; y < layer->in_height; y++) {
        const uint32_t end = (y + layer->pad_top) / layer->stride_height + 1u;
        for (; kept < end && kept < layer->out_height; kept++) {
            keep_row(job, error + kept * layer->out_width * channels + channel, tile->count,
                     tf_ring_row(job->ring, kept, job->rows, job->line));
        }
        largest = make_row(job, y, factors, tile->count,
                           out + y * layer->in_width * channels + channel, largest);
    }
    return largest;
}

/* Rows of the input's error may lie over those of the output's where these are in the ring by then. */
static uint32_t rows_may_replace(const tf_convolution *layer, const int16_t *error,
                                 const int16_t *out) {
    const uint32_t pixel = sizeof(int16_t) * layer->in_channels;
    for (uint32_t y = 0; y < layer->in_height; y++) {
        const uint32_t kept = (y + layer->pad_top) / layer->stride_height + 1u;
        if (!tf_row_spares(out, y, layer->in_width * pixel, error, kept, layer->out_height,
                           layer->out_width * pixel)) {
            return 0;
        }
    }
    return 1;
}

uint32_t tf_depthwise_gradient_in_lanes(const tf_convolution *layer, const int16_t *error,
                                        const tf_weights *weights, int16_t *out, int32_t shift,
                                        int32_t *magnitude) {
    tf_lanes memory[TF_RING_BYTES / sizeof(tf_lanes)];
    const uint32_t stride = layer->stride_width, channels = layer->in_channels;
    gradient_job job = {.layer = layer, .shift = shift, .taps = memory};
    job.most = (phase_taps(layer->kernel_width, stride, 0) + 1u) & ~1u;
    job.rows = phase_taps(layer->kernel_height, layer->stride_height, 0);
    job.zeros = job.most;
    const uint32_t reach = (layer->in_width - 1u + layer->pad_left) / stride;
    job.line = job.zeros + reach + job.most + TF_RING_PIXELS;
    const uint32_t phases = (uint32_t)layer->stride_height * stride;
    const uint32_t taps = phases * job.rows * (job.most / 2u);
    if (taps + job.rows * job.line > TF_RING_BYTES / sizeof(tf_lanes) ||
        !rows_may_replace(layer, error, out)) {
        return 0;
    }
    job.ring = memory + taps;
    tf_lanes largest = tf_lanes_all(0);
    tf_tile_taps tile = {weights, channels, 0, 0, 0, 0};
    for (uint32_t channel = 0; channel < channels; channel += TF_LANES) {
        const uint32_t left = channels - channel;
        tf_next_tile_taps(&tile, channel, left < TF_LANES ? left : TF_LANES);
        largest = run_tile(&job, error, out, &tile, largest);
    }
    *magnitude = tf_lanes_highest(largest);
    return 1;
}
