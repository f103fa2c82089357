/* Full convolution, forward: columns of what output pixels see times packed weights. */
#include "block.h"
#include "columns.h"
#include "fixed_point.h"
#include "merge.h"

#ifdef TF_VECTOR
#include "../vector/panels.h"
#endif

/* A byte of the mask holds eight channels. */
#define MASK_CHANNELS 8u

/* What does not change between the pixels of a layer. */
typedef struct {
    const tf_convolution *layer;
    tf_columns from; /* what its pixels see */
    const tf_weights *weights;
    const int8_t *packed; /* the weights', of which some are trained elsewhere: */
    uint32_t with_trained;
    const tf_multiplier *requantize;
    const uint8_t *pre_shift;
    int32_t out_zero;
    const int32_t *bias;
    uint8_t *mask;
    uint32_t at_once; /* pixels whose columns are made at a time */
    int16_t *pair;
    int8_t *codes; /* of the last of an odd number of channels */
#ifdef TF_VECTOR
    tf_panel_block panels; /* without any where they find no room */
#endif
} job;

/* Values that an output pixel sees. */
static uint32_t values_of_column(const tf_convolution *layer) {
    return (uint32_t)layer->kernel_height * layer->kernel_width * layer->in_channels;
}

/* The trained ones of rows `o` and `o` + 1 of the weights take their places. */
static __attribute__((noinline, cold)) void put_trained(const job *job, uint32_t o) {
    const tf_convolution *layer = job->layer;
    const tf_weights *weights = job->weights;
    const uint32_t taps = (uint32_t)layer->kernel_height * layer->kernel_width;
    const uint16_t *channels = weights->channels, *end = channels + weights->count;
    const int8_t *from = weights->trained + o * tf_packed_length(taps * weights->count);
    const uint32_t inputs = layer->in_channels, behind = taps * inputs;
    const uint32_t second = tf_pair_index(job->from.length, 1, 0);
    tf_forward_weight *pair = (tf_forward_weight *)job->pair;
    for (uint32_t first = 0; first < behind; first += inputs) {
        for (const uint16_t *next = channels; next != end; from += 2) {
            tf_forward_weight *to = pair + tf_pair_index(job->from.length, 0, first + *next++);
            const tf_forward_weight a = from[0], b = from[1];
            to[0] = a;
            to[second] = b;
        }
    }
}

/* All blocks for channels `o` and `next`. */
static inline void run_two(const job *job, tf_block_run *run, uint32_t o, uint32_t next,
                           int8_t *output, uint32_t step) {
    tf_block_widen_pair(job->pair, job->packed + o * job->from.length, job->from.length);
    if (job->with_trained) {
        put_trained(job, o);
    }
    tf_block_aim(run, output, step);
    tf_block_set_codes(run, job->requantize[o], job->requantize[next], job->out_zero);
    run->start[0] = job->bias[o];
    run->start[1] = job->bias[next];
    if (job->pre_shift != NULL) {
        run->pre_shift[0] = job->pre_shift[o];
        run->pre_shift[1] = job->pre_shift[next];
    }
    if (run->blocks > 0u) {
        tf_block_run_all(run);
    }
}

/* Pixel `pixel` of those whose columns are ready, which is in no whole block. */
static __attribute__((noinline, cold)) void run_single(const job *job, tf_block_run *run,
                                                       uint32_t pixel, int8_t *output) {
    const uint32_t in_block = pixel % TF_BLOCK_PIXELS;
    int32_t sums[2];
    tf_block_single(run, job->from.all_columns + (pixel - in_block) * job->from.length, in_block,
                    sums);
    if (job->layer->pre_shift != NULL) {
        sums[0] = tf_raise_saturating(sums[0], (int32_t)run->pre_shift[0]);
        sums[1] = tf_raise_saturating(sums[1], (int32_t)run->pre_shift[1]);
    }
    const int32_t first = tf_requantize(&run->first, sums[0]);
    const int32_t second = tf_requantize(&run->second, sums[1]);
    output[0] = (int8_t)tf_clamp8(first);
    output[1] = (int8_t)tf_clamp8(second);
    if (job->mask != NULL) {
        uint8_t *bits = (uint8_t *)run->bits + pixel;
        *bits = (uint8_t)(*bits >> 2 | (output[0] == first) << 6 | (output[1] == second) << 7);
    }
}

/* Bits of channels `first` … `first` + count - 1 of each pixel, of which so many have been made, go
 * to the mask; element `index` of the output is the first pixel's first. */
static __attribute__((noinline)) void put_mask(const job *job, const uint32_t *bits,
                                               uint32_t pixels, uint32_t first, uint32_t made,
                                               uint32_t index) {
    const uint8_t *next = (const uint8_t *)bits, *end = next + pixels;
    const uint32_t step = job->layer->out_channels, left = step - first;
    const uint32_t count = left < made ? left : made;
    index += first;
    if (count == MASK_CHANNELS && (step | index) % MASK_CHANNELS == 0) {
        const uint32_t apart = step / MASK_CHANNELS;
        uint8_t *to = job->mask + index / MASK_CHANNELS;
        for (; end - next >= 4; next += 4, to += 4u * apart) {
            const uint32_t four = tf_load32(next);
            to[0] = (uint8_t)four;
            to[apart] = (uint8_t)(four >> 8);
            to[2u * apart] = (uint8_t)(four >> 16);
            to[3u * apart] = (uint8_t)(four >> 24);
        }
        for (; next != end; to += apart) {
            *to = *next++;
        }
        return;
    }
    for (; next != end; next++, index += step) {
        const uint32_t all = (uint32_t)*next >> (MASK_CHANNELS - made);
        tf_put_bits(job->mask, index, all & ((1u << count) - 1u), count);
    }
}

/* All channels but the last of an odd number, of so many whole blocks that they have no more pixels,
 * by the layer's own weights; returns the number of channels. */
static inline uint32_t run_pairs(const job *job, tf_block_run *run, uint32_t pixels, int8_t *output,
                                 uint32_t index) {
    const uint32_t channels = job->layer->out_channels, even = channels & ~1u;
    const uint32_t most = job->mask == NULL ? even : MASK_CHANNELS;
    run->packed = job->packed;
    run->requantize = job->requantize;
    run->bias = job->bias;
    run->raised = job->pre_shift;
    tf_block_aim(run, output, channels);
    for (uint32_t o = 0, made; o < even; o += made) {
        made = even - o < most ? even - o : most;
        tf_block_run_pairs(run, made / 2u);
        if (job->mask != NULL) {
            put_mask(job, run->bits, pixels, o, made, index);
        }
    }
    return even;
}

/* All channels of `pixels` pixels whose columns are ready; the first one's lie at `output`, and are
 * elements `index` … of the layer's output. */
static void run_pixels(const job *by, tf_block_run *run, uint32_t pixels, int8_t *output,
                       uint32_t index) {
    const job job = *by; /* where no call can change it */
    const uint32_t channels = job.layer->out_channels;
    const uint32_t in_blocks = pixels & ~(TF_BLOCK_PIXELS - 1u);
    uint32_t *bits = run->bits, made = 0, o = 0;
    run->blocks = in_blocks / TF_BLOCK_PIXELS;
    if (!job.with_trained && in_blocks == pixels) {
        o = run_pairs(&job, run, pixels, output, index);
    }
    for (; o < channels; o += 2u) {
        const uint32_t next = o + 1u < channels ? o + 1u : o;
        int8_t *to = output + o;
        uint32_t step = channels;
        if (next == o) {
            /* The last of an odd number of channels, which is its own partner. */
            to = job.codes;
            step = 2u;
        }
        run->bits = bits;
        run_two(&job, run, o, next, to, step);
        for (uint32_t p = in_blocks; p < pixels; p++) {
            run_single(&job, run, p, to + p * step);
        }
        for (uint32_t p = 0; p < pixels && next == o; p++) {
            output[p * channels + o] = to[2u * p];
        }
        made += 2u;
        if (job.mask != NULL && (made == MASK_CHANNELS || o + 2u >= channels)) {
            put_mask(&job, bits, pixels, o + 2u - made, made, index);
            made = 0;
        }
    }
    run->bits = bits;
}

#ifdef TF_VECTOR

/* run_rows by way of panels, with the columns of many pixels at a time. */
static __attribute__((noinline)) void run_rows_in_panels(job *job, uint32_t first, uint32_t end,
                                                         int8_t *output) {
    int16_t columns[TF_COLUMN_BYTES / sizeof(int16_t)];
    const uint32_t length = job->from.length, channels = job->layer->out_channels;
    const uint32_t fitting = TF_COLUMN_BYTES / (2u * length) & ~(TF_BLOCK_PIXELS - 1u);
    const uint32_t most = fitting < TF_PANEL_PIXELS ? fitting : TF_PANEL_PIXELS;
    /* One row: what pixels see lies one behind the other, as their columns do. */
    const uint32_t in_a_row =
        job->from.in_height == 1u && tf_is_pointwise(job->layer) && length == job->from.line;
    uint32_t index = first * job->from.out_width * channels;
    uint32_t left = (end - first) * job->from.out_width, y = first, x = 0;
    for (uint32_t p = 0; p < most && !in_a_row; p += TF_BLOCK_PIXELS) {
        tf_fill_up(columns + p * length, values_of_column(job->layer), length);
    }
    job->panels.columns = columns;
    for (uint32_t count; left > 0u; left -= count) {
        count = left < most ? left : most;
        if (in_a_row) {
            tf_codes_less(job->from.input + x * length, count * length, job->layer->in_zero,
                          columns);
            x += count;
        }
        for (uint32_t p = 0; p < count && !in_a_row; p += TF_BLOCK_PIXELS) {
            const uint32_t rest = count - p;
            const uint32_t pixels = rest < TF_BLOCK_PIXELS ? rest : TF_BLOCK_PIXELS;
            job->from.columns = columns + p * length;
            tf_gather_block(&job->from, y, x, pixels);
            for (x += pixels; x >= job->from.out_width; x -= job->from.out_width) {
                y++;
            }
        }
        tf_panels_forward(&job->panels, count, output, job->mask, index);
        output += count * channels;
        index += count * channels;
    }
    job->panels.columns = job->from.columns = NULL;
}

#endif

/* Output rows first … end - 1, which lie one behind the other from `output` on. */
static void run_rows(job *job, tf_block_run *run, uint32_t first, uint32_t end, int8_t *output) {
#ifdef TF_VECTOR
    if (job->panels.panels != NULL) {
        run_rows_in_panels(job, first, end, output);
        return;
    }
#endif
    const uint32_t channels = job->layer->out_channels, width = job->from.out_width;
    uint32_t index = first * width * channels, left = (end - first) * width;
    uint32_t y = first, x = 0;
    for (uint32_t count; left > 0; left -= count) {
        count = left < job->at_once ? left : job->at_once;
        tf_gather_columns(&job->from, y, x, count);
        run_pixels(job, run, count, output, index);
        output += count * channels;
        index += count * channels;
        for (x += count; x >= width; x -= width) {
            y++;
        }
    }
}

/* All rows of the span; sets what the job has of the tensors. */
static void run_span(job *job, const tf_span *span, const int8_t *input, int8_t *output,
                     uint8_t *mask) {
    const tf_convolution *layer = job->layer;
    const uint32_t pixel_bytes = layer->out_channels, width = layer->out_width;
    const uint32_t all = span->first == 0 && span->end == layer->out_height &&
                         span->in_ring == layer->in_height && span->out_ring == layer->out_height;
    /* Bits of the mask are counted from the first row. */
    const uint32_t long_rows = tf_is_pointwise(layer) && (mask == NULL || all);
    tf_block_run run;
    run.pair = job->pair;
    run.columns = job->from.all_columns;
    run.bits = (uint32_t *)(void *)(job->pair + 2u * job->from.length);
    run.pre_shift[0] = run.pre_shift[1] = 0;
    run.raised = layer->pre_shift;
    run.twice_zero = 2 * layer->out_zero + 1;
#if TF_MVE
    run.in_zero = layer->in_zero;
#endif
    tf_block_prepare(&run, mask == NULL ? TF_RUN_CODES : TF_RUN_CODES_AND_MASK, job->from.length);
    job->from.input = input;
    job->mask = mask;
    job->from.in_height = layer->in_height;
    job->from.in_width = layer->in_width;
    job->from.in_ring = span->in_ring;
    job->from.out_width = width;
    tf_find_inner(&job->from);
    for (uint32_t y = span->first, rows; y < span->end; y += rows) {
        const uint32_t place = y % span->out_ring, from = y % span->in_ring;
        int8_t *to = output + place * width * pixel_bytes;
        rows = span->out_ring - place;
        rows = span->end - y < rows ? span->end - y : rows;
        if (long_rows) {
            /* One behind the other they make one long row, so that no block has a piece of two. */
            rows = span->in_ring - from < rows ? span->in_ring - from : rows;
            job->from.input = input + from * width * layer->in_channels;
            job->from.in_height = 1;
            job->from.in_width = job->from.out_width = rows * width;
            tf_find_inner(&job->from);
            run_rows(job, &run, 0, 1, to);
        } else {
            run_rows(job, &run, y, y + rows, to);
        }
    }
}

static uint32_t codes_of_last(const tf_convolution *layer, uint32_t at_once) {
    return layer->out_channels % 2u == 1u ? 2u * at_once : 0u;
}

/* Scratch: columns, two rows of weights, bits of a mask, codes of the last of an odd number of
 * channels. */
uint32_t tf_convolution_forward_scratch_bytes(const tf_convolution *layer, uint32_t at_once) {
    const uint32_t length = tf_packed_length(values_of_column(layer));
    return sizeof(int16_t) * (at_once + 2u) * length + at_once + codes_of_last(layer, at_once);
}

#ifdef TF_VECTOR

/* All rows of the span by way of panels; returns 0 where they find no room. */
static __attribute__((noinline)) uint32_t run_in_panels(job *job, const tf_span *span,
                                                        const tf_weights *weights,
                                                        const int8_t *input, int8_t *output,
                                                        uint8_t *mask) {
    int8_t panels[TF_PANEL_BYTES], merged[TF_PANEL_BYTES];
    const tf_convolution *layer = job->layer;
    const uint32_t channels = layer->out_channels;
    if (tf_lanes_up(channels) * job->from.length > TF_PANEL_BYTES ||
        2u * TF_BLOCK_PIXELS * job->from.length > TF_COLUMN_BYTES) {
        return 0;
    }
    const int8_t *packed = weights->fixed;
    if (weights->count > 0) {
        const tf_weight_part all = {0, (channels + 1u) / 2u, 0, layer->in_channels};
        tf_merge_weights(layer, weights, &all, merged);
        packed = merged;
    }
    tf_make_panels(packed, channels, job->from.length, panels);
    job->panels = (tf_panel_block){.panels = panels,
                                   .bias = job->bias,
                                   .requantize = layer->requantize,
                                   .pre_shift = layer->pre_shift,
                                   .channels = channels,
                                   .length = job->from.length,
                                   .step = channels,
                                   .zero = layer->out_zero};
    run_span(job, span, input, output, mask);
    return 1;
}

#endif

void tf_convolution_forward(const tf_convolution *layer, const tf_span *span, const int8_t *input,
                            const tf_weights *weights, const int32_t *bias, int8_t *output,
                            uint8_t *mask, int16_t *scratch, uint32_t at_once) {
    const uint32_t values = values_of_column(layer), length = tf_packed_length(values);
    job job = {.layer = layer,
               .from = {.layer = layer,
                        .all_columns = (tf_column *)scratch,
                        .length = length,
                        .line = (uint32_t)layer->kernel_width * layer->in_channels,
                        .step = (uint32_t)layer->stride_width * layer->in_channels},
               .weights = weights,
               .packed = weights->fixed,
               .with_trained = weights->count > 0,
               .requantize = layer->requantize,
               .pre_shift = layer->pre_shift,
               .out_zero = layer->out_zero,
               .bias = bias,
               .at_once = at_once,
               .pair = scratch + at_once * length};
    job.codes = (int8_t *)(job.pair + 2u * length) + at_once;
    if (mask != NULL) {
        const uint32_t size = (uint32_t)layer->out_height * layer->out_width * layer->out_channels;
        memset(mask, 0, (size + 7u) / 8u);
    }
#ifdef TF_VECTOR
    if (run_in_panels(&job, span, weights, input, output, mask)) {
        return;
    }
#endif
    for (uint32_t p = 0; p < at_once && values < length; p += TF_BLOCK_PIXELS) {
        tf_fill_up((tf_column *)scratch + p * length, values, length);
    }
    run_span(&job, span, input, output, mask);
}
