/* Full convolution, forward: columns of what output pixels see times packed weights. */
#include "block.h"
#include "fixed_point.h"
#include "merge.h"

#ifdef TF_VECTOR
#include "../vector/panels.h"
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

/* What does not change between the pixels of a layer. */
typedef struct {
    const tf_convolution *layer;
    const tf_weights *weights;
    const int8_t *packed; /* the weights', of which some are trained elsewhere: */
    uint32_t with_trained;
    const tf_multiplier *requantize;
    const uint8_t *pre_shift;
    int32_t out_zero;
    const int8_t *input;
    const int32_t *bias;
    uint8_t *mask;
    uint32_t in_height, in_width, in_ring, out_width;
    uint32_t at_once; /* pixels whose columns are made at a time */
    int16_t *all_columns;
    int16_t *columns; /* those of the block at hand */
    int16_t *pair;
    int8_t *codes;                   /* of the last of an odd number of channels */
    uint32_t length;                 /* of a column */
    uint32_t line;                   /* values that one kernel row sees */
    uint32_t step;                   /* from what a pixel sees to what the next one sees */
    uint32_t inner_first, inner_end; /* x where four pixels in a row see no border */
#ifdef TF_VECTOR
    tf_panel_block panels; /* without any where they find no room */
#endif
} job;

/* Values at … at + count - 1 of one pixel's column: src[i] - zero. */
static void widen(const job *job, uint32_t pixel, uint32_t at, const int8_t *src, uint32_t count) {
    const int32_t zero = job->layer->in_zero;
#if TF_DSP
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
    for (uint32_t i = at; i < at + count; i++) {
        job->columns[tf_column_index(job->length, pixel, i)] = 0;
    }
}

static const int8_t *row_of(const job *job, uint32_t y) {
    const uint32_t row = y < job->in_ring ? y : y % job->in_ring;
    return job->input + row * job->in_width * job->layer->in_channels;
}

/* A kernel row's values for all four pixels. */
static inline void widen_four(const job *job, uint32_t at, const int8_t *src) {
    const uint32_t count = job->line, step = job->step;
#if TF_DSP
    const int32_t zero = job->layer->in_zero;
    for (uint32_t i = 0; i < count;) {
        int16_t *to = job->columns + tf_column_index(job->length, 0, at + i);
        const uint32_t quads = (count - i) / 4u;
        if ((at + i) % 2u == 0 && quads > 0) {
            tf_block_widen(to, src + i, step, quads, tf_minus(zero), 1u);
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

#if TF_DSP

/* Colours under a kernel of 3 x 3: 27 values, and one that is filled up. */
#define STEM_LINE 9u
#define STEM_LENGTH 28u

static uint32_t is_stem(const tf_convolution *layer) {
    return layer->in_channels == 3u && layer->kernel_height == 3u && layer->kernel_width == 3u;
}

/* The columns of four pixels of such a layer, whose rows don't begin at words, by way of bytes. The
 * first pixel's `before` (0 or 3) values of every row lie outside. */
static __attribute__((noinline)) void gather_stem(const job *job, uint32_t top, uint32_t left,
                                                  uint32_t before) {
    uint32_t bytes[TF_BLOCK_PIXELS * STEM_LENGTH / 4u];
    const int8_t *a = row_of(job, top) + left, *b = row_of(job, top + 1u) + left;
    const int8_t *c = row_of(job, top + 2u) + left;
    const int32_t zero = job->layer->in_zero;
    int8_t *to = (int8_t *)bytes;
    uint32_t p = 0;
    if (before > 0u) {
        memset(to, zero, STEM_LENGTH);
        memcpy(to + 3, a, STEM_LINE - 3u);
        memcpy(to + STEM_LINE + 3u, b, STEM_LINE - 3u);
        memcpy(to + 2u * STEM_LINE + 3u, c, STEM_LINE - 3u);
        a += job->step - 3u, b += job->step - 3u, c += job->step - 3u;
        to += STEM_LENGTH;
        p = 1;
    }
    for (; p < TF_BLOCK_PIXELS; p++, to += STEM_LENGTH) {
        memcpy(to, a, STEM_LINE);
        memcpy(to + STEM_LINE, b, STEM_LINE);
        memcpy(to + 2u * STEM_LINE, c, STEM_LINE);
        to[3u * STEM_LINE] = (int8_t)zero;
        a += job->step, b += job->step, c += job->step;
    }
    tf_block_widen(job->columns, (const int8_t *)bytes, STEM_LENGTH, STEM_LENGTH / 4u,
                   tf_minus(zero), 1u);
}

#endif

/* Columns of output pixels (y, x) to (y, x + 3), if they see no border, or one that is no trouble. */
static uint32_t gather_four(const job *job, uint32_t y, uint32_t x) {
    const tf_convolution *layer = job->layer;
    const uint32_t rows = layer->kernel_height;
    const int32_t top = (int32_t)(y * layer->stride_height) - layer->pad_top;
    if (x >= job->inner_end || top < 0 || (uint32_t)top + rows > job->in_height) {
        return 0;
    }
    const uint32_t left = x * job->step - (uint32_t)layer->pad_left * layer->in_channels;
#if TF_DSP
    const uint32_t all_inside = x >= job->inner_first;
    if (is_stem(layer) && (all_inside || (x == 0 && layer->pad_left == 1))) {
        gather_stem(job, (uint32_t)top, all_inside ? left : 0, all_inside ? 0 : 3u);
        return 1;
    }
#endif
    if (x < job->inner_first) {
        return 0;
    }
    for (uint32_t row = 0, at = 0; row < rows; row++, at += job->line) {
        widen_four(job, at, row_of(job, (uint32_t)top + row) + left);
    }
    return 1;
}

/* Columns of output pixels (y, x) and the `count` - 1 that follow. */
static __attribute__((noinline, cold)) void gather_each(const job *job, uint32_t y, uint32_t x,
                                                  uint32_t count) {
    for (uint32_t p = 0; p < count; p++) {
        gather_pixel(job, p, y, x);
        if (++x == job->out_width) {
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

/* The same for any number of pixels: block by block. */
static void gather_all(job *job, uint32_t y, uint32_t x, uint32_t count) {
#if TF_DSP
    const uint32_t inputs = job->layer->in_channels, in_blocks = count & ~(TF_BLOCK_PIXELS - 1u);
    if (job->in_height == 1u && tf_is_pointwise(job->layer) && inputs % 4u == 0) {
        /* One row: pixels lie one behind the other, as their columns do. */
        const int8_t *from = job->input + x * inputs;
        tf_block_widen(job->all_columns, from, inputs, inputs / 4u, tf_minus(job->layer->in_zero),
                       in_blocks / TF_BLOCK_PIXELS);
        if (in_blocks < count) {
            job->columns = job->all_columns + in_blocks * job->length;
            gather_each(job, y, x + in_blocks, count - in_blocks);
        }
        return;
    }
#endif
    for (uint32_t done = 0; done < count; done += TF_BLOCK_PIXELS) {
        const uint32_t left = count - done;
        job->columns = job->all_columns + done * job->length;
        gather(job, y, x, left < TF_BLOCK_PIXELS ? left : TF_BLOCK_PIXELS);
        for (x += TF_BLOCK_PIXELS; x >= job->out_width; x -= job->out_width) {
            y++;
        }
    }
}

/* Zeros behind the values of columns. */
static void fill_up(int16_t *columns, uint32_t used, uint32_t length) {
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

/* The trained ones of rows `o` and `o` + 1 of the weights take their places. */
static __attribute__((noinline, cold)) void put_trained(const job *job, uint32_t o) {
    const tf_convolution *layer = job->layer;
    const tf_weights *weights = job->weights;
    const uint32_t taps = (uint32_t)layer->kernel_height * layer->kernel_width;
    const uint16_t *channels = weights->channels, *end = channels + weights->count;
    const int8_t *from = weights->trained + o * tf_packed_length(taps * weights->count);
    const uint32_t inputs = layer->in_channels, behind = taps * inputs;
    const uint32_t second = tf_pair_index(job->length, 1, 0);
    int16_t *pair = job->pair;
    for (uint32_t first = 0; first < behind; first += inputs) {
        for (const uint16_t *next = channels; next != end; from += 2) {
            int16_t *to = pair + tf_pair_index(job->length, 0, first + *next++);
            const int16_t a = from[0], b = from[1];
            to[0] = a;
            to[second] = b;
        }
    }
}

/* All blocks for channels `o` and `next`. */
static inline void run_two(const job *job, tf_block_run *run, uint32_t o, uint32_t next,
                           int8_t *output, uint32_t step) {
    tf_block_widen_pair(job->pair, job->packed + o * job->length, job->length);
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
static __attribute__((noinline, cold)) void run_single(const job *job, tf_block_run *run, uint32_t pixel,
                                                 int8_t *output) {
    const uint32_t in_block = pixel % TF_BLOCK_PIXELS;
    int32_t sums[2];
    tf_block_single(run, job->all_columns + (pixel - in_block) * job->length, in_block, sums);
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
static inline uint32_t run_pairs(const job *job, tf_block_run *run, uint32_t pixels,
                                 int8_t *output, uint32_t index) {
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
    const uint32_t length = job->length, channels = job->layer->out_channels;
    const uint32_t fitting = TF_COLUMN_BYTES / (2u * length) & ~(TF_BLOCK_PIXELS - 1u);
    const uint32_t most = fitting < TF_PANEL_PIXELS ? fitting : TF_PANEL_PIXELS;
    /* One row: what pixels see lies one behind the other, as their columns do. */
    const uint32_t in_a_row =
        job->in_height == 1u && tf_is_pointwise(job->layer) && length == job->line;
    uint32_t index = first * job->out_width * channels;
    uint32_t left = (end - first) * job->out_width, y = first, x = 0;
    for (uint32_t p = 0; p < most && !in_a_row; p += TF_BLOCK_PIXELS) {
        fill_up(columns + p * length, values_of_column(job->layer), length);
    }
    job->panels.columns = columns;
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
        tf_panels_forward(&job->panels, count, output, job->mask, index);
        output += count * channels;
        index += count * channels;
    }
    job->panels.columns = job->columns = NULL;
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
    const uint32_t channels = job->layer->out_channels, width = job->out_width;
    uint32_t index = first * width * channels, left = (end - first) * width;
    uint32_t y = first, x = 0;
    for (uint32_t count; left > 0; left -= count) {
        count = left < job->at_once ? left : job->at_once;
        gather_all(job, y, x, count);
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
    run.columns = job->all_columns;
    run.bits = (uint32_t *)(void *)(job->pair + 2u * job->length);
    run.pre_shift[0] = run.pre_shift[1] = 0;
    run.raised = layer->pre_shift;
    run.twice_zero = 2 * layer->out_zero + 1;
    tf_block_prepare(&run, mask == NULL ? TF_RUN_CODES : TF_RUN_CODES_AND_MASK, job->length);
    job->input = input;
    job->mask = mask;
    job->in_height = layer->in_height;
    job->in_width = layer->in_width;
    job->in_ring = span->in_ring;
    job->out_width = width;
    find_inner(job);
    for (uint32_t y = span->first, rows; y < span->end; y += rows) {
        const uint32_t place = y % span->out_ring, from = y % span->in_ring;
        int8_t *to = output + place * width * pixel_bytes;
        rows = span->out_ring - place;
        rows = span->end - y < rows ? span->end - y : rows;
        if (long_rows) {
            /* One behind the other they make one long row, so that no block has a piece of two. */
            rows = span->in_ring - from < rows ? span->in_ring - from : rows;
            job->input = input + from * width * layer->in_channels;
            job->in_height = 1;
            job->in_width = job->out_width = rows * width;
            find_inner(job);
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
    if (tf_lanes_up(channels) * job->length > TF_PANEL_BYTES ||
        2u * TF_BLOCK_PIXELS * job->length > TF_COLUMN_BYTES) {
        return 0;
    }
    const int8_t *packed = weights->fixed;
    if (weights->count > 0) {
        const tf_weight_part all = {0, (channels + 1u) / 2u, 0, layer->in_channels};
        tf_merge_weights(layer, weights, &all, merged);
        packed = merged;
    }
    tf_make_panels(packed, channels, job->length, panels);
    job->panels = (tf_panel_block){.panels = panels,
                                   .bias = job->bias,
                                   .requantize = layer->requantize,
                                   .pre_shift = layer->pre_shift,
                                   .channels = channels,
                                   .length = job->length,
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
               .weights = weights,
               .packed = weights->fixed,
               .with_trained = weights->count > 0,
               .requantize = layer->requantize,
               .pre_shift = layer->pre_shift,
               .out_zero = layer->out_zero,
               .bias = bias,
               .at_once = at_once,
               .all_columns = scratch,
               .pair = scratch + at_once * length,
               .length = length,
               .line = (uint32_t)layer->kernel_width * layer->in_channels,
               .step = (uint32_t)layer->stride_width * layer->in_channels};
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
        fill_up(scratch + p * length, values, length);
    }
    run_span(&job, span, input, output, mask);
}
