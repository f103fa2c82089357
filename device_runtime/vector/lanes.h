/* Lanes: vectors of 32-bit sums on the host, where kernels are compiled with TF_VECTOR and for an
 * instruction set that has them (codegen/host_kernels.py). Boards know nothing of it.
 *
 * All arithmetic is exact or wraps around like that of the portable twins, so that the order of sums
 * doesn't matter and the bits are the same.
 */
#ifndef TINYFLEET_LANES_H
#define TINYFLEET_LANES_H

#include "../kernels/pairs.h"

#if defined(__AVX512VNNI__)
#include "lanes_avx512.h"
#elif defined(__AVX2__)
#include "lanes_avx2.h"
#elif defined(__aarch64__)
#include "lanes_neon.h"
#else
#error "TF_VECTOR needs AVX-512, AVX2 or NEON of 64 bits"
#endif

/* Two int16, low first, in all lanes. */
static inline tf_lanes tf_pairs_all(const int16_t *pair) {
    return tf_lanes_all((int32_t)tf_load32(pair));
}

/* The first `count` pairs; the others are zero. */
static inline tf_lanes tf_pairs_widen_some(const int8_t *from, uint32_t count) {
    int8_t some[2u * TF_LANES] = {0};
    memcpy(some, from, 2u * count);
    return tf_pairs_widen(some);
}

static inline int32_t tf_lanes_highest(tf_lanes values) {
    int32_t each[TF_LANES], highest = INT32_MIN;
    tf_lanes_store(each, values);
    for (uint32_t i = 0; i < TF_LANES; i++) {
        highest = each[i] > highest ? each[i] : highest;
    }
    return highest;
}

/* How the sums of TF_LANES channels become codes (fixed_point.h). */
typedef struct {
    tf_lanes word, offset, shift, raise, limit;
    uint32_t count; /* of channels */
    uint32_t raised;
} tf_lanes_requantizer;

static inline tf_lanes_requantizer tf_lanes_make_requantizer(const tf_multiplier *words,
                                                             const uint8_t *pre_shift, int32_t zero,
                                                             uint32_t count) {
    tf_lanes_requantizer by;
    by.count = count < TF_LANES ? count : TF_LANES;
    by.word = tf_lanes_load_some(words, by.count);
    by.shift = tf_lanes_and(by.word, tf_lanes_all(31));
    by.offset = tf_lanes_left(tf_lanes_all(2 * zero + 1), tf_lanes_add(by.shift, tf_lanes_all(-1)));
    by.raised = pre_shift != NULL;
    by.raise = by.limit = tf_lanes_all(0);
    if (by.raised) {
        int32_t raise[TF_LANES] = {0}, limit[TF_LANES] = {0};
        for (uint32_t i = 0; i < by.count; i++) {
            raise[i] = pre_shift[i];
            limit[i] = INT32_MAX >> pre_shift[i];
        }
        by.raise = tf_lanes_load(raise);
        by.limit = tf_lanes_load(limit);
    }
    return by;
}

/* Stores codes of by->count channels, as they are before the clamp; returns a bit for each that the
 * clamp leaves alone, and anything for the lanes behind them. */
static inline uint32_t tf_lanes_requantize(const tf_lanes_requantizer *by, tf_lanes sums,
                                           int8_t *output) {
    if (by->raised) {
        const tf_lanes low = tf_lanes_less(tf_lanes_all(0), by->limit);
        sums = tf_lanes_left(tf_lanes_clamp(sums, low, by->limit), by->raise);
    }
    const tf_lanes high = tf_lanes_high_product(sums, by->word);
    const tf_lanes values = tf_lanes_right(tf_lanes_add(high, by->offset), by->shift);
    return tf_lanes_store_codes(output, values, by->count);
}

/* ORs the lowest `count` bits into a mask from bit `index` on. */
static inline void tf_lanes_put_bits(uint8_t *mask, uint32_t index, uint32_t bits, uint32_t count) {
    if (TF_LANES % 8u == 0u && count == TF_LANES && index % 8u == 0u) {
        memcpy(mask + index / 8u, &bits, TF_LANES / 8u); /* whole bytes, and nobody else's */
        return;
    }
    bits &= (1u << count) - 1u;
    for (; count > 8u; count -= 8u, bits >>= 8, index += 8u) {
        tf_put_bits(mask, index, bits & 0xffu, 8u);
    }
    tf_put_bits(mask, index, bits, count);
}

#endif
