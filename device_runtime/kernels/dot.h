/* Inner products of int16 columns with int8 rows: DSP instructions and portable twins.
 *
 * A column is widened once and used for every output channel. With DSP instructions SXTB16
 * splits four bytes into elements (0, 2) and (1, 3); columns are stored in that order, so that
 * rows of weights need no reordering. The portable twins keep the plain order.
 */
#ifndef TINYFLEET_DOT_H
#define TINYFLEET_DOT_H

#include <stdint.h>
#include <string.h>

#if defined(__ARM_FEATURE_DSP) && !defined(TF_PORTABLE_KERNELS)
#define TF_DSP 1
#include <arm_acle.h>
#else
#define TF_DSP 0
#endif

static inline uint32_t tf_load32(const void *from) {
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

static inline void tf_store32(void *to, uint32_t word) {
    memcpy(to, &word, sizeof word);
}

#if TF_DSP

static inline uint32_t tf_ror8(uint32_t word) {
    return (word >> 8) | (word << 24);
}
static inline int16x2_t tf_even(uint32_t word) {
    return __sxtb16((int8x4_t)word);
}
static inline int16x2_t tf_odd(uint32_t word) {
    return __sxtb16((int8x4_t)tf_ror8(word));
}

/* (low half of a, low half of b) and (high half of a, high half of b). */
static inline uint32_t tf_pack_low(uint32_t a, uint32_t b) {
    return (a & 0xffffu) | (b << 16);
}
static inline uint32_t tf_pack_high(uint32_t a, uint32_t b) {
    return (a >> 16) | (b & 0xffff0000u);
}

#endif

/* dst[i] = src[i] - zero for i < count, in column order; count of the groups of four only
 * where the whole column is made of such calls. */
static inline void tf_widen(const int8_t *src, uint32_t count, int32_t zero, int16_t *dst) {
    uint32_t i = 0;
#if TF_DSP
    const uint32_t zeros = ((uint32_t)zero & 0xffffu) | ((uint32_t)zero << 16);
    for (; i + 4 <= count; i += 4) {
        const uint32_t word = tf_load32(src + i);
        tf_store32(dst + i, (uint32_t)__ssub16(tf_even(word), (int16x2_t)zeros));
        tf_store32(dst + i + 2, (uint32_t)__ssub16(tf_odd(word), (int16x2_t)zeros));
    }
#endif
    for (; i < count; i++) {
        dst[i] = (int16_t)(src[i] - zero);
    }
}

/* Brings a column that was written in plain order into column order. */
static inline void tf_order_column(int16_t *column, uint32_t count) {
#if TF_DSP
    for (uint32_t i = 0; i + 4 <= count; i += 4) {
        const int16_t swapped = column[i + 1];
        column[i + 1] = column[i + 2];
        column[i + 2] = swapped;
    }
#else
    (void)column;
    (void)count;
#endif
}

/* Sum over i < count of column[i] * row[i]. */
static inline int32_t tf_dot(const int16_t *column, const int8_t *row, uint32_t count) {
    int32_t sum = 0;
    uint32_t i = 0;
#if TF_DSP
    for (; i + 4 <= count; i += 4) {
        const uint32_t word = tf_load32(row + i);
        sum = __smlad((int16x2_t)tf_load32(column + i), tf_even(word), sum);
        sum = __smlad((int16x2_t)tf_load32(column + i + 2), tf_odd(word), sum);
    }
#endif
    for (; i < count; i++) {
        sum += column[i] * row[i];
    }
    return sum;
}

/* Two columns by two rows: sums[0] column 0 row 0, [1] column 0 row 1, [2] column 1 row 0,
 * [3] column 1 row 1. */
static inline void tf_dot_2x2(const int16_t *column0, const int16_t *column1, const int8_t *row0,
                              const int8_t *row1, uint32_t count, int32_t sums[4]) {
    int32_t s00 = 0, s01 = 0, s10 = 0, s11 = 0;
    uint32_t i = 0;
#if TF_DSP
    for (; i + 4 <= count; i += 4) {
        const uint32_t word0 = tf_load32(row0 + i);
        const uint32_t word1 = tf_load32(row1 + i);
        const int16x2_t a0 = (int16x2_t)tf_load32(column0 + i);
        const int16x2_t a1 = (int16x2_t)tf_load32(column1 + i);
        const int16x2_t even0 = tf_even(word0), even1 = tf_even(word1);
        s00 = __smlad(a0, even0, s00);
        s01 = __smlad(a0, even1, s01);
        s10 = __smlad(a1, even0, s10);
        s11 = __smlad(a1, even1, s11);
        const int16x2_t b0 = (int16x2_t)tf_load32(column0 + i + 2);
        const int16x2_t b1 = (int16x2_t)tf_load32(column1 + i + 2);
        const int16x2_t odd0 = tf_odd(word0), odd1 = tf_odd(word1);
        s00 = __smlad(b0, odd0, s00);
        s01 = __smlad(b0, odd1, s01);
        s10 = __smlad(b1, odd0, s10);
        s11 = __smlad(b1, odd1, s11);
    }
#endif
    for (; i < count; i++) {
        s00 += column0[i] * row0[i];
        s01 += column0[i] * row1[i];
        s10 += column1[i] * row0[i];
        s11 += column1[i] * row1[i];
    }
    sums[0] = s00;
    sums[1] = s01;
    sums[2] = s10;
    sums[3] = s11;
}

#endif
