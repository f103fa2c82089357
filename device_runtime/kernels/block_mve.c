/* Blocks with vectors: 16 products of bytes, or eight of 16 bits, to an instruction.
 *
 * Columns hold codes as they are, so that bytes of a column meet bytes of a row; the zero point times
 * the sum of the row is taken out of the sums. Sums wrap around, so their order doesn't matter. The
 * core adds up into general registers: no more than six sums at a time find room.
 */
#include "block.h"

#if TF_MVE

#define CHUNK 8u /* channels whose sums are made before their codes: as many as a byte of a mask */
#define LANES 4u

static const uint32_t bit_of_lane[LANES] = {1, 2, 4, 8};

typedef struct {
    int32_t of[TF_BLOCK_PIXELS][CHUNK];
} chunk_sums;

void tf_block_prepare(tf_forward_block *block, const tf_convolution *layer,
                      const tf_column *columns, uint32_t length, uint32_t with_mask) {
    (void)with_mask;        /* mask_end says it, */
    block->mask_end = NULL; /* which whoever has a mask sets for every block */
    block->columns = columns;
    block->values = (uint32_t)layer->kernel_height * layer->kernel_width * layer->in_channels;
    block->step = block->length = length;
    block->in_zero = layer->in_zero;
    block->out_zero = layer->out_zero;
}

/* What two columns have with two rows of weights, and the sums of these rows. */
typedef struct {
    int32_t first[2], second[2], rows[2];
} products;

static inline __attribute__((always_inline)) void
add_eight(products *to, const int8_t *first, const int8_t *second, const int8_t *weights,
          uint32_t left, const uint32_t with_rows, const uint32_t whole) {
    const mve_pred16_t some = vctp16q(left);
    /* Pairs of bytes: the lower ones are of row 0, the upper ones of row 1. */
    const int8x16_t both = whole ? vldrbq_s8(weights) : vldrbq_z_s8(weights, vctp8q(2u * left));
    const int16x8_t row0 = vmovlbq_s8(both), row1 = vmovltq_s8(both);
    const int16x8_t x = whole ? vldrbq_s16(first) : vldrbq_z_s16(first, some);
    const int16x8_t y = whole ? vldrbq_s16(second) : vldrbq_z_s16(second, some);
    to->first[0] = vmladavaq_s16(to->first[0], x, row0);
    to->first[1] = vmladavaq_s16(to->first[1], x, row1);
    to->second[0] = vmladavaq_s16(to->second[0], y, row0);
    to->second[1] = vmladavaq_s16(to->second[1], y, row1);
    if (with_rows) {
        to->rows[0] = vaddvaq_s16(to->rows[0], row0);
        to->rows[1] = vaddvaq_s16(to->rows[1], row1);
    }
}

static inline __attribute__((always_inline)) products multiply(const int8_t *first,
                                                               const int8_t *second,
                                                               const int8_t *weights,
                                                               uint32_t values,
                                                               const uint32_t with_rows) {
    products to = {{0, 0}, {0, 0}, {0, 0}};
    for (uint32_t vectors = values / 16u; vectors > 0u; vectors--) {
        const int8x16x2_t rows = vld2q_s8(weights);
        const int8x16_t x = vldrbq_s8(first), y = vldrbq_s8(second);
        to.first[0] = vmladavaq_s8(to.first[0], x, rows.val[0]);
        to.first[1] = vmladavaq_s8(to.first[1], x, rows.val[1]);
        to.second[0] = vmladavaq_s8(to.second[0], y, rows.val[0]);
        to.second[1] = vmladavaq_s8(to.second[1], y, rows.val[1]);
        if (with_rows) {
            to.rows[0] = vaddvaq_s8(to.rows[0], rows.val[0]);
            to.rows[1] = vaddvaq_s8(to.rows[1], rows.val[1]);
        }
        first += 16;
        second += 16;
        weights += 32;
    }
    if ((values & 8u) != 0u) {
        add_eight(&to, first, second, weights, 8u, with_rows, 1u);
        first += 8;
        second += 8;
        weights += 16;
    }
    if ((values & 7u) != 0u) {
        add_eight(&to, first, second, weights, values & 7u, with_rows, 0u);
    }
    return to;
}

/* Sums of two channels, which are `at` and the next one of the chunk. */
static inline void sum_pair(const tf_forward_block *block, const int8_t *weights,
                            const int32_t *bias, uint32_t at, chunk_sums *sums) {
    const tf_column *columns = block->columns;
    const uint32_t step = block->step, values = block->values;
    const products a = multiply(columns, columns + step, weights, values, 1u);
    const int32_t zero = block->in_zero;
    const int32_t start0 = bias[0] - zero * a.rows[0], start1 = bias[1] - zero * a.rows[1];
    sums->of[0][at] = start0 + a.first[0];
    sums->of[0][at + 1u] = start1 + a.first[1];
    sums->of[1][at] = start0 + a.second[0];
    sums->of[1][at + 1u] = start1 + a.second[1];
    const products b = multiply(columns + 2u * step, columns + 3u * step, weights, values, 0u);
    sums->of[2][at] = start0 + b.first[0];
    sums->of[2][at + 1u] = start1 + b.first[1];
    sums->of[3][at] = start0 + b.second[0];
    sums->of[3][at + 1u] = start1 + b.second[1];
}

/* Codes of up to four channels from `at` of the chunk on; ORs to `bits`, by pixel, those of
 * `first_bit` … whose channels the clamp leaves alone. */
static inline __attribute__((always_inline)) void
make_codes(const tf_forward_block *block, const chunk_sums *sums, int8_t *output, uint32_t at,
           uint32_t count, uint32_t first_bit, uint32_t *bits, const uint32_t whole) {
    const uint32_t channel = (uint32_t)(output - block->output) + at;
    const mve_pred16_t some = vctp32q(count);
    const int32_t *words = block->requantize + channel;
    const int32x4_t word = whole ? vldrwq_s32(words) : vldrwq_z_s32(words, some);
    const int32x4_t shift = vandq_s32(word, vdupq_n_s32(31));
    const int32x4_t offset =
        vshlq_s32(vdupq_n_s32(2 * block->out_zero + 1), vsubq_n_s32(shift, 1));
    const int32x4_t right = vnegq_s32(shift);
    const int32x4_t lowest = vdupq_n_s32(-128), highest = vdupq_n_s32(127);
    int32x4_t raise = vdupq_n_s32(0);
    if (block->pre_shift != NULL) {
        raise = vreinterpretq_s32_u32(vldrbq_z_u32(block->pre_shift + channel, some));
    }
    const uint32x4_t each = vshlq_r_u32(vldrwq_u32(bit_of_lane), (int32_t)first_bit);
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
        int8_t *to = output + at + (p == 0 ? 0 : block->steps[p - 1u]);
        int32x4_t sum = vldrwq_s32(&sums->of[p][at]);
        if (block->pre_shift != NULL) {
            sum = vqshlq_s32(sum, raise);
        }
        const int32x4_t value = vshlq_s32(vaddq_s32(vmulhq_s32(sum, word), offset), right);
        const int32x4_t code = vminq_s32(vmaxq_s32(value, lowest), highest);
        if (whole) {
            vstrbq_s32(to, code);
        } else {
            vstrbq_p_s32(to, code, some);
        }
        if (bits != NULL) {
            bits[p] = vaddvaq_p_u32(bits[p], each, vcmpeqq_m_s32(code, value, some));
        }
    }
}

/* All codes of a chunk of `count` (an even number) channels, and their bytes of the mask. */
static inline __attribute__((always_inline)) void
finish_chunk(const tf_forward_block *block, const chunk_sums *sums, int8_t *output, uint32_t count,
             uint32_t *bits) {
    const uint32_t first_bit = CHUNK - count; /* the last channel's bit is the highest */
    if (count == CHUNK) {
        make_codes(block, sums, output, 0, LANES, 0, bits, 1u);
        make_codes(block, sums, output, LANES, LANES, LANES, bits, 1u);
        return;
    }
    make_codes(block, sums, output, 0, count, first_bit, bits, 0u);
    if (count > LANES) {
        make_codes(block, sums, output, LANES, count - LANES, first_bit + LANES, bits, 0u);
    }
}

void tf_block_forward(const tf_forward_block *block) {
    const int8_t *weights = block->weights, *mask_end = block->mask_end;
    const int32_t *bias = block->bias;
    uint8_t *mask = block->mask;
    for (int8_t *output = block->output; output != block->output_end;) {
        const uint32_t rest = (uint32_t)(block->output_end - output);
        const uint32_t count = rest < CHUNK ? rest : CHUNK;
        chunk_sums sums;
        for (uint32_t at = 0; at < count; at += 2u) {
            sum_pair(block, weights, bias, at, &sums);
            weights += 2u * block->length;
            bias += 2;
        }
        if (mask_end == NULL) {
            finish_chunk(block, &sums, output, count, NULL);
        } else {
            uint32_t bits[TF_BLOCK_PIXELS] = {0, 0, 0, 0};
            finish_chunk(block, &sums, output, count, bits);
            for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
                mask[p == 0 ? 0 : block->mask_steps[p - 1u]] = (uint8_t)bits[p];
            }
            mask++;
        }
        output += count;
    }
}

void tf_block_scale(const int16_t *error, const int16_t *multiplier, uint32_t count, int32_t shift,
                    int16_t *to) {
    for (; count >= 8u; count -= 8u, error += 8, multiplier += 8, to += 8) {
        const int16x8_t e = vldrhq_s16(error), m = vldrhq_s16(multiplier);
        const int32x4_t even = vrshlq_n_s32(vmullbq_int_s16(e, m), -shift);
        const int32x4_t odd = vrshlq_n_s32(vmulltq_int_s16(e, m), -shift);
        vstrhq_s16(to, vmovntq_s32(vmovnbq_s32(e, even), odd));
    }
    for (uint32_t i = 0; i < count; i++) {
        to[i] = (int16_t)tf_round_shift32(error[i] * multiplier[i], shift);
    }
}

/* sums[p] += the weights at `weights` of one input channel, for `outputs` output channels, times
 * the errors of pixel p. */
static inline __attribute__((always_inline)) void add_tap(const int16_t *errors,
                                                          const int8_t *weights, uint32_t outputs,
                                                          uint16x8_t places, uint32_t step,
                                                          int32_t sums[TF_BLOCK_PIXELS]) {
    const int16_t *e0 = errors, *e1 = e0 + outputs, *e2 = e1 + outputs, *e3 = e2 + outputs;
    int32_t a = sums[0], b = sums[1], c = sums[2], d = sums[3];
    for (uint32_t vectors = outputs / 8u; vectors > 0u; vectors--) {
        const int16x8_t w = vldrbq_gather_offset_s16(weights, places);
        a = vmladavaq_s16(a, vldrhq_s16(e0), w);
        b = vmladavaq_s16(b, vldrhq_s16(e1), w);
        c = vmladavaq_s16(c, vldrhq_s16(e2), w);
        d = vmladavaq_s16(d, vldrhq_s16(e3), w);
        weights += step;
        e0 += 8, e1 += 8, e2 += 8, e3 += 8;
    }
    if ((outputs & 7u) != 0u) {
        const mve_pred16_t some = vctp16q(outputs & 7u);
        const int16x8_t w = vldrbq_gather_offset_z_s16(weights, places, some);
        a = vmladavaq_s16(a, vldrhq_z_s16(e0, some), w);
        b = vmladavaq_s16(b, vldrhq_z_s16(e1, some), w);
        c = vmladavaq_s16(c, vldrhq_z_s16(e2, some), w);
        d = vmladavaq_s16(d, vldrhq_z_s16(e3, some), w);
    }
    sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
}

/* The same for rows that lie too far apart for offsets of 16 bits. */
static void add_wide_tap(const int16_t *errors, const int8_t *weights, uint32_t outputs,
                         uint32_t row_bytes, int32_t sums[TF_BLOCK_PIXELS]) {
    for (uint32_t o = 0; o < outputs; o += 2u, weights += row_bytes, errors += 2) {
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
            const int16_t *pair = errors + p * outputs;
            sums[p] += pair[0] * weights[0] + pair[1] * weights[1];
        }
    }
}

static void sum_channel(const tf_gradient_block *block, const int8_t *weights, uint16x8_t places,
                        int32_t sums[TF_BLOCK_PIXELS]) {
    const uint16_t *tap = block->taps;
    const uint32_t tap_elements = block->outputs / 2u * TF_STREAM_STEP;
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
        sums[p] = block->half;
    }
    for (const int16_t *from = block->stream; from != block->stream_end; from += tap_elements) {
        const int8_t *of_tap = weights + *tap++ * block->tap_bytes;
        if (3u * block->row_bytes < UINT16_MAX) {
            add_tap(from, of_tap, block->outputs, places, 4u * block->row_bytes, sums);
        } else {
            add_wide_tap(from, of_tap, block->outputs, block->row_bytes, sums);
        }
    }
}

void tf_block_gradient(tf_gradient_block *block) {
    /* Places of the weights that eight output channels have for an input channel: in four rows. */
    const uint32_t row = block->row_bytes;
    const uint16x8_t lane = vidupq_n_u16(0u, 1);
    const uint16x8_t places = vaddq_u16(vandq_u16(lane, vdupq_n_u16(1u)),
                                        vmulq_n_u16(vshrq_n_u16(lane, 1), (uint16_t)row));
    const int32x4_t lowest = vdupq_n_s32(INT16_MIN), highest = vdupq_n_s32(INT16_MAX);
    int16_t *output = block->output;
    for (const int8_t *weights = block->weights; weights != block->weights_end;) {
        const uint32_t rest = (uint32_t)(block->weights_end - weights) / 2u;
        const uint32_t count = rest < LANES ? rest : LANES;
        const mve_pred16_t some = vctp32q(count);
        int32_t sums[LANES][TF_BLOCK_PIXELS];
        for (uint32_t i = 0; i < count; i++, weights += 2) {
            sum_channel(block, weights, places, sums[i]);
        }
        const uint32x4_t column = vidupq_n_u32(0u, TF_BLOCK_PIXELS);
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
            int16_t *to = output + (p == 0 ? 0 : block->steps[p - 1u] / 2);
            const int32x4_t sum = vldrwq_gather_shifted_offset_z_s32(&sums[0][p], column, some);
            const int32x4_t value = vshlq_r_s32(sum, -block->shift);
            const int32x4_t error = vminq_s32(vmaxq_s32(value, lowest), highest);
            vstrhq_p_s32(to, error, some);
            block->largest = vmaxavq_p_s32(block->largest, error, some);
        }
        output += count;
    }
}

#endif
