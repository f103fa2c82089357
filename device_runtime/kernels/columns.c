/* Columns of what output pixels of a full convolution see. */
#include "columns.h"

#ifdef TF_VECTOR
#include "../vector/panels.h"
#elif TF_MVE
/* Codes stay what they are. */
static void tf_codes_less(const int8_t *from, uint32_t count, int32_t zero, tf_column *to) {
    (void)zero;
    __asm volatile("wlstp.8 lr, %[count], 2f\n"
                   "1:\n\t"
                   "vldrb.u8 q0, [%[from]], #16\n\t"
                   "vstrb.8 q0, [%[to]], #16\n\t"
                   "letp lr, 1b\n"
                   "2:"
                   : [from] "+&r"(from), [to] "+&r"(to)
                   : [count] "r"(count)
                   : "q0", "lr", "cc", "memory");
}
#elif !TF_DSP
/* to[i] = from[i] - zero. */
static void tf_codes_less(const int8_t *from, uint32_t count, int32_t zero, int16_t *to) {
    for (uint32_t i = 0; i < count; i++) {
        to[i] = (int16_t)(from[i] - zero);
    }
}
#endif

/* Values at … at + count - 1 of one pixel's column: src[i] - zero. */
static void widen(const tf_columns *by, uint32_t pixel, uint32_t at, const int8_t *src,
                  uint32_t count) {
    const int32_t zero = by->layer->in_zero;
#if TF_DSP_BLOCKS
    uint32_t i = 0;
    const uint32_t minus = tf_minus(zero);
    if (at % 2u == 1u && count > 0) {
        by->columns[tf_column_index(by->length, pixel, at)] = (int16_t)(src[i++] - zero);
    }
    int16_t *to = by->columns + tf_column_index(by->length, pixel, at + i);
    for (; i + 4u <= count; i += 4u, to += 16) {
        const uint32_t word = tf_load32(src + i);
        const uint32_t even = tf_even_plus(minus, word), odd = tf_odd_plus(minus, word);
        tf_store32(to, tf_pack_lower(even, odd));
        tf_store32(to + 8, tf_pack_upper(even, odd));
    }
    for (; i < count; i++) {
        by->columns[tf_column_index(by->length, pixel, at + i)] = (int16_t)(src[i] - zero);
    }
#else
    tf_codes_less(src, count, zero, by->columns + tf_column_index(by->length, pixel, at));
#endif
}

static void clear(const tf_columns *by, uint32_t pixel, uint32_t at, uint32_t count) {
    const tf_column nothing = (tf_column)(TF_MVE ? by->layer->in_zero : 0);
    for (uint32_t i = at; i < at + count; i++) {
        by->columns[tf_column_index(by->length, pixel, i)] = nothing;
    }
}

static const int8_t *row_of(const tf_columns *by, uint32_t y) {
    const uint32_t row = y < by->in_ring ? y : y % by->in_ring;
    return by->input + row * by->in_width * by->layer->in_channels;
}

/* A kernel row's values for all four pixels. */
static inline void widen_four(const tf_columns *by, uint32_t at, const int8_t *src) {
    const uint32_t count = by->line, step = by->step;
#if TF_DSP_BLOCKS
    const int32_t zero = by->layer->in_zero;
    for (uint32_t i = 0; i < count;) {
        int16_t *to = by->columns + tf_column_index(by->length, 0, at + i);
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
        widen(by, p, at, src + p * step, count);
    }
#endif
}

/* The column of output pixel (y, x), part of which may lie outside the input: zeros there. */
static void gather_at_border(const tf_columns *by, uint32_t pixel, int32_t top, int32_t left) {
    const tf_convolution *layer = by->layer;
    const int32_t channels = layer->in_channels;
    const int32_t before = left < 0 ? -left : 0;
    const int32_t over = left + layer->kernel_width - (int32_t)by->in_width;
    const int32_t after = over > 0 ? over : 0;
    const int32_t inside = layer->kernel_width - before - after;
    uint32_t at = 0;
    for (int32_t row = top; row < top + layer->kernel_height; row++) {
        const uint32_t all = (uint32_t)(layer->kernel_width * channels);
        if (row < 0 || row >= (int32_t)by->in_height || inside <= 0) {
            clear(by, pixel, at, all);
        } else {
            const uint32_t first = (uint32_t)(before * channels);
            const uint32_t count = (uint32_t)(inside * channels);
            clear(by, pixel, at, first);
            widen(by, pixel, at + first, row_of(by, (uint32_t)row) + (left + before) * channels,
                  count);
            clear(by, pixel, at + first + count, all - first - count);
        }
        at += all;
    }
}

/* The column of output pixel (y, x). */
static void gather_pixel(const tf_columns *by, uint32_t pixel, uint32_t y, uint32_t x) {
    const tf_convolution *layer = by->layer;
    const int32_t top = (int32_t)(y * layer->stride_height) - layer->pad_top;
    const int32_t left = (int32_t)(x * layer->stride_width) - layer->pad_left;
    if (top < 0 || left < 0 || top + layer->kernel_height > (int32_t)by->in_height ||
        left + layer->kernel_width > (int32_t)by->in_width) {
        gather_at_border(by, pixel, top, left);
        return;
    }
    for (uint32_t row = 0; row < layer->kernel_height; row++) {
        widen(by, pixel, row * by->line,
              row_of(by, (uint32_t)top + row) + (uint32_t)left * layer->in_channels, by->line);
    }
}

/* Which x begin four pixels of one row that see no border on either side. */
void tf_find_inner(tf_columns *by) {
    const tf_convolution *layer = by->layer;
    const uint32_t stride = layer->stride_width, others = TF_BLOCK_PIXELS - 1u;
    const uint32_t padded = by->in_width + layer->pad_left;
    const uint32_t seen = others * stride + layer->kernel_width;
    uint32_t end = padded >= seen ? (padded - seen) / stride + 1u : 0u;
    const uint32_t whole = by->out_width > others ? by->out_width - others : 0u;
    by->inner_first = (layer->pad_left + stride - 1u) / stride;
    by->inner_end = end < whole ? end : whole;
}

#if TF_DSP_BLOCKS

/* Colours under a kernel of 3 x 3: 27 values, and one that is filled up. */
#define STEM_LINE 9u
#define STEM_LENGTH 28u

static uint32_t is_stem(const tf_convolution *layer) {
    return layer->in_channels == 3u && layer->kernel_height == 3u && layer->kernel_width == 3u;
}

/* The columns of four pixels of such a layer, whose rows don't begin at words, by way of bytes. The
 * first pixel's `before` (0 or 3) values of every row lie outside. */
static __attribute__((noinline)) void gather_stem(const tf_columns *by, uint32_t top, uint32_t left,
                                                  uint32_t before) {
    uint32_t bytes[TF_BLOCK_PIXELS * STEM_LENGTH / 4u];
    const int8_t *a = row_of(by, top) + left, *b = row_of(by, top + 1u) + left;
    const int8_t *c = row_of(by, top + 2u) + left;
    const int32_t zero = by->layer->in_zero;
    int8_t *to = (int8_t *)bytes;
    uint32_t p = 0;
    if (before > 0u) {
        memset(to, zero, STEM_LENGTH);
        memcpy(to + 3, a, STEM_LINE - 3u);
        memcpy(to + STEM_LINE + 3u, b, STEM_LINE - 3u);
        memcpy(to + 2u * STEM_LINE + 3u, c, STEM_LINE - 3u);
        a += by->step - 3u, b += by->step - 3u, c += by->step - 3u;
        to += STEM_LENGTH;
        p = 1;
    }
    for (; p < TF_BLOCK_PIXELS; p++, to += STEM_LENGTH) {
        memcpy(to, a, STEM_LINE);
        memcpy(to + STEM_LINE, b, STEM_LINE);
        memcpy(to + 2u * STEM_LINE, c, STEM_LINE);
        to[3u * STEM_LINE] = (int8_t)zero;
        a += by->step, b += by->step, c += by->step;
    }
    tf_block_widen(by->columns, (const int8_t *)bytes, STEM_LENGTH, STEM_LENGTH / 4u,
                   tf_minus(zero), 1u);
}

#endif

/* Columns of output pixels (y, x) to (y, x + 3), if they see no border, or one that is no trouble. */
static uint32_t gather_four(const tf_columns *by, uint32_t y, uint32_t x) {
    const tf_convolution *layer = by->layer;
    const uint32_t rows = layer->kernel_height;
    const int32_t top = (int32_t)(y * layer->stride_height) - layer->pad_top;
    if (x >= by->inner_end || top < 0 || (uint32_t)top + rows > by->in_height) {
        return 0;
    }
    const uint32_t left = x * by->step - (uint32_t)layer->pad_left * layer->in_channels;
#if TF_DSP_BLOCKS
    const uint32_t all_inside = x >= by->inner_first;
    if (is_stem(layer) && (all_inside || (x == 0 && layer->pad_left == 1))) {
        gather_stem(by, (uint32_t)top, all_inside ? left : 0, all_inside ? 0 : 3u);
        return 1;
    }
#endif
    if (x < by->inner_first) {
        return 0;
    }
    for (uint32_t row = 0, at = 0; row < rows; row++, at += by->line) {
        widen_four(by, at, row_of(by, (uint32_t)top + row) + left);
    }
    return 1;
}

/* Columns of output pixels (y, x) and the `count` - 1 that follow. */
static __attribute__((noinline, cold)) void gather_each(const tf_columns *by, uint32_t y,
                                                        uint32_t x, uint32_t count) {
    for (uint32_t p = 0; p < count; p++) {
        gather_pixel(by, p, y, x);
        if (++x == by->out_width) {
            x = 0;
            y++;
        }
    }
}

void tf_gather_block(const tf_columns *by, uint32_t y, uint32_t x, uint32_t count) {
    if (count < TF_BLOCK_PIXELS || !gather_four(by, y, x)) {
        gather_each(by, y, x, count);
    }
}

/* The same for any number of pixels: block by block. */
void tf_gather_columns(tf_columns *by, uint32_t y, uint32_t x, uint32_t count) {
#if TF_DSP_BLOCKS
    const uint32_t inputs = by->layer->in_channels, in_blocks = count & ~(TF_BLOCK_PIXELS - 1u);
    if (by->in_height == 1u && tf_is_pointwise(by->layer) && inputs % 4u == 0) {
        /* One row: pixels lie one behind the other, as their columns do. */
        const int8_t *from = by->input + x * inputs;
        tf_block_widen(by->all_columns, from, inputs, inputs / 4u, tf_minus(by->layer->in_zero),
                       in_blocks / TF_BLOCK_PIXELS);
        if (in_blocks < count) {
            by->columns = by->all_columns + in_blocks * by->length;
            gather_each(by, y, x + in_blocks, count - in_blocks);
        }
        return;
    }
#endif
#if TF_MVE
    if (by->in_height == 1u && tf_is_pointwise(by->layer) && by->line == by->length) {
        tf_codes_less(by->input + x * by->line, count * by->line, 0, by->all_columns);
        return;
    }
#endif
    for (uint32_t done = 0; done < count; done += TF_BLOCK_PIXELS) {
        const uint32_t left = count - done;
        by->columns = by->all_columns + done * by->length;
        tf_gather_block(by, y, x, left < TF_BLOCK_PIXELS ? left : TF_BLOCK_PIXELS);
        for (x += TF_BLOCK_PIXELS; x >= by->out_width; x -= by->out_width) {
            y++;
        }
    }
}

/* Zeros behind the values of columns. */
void tf_fill_up(tf_column *columns, uint32_t used, uint32_t length) {
    for (uint32_t at = used; at < length; at++) {
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
            columns[tf_column_index(length, p, at)] = 0;
        }
    }
}
