/* Depthwise convolution, forward: two channels are gathered into planes, then each is made by
 * itself, row by row. */
#include "depthwise_mve.h"
#include "fixed_point.h"
#include "planes.h"

#ifdef TF_VECTOR
#include "../vector/ring.h"
#endif

/* What all channels have in common. */
typedef struct {
    const tf_convolution *layer;
    const tf_span *span;
    int8_t *output;
    uint8_t *mask;
    tf_slide slide;
    int32_t low, high;                    /* input rows that the span needs */
    int16_t *tables;                      /* of two channels */
    uint32_t room;                        /* elements of a table */
    uint32_t most;                        /* rows that are stored in one go */
    uint32_t first_slot;                  /* of the output's ring */
    tf_gathering until_wrap, behind_wrap; /* of the input's ring */
    tf_window *windows;                   /* one per output row of the span */
    tf_slide_rows sums;                   /* of the channel at hand */
    int16_t *planes;
    uint32_t plane; /* elements */
} forward_job;

static inline int8_t code_of(const tf_requantizer *by, int32_t sum) {
    return (int8_t)tf_clamp8(tf_requantize(by, sum));
}

/* Codes of four sums; pointers move on, `thrice` is 3 * step. */
static inline __attribute__((always_inline)) void store_four(const tf_requantizer *by,
                                                             const int32_t **sums, int8_t **output,
                                                             uint32_t step, uint32_t thrice) {
#if TF_DSP
    __asm volatile("ldmia %[sums]!, {r4, r5, r6, r8}\n\t"
                   "smmla r4, r4, %[word], %[offset]\n\t"
                   "smmla r5, r5, %[word], %[offset]\n\t"
                   "smmla r6, r6, %[word], %[offset]\n\t"
                   "smmla r8, r8, %[word], %[offset]\n\t"
                   "asr r4, r4, %[shift]\n\t"
                   "asr r5, r5, %[shift]\n\t"
                   "asr r6, r6, %[shift]\n\t"
                   "asr r8, r8, %[shift]\n\t"
                   "ssat r4, #8, r4\n\t"
                   "ssat r5, #8, r5\n\t"
                   "ssat r6, #8, r6\n\t"
                   "ssat r8, #8, r8\n\t"
                   "strb r4, [%[output]]\n\t"
                   "strb r5, [%[output], %[step]]\n\t"
                   "strb r6, [%[output], %[step], lsl #1]\n\t"
                   "strb r8, [%[output], %[thrice]]\n\t"
                   "add %[output], %[output], %[step], lsl #2"
                   : [sums] "+&r"(*sums), [output] "+&r"(*output)
                   : [word] "r"(by->word), [offset] "r"(by->offset), [shift] "r"(by->shift),
                     [step] "r"(step), [thrice] "r"(thrice)
                   : "r4", "r5", "r6", "r8", "memory");
#else
    const int32_t *from = *sums;
    int8_t *to = *output;
    const int8_t a = code_of(by, from[0]), b = code_of(by, from[1]);
    const int8_t c = code_of(by, from[2]), d = code_of(by, from[3]);
    to[0] = a;
    to[step] = b;
    to[2u * step] = c;
    to[thrice] = d;
    *sums += 4;
    *output += 4u * step;
#endif
}

#if TF_DSP

/* The same for sums up to `end`, with a shift that the code knows. */
static inline __attribute__((always_inline)) int8_t *
store_by_shift(const tf_requantizer *by, const int32_t *sums, const int32_t *end, int8_t *output,
               uint32_t step, const int shift) {
    const uint32_t thrice = 3u * step;
    while (sums != end) {
        __asm volatile("ldmia %[sums]!, {r4, r5, r6, r8}\n\t"
                       "smmla r4, r4, %[word], %[offset]\n\t"
                       "smmla r5, r5, %[word], %[offset]\n\t"
                       "smmla r6, r6, %[word], %[offset]\n\t"
                       "smmla r8, r8, %[word], %[offset]\n\t"
                       "ssat r4, #8, r4, asr %[shift]\n\t"
                       "ssat r5, #8, r5, asr %[shift]\n\t"
                       "ssat r6, #8, r6, asr %[shift]\n\t"
                       "ssat r8, #8, r8, asr %[shift]\n\t"
                       "strb r4, [%[output]]\n\t"
                       "strb r5, [%[output], %[step]]\n\t"
                       "strb r6, [%[output], %[step], lsl #1]\n\t"
                       "strb r8, [%[output], %[thrice]]\n\t"
                       "add %[output], %[output], %[step], lsl #2"
                       : [sums] "+&r"(sums), [output] "+&r"(output)
                       : [word] "r"(by->word), [offset] "r"(by->offset), [shift] "i"(shift),
                         [step] "r"(step), [thrice] "r"(thrice)
                       : "r4", "r5", "r6", "r8", "memory");
    }
    return output;
}

#endif

/* Codes of sums, `step` apart. */
static __attribute__((noinline)) void store_row(const tf_requantizer *channel, const int32_t *sums,
                                                uint32_t count, int8_t *output, uint32_t step) {
    const tf_requantizer by = *channel;
    const int32_t *end = sums + (count & ~3u);
#if TF_DSP
    /* Most shifts are these. */
    if (by.shift >= 4 && by.shift <= 7) {
        output = by.shift == 4   ? store_by_shift(&by, sums, end, output, step, 4)
                 : by.shift == 5 ? store_by_shift(&by, sums, end, output, step, 5)
                 : by.shift == 6 ? store_by_shift(&by, sums, end, output, step, 6)
                                 : store_by_shift(&by, sums, end, output, step, 7);
        sums = end;
    }
#endif
    while (sums != end) {
        store_four(&by, &sums, &output, step, 3u * step);
    }
    for (count &= 3u; count > 0u; count--, sums++, output += step) {
        *output = code_of(&by, *sums);
    }
}

/* Stores one code, and clears the bit of the mask where the clamp changed it. */
static inline __attribute__((always_inline)) void
store_marked(const tf_requantizer *by, int32_t sum, int8_t *output, uint8_t *byte, uint32_t bit) {
    const int32_t value = tf_requantize(by, sum);
    const int32_t code = tf_clamp8(value);
    *output = (int8_t)code;
    if (value != code) {
        *byte &= (uint8_t)~bit;
    }
}

/* The same for two sums, whose bits lie `apart` bytes apart and their codes 8 * apart; `keep` has
 * all bits but theirs. Pointers move on. */
static inline __attribute__((always_inline)) void store_two_marked(const tf_requantizer *by,
                                                                   const int32_t **sums,
                                                                   int8_t **output, uint8_t **byte,
                                                                   uint32_t apart, uint32_t keep) {
#if TF_DSP
    int32_t code;
    __asm volatile(
        "ldrd r4, r5, [%[sums]], #8\n\t"
        "smmla r4, r4, %[word], %[offset]\n\t"
        "smmla r5, r5, %[word], %[offset]\n\t"
        "asr r4, r4, %[shift]\n\t"
        "asr r5, r5, %[shift]\n\t"
        "ssat %[code], #8, r4\n\t"
        "strb %[code], [%[output]]\n\t"
        "cmp %[code], r4\n\t"
        "beq 1f\n\t"
        "ldrb r4, [%[byte]]\n\t"
        "and r4, r4, %[keep]\n\t"
        "strb r4, [%[byte]]\n"
        "1:\n\t"
        "ssat %[code], #8, r5\n\t"
        "strb %[code], [%[output], %[apart], lsl #3]\n\t"
        "cmp %[code], r5\n\t"
        "beq 2f\n\t"
        "ldrb r5, [%[byte], %[apart]]\n\t"
        "and r5, r5, %[keep]\n\t"
        "strb r5, [%[byte], %[apart]]\n"
        "2:\n\t"
        "add %[output], %[output], %[apart], lsl #4\n\t"
        "add %[byte], %[byte], %[apart], lsl #1"
        : [sums] "+&r"(*sums), [output] "+&r"(*output), [byte] "+&r"(*byte), [code] "=&r"(code)
        : [word] "r"(by->word), [offset] "r"(by->offset), [shift] "r"(by->shift),
          [apart] "r"(apart), [keep] "r"(keep)
        : "r4", "r5", "cc", "memory");
#else
    store_marked(by, (*sums)[0], *output, *byte, ~keep);
    store_marked(by, (*sums)[1], *output + 8u * apart, *byte + apart, ~keep);
    *sums += 2;
    *output += 16u * apart;
    *byte += 2u * apart;
#endif
}

/* The same as store_row with a mask, in which the first output has bit `index`. */
static __attribute__((noinline)) void store_row_marked(const tf_requantizer *channel,
                                                       const int32_t *sums, uint32_t count,
                                                       int8_t *output, uint32_t step, uint8_t *mask,
                                                       uint32_t index) {
    const tf_requantizer by = *channel;
    if (step % 8u == 0u) {
        /* The same bit of every step / 8-th byte. */
        const uint32_t keep = ~(1u << (index & 7u)), apart = step / 8u;
        uint8_t *byte = mask + (index >> 3);
        for (const int32_t *end = sums + (count & ~3u); sums != end;) {
            store_two_marked(&by, &sums, &output, &byte, apart, keep);
            store_two_marked(&by, &sums, &output, &byte, apart, keep);
        }
        index += (count & ~3u) * step;
        count &= 3u;
    }
    for (; count > 0u; count--, sums++, output += step, index += step) {
        store_marked(&by, *sums, output, mask + (index >> 3), 1u << (index & 7u));
    }
}

/* Input rows are gathered in two parts where they go around the end of their ring. */
static void plan_gathering(forward_job *job) {
    const tf_convolution *layer = job->layer;
    const uint32_t rows = (uint32_t)(job->high - job->low);
    const uint32_t whole = job->span->in_ring - (uint32_t)job->low % job->span->in_ring;
    const tf_gathering by = {rows < whole ? rows : whole,
                             layer->in_width,
                             layer->in_channels,
                             (uint32_t)layer->in_width * layer->in_channels,
                             2u,
                             job->slide.line,
                             job->plane};
    job->until_wrap = by;
    job->behind_wrap = by;
    job->behind_wrap.rows = rows - by.rows;
}

static void gather_rows(forward_job *job, const int8_t *input, uint32_t lanes) {
    const tf_convolution *layer = job->layer;
    int16_t *to = job->planes + layer->pad_left;
    const uint32_t first = (uint32_t)job->low % job->span->in_ring;
    job->until_wrap.lanes = job->behind_wrap.lanes = lanes;
    tf_gather_codes(&job->until_wrap, input + first * job->until_wrap.row_step, layer->in_zero, to);
    if (job->behind_wrap.rows > 0u) {
        tf_gather_codes(&job->behind_wrap, input, layer->in_zero,
                        to + job->until_wrap.rows * job->slide.line);
    }
}

/* Zeros left and right of the rows of both planes: the right ones of a row go on into the left ones of
 * the next. What else blocks read behind a row is in sums that nothing keeps. */
static void clear_margins(const forward_job *job) {
    const uint32_t width = job->layer->in_width, left = job->layer->pad_left;
    const uint32_t line = job->slide.line;
    int16_t *next = job->planes, *end = next + 2u * job->plane;
    for (int16_t *row = next + left; row < end; row += line) {
        while (next != row) {
            *next++ = 0;
        }
        next += width;
    }
    while (next < end) {
        *next++ = 0;
    }
}

/* Where the windows of the span's rows lie in a plane and in the table of taps: rows of a window
 * that are outside the input are left out. */
static void find_windows(const forward_job *job) {
    const tf_convolution *layer = job->layer;
    tf_window *window = job->windows;
    for (int32_t y = job->span->first; y < job->span->end; y++, window++) {
        const int32_t top = y * layer->stride_height - layer->pad_top;
        const int32_t first = tf_clamp(top, 0, layer->in_height);
        const int32_t end = tf_clamp(top + layer->kernel_height, first, layer->in_height);
        window->plane = (first - job->low) * (int32_t)job->slide.line;
        window->table = (first - top) * (int32_t)job->slide.taps_row;
        window->rows = end - first;
    }
}

static __attribute__((noinline, cold)) void raise(int32_t *sums, uint32_t count, int32_t by) {
    for (const int32_t *end = sums + count; sums != end; sums++) {
        *sums = tf_raise_saturating(*sums, by);
    }
}

/* Outputs of a channel whose plane and first sum have been set. */
static __attribute__((noinline)) void one_channel(forward_job *job, uint32_t channel) {
    const tf_convolution *layer = job->layer;
    const tf_requantizer by = tf_make_requantizer(layer->requantize[channel], layer->out_zero);
    const uint32_t channels = layer->out_channels, width = layer->out_width;
    const uint32_t first = job->span->first, ring = job->span->out_ring;
    uint32_t slot = job->first_slot, left = job->span->end - first;
    job->sums.window = job->windows;
    for (uint32_t rows; left > 0u; left -= rows) {
        /* Rows are contiguous in the output, so that several are stored in one go. */
        rows = left < job->most ? left : job->most;
        rows = ring - slot < rows ? ring - slot : rows;
        job->sums.end = job->sums.window + rows;
        tf_slide_rows_of(&job->slide, &job->sums);
        const uint32_t count = rows * width, index = slot * width * channels + channel;
        if (layer->pre_shift != NULL) {
            raise(job->sums.sums, count, layer->pre_shift[channel]);
        }
        if (job->mask == NULL) {
            store_row(&by, job->sums.sums, count, job->output + index, channels);
        } else {
            /* A mask has all rows, and so has the output then. */
            store_row_marked(&by, job->sums.sums, count, job->output + index, channels, job->mask,
                             index);
        }
        job->sums.window = job->sums.end;
        slot = slot + rows == ring ? 0u : slot + rows;
    }
}

static void set_bits(uint8_t *mask, uint32_t size) {
    memset(mask, 0xff, size / 8u);
    if (size % 8u != 0u) {
        mask[size / 8u] = (uint8_t)((1u << size % 8u) - 1u);
    }
}

/* Elements of a row of a plane. */
static uint32_t line_of(const tf_convolution *layer) {
    const uint32_t used = (layer->out_width - 1u) * layer->stride_width + layer->kernel_width;
    const uint32_t given = (uint32_t)layer->pad_left + layer->in_width;
    return tf_even_up(used > given ? used : given);
}

/* Elements of two planes, with what blocks read behind them. */
static uint32_t elements_of_planes(const tf_convolution *layer, uint32_t plane) {
    return 2u * plane + TF_SLIDE_BLOCK * (layer->stride_width + 1u);
}

/* Those of a table, with DSP instructions or without: overlapping pairs of rows that are filled up. */
static uint32_t elements_of_table(const tf_convolution *layer) {
    const uint32_t width = layer->kernel_width | 1u;
    return layer->kernel_height * (width < 3u ? 4u : 2u * width - 2u);
}

uint32_t tf_depthwise_forward_scratch_bytes(const tf_convolution *layer, uint32_t rows) {
    const uint32_t seen = (rows - 1u) * layer->stride_height + layer->kernel_height;
    const uint32_t lines = seen < layer->in_height ? seen : layer->in_height;
    const uint32_t planes = elements_of_planes(layer, lines * line_of(layer));
    return sizeof(tf_window) * rows + sizeof(int32_t) * tf_room_for_sums(layer->out_width, rows) +
           sizeof(int16_t) * (2u * elements_of_table(layer) + planes);
}

void tf_depthwise_forward(const tf_convolution *layer, const tf_span *span, const int8_t *input,
                          const tf_weights *weights, const int32_t *bias, int8_t *output,
                          uint8_t *mask, int16_t *scratch) {
    const uint32_t channels = layer->out_channels;
#ifdef TF_VECTOR
    if (tf_depthwise_forward_in_lanes(layer, span, input, weights, bias, output, mask)) {
        return;
    }
#endif
    forward_job job = {0};
    job.layer = layer;
    job.span = span;
    job.output = output;
    job.mask = mask;
    job.slide = tf_make_slide(layer->kernel_width, layer->stride_width, line_of(layer));
    job.low = tf_clamp(span->first * layer->stride_height - layer->pad_top, 0, layer->in_height);
    job.high =
        tf_clamp((span->end - 1) * layer->stride_height - layer->pad_top + layer->kernel_height, 0,
                 layer->in_height);
    const uint32_t rows = (uint32_t)(span->end - span->first);
    job.windows = (tf_window *)(void *)scratch;
    job.sums.sums = (int32_t *)(void *)(job.windows + rows);
    job.tables = (int16_t *)(void *)(job.sums.sums + tf_room_for_sums(layer->out_width, rows));
    job.room = elements_of_table(layer);
    job.planes = job.tables + 2u * job.room;
    job.plane = (uint32_t)(job.high - job.low) * job.slide.line;
#if TF_MVE
    if (tf_depthwise_has_vectors(layer, input, output)) {
        const tf_four_channels room = {job.low, job.high, job.slide.line, (int8_t *)job.tables,
                                       (int8_t *)job.planes};
        if (mask != NULL) {
            set_bits(mask, (uint32_t)layer->out_height * layer->out_width * channels);
        }
        tf_depthwise_forward_in_vectors(layer, span, input, weights, bias, output, mask, &room);
        return;
    }
#endif
    job.sums.row_bytes = (uint32_t)sizeof *job.sums.sums * layer->out_width;
    job.sums.line_bytes = (uint32_t)sizeof *job.planes * job.slide.line;
    clear_margins(&job);
    job.most = tf_rows_at_once(layer->out_width);
    job.first_slot = span->first % span->out_ring;
    plan_gathering(&job);
    find_windows(&job);
    if (mask != NULL) {
        set_bits(mask, (uint32_t)layer->out_height * layer->out_width * channels);
    }
    const tf_taps taps = {0, 1, layer->kernel_width, layer->kernel_width, 0, layer->kernel_height};
    uint32_t trained = 0;
    for (uint32_t c = 0; c < channels; c += 2u) {
        const uint32_t lanes = channels - c < 2u ? 1u : 2u;
        tf_channel_taps of[2];
        gather_rows(&job, input + c, lanes);
        tf_find_taps(weights, c, channels, lanes, &trained, of);
        tf_widen_taps(&job.slide, &taps, of, lanes, job.tables, job.room);
        for (uint32_t lane = 0; lane < lanes; lane++) {
            job.sums.plane = job.planes + lane * job.plane;
            job.sums.table = job.tables + lane * job.room;
            job.sums.start = bias[c + lane];
            one_channel(&job, c + lane);
        }
    }
}
