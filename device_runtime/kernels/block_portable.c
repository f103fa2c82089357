/* Blocks in portable C: the same results as block_dsp.c, in loops that compilers vectorize. */
#include "block.h"
#include "fixed_point.h"

#if !TF_DSP

void tf_block_widen_pair(int16_t *pair, const int8_t *packed, uint32_t length) {
    for (uint32_t i = 0; i < length; i++) {
        pair[i] = packed[2u * i];
        pair[length + i] = packed[2u * i + 1u];
    }
}

void tf_block_widen_columns(int16_t *pair, const int8_t *packed, uint32_t step, uint32_t count) {
    const uint32_t length = tf_packed_length(count);
    for (uint32_t i = 0; i < length; i += 2u, packed += step) {
        for (uint32_t row = 0; row < 2u; row++) {
            pair[row * length + i] = i < count ? packed[2u * row] : 0;
            pair[row * length + i + 1u] = i < count ? packed[2u * row + 1u] : 0;
        }
    }
}

static int32_t dot(const int16_t *column, const int16_t *row, uint32_t count) {
    int32_t sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        sum += column[i] * row[i];
    }
    return sum;
}

void tf_block_single(const tf_block_run *run, const int16_t *columns, uint32_t pixel,
                     int32_t sums[2]) {
    const uint32_t length = (uint32_t)(run->pair_end - run->pair) / 2u;
    columns += tf_column_index(length, pixel, 0);
    sums[0] = run->start[0] + dot(columns, run->pair, length);
    sums[1] = run->start[1] + dot(columns, run->pair + length, length);
}

void tf_block_prepare(tf_block_run *run, tf_run_kind kind, uint32_t length) {
    run->pair_end = run->pair + 2u * length;
    run->kind = kind;
    run->length = length;
}

static void make_errors(tf_block_run *run, const int32_t sums[2], uint8_t *to) {
    int16_t errors[2];
    int32_t largest = run->first.word;
    for (uint32_t row = 0; row < 2u; row++) {
        const int32_t value = tf_clamp(sums[row] >> run->first.shift, -32767, 32767);
        errors[row] = (int16_t)value;
        tf_note_magnitude(&largest, value);
    }
    run->first.word = largest;
    memcpy(to, errors, sizeof errors);
}

/* Two codes; returns a bit for each that the clamp leaves alone: bits 6 and 7. */
static uint32_t make_codes(const tf_block_run *run, const int32_t sums[2], int8_t *to) {
    const int32_t first =
        tf_requantize(&run->first, tf_raise_saturating(sums[0], (int32_t)run->pre_shift[0]));
    const int32_t second =
        tf_requantize(&run->second, tf_raise_saturating(sums[1], (int32_t)run->pre_shift[1]));
    to[0] = (int8_t)tf_clamp8(first);
    to[1] = (int8_t)tf_clamp8(second);
    return (uint32_t)(to[0] == first) << 6 | (uint32_t)(to[1] == second) << 7;
}

void tf_block_run_all(tf_block_run *run) {
    const uint32_t length = (uint32_t)(run->pair_end - run->pair) / 2u;
    const int16_t *columns = run->columns;
    uint8_t *to = run->output;
    for (uint32_t block = 0; block < run->blocks; block++, columns += TF_BLOCK_PIXELS * length) {
        uint32_t bits = 0;
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++, to += run->step) {
            int32_t sums[2];
            tf_block_single(run, columns, p, sums);
            if (run->kind == TF_RUN_ERRORS) {
                make_errors(run, sums, to);
            } else {
                bits |= make_codes(run, sums, (int8_t *)to) << 8u * p;
            }
        }
        if (run->kind == TF_RUN_CODES_AND_MASK) {
            run->bits[block] = (run->bits[block] >> 2 & 0x3f3f3f3fu) | bits;
        }
    }
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
