/* Full convolution, forward: columns of what four output pixels see times packed weights. */
#include "block.h"
#include "fixed_point.h"
#include "merge.h"

#ifdef TF_VECTOR
#include "../vector/panels.h"
#elif TF_MVE
/* Codes stay what they are. */
static void tf_codes_less(const int8_t *from, uint32_t count, int32_t zero, tf_column *to) {
    (void)zero;
    for (; count >= 16u; count -= 16u, from += 16, to += 16) {
        vstrbq_s8(to, vldrbq_s8(from));
    }
    if (count > 0u) {
        const mve_pred16_t some = vctp8q(count);
        vstrbq_p_s8(to, vldrbq_z_s8(from, some), some);
    }
}
#elif !TF_DSP
/* to[i] = from[i] - zero. */
static void tf_codes_less(const int8_t *from, uint32_t count, int32_t zero, int16_t *to) {
    for (uint32_t i = 0; i < count; i++) {
        to[i] = (int16_t)(from[i] - zero);
    }
}
#endif

/* A byte of the mask holds eight channels. */
#define MASK_CHANNELS 8u

/* What does not change between the blocks of a layer. */
typedef struct {
    const tf_convolution *layer;
    const int8_t *weights; /* packed, of these output channels: */
    uint32_t first_channel, end_channel;
    const int8_t *input;
    const int32_t *bias;
    uint8_t *mask;
    uint32_t in_height, in_width, in_ring, out_width;
    tf_column *columns;
    uint32_t length;                 /* of a column */
    uint32_t line;                   /* values that one kernel row sees */
    uint32_t step;                   /* from what a pixel sees to what the next one sees */
    uint32_t inner_first, inner_end; /* x where four pixels in a row see no border */
#ifdef TF_VECTOR
    tf_panel_block block; /* of the same output channels; without panels where they find no room */
#endif
} job;

/* Values at … at + count - 1 of one pixel's column: src[i] - zero. */
static void widen(const job *job, uint32_t pixel, uint32_t at, const int8_t *src, uint32_t count) {
    const int32_t zero = job->layer->in_zero;
#if TF_DSP && !TF_MVE
    uint32_t i = 0;
    const uint32_t minus = tf_minus(zero);
    if (at % 2u == 1u && count > 0) {
        job->columns[tf_column_index(job->length, pixel, at)] = (int16_t)(src[i++] - zero);
    }
    int16_t *to = job->columns + tf_column_index(job->length, pixel, at + i);
    for (; i + 4u <= count; i += 4u, to += 16) {
        const uint32_t word = tf_load32(src + i);
        const uint32_t even = tf_even_plus(minus, word), odd = tf_odd_plus(minus, word);
        tf_store32(to, tf_pack_lower(even, odd));
        tf_store32(to + 8, tf_pack_upper(even, odd));
    }
    for (; i < count; i++) {
        job->columns[tf_column_index(job->length, pixel, at + i)] = (int16_t)(src[i] - zero);
    }
#else
    tf_codes_less(src, count, zero, job->columns + tf_column_index(job->length, pixel, at));
#endif
}

static void clear(const job *job, uint32_t pixel, uint32_t at, uint32_t count) {
    const tf_column nothing = (tf_column)(TF_MVE ? job->layer->in_zero : 0);
    for (uint32_t i = at; i < at + count; i++) {
        job->columns[tf_column_index(job->length, pixel, i)] = nothing;
    }
}

static const int8_t *row_of(const job *job, uint32_t y) {
    const uint32_t row = y < job->in_ring ? y : y % job->in_ring;
    return job->input + row * job->in_width * job->layer->in_channels;
}

/* A kernel row's values for all four pixels. */
static inline void widen_four(const job *job, uint32_t at, const int8_t *src) {
    const uint32_t count = job->line, step = job->step;
#if TF_DSP && !TF_MVE
    const int32_t zero = job->layer->in_zero;
    for (uint32_t i = 0; i < count;) {
        int16_t *to = job->columns + tf_column_index(job->length, 0, at + i);
        const uint32_t quads = (count - i) / 4u;
        if ((at + i) % 2u == 0 && quads > 0) {
            tf_block_widen(to, src + i, step, quads, tf_minus(zero));
            i += 4u * quads;
            continue;
        }
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
            to[2u * p] = (int16_t)(src[p * step + i] - zero);
        }
        i++;
    }
#else
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
        widen(job, p, at, src + p * step, count);
    }
#endif
}

/* The column of output pixel (y, x), part of which may lie outside the input: zeros there. */
static void gather_at_border(const job *job, uint32_t pixel, int32_t top, int32_t left) {
    const tf_convolution *layer = job->layer;
    const int32_t channels = layer->in_channels;
    const int32_t before = left < 0 ? -left : 0;
    const int32_t over = left + layer->kernel_width - (int32_t)job->in_width;
    const int32_t after = over > 0 ? over : 0;
    const int32_t inside = layer->kernel_width - before - after;
    uint32_t at = 0;
    for (int32_t row = top; row < top + layer->kernel_height; row++) {
        const uint32_t all = (uint32_t)(layer->kernel_width * channels);
        if (row < 0 || row >= (int32_t)job->in_height || inside <= 0) {
            clear(job, pixel, at, all);
        } else {
            const uint32_t first = (uint32_t)(before * channels);
            const uint32_t count = (uint32_t)(inside * channels);
            clear(job, pixel, at, first);
            widen(job, pixel, at + first, row_of(job, (uint32_t)row) + (left + before) * channels,
                  count);
            clear(job, pixel, at + first + count, all - first - count);
        }
        at += all;
    }
}

/* The column of output pixel (y, x). */
static void gather_pixel(const job *job, uint32_t pixel, uint32_t y, uint32_t x) {
    const tf_convolution *layer = job->layer;
    const int32_t top = (int32_t)(y * layer->stride_height) - layer->pad_top;
    const int32_t left = (int32_t)(x * layer->stride_width) - layer->pad_left;
    if (top < 0 || left < 0 || top + layer->kernel_height > (int32_t)job->in_height ||
        left + layer->kernel_width > (int32_t)job->in_width) {
        gather_at_border(job, pixel, top, left);
        return;
    }
    for (uint32_t row = 0; row < layer->kernel_height; row++) {
        widen(job, pixel, row * job->line,
              row_of(job, (uint32_t)top + row) + (uint32_t)left * layer->in_channels, job->line);
    }
}

/* Which x begin four pixels of one row that see no border on either side. */
static void find_inner(job *job) {
    const tf_convolution *layer = job->layer;
    const uint32_t stride = layer->stride_width, others = TF_BLOCK_PIXELS - 1u;
    const uint32_t padded = job->in_width + layer->pad_left;
    const uint32_t seen = others * stride + layer->kernel_width;
    uint32_t end = padded >= seen ? (padded - seen) / stride + 1u : 0u;
    const uint32_t whole = job->out_width > others ? job->out_width - others : 0u;
    job->inner_first = (layer->pad_left + stride - 1u) / stride;
    job->inner_end = end < whole ? end : whole;
}

/* Columns of output pixels (y, x) to (y, x + 3), if they see no border. */
static uint32_t gather_four(const job *job, uint32_t y, uint32_t x) {
    const tf_convolution *layer = job->layer;
    const uint32_t rows = layer->kernel_height;
    const int32_t top = (int32_t)(y * layer->stride_height) - layer->pad_top;
    if (x < job->inner_first || x >= job->inner_end || top < 0 ||
        (uint32_t)top + rows > job->in_height) {
        return 0;
    }
    const uint32_t left = x * job->step - (uint32_t)layer->pad_left * layer->in_channels;
    for (uint32_t row = 0, at = 0; row < rows; row++, at += job->line) {
        widen_four(job, at, row_of(job, (uint32_t)top + row) + left);
    }
    return 1;
}

/* Columns of output pixels (y, x) and the `count` - 1 that follow; repeats the last up to four. */
static __attribute__((noinline)) void gather_each(const job *job, uint32_t y, uint32_t x,
                                                  uint32_t count) {
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
        gather_pixel(job, p, y, x);
        if (p + 1u < count && ++x == job->out_width) {
            x = 0;
            y++;
        }
    }
}

static inline void gather(const job *job, uint32_t y, uint32_t x, uint32_t count) {
    if (count < TF_BLOCK_PIXELS || !gather_four(job, y, x)) {
        gather_each(job, y, x, count);
    }
}

/* Zeros behind the values of columns. */
static void fill_up(tf_column *columns, uint32_t used, uint32_t length) {
    for (uint32_t at = used; at < length; at++) {
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
            columns[tf_column_index(length, p, at)] = 0;
        }
    }
}

/* Values that an output pixel sees. */
static uint32_t values_of_column(const tf_convolution *layer) {
    return (uint32_t)layer->kernel_height * layer->kernel_width * layer->in_channels;
}

/* Points the block at channels first … end - 1 (an even number) of the pixels at `output`. */
static void aim(const job *job, tf_forward_block *block, int8_t *output, uint32_t first,
                uint32_t end) {
    block->output = output + first;
    block->output_end = output + end;
    block->weights = job->weights + (first - job->first_channel) * job->length;
    block->bias = job->bias + first;
    block->requantize = job->layer->requantize + first;
    block->pre_shift = job->layer->pre_shift == NULL ? NULL : job->layer->pre_shift + first;
}

/* `made` (even) channels that the block aims at, of which `count` go to bits `index` … of the
 * first pixel's mask: those that begin or end in the middle of a byte. */
static void forward_with_bits(const job *job, tf_forward_block *block, uint32_t made,
                              uint32_t count, uint32_t index, uint32_t pixels) {
    uint8_t bytes[TF_BLOCK_PIXELS] = {0};
    block->mask = bytes;
    block->mask_end = block->output_end;
    for (uint32_t p = 1; p < TF_BLOCK_PIXELS; p++) {
        block->mask_steps[p - 1u] = (int32_t)p;
    }
    tf_block_forward(block);
    for (uint32_t p = 0; p < pixels && job->mask != NULL; p++) {
        const uint32_t bits = (uint32_t)bytes[p] >> (8u - made);
        tf_put_bits(job->mask, index, bits & ((1u << count) - 1u), count);
        index += job->layer->out_channels;
    }
}

/* The last channel of an odd number: blocks make two at a time, so it gets two of everything. */
static void forward_last(const job *job, const tf_forward_block *block, int8_t *output,
                         uint32_t index, uint32_t pixels) {
    const uint32_t channel = job->end_channel - 1u;
    const int32_t bias[2] = {job->bias[channel], 0};
    const tf_multiplier by = job->layer->requantize[channel];
    const tf_multiplier requantize[2] = {by, by};
    const uint8_t raised = job->layer->pre_shift == NULL ? 0 : job->layer->pre_shift[channel];
    const uint8_t pre_shift[2] = {raised, raised};
    int8_t codes[2u * TF_BLOCK_PIXELS];
    tf_forward_block last = *block;
    aim(job, &last, output, channel, channel + 2u);
    last.output = codes;
    last.output_end = codes + 2;
    last.bias = bias;
    last.requantize = requantize;
    last.pre_shift = job->layer->pre_shift == NULL ? NULL : pre_shift;
    for (uint32_t p = 1; p < TF_BLOCK_PIXELS; p++) {
        last.steps[p - 1u] = (int32_t)(2u * p);
    }
    forward_with_bits(job, &last, 2, 1, index + channel, pixels);
    for (uint32_t p = 0; p < pixels; p++) {
        output[p * job->layer->out_channels + channel] = codes[2u * p];
    }
}

/* All channels of `pixels` output pixels whose columns are ready, where the mask's bytes don't
 * fit the pixels or the number of channels is odd; `index` is that of the first pixel's first
 * channel in the mask. */
static __attribute__((noinline)) void forward_in_parts(const job *job, tf_forward_block *block,
                                                       int8_t *output, uint32_t index,
                                                       uint32_t pixels) {
    const uint32_t end = job->end_channel, even = end & ~1u;
    const uint32_t most = job->mask == NULL ? even : MASK_CHANNELS;
    for (uint32_t first = job->first_channel; first < even; first += most) {
        const uint32_t count = even - first < most ? even - first : most;
        aim(job, block, output, first, first + count);
        if (job->mask == NULL && pixels == TF_BLOCK_PIXELS) {
            tf_block_forward(block);
        } else {
            forward_with_bits(job, block, count, count, index + first, pixels);
        }
    }
    if (even < end) {
        forward_last(job, block, output, index, pixels);
    }
}

/* Steps to the outputs of a block's pixels, and to their bytes of the mask; where there are less
 * than four, the last is made more than once. */
static void set_steps(const job *job, tf_forward_block *block, uint32_t pixels) {
    const uint32_t channels = job->layer->out_channels;
    for (uint32_t p = 1; p < TF_BLOCK_PIXELS; p++) {
        const uint32_t step = (p < pixels ? p : pixels - 1u) * channels;
        block->steps[p - 1u] = (int32_t)step;
        block->mask_steps[p - 1u] = (int32_t)(step / MASK_CHANNELS);
    }
}

static void prepare(const job *job, tf_forward_block *block, uint32_t with_mask) {
    tf_block_prepare(block, job->layer, job->columns, job->length, with_mask);
}

/* Points a block that is aimed at all of the job's channels at the pixels at `output`, the first
 * of which has element `index` of the layer's output. */
static inline void move_to(const job *job, tf_forward_block *block, int8_t *output,
                           uint32_t index) {
    block->output = output + job->first_channel;
    block->output_end = output + job->end_channel;
    block->mask_end = NULL;
    if (job->mask != NULL) {
        block->mask_end = block->output + MASK_CHANNELS;
        block->mask = job->mask + (index + job->first_channel) / MASK_CHANNELS;
    }
}

#ifdef TF_VECTOR

/* run_rows by way of panels, with the columns of many pixels at a time. */
static __attribute__((noinline)) void run_rows_in_panels(job *job, uint32_t first, uint32_t end,
                                                         int8_t *output) {
    int16_t columns[TF_COLUMN_BYTES / sizeof(int16_t)];
    int16_t *scratch = job->columns;
    const uint32_t length = job->length, channels = job->layer->out_channels;
    const uint32_t fitting = TF_COLUMN_BYTES / (2u * length) & ~(TF_BLOCK_PIXELS - 1u);
    const uint32_t most = fitting < TF_PANEL_PIXELS ? fitting : TF_PANEL_PIXELS;
    /* One row: what pixels see lies one behind the other, as their columns do. */
    const uint32_t in_a_row =
        job->in_height == 1u && tf_is_pointwise(job->layer) && length == job->line;
    uint32_t index = first * job->out_width * channels + job->first_channel;
    uint32_t left = (end - first) * job->out_width, y = first, x = 0;
    for (uint32_t p = 0; p < most && !in_a_row; p += TF_BLOCK_PIXELS) {
        fill_up(columns + p * length, values_of_column(job->layer), length);
    }
    job->block.columns = columns;
    for (uint32_t count; left > 0u; left -= count) {
        count = left < most ? left : most;
        if (in_a_row) {
            tf_codes_less(job->input + x * length, count * length, job->layer->in_zero, columns);
            x += count;
        }
        for (uint32_t p = 0; p < count && !in_a_row; p += TF_BLOCK_PIXELS) {
            const uint32_t rest = count - p;
            const uint32_t pixels = rest < TF_BLOCK_PIXELS ? rest : TF_BLOCK_PIXELS;
            job->columns = columns + p * length;
            gather(job, y, x, pixels);
            for (x += pixels; x >= job->out_width; x -= job->out_width) {
                y++;
            }
        }
        tf_panels_forward(&job->block, count, output + job->first_channel, job->mask, index);
        output += count * channels;
        index += count * channels;
    }
    job->columns = scratch;
}

#endif

/* Output rows first … end - 1, which lie one behind the other from `output` on. */
static void run_rows(job *job, tf_forward_block *block, uint32_t first, uint32_t end,
                     int8_t *output) {
#ifdef TF_VECTOR
    if (job->block.panels != NULL) {
        run_rows_in_panels(job, first, end, output);
        return;
    }
#endif
    const uint32_t channels = job->layer->out_channels, width = job->out_width;
    uint32_t in_parts = channels % (job->mask == NULL ? 2u : MASK_CHANNELS) != 0;
    uint32_t index = first * width * channels, left = (end - first) * width;
    uint32_t y = first, x = 0, count = TF_BLOCK_PIXELS;
    set_steps(job, block, TF_BLOCK_PIXELS);
    aim(job, block, output, job->first_channel, job->end_channel & ~1u);
    for (; left > 0; left -= count) {
        if (left < TF_BLOCK_PIXELS) {
            /* Blocks with a mask can have any steps. */
            count = left;
            in_parts = 1;
            set_steps(job, block, count);
            prepare(job, block, 1);
        }
        gather(job, y, x, count);
        if (in_parts) {
            forward_in_parts(job, block, output, index, count);
        } else {
            move_to(job, block, output, index);
            tf_block_forward(block);
        }
        output += count * channels;
        index += count * channels;
        for (x += count; x >= width; x -= width) {
            y++;
        }
    }
    if (count < TF_BLOCK_PIXELS) {
        prepare(job, block, job->mask != NULL);
    }
}

#if TF_DSP
/* The blocks of a pointwise layer that have four of `pixels` pixels in a row; returns the number of
 * pixels made, 0 where the channels don't come in whole words and parts. */
static __attribute__((noinline)) uint32_t run_whole_blocks(const job *job, tf_forward_block *block,
                                                           uint32_t pixels, int8_t *output) {
    const uint32_t inputs = job->layer->in_channels, channels = job->layer->out_channels;
#if !TF_MVE
    const uint32_t minus = tf_minus(job->layer->in_zero);
#endif
    if (inputs % 4u != 0 || channels % (job->mask == NULL ? 2u : MASK_CHANNELS) != 0) {
        return 0;
    }
    set_steps(job, block, TF_BLOCK_PIXELS);
    aim(job, block, output, job->first_channel, job->end_channel);
    const int8_t *input = job->input;
    uint32_t done = 0;
    for (; done + TF_BLOCK_PIXELS <= pixels; done += TF_BLOCK_PIXELS) {
#if TF_MVE
        tf_codes_less(input, TF_BLOCK_PIXELS * inputs, 0, job->columns);
#else
        tf_block_widen(job->columns, input, inputs, inputs / 4u, minus);
#endif
        move_to(job, block, output, done * channels);
        tf_block_forward(block);
        input += TF_BLOCK_PIXELS * inputs;
        output += TF_BLOCK_PIXELS * channels;
    }
    return done;
}
#endif

/* `pixels` pixels of a pointwise layer, which lie one behind the other from `output` and from the
 * job's input on: one long row, so that no block has a piece of two. */
static void run_long_row(job *job, tf_forward_block *block, uint32_t pixels, int8_t *output) {
#if TF_DSP
    const uint32_t done = run_whole_blocks(job, block, pixels, output);
#else
    const uint32_t done = 0;
#endif
    if (done < pixels) {
        job->input += done * job->layer->in_channels;
        job->mask += job->mask == NULL ? 0 : done * job->layer->out_channels / MASK_CHANNELS;
        job->in_width = job->out_width = pixels - done;
        job->in_height = 1;
        find_inner(job);
        run_rows(job, block, 0, 1, output + done * job->layer->out_channels);
    }
}

/* All rows of the span, for the job's output channels; sets what the job has of the tensors. */
static void run_span(job *job, const tf_span *span, const int8_t *input, int8_t *output,
                     uint8_t *mask) {
    const tf_convolution *layer = job->layer;
    const uint32_t pixel_bytes = layer->out_channels, width = layer->out_width;
    const uint32_t all = span->first == 0 && span->end == layer->out_height &&
                         span->in_ring == layer->in_height && span->out_ring == layer->out_height;
    /* Bits of the mask are counted from the first row. */
    const uint32_t long_rows = tf_is_pointwise(layer) && (mask == NULL || all);
    tf_forward_block block;
    job->input = input;
    job->mask = mask;
    job->in_height = layer->in_height;
    job->in_width = layer->in_width;
    job->in_ring = span->in_ring;
    job->out_width = width;
    prepare(job, &block, mask != NULL);
    find_inner(job);
    for (uint32_t y = span->first, rows; y < span->end; y += rows) {
        const uint32_t place = y % span->out_ring, from = y % span->in_ring;
        int8_t *to = output + place * width * pixel_bytes;
        rows = span->out_ring - place;
        rows = span->end - y < rows ? span->end - y : rows;
        if (long_rows) {
            rows = span->in_ring - from < rows ? span->in_ring - from : rows;
            job->input = input + from * width * layer->in_channels;
            run_long_row(job, &block, rows * width, to);
        } else {
            run_rows(job, &block, y, y + rows, to);
        }
    }
}

/* So many output channels are merged at a time: a multiple of what fills bytes of the mask. */
static uint32_t merged_channels(uint32_t length) {
    const uint32_t fitting = TF_MERGED_BYTES / length & ~(MASK_CHANNELS - 1u);
    return fitting > MASK_CHANNELS ? fitting : MASK_CHANNELS;
}

#ifdef TF_VECTOR

/* All rows of the span, by way of panels. */
static __attribute__((noinline)) void
run_channels(job *job, const tf_span *span, const int8_t *input, int8_t *output, uint8_t *mask) {
    int8_t panels[TF_PANEL_BYTES];
    const tf_convolution *layer = job->layer;
    const uint32_t first = job->first_channel, channels = job->end_channel - first;
    tf_panel_block *block = &job->block;
    block->panels = NULL;
    if (tf_lanes_up(channels) * job->length <= TF_PANEL_BYTES &&
        2u * TF_BLOCK_PIXELS * job->length <= TF_COLUMN_BYTES) {
        tf_make_panels(job->weights, channels, job->length, panels);
        block->panels = panels;
        block->bias = job->bias + first;
        block->requantize = layer->requantize + first;
        block->pre_shift = layer->pre_shift == NULL ? NULL : layer->pre_shift + first;
        block->channels = channels;
        block->length = job->length;
        block->step = layer->out_channels;
        block->zero = layer->out_zero;
    }
    run_span(job, span, input, output, mask);
}

#else

#define run_channels run_span

#endif

uint32_t tf_convolution_forward_scratch_bytes(const tf_convolution *layer, uint32_t trained) {
    const uint32_t length = tf_packed_length(values_of_column(layer));
    const uint32_t columns = sizeof(int16_t) * TF_BLOCK_PIXELS * length;
    const uint32_t most = merged_channels(length), outputs = layer->out_channels;
    return columns + (trained > 0 ? tf_packed_bytes(outputs < most ? outputs : most, length) : 0u);
}

void tf_convolution_forward(const tf_convolution *layer, const tf_span *span, const int8_t *input,
                            const tf_weights *weights, const int32_t *bias, int8_t *output,
                            uint8_t *mask, int16_t *scratch) {
    const uint32_t values = values_of_column(layer);
    const uint32_t length = tf_packed_length(values), outputs = layer->out_channels;
    int8_t *merged = (int8_t *)(scratch + TF_BLOCK_PIXELS * length);
    job job = {.layer = layer,
               .weights = weights->fixed,
               .end_channel = outputs,
               .bias = bias,
               .columns = (tf_column *)scratch,
               .length = length,
               .line = (uint32_t)layer->kernel_width * layer->in_channels,
               .step = (uint32_t)layer->stride_width * layer->in_channels};
    fill_up(job.columns, values, length);
    if (mask != NULL) {
        const uint32_t size = (uint32_t)layer->out_height * layer->out_width * outputs;
        memset(mask, 0, (size + 7u) / 8u);
    }
    if (weights->count == 0) {
        run_channels(&job, span, input, output, mask);
        return;
    }
    const uint32_t at_once = merged_channels(length);
    for (uint32_t first = 0; first < outputs; first += at_once) {
        const uint32_t end = outputs - first < at_once ? outputs : first + at_once;
        const tf_weight_part part = {first / 2u, (end + 1u) / 2u, 0, layer->in_channels};
        tf_merge_weights(layer, weights, &part, merged);
        job.weights = merged;
        job.first_channel = first;
        job.end_channel = end;
        run_channels(&job, span, input, output, mask);
    }
}
