/* Blocks in portable C: the same results as block_dsp.c, in loops that compilers vectorize. */
#include "block.h"
#include "fixed_point.h"

#if !TF_DSP_BLOCKS

void tf_block_prepare(tf_block_run *run, tf_run_kind kind, uint32_t length) {
    run->pair_end = run->pair + 2u * length;
    run->kind = kind;
    run->length = length;
}

void tf_block_run_pairs(tf_block_run *run, uint32_t count) {
    for (; count > 0u; count--) {
        tf_block_widen_pair(run->pair, run->packed, run->length);
        tf_block_set_codes(run, run->requantize[0], run->requantize[1], run->twice_zero >> 1);
        run->start[0] = run->bias[0];
        run->start[1] = run->bias[1];
        if (run->raised != NULL) {
            run->pre_shift[0] = run->raised[0];
            run->pre_shift[1] = run->raised[1];
            run->raised += 2;
        }
        tf_block_run_all(run);
        run->packed += 2u * run->length;
        run->requantize += 2;
        run->bias += 2;
        run->output = (int8_t *)run->output + 2;
    }
}

#endif

#if !TF_DSP

#if TF_SMALL_CORE

void tf_block_widen_pair(int16_t *pair, const int8_t *packed, uint32_t length) {
    memcpy(pair, packed, 2u * length);
}

#else

void tf_block_widen_pair(int16_t *pair, const int8_t *packed, uint32_t length) {
    for (uint32_t i = 0; i < length; i++) {
        pair[tf_pair_index(length, 0, i)] = packed[2u * i];
        pair[tf_pair_index(length, 1, i)] = packed[2u * i + 1u];
    }
}

#endif

void tf_block_widen_columns(int16_t *widened, const int8_t *packed, uint32_t step, uint32_t count) {
    tf_backward_weight *pair = (tf_backward_weight *)widened;
    const uint32_t length = tf_packed_length(count);
    for (uint32_t i = 0; i < length; i += 2u, packed += step) {
        for (uint32_t row = 0; row < 2u; row++) {
            pair[tf_pair_index(length, row, i)] = i < count ? packed[2u * row] : 0;
            pair[tf_pair_index(length, row, i + 1u)] = i < count ? packed[2u * row + 1u] : 0;
        }
    }
}

#if TF_SMALL_CORE

void tf_block_single(const tf_block_run *run, const void *columns, uint32_t pixel,
                     int32_t sums[2]) {
    const int16_t *x = (const int16_t *)columns + pixel * run->length, *end = x + run->length;
    const int8_t *w = (const int8_t *)run->pair;
    int32_t first = run->start[0], second = run->start[1];
    for (; x != end; x++, w += 2) {
        first += x[0] * w[0];
        second += x[0] * w[1];
    }
    sums[0] = first;
    sums[1] = second;
}

/* Sums of both rows for a block, two pixels at a time. */
static void sum_block(const tf_block_run *run, const int16_t *columns,
                      int32_t sums[TF_BLOCK_PIXELS][2]) {
    const uint32_t length = run->length;
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p += 2u, columns += 2u * length) {
        const int16_t *x = columns, *y = columns + length, *end = y;
        const int8_t *w = (const int8_t *)run->pair;
        int32_t a = run->start[0], b = a, c = run->start[1], d = c;
        for (; x != end; x += 2, y += 2, w += 4) {
            a += x[0] * w[0];
            a += x[1] * w[2];
            b += y[0] * w[0];
            b += y[1] * w[2];
            c += x[0] * w[1];
            c += x[1] * w[3];
            d += y[0] * w[1];
            d += y[1] * w[3];
        }
        sums[p][0] = a, sums[p][1] = c, sums[p + 1u][0] = b, sums[p + 1u][1] = d;
    }
}

#else

static int32_t dot(const int16_t *column, const int16_t *row, uint32_t count) {
    int32_t sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        sum += column[i] * row[i];
    }
    return sum;
}

void tf_block_single(const tf_block_run *run, const void *columns, uint32_t pixel,
                     int32_t sums[2]) {
    const uint32_t length = run->length;
    const int16_t *column = (const int16_t *)columns + pixel * length;
    sums[0] = run->start[0] + dot(column, run->pair, length);
    sums[1] = run->start[1] + dot(column, run->pair + length, length);
}

/* Sums of both rows for a block. */
static void sum_block(const tf_block_run *run, const int16_t *columns,
                      int32_t sums[TF_BLOCK_PIXELS][2]) {
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
        tf_block_single(run, columns, p, sums[p]);
    }
}

#endif

static void make_errors(tf_block_run *run, const int32_t sums[2], int16_t *to) {
    int32_t largest = run->first.word;
    for (uint32_t row = 0; row < 2u; row++) {
        const int32_t value = tf_clamp(sums[row] >> run->first.shift, -32767, 32767);
        to[row] = (int16_t)value;
        tf_note_magnitude(&largest, value);
    }
    run->first.word = largest;
}

/* Two codes; returns a bit for each that the clamp leaves alone: bits 6 and 7. */
static uint32_t make_codes(const tf_block_run *run, const int32_t sums[2], int8_t *to) {
    const int32_t first = tf_requantize(&run->first, sums[0]);
    const int32_t second = tf_requantize(&run->second, sums[1]);
    to[0] = (int8_t)tf_clamp8(first);
    to[1] = (int8_t)tf_clamp8(second);
    return (uint32_t)(to[0] == first) << 6 | (uint32_t)(to[1] == second) << 7;
}

void tf_block_run_all(tf_block_run *run) {
    const int16_t *columns = run->columns;
    uint8_t *to = run->output;
    for (uint32_t block = 0; block < run->blocks; block++) {
        int32_t sums[TF_BLOCK_PIXELS][2];
        uint32_t bits = 0;
        sum_block(run, columns, sums);
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS && run->raised != NULL; p++) {
            sums[p][0] = tf_raise_saturating(sums[p][0], (int32_t)run->pre_shift[0]);
            sums[p][1] = tf_raise_saturating(sums[p][1], (int32_t)run->pre_shift[1]);
        }
        columns += TF_BLOCK_PIXELS * run->length;
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++, to += run->step) {
            if (run->kind == TF_RUN_ERRORS) {
                make_errors(run, sums[p], (int16_t *)(void *)to);
            } else {
                bits |= make_codes(run, sums[p], (int8_t *)to) << 8u * p;
            }
        }
        if (run->kind == TF_RUN_CODES_AND_MASK) {
            run->bits[block] = (run->bits[block] >> 2 & 0x3f3f3f3fu) | bits;
        }
    }
}

#endif
