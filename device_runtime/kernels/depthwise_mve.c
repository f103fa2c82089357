/* Depthwise convolution, forward, with vectors of 16 bytes: four neighbouring columns of four
 * channels each. Products of 16 bits are added to a vector of four columns for each channel.
 *
 * Codes are multiplied as they are. The zero point times the sum of the taps is taken out of what
 * sums start with, which therefore depends on the rows of the kernel that a window has. */
#include "depthwise_mve.h"

#include "fixed_point.h"

#if TF_MVE

#define CHANNELS 4u
#define COLUMNS 4u
#define MOST_ROWS 16u

/* Four channels of a layer. */
typedef struct {
    const tf_convolution *layer;
    const tf_four_channels *room;
    uint32_t channel;
    int32_t bias[CHANNELS];
    int32_t of_row[MOST_ROWS][CHANNELS]; /* sums of the taps */
    tf_requantizer by[CHANNELS];
    uint8_t pre_shift[CHANNELS];
} group;

uint32_t tf_depthwise_has_vectors(const tf_convolution *layer, const int8_t *input,
                                  const int8_t *output) {
    /* Four channels are loaded and stored as a word. */
    return (((uintptr_t)input | (uintptr_t)output) & 3u) == 0u &&
           layer->out_channels % CHANNELS == 0u && layer->stride_width <= 2u &&
           layer->kernel_height <= MOST_ROWS;
}

/* The weights of four channels, tap by tap, and the sums of their rows. */
static void take_taps(group *of, const tf_weights *weights, uint32_t *trained) {
    const tf_convolution *layer = of->layer;
    const uint32_t channels = layer->out_channels, width = layer->kernel_width;
    const uint32_t taps = layer->kernel_height * width;
    int8_t *to = of->room->taps;
    for (uint32_t tap = 0; tap < taps; tap++) {
        tf_store32(to + CHANNELS * tap, tf_load32(weights->fixed + tap * channels + of->channel));
    }
    for (; *trained < weights->count && weights->channels[*trained] < of->channel + CHANNELS;
         (*trained)++) {
        const uint32_t lane = weights->channels[*trained] - of->channel;
        for (uint32_t tap = 0; tap < taps; tap++) {
            to[CHANNELS * tap + lane] = weights->trained[tap * weights->count + *trained];
        }
    }
    for (uint32_t row = 0; row < layer->kernel_height; row++) {
        int32x4_t sum = vdupq_n_s32(0);
        for (uint32_t i = 0; i < width; i++, to += CHANNELS) {
            sum = vaddq_s32(sum, vldrbq_s32(to));
        }
        vstrwq_s32(of->of_row[row], sum);
    }
}

static void take_channels(group *of, const int32_t *bias) {
    const tf_convolution *layer = of->layer;
    for (uint32_t lane = 0; lane < CHANNELS; lane++) {
        const uint32_t channel = of->channel + lane;
        of->bias[lane] = bias[channel];
        of->by[lane] = tf_make_requantizer(layer->requantize[channel], layer->out_zero);
        of->pre_shift[lane] = layer->pre_shift == NULL ? 0u : layer->pre_shift[channel];
    }
}

/* Codes of four channels in the rows that the span needs. */
static void gather(const group *of, const tf_span *span, const int8_t *input) {
    const tf_convolution *layer = of->layer;
    const tf_four_channels *room = of->room;
    const uint32_t channels = layer->in_channels, width = layer->in_width;
    const uint32x4_t places = vmulq_n_u32(vidupq_n_u32(0u, 1), channels);
    int8_t *to = room->columns + CHANNELS * layer->pad_left;
    uint32_t slot = (uint32_t)room->low % span->in_ring;
    for (int32_t y = room->low; y < room->high; y++, to += CHANNELS * room->line) {
        const int8_t *from = input + slot * width * channels + of->channel;
        int8_t *at = to;
        uint32_t left = width;
        for (; left >= COLUMNS; left -= COLUMNS, from += COLUMNS * channels, at += 16) {
            vstrbq_u8((uint8_t *)at, vreinterpretq_u8_u32(vldrwq_gather_offset_u32(
                                         (const uint32_t *)(const void *)from, places)));
        }
        for (; left > 0u; left--, from += channels, at += CHANNELS) {
            tf_store32(at, tf_load32(from));
        }
        slot = slot + 1u == span->in_ring ? 0u : slot + 1u;
    }
}

/* A vector of sums for each channel. Names, as GCC keeps arrays of vectors in memory. */
typedef struct {
    int32x4_t a, b, c, d;
} four_sums;

static inline __attribute__((always_inline)) int8x16_t load_columns(const int8_t *from,
                                                                    uint32x4_t places,
                                                                    const uint32_t stride) {
    return stride == 1u ? vldrbq_s8(from)
                        : vreinterpretq_s8_u32(vldrwq_gather_offset_u32(
                              (const uint32_t *)(const void *)from, places));
}

/* to += 16 products: those of even channels, then of odd ones. In assembly, or GCC loads more than
 * there are registers for. */
static inline __attribute__((always_inline)) void add_tap(four_sums *to, int8x16_t columns,
                                                          const int8_t *tap) {
    int8x16_t t = vreinterpretq_s8_u32(vdupq_n_u32(tf_load32(tap)));
    int16x8_t even;
    __asm("vmullb.s8 %q[even], %q[x], %q[t]\n\t"
          "vmullt.s8 %q[x], %q[x], %q[t]\n\t"
          "vmovlb.s16 %q[t], %q[even]\n\t"
          "vadd.i32 %q[a], %q[a], %q[t]\n\t"
          "vmovlt.s16 %q[t], %q[even]\n\t"
          "vadd.i32 %q[c], %q[c], %q[t]\n\t"
          "vmovlb.s16 %q[t], %q[x]\n\t"
          "vadd.i32 %q[b], %q[b], %q[t]\n\t"
          "vmovlt.s16 %q[t], %q[x]\n\t"
          "vadd.i32 %q[d], %q[d], %q[t]"
          : [a] "+w"(to->a), [b] "+w"(to->b), [c] "+w"(to->c), [d] "+w"(to->d), [x] "+w"(columns),
            [t] "+w"(t), [even] "=&w"(even));
}

/* Rows of `width` taps over four columns each. */
static inline __attribute__((always_inline)) void slide(four_sums *to, const int8_t *columns,
                                                        const int8_t *taps, uint32_t rows,
                                                        uint32_t line_bytes, const uint32_t width,
                                                        const uint32_t stride) {
    const uint32x4_t places = vidupq_n_u32(0u, 8);
    for (; rows > 0u; rows--, columns += line_bytes, taps += CHANNELS * width) {
        for (uint32_t i = 0; i < width; i++) {
            add_tap(to, load_columns(columns + CHANNELS * i, places, stride), taps + CHANNELS * i);
        }
    }
}

static inline __attribute__((always_inline)) void slide_any(four_sums *to, const int8_t *columns,
                                                            const int8_t *taps, uint32_t rows,
                                                            uint32_t line_bytes, uint32_t width,
                                                            const uint32_t stride) {
    if (width == 3u) {
        slide(to, columns, taps, rows, line_bytes, 3u, stride);
    } else {
        slide(to, columns, taps, rows, line_bytes, width, stride);
    }
}

/* Clears the bits of codes that the clamp has changed: four for each column. */
static void mark(uint8_t *mask, uint32_t index, uint32_t channels, uint32_t changed) {
    for (; changed != 0u; changed >>= CHANNELS, index += channels) {
        mask[index >> 3] &= (uint8_t) ~((changed & 15u) << (index & 7u));
    }
}

/* Codes before the clamp, of the channel `lane`. */
static inline __attribute__((always_inline)) int32x4_t requantize(const group *of, int32x4_t sums,
                                                                  uint32_t lane) {
    const tf_requantizer *by = &of->by[lane];
    if (of->layer->pre_shift != NULL) {
        sums = vqshlq_r_s32(sums, of->pre_shift[lane]);
    }
    const int32x4_t high = vmulhq_s32(sums, vdupq_n_s32(by->word));
    return vshlq_r_s32(vaddq_n_s32(high, by->offset), -by->shift);
}

/* Codes of `count` columns to `output`; returns four bits for each column, of those that the clamp
 * has changed. */
static inline __attribute__((always_inline)) uint32_t store(const group *of, four_sums sums,
                                                            int8_t *output, uint32x4_t places,
                                                            uint32_t count) {
    const int32x4_t a = requantize(of, sums.a, 0), c = requantize(of, sums.c, 2);
    const int16x8_t even = vqmovntq_s32(vqmovnbq_s32(vdupq_n_s16(0), a), c);
    const int32x4_t b = requantize(of, sums.b, 1), d = requantize(of, sums.d, 3);
    const int16x8_t odd = vqmovntq_s32(vqmovnbq_s32(vdupq_n_s16(0), b), d);
    const int8x16_t codes = vqmovntq_s16(vqmovnbq_s16(vdupq_n_s8(0), even), odd);
    vstrwq_scatter_offset_p_u32((uint32_t *)(void *)output, places, vreinterpretq_u32_s8(codes),
                                vctp32q(count));
    const uint32_t changed = ((uint32_t)vcmpneq_s16(even, vmovlbq_s8(codes)) & 0x5555u) |
                             ((uint32_t)vcmpneq_s16(odd, vmovltq_s8(codes)) & 0x5555u) << 1;
    return changed & ((1u << CHANNELS * count) - 1u);
}

/* What the sums of a window with these rows of the kernel start with. */
static void find_start(const group *of, uint32_t first, uint32_t rows, int32_t start[CHANNELS]) {
    int32x4_t sum = vdupq_n_s32(0);
    for (uint32_t row = first; row < first + rows; row++) {
        sum = vaddq_s32(sum, vldrwq_s32(of->of_row[row]));
    }
    vstrwq_s32(start, vsubq_s32(vldrwq_s32(of->bias), vmulq_n_s32(sum, of->layer->in_zero)));
}

/* One row of outputs of four channels. */
static void one_row(const group *of, uint32_t y, int8_t *output, uint8_t *mask) {
    const tf_convolution *layer = of->layer;
    const tf_four_channels *room = of->room;
    const uint32_t channels = layer->out_channels, width = layer->kernel_width;
    const int32_t top = (int32_t)(y * layer->stride_height) - layer->pad_top;
    const int32_t first = tf_clamp(top, 0, layer->in_height);
    const int32_t end = tf_clamp(top + layer->kernel_height, first, layer->in_height);
    const uint32_t line_bytes = CHANNELS * room->line, rows = (uint32_t)(end - first);
    const int8_t *columns = room->columns + (uint32_t)(first - room->low) * line_bytes;
    const int8_t *taps = room->taps + CHANNELS * (uint32_t)(first - top) * width;
    const uint32x4_t places = vmulq_n_u32(vidupq_n_u32(0u, 1), channels);
    uint32_t index = y * layer->out_width * channels + of->channel;
    int32_t start[CHANNELS];
    find_start(of, (uint32_t)(first - top), rows, start);
    for (uint32_t left = layer->out_width; left > 0u;) {
        const uint32_t count = left < COLUMNS ? left : COLUMNS;
        four_sums sums = {vdupq_n_s32(start[0]), vdupq_n_s32(start[1]), vdupq_n_s32(start[2]),
                          vdupq_n_s32(start[3])};
        if (layer->stride_width == 1u) {
            slide_any(&sums, columns, taps, rows, line_bytes, width, 1u);
            columns += CHANNELS * COLUMNS;
        } else {
            slide_any(&sums, columns, taps, rows, line_bytes, width, 2u);
            columns += 2u * CHANNELS * COLUMNS;
        }
        const uint32_t changed = store(of, sums, output, places, count);
        if (mask != NULL && changed != 0u) {
            mark(mask, index, channels, changed);
        }
        output += count * channels;
        index += count * channels;
        left -= count;
    }
}

void tf_depthwise_forward_in_vectors(const tf_convolution *layer, const tf_span *span,
                                     const int8_t *input, const tf_weights *weights,
                                     const int32_t *bias, int8_t *output, uint8_t *mask,
                                     const tf_four_channels *room) {
    const uint32_t channels = layer->out_channels, row_bytes = layer->out_width * channels;
    uint32_t trained = 0;
    group of;
    of.layer = layer;
    of.room = room;
    memset(room->columns, layer->in_zero,
           (uint32_t)(room->high - room->low) * CHANNELS * room->line);
    for (of.channel = 0; of.channel < channels; of.channel += CHANNELS) {
        take_taps(&of, weights, &trained);
        take_channels(&of, bias);
        gather(&of, span, input);
        uint32_t slot = span->first % span->out_ring;
        for (uint32_t y = span->first; y < span->end; y++) {
            one_row(&of, y, output + slot * row_bytes + of.channel, mask);
            slot = slot + 1u == span->out_ring ? 0u : slot + 1u;
        }
    }
}

#endif
