/* Blocks with vectors: 16 products of bytes, or eight of 16 bits, to an instruction.
 *
 * Columns of a forward pass hold codes as they are, so that bytes of a column meet bytes of a row; the
 * zero point times the sum of the row is taken out of what sums start with. Sums wrap around, so their
 * order doesn't matter. The core adds up into general registers: no more than six sums at a time find
 * room.
 */
#include "block.h"

#if TF_MVE

#define LANES 4u

void tf_block_widen_pair(int16_t *pair, const int8_t *packed, uint32_t length) {
    int8_t *first = (int8_t *)pair, *second = first + length;
    for (; length >= 16u; length -= 16u, packed += 32, first += 16, second += 16) {
        const int8x16x2_t rows = vld2q_s8(packed);
        vstrbq_s8(first, rows.val[0]);
        vstrbq_s8(second, rows.val[1]);
    }
    for (; length > 0u; length -= 4u, packed += 8, first += 4, second += 4) {
        const uint32x4_t both = vldrhq_u32((const uint16_t *)(const void *)packed);
        vstrbq_u32((uint8_t *)first, both);
        vstrbq_u32((uint8_t *)second, vshrq_n_u32(both, 8));
    }
}

void tf_block_widen_columns(int16_t *pair, const int8_t *packed, uint32_t step, uint32_t count) {
    const uint32_t length = tf_packed_length(count);
    int16_t *second = pair + length;
    if (3u * step < UINT16_MAX) {
        /* Places of a value in eight rows. */
        const uint16x8_t lane = vidupq_n_u16(0u, 1);
        const uint16x8_t places = vaddq_u16(vandq_u16(lane, vdupq_n_u16(1u)),
                                            vmulq_n_u16(vshrq_n_u16(lane, 1), (uint16_t)step));
        for (uint32_t i = 0; i < length; i += 8u, packed += 4u * step) {
            const mve_pred16_t some = vctp16q(count - i), room = vctp16q(length - i);
            vstrhq_p_s16(pair + i, vldrbq_gather_offset_z_s16(packed, places, some), room);
            vstrhq_p_s16(second + i, vldrbq_gather_offset_z_s16(packed + 2, places, some), room);
        }
        return;
    }
    /* They lie too far apart for offsets of 16 bits. */
    for (uint32_t i = 0; i < length; i += 2u, packed += step) {
        for (uint32_t at = 0; at < 2u; at++) {
            pair[i + at] = i < count ? packed[at] : 0;
            second[i + at] = i < count ? packed[2u + at] : 0;
        }
    }
}

/* Two columns and two rows, of `count` values each. In bytes or in 16 bits. */
typedef struct {
    const void *x, *y, *first, *second;
    uint32_t count;
} operands;

/* Sums of both rows with the first column, then with the second. */
typedef struct {
    int32_t a, b, c, d;
} four_sums;

/* A loop in assembly, since compilers spend more instructions around it than there are in it. */
#define ADD_PRODUCTS(bits, load)                                                   \
    "dlstp." bits " lr, %[count]\n"                                                \
    "1:\n\t" load " q0, [%[first]], #16\n\t" load " q1, [%[second]], #16\n\t" load \
    " q2, [%[x]], #16\n\t" load " q3, [%[y]], #16\n\t"                             \
    "vmladava.s" bits " %[a], q2, q0\n\t"                                          \
    "vmladava.s" bits " %[b], q2, q1\n\t"                                          \
    "vmladava.s" bits " %[c], q3, q0\n\t"                                          \
    "vmladava.s" bits " %[d], q3, q1\n\t"                                          \
    "letp lr, 1b"

static inline __attribute__((always_inline)) void add_products(operands of, four_sums *to,
                                                               const uint32_t bytes) {
    int32_t a = to->a, b = to->b, c = to->c, d = to->d;
    if (bytes) {
        __asm volatile(
            ADD_PRODUCTS("8", "vldrb.u8")
            : [a] "+&Te"(a), [b] "+&Te"(b), [c] "+&Te"(c), [d] "+&Te"(d), [x] "+&r"(of.x),
              [y] "+&r"(of.y), [first] "+&r"(of.first), [second] "+&r"(of.second)
            : [count] "r"(of.count)
            : "q0", "q1", "q2", "q3", "lr", "cc", "memory");
    } else {
        __asm volatile(
            ADD_PRODUCTS("16", "vldrh.u16")
            : [a] "+&Te"(a), [b] "+&Te"(b), [c] "+&Te"(c), [d] "+&Te"(d), [x] "+&r"(of.x),
              [y] "+&r"(of.y), [first] "+&r"(of.first), [second] "+&r"(of.second)
            : [count] "r"(of.count)
            : "q0", "q1", "q2", "q3", "lr", "cc", "memory");
    }
    to->a = a, to->b = b, to->c = c, to->d = d;
}

/* Sums of four pixels with each row. */
typedef struct {
    int32x4_t first, second;
} row_sums;

/* What the sums of both rows start with. */
typedef struct {
    int32_t first, second;
} start;

static inline __attribute__((always_inline)) row_sums sum_block(const tf_block_run *run,
                                                                const int8_t *columns, start from,
                                                                const uint32_t bytes) {
    const uint32_t row = bytes ? run->length : 2u * run->length;
    const int8_t *pair = (const int8_t *)run->pair;
    four_sums even = {from.first, from.second, from.first, from.second}, odd = even;
    operands of = {columns, columns + 2u * row, pair, pair + row, run->length};
    add_products(of, &even, bytes);
    of.x = columns + row;
    of.y = columns + 3u * row;
    add_products(of, &odd, bytes);
    row_sums sums;
    __asm("vmov %q0[2], %q0[0], %1, %2\n\t"
          "vmov %q0[3], %q0[1], %3, %4"
          : "=&w"(sums.first)
          : "r"(even.a), "r"(even.c), "r"(odd.a), "r"(odd.c));
    __asm("vmov %q0[2], %q0[0], %1, %2\n\t"
          "vmov %q0[3], %q0[1], %3, %4"
          : "=&w"(sums.second)
          : "r"(even.b), "r"(even.d), "r"(odd.b), "r"(odd.d));
    return sums;
}

/* The zero point times the sums of the rows is taken out. */
static inline start start_codes(const tf_block_run *run) {
    const int8_t *first = (const int8_t *)run->pair, *second = first + run->length;
    int32_t sums[2] = {0, 0};
    for (uint32_t left = run->length; left > 0u;) {
        const uint32_t count = left < 16u ? left : 16u;
        const mve_pred16_t some = vctp8q(count);
        sums[0] = vaddvaq_s8(sums[0], vldrbq_z_s8(first, some));
        sums[1] = vaddvaq_s8(sums[1], vldrbq_z_s8(second, some));
        first += count, second += count, left -= count;
    }
    return (start){run->start[0] - run->in_zero * sums[0], run->start[1] - run->in_zero * sums[1]};
}

/* The output codes before the clamp. */
static inline __attribute__((always_inline)) int32x4_t requantize(const tf_requantizer *by,
                                                                  int32x4_t sums) {
    const int32x4_t high = vmulhq_s32(sums, vdupq_n_s32(by->word));
    return vshlq_r_s32(vaddq_n_s32(high, by->offset), -by->shift);
}

static inline __attribute__((always_inline)) void run_codes(tf_block_run *run,
                                                            const uint32_t with_mask) {
    const int8_t *columns = run->columns;
    const start from = start_codes(run);
    const tf_requantizer first = run->first, second = run->second;
    const uint32_t step = run->step;
    const uint32x4_t places = vmulq_n_u32(vidupq_n_u32(0u, 1), step);
    const uint32x4_t pixel =
        vshlq_u32(vdupq_n_u32(0x40u), vreinterpretq_s32_u32(vidupq_n_u32(0u, 8)));
    const int32x4_t lowest = vdupq_n_s32(-128), highest = vdupq_n_s32(127);
    int8_t *to = run->output;
    for (uint32_t block = 0; block < run->blocks; block++) {
        row_sums sums = sum_block(run, columns, from, 1u);
        if (run->raised != NULL) {
            sums.first = vqshlq_r_s32(sums.first, (int32_t)run->pre_shift[0]);
            sums.second = vqshlq_r_s32(sums.second, (int32_t)run->pre_shift[1]);
        }
        const int32x4_t a = requantize(&first, sums.first), b = requantize(&second, sums.second);
        const int32x4_t code_a = vminq_s32(vmaxq_s32(a, lowest), highest);
        const int32x4_t code_b = vminq_s32(vmaxq_s32(b, lowest), highest);
        vstrbq_scatter_offset_s32(to, places, code_a);
        vstrbq_scatter_offset_s32(to + 1, places, code_b);
        if (with_mask) {
            uint32_t bits = run->bits[block] >> 2 & 0x3f3f3f3fu;
            bits = vaddvaq_p_u32(bits, pixel, vcmpeqq_s32(a, code_a));
            run->bits[block] = vaddvaq_p_u32(bits, vaddq_u32(pixel, pixel), vcmpeqq_s32(b, code_b));
        }
        to += TF_BLOCK_PIXELS * step;
        columns += TF_BLOCK_PIXELS * run->length;
    }
}

static void run_errors(tf_block_run *run) {
    const int8_t *columns = run->columns;
    const start from = {run->start[0], run->start[1]};
    const uint32_t step = run->step;
    const uint32x4_t places = vmulq_n_u32(vidupq_n_u32(0u, 1), step);
    const int32x4_t lowest = vdupq_n_s32(-INT16_MAX), highest = vdupq_n_s32(INT16_MAX);
    uint32_t largest = (uint32_t)run->first.word;
    int8_t *to = run->output;
    for (uint32_t block = 0; block < run->blocks; block++) {
        const row_sums sums = sum_block(run, columns, from, 0u);
        const int32x4_t a = vshlq_r_s32(sums.first, -run->first.shift);
        const int32x4_t b = vshlq_r_s32(sums.second, -run->first.shift);
        const int32x4_t error_a = vminq_s32(vmaxq_s32(a, lowest), highest);
        const int32x4_t error_b = vminq_s32(vmaxq_s32(b, lowest), highest);
        int16_t *pixel = (int16_t *)(void *)to;
        vstrhq_scatter_offset_s32(pixel, places, error_a);
        vstrhq_scatter_offset_s32(pixel + 1, places, error_b);
        largest = vmaxavq_s32(vmaxavq_s32(largest, error_a), error_b);
        to += TF_BLOCK_PIXELS * step;
        columns += sizeof(int16_t) * TF_BLOCK_PIXELS * run->length;
    }
    run->first.word = (int32_t)largest;
}

void tf_block_run_all(tf_block_run *run) {
    if (run->kind == TF_RUN_ERRORS) {
        run_errors(run);
    } else if (run->kind == TF_RUN_CODES) {
        run_codes(run, 0u);
    } else {
        run_codes(run, 1u);
    }
}

void tf_block_single(const tf_block_run *run, const void *columns, uint32_t pixel,
                     int32_t sums[2]) {
    const uint32_t bytes = run->kind != TF_RUN_ERRORS;
    const uint32_t row = bytes ? run->length : 2u * run->length;
    const int8_t *pair = (const int8_t *)run->pair, *x = (const int8_t *)columns + pixel * row;
    const start from = bytes ? start_codes(run) : (start){run->start[0], run->start[1]};
    four_sums to = {from.first, from.second, 0, 0};
    const operands of = {x, x, pair, pair + row, run->length};
    if (bytes) {
        add_products(of, &to, 1u);
    } else {
        add_products(of, &to, 0u);
    }
    sums[0] = to.a;
    sums[1] = to.b;
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
