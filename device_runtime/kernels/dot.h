/* Inner products of widened input pixels with int8 rows: DSP instructions and portable twins.
 *
 * SXTB16 splits four bytes into elements (0, 2) and (1, 3). A *pair* holds the inputs of two
 * output pixels in that order and interleaved, so that one LDRD loads the same elements of both
 * and rows of weights need no reordering. The portable twin keeps two plain columns.
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

static inline int16x2_t tf_even(uint32_t word) {
    return __sxtb16((int8x4_t)word);
}

/* No compiler folds the rotation into the instruction by itself. */
static inline int16x2_t tf_odd(uint32_t word) {
    uint32_t odd;
    __asm("sxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(word));
    return (int16x2_t)odd;
}

/* The same with a pair of halfwords added to them. */
static inline uint32_t tf_even_plus(uint32_t add, uint32_t word) {
    uint32_t even;
    __asm("sxtab16 %0, %1, %2" : "=r"(even) : "r"(add), "r"(word));
    return even;
}

static inline uint32_t tf_odd_plus(uint32_t add, uint32_t word) {
    uint32_t odd;
    __asm("sxtab16 %0, %1, %2, ror #8" : "=r"(odd) : "r"(add), "r"(word));
    return odd;
}

/* -zero in both halves. */
static inline uint32_t tf_minus(int32_t zero) {
    return ((uint32_t)-zero & 0xffffu) | ((uint32_t)-zero << 16);
}

/* (low half of a, low half of b) and (high half of a, high half of b). */
static inline uint32_t tf_pack_low(uint32_t a, uint32_t b) {
    return (a & 0xffffu) | (b << 16);
}
static inline uint32_t tf_pack_high(uint32_t a, uint32_t b) {
    return (a >> 16) | (b & 0xffff0000u);
}

#endif

/* Columns are filled up with zeros to a whole number of groups of four. */
static inline uint32_t tf_pair_length(uint32_t length) {
    return (length + 3u) & ~3u;
}

/* Place of element `at` of column `slot` (0 or 1) in a pair. */
static inline uint32_t tf_pair_index(uint32_t length, uint32_t slot, uint32_t at) {
#if TF_DSP
    (void)length;
    return (at & ~3u) * 2u + (at & 1u) * 4u + slot * 2u + (at >> 1 & 1u);
#else
    return slot * tf_pair_length(length) + at;
#endif
}

/* Elements at … at + count - 1 of a column: src[i] - zero. */
static inline void tf_pair_widen(int16_t *pair, uint32_t length, uint32_t slot, uint32_t at,
                                 const int8_t *src, uint32_t count, int32_t zero) {
    uint32_t i = 0;
#if TF_DSP
    if (at % 4u == 0u) {
        const uint32_t minus = tf_minus(zero);
        int16_t *to = pair + tf_pair_index(length, slot, at);
        for (; i + 4 <= count; i += 4, to += 8) {
            const uint32_t word = tf_load32(src + i);
            tf_store32(to, tf_even_plus(minus, word));
            tf_store32(to + 4, tf_odd_plus(minus, word));
        }
    }
#endif
    for (; i < count; i++) {
        pair[tf_pair_index(length, slot, at + i)] = (int16_t)(src[i] - zero);
    }
}

/* Elements at … at + count - 1 of a column: zero. */
static inline void tf_pair_clear(int16_t *pair, uint32_t length, uint32_t slot, uint32_t at,
                                 uint32_t count) {
    for (uint32_t i = at; i < at + count; i++) {
        pair[tf_pair_index(length, slot, i)] = 0;
    }
}

/* Both columns of a pair by row and by row + stride: sums[0] and [1] columns 0 and 1 by the
 * first row, [2] and [3] by the second. With DSP instructions up to three
 * bytes behind a row are read (and multiplied by zero). */
static inline void tf_pair_dot(const int16_t *pair, const int8_t *row, uint32_t stride,
                               uint32_t length, int32_t sums[4]) {
    int32_t s00 = 0, s01 = 0, s10 = 0, s11 = 0;
#if TF_DSP
    const int16_t *end = pair + 2u * tf_pair_length(length);
    uint32_t a, b, w0, w1, t;
    __asm volatile(
        "1:\n\t"
        "ldr %[w1], [%[row], %[stride]]\n\t"
        "ldr %[w0], [%[row]], #4\n\t"
        "ldrd %[a], %[b], [%[pair]], #8\n\t"
        "sxtb16 %[t], %[w0]\n\t"
        "smlad %[s00], %[a], %[t], %[s00]\n\t"
        "smlad %[s10], %[b], %[t], %[s10]\n\t"
        "sxtb16 %[t], %[w1]\n\t"
        "smlad %[s01], %[a], %[t], %[s01]\n\t"
        "smlad %[s11], %[b], %[t], %[s11]\n\t"
        "ldrd %[a], %[b], [%[pair]], #8\n\t"
        "sxtb16 %[w0], %[w0], ror #8\n\t"
        "smlad %[s00], %[a], %[w0], %[s00]\n\t"
        "smlad %[s10], %[b], %[w0], %[s10]\n\t"
        "sxtb16 %[w1], %[w1], ror #8\n\t"
        "cmp %[pair], %[end]\n\t"
        "smlad %[s01], %[a], %[w1], %[s01]\n\t"
        "smlad %[s11], %[b], %[w1], %[s11]\n\t"
        "bne 1b"
        : [s00] "+r"(s00), [s01] "+r"(s01), [s10] "+r"(s10), [s11] "+r"(s11), [pair] "+r"(pair),
          [row] "+r"(row), [a] "=&r"(a), [b] "=&r"(b), [w0] "=&r"(w0), [w1] "=&r"(w1), [t] "=&r"(t)
        : [stride] "r"(stride), [end] "r"(end)
        : "cc", "memory");
#else
    const int16_t *other = pair + tf_pair_length(length);
    const int8_t *second = row + stride;
    for (uint32_t i = 0; i < length; i++) {
        s00 += pair[i] * row[i];
        s01 += pair[i] * second[i];
        s10 += other[i] * row[i];
        s11 += other[i] * second[i];
    }
#endif
    sums[0] = s00;
    sums[1] = s10;
    sums[2] = s01;
    sums[3] = s11;
}

#endif
