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

/* Two columns, two rows of weights, and what they have in common: values in whole vectors, and those
 * that are left over. */
typedef struct {
    const int8_t *first, *second, *weights;
    uint32_t vectors, rest;
} operands;

/* Sums of row 0 and 1 with the first column, then with the second. */
typedef struct {
    int32_t a, b, c, d;
} four_sums;

/* Loops in assembly, since compilers spend more instructions around them than there are in them.
 * Sixteen values of two rows and two columns, then eight of 16 bits, in which the lower bytes of
 * pairs of weights are of row 0 and the upper ones of row 1. */
#define LOAD_SIXTEEN                \
    "vld20.8 {q0, q1}, [%[w]]\n\t"  \
    "vld21.8 {q0, q1}, [%[w]]!\n\t" \
    "vldrb.u8 q2, [%[x]], #16\n\t"  \
    "vldrb.u8 q3, [%[y]], #16\n\t"  \
    "vmladava.s8 %[a], q2, q0\n\t"  \
    "vmladava.s8 %[b], q2, q1\n\t"  \
    "vmladava.s8 %[c], q3, q0\n\t"  \
    "vmladava.s8 %[d], q3, q1\n\t"
#define LOAD_EIGHT                  \
    "vldrb.u8 q0, [%[w]], #16\n\t"  \
    "vldrb.s16 q2, [%[x]], #8\n\t"  \
    "vldrb.s16 q3, [%[y]], #8\n\t"  \
    "vmovlt.s8 q1, q0\n\t"          \
    "vmovlb.s8 q0, q0\n\t"          \
    "vmladava.s16 %[a], q2, q0\n\t" \
    "vmladava.s16 %[b], q2, q1\n\t" \
    "vmladava.s16 %[c], q3, q0\n\t" \
    "vmladava.s16 %[d], q3, q1\n\t"
#define BOTH_LOOPS(sixteen, eight) \
    "wls lr, %[vectors], 2f\n"     \
    "1:\n\t" sixteen "le lr, 1b\n" \
    "2:\n\t"                       \
    "wlstp.16 lr, %[rest], 4f\n"   \
    "3:\n\t" eight "letp lr, 3b\n" \
    "4:\n\t"

static inline __attribute__((always_inline)) void multiply(operands of, four_sums *to) {
    int32_t a = to->a, b = to->b, c = to->c, d = to->d;
    __asm volatile(BOTH_LOOPS(LOAD_SIXTEEN, LOAD_EIGHT)
                   : [a] "+&Te"(a), [b] "+&Te"(b), [c] "+&Te"(c), [d] "+&Te"(d),
                     [x] "+&l"(of.first), [y] "+&l"(of.second), [w] "+&r"(of.weights)
                   : [vectors] "r"(of.vectors), [rest] "r"(of.rest)
                   : "q0", "q1", "q2", "q3", "lr", "cc", "memory");
    to->a = a, to->b = b, to->c = c, to->d = d;
}

/* The same, and the sums of the rows to `rows`. */
static inline __attribute__((always_inline)) void multiply_and_sum(operands of, four_sums *to,
                                                                   int32_t rows[2]) {
    int32_t a = to->a, b = to->b, c = to->c, d = to->d, row0 = 0, row1 = 0;
    __asm volatile(
        BOTH_LOOPS(LOAD_SIXTEEN "vaddva.s8 %[row0], q0\n\t"
                                "vaddva.s8 %[row1], q1\n\t",
                   LOAD_EIGHT "vaddva.s16 %[row0], q0\n\t"
                              "vaddva.s16 %[row1], q1\n\t")
        : [a] "+&Te"(a), [b] "+&Te"(b), [c] "+&Te"(c), [d] "+&Te"(d), [row0] "+&Te"(row0),
          [row1] "+&Te"(row1), [x] "+&l"(of.first), [y] "+&l"(of.second), [w] "+&r"(of.weights)
        : [vectors] "r"(of.vectors), [rest] "r"(of.rest)
        : "q0", "q1", "q2", "q3", "lr", "cc", "memory");
    to->a = a, to->b = b, to->c = c, to->d = d;
    rows[0] = row0, rows[1] = row1;
}

/* Sums of two channels: sums[0] and [1] of the first pixel, CHUNK later those of the next. */
static inline void sum_pair(const tf_forward_block *block, const int8_t *weights,
                            const int32_t *bias, int32_t *sums) {
    const uint32_t step = block->step;
    int32_t rows[2];
    operands of = {block->columns, block->columns + step, weights, block->values / 16u,
                   block->values % 16u};
    four_sums to = {bias[0], bias[1], bias[0], bias[1]};
    multiply_and_sum(of, &to, rows);
    rows[0] *= block->in_zero;
    rows[1] *= block->in_zero;
    sums[0] = to.a - rows[0];
    sums[1] = to.b - rows[1];
    sums[CHUNK] = to.c - rows[0];
    sums[CHUNK + 1u] = to.d - rows[1];
    to.a = to.c = bias[0] - rows[0];
    to.b = to.d = bias[1] - rows[1];
    of.first += 2u * step;
    of.second += 2u * step;
    multiply(of, &to);
    sums[2u * CHUNK] = to.a;
    sums[2u * CHUNK + 1u] = to.b;
    sums[3u * CHUNK] = to.c;
    sums[3u * CHUNK + 1u] = to.d;
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
    const int32x4_t offset = vshlq_s32(vdupq_n_s32(2 * block->out_zero + 1), vsubq_n_s32(shift, 1));
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
static inline __attribute__((always_inline)) void finish_chunk(const tf_forward_block *block,
                                                               const chunk_sums *sums,
                                                               int8_t *output, uint32_t count,
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
            sum_pair(block, weights, bias, &sums.of[0][at]);
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
