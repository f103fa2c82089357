/* Lanes of AVX-512 with VNNI. What each function does stands here; the other sets do the same. */
#ifndef TINYFLEET_LANES_AVX512_H
#define TINYFLEET_LANES_AVX512_H

#include <immintrin.h>

#include "../kernels/pairs.h"

#define TF_LANES 16u
typedef __m512i tf_lanes;

static inline tf_lanes tf_lanes_all(int32_t value) {
    return _mm512_set1_epi32(value);
}

static inline tf_lanes tf_lanes_load(const int32_t *from) {
    return _mm512_loadu_si512(from);
}

/* The first `count` lanes; the others are zero. */
static inline tf_lanes tf_lanes_load_some(const int32_t *from, uint32_t count) {
    return _mm512_maskz_loadu_epi32((__mmask16)((1u << count) - 1u), from);
}

static inline void tf_lanes_store(int32_t *to, tf_lanes values) {
    _mm512_storeu_si512(to, values);
}

/* 2 * TF_LANES bytes to pairs of int16. */
static inline tf_lanes tf_pairs_widen(const int8_t *from) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

/* sums + the products of both halves. */
static inline tf_lanes tf_lanes_add_products(tf_lanes sums, tf_lanes a, tf_lanes b) {
    return _mm512_dpwssd_epi32(sums, a, b);
}

static inline tf_lanes tf_lanes_add(tf_lanes a, tf_lanes b) {
    return _mm512_add_epi32(a, b);
}

static inline tf_lanes tf_lanes_and(tf_lanes a, tf_lanes b) {
    return _mm512_and_si512(a, b);
}

static inline tf_lanes tf_lanes_clamp(tf_lanes values, tf_lanes low, tf_lanes high) {
    return _mm512_min_epi32(_mm512_max_epi32(values, low), high);
}

static inline tf_lanes tf_lanes_largest(tf_lanes a, tf_lanes b) {
    return _mm512_max_epi32(a, b);
}

static inline tf_lanes tf_lanes_magnitude(tf_lanes values) {
    return _mm512_abs_epi32(values);
}

static inline tf_lanes tf_lanes_left(tf_lanes values, tf_lanes by) {
    return _mm512_sllv_epi32(values, by);
}

static inline tf_lanes tf_lanes_right(tf_lanes values, tf_lanes by) {
    return _mm512_srav_epi32(values, by);
}

/* The high words of the products. */
static inline tf_lanes tf_lanes_high_product(tf_lanes a, tf_lanes b) {
    const __m512i even = _mm512_srli_epi64(_mm512_mul_epi32(a, b), 32);
    const __m512i odd = _mm512_mul_epi32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
    return _mm512_mask_blend_epi32(0xaaaa, even, odd);
}

/* The same, rounded. */
static inline tf_lanes tf_lanes_rounded_product(tf_lanes a, tf_lanes b) {
    const __m512i half = _mm512_set1_epi64(1ll << 31);
    const __m512i even = _mm512_add_epi64(_mm512_mul_epi32(a, b), half);
    const __m512i odd = _mm512_mul_epi32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
    return _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32),
                                   _mm512_add_epi64(odd, half));
}

/* Stores the first `count` codes of int8; returns a bit for each that isn't clamped, the first
 * lane's the lowest, and anything for the others. */
static inline uint32_t tf_lanes_store_codes(int8_t *to, tf_lanes values, uint32_t count) {
    const __m128i codes = _mm512_cvtsepi32_epi8(values);
    _mm_mask_storeu_epi8(to, (__mmask16)((1u << count) - 1u), codes);
    return _mm512_cmpeq_epi32_mask(_mm512_cvtepi8_epi32(codes), values);
}

/* Values that fit int16, of the first `count` lanes. */
static inline void tf_lanes_store16(int16_t *to, tf_lanes values, uint32_t count) {
    _mm512_mask_cvtepi32_storeu_epi16(to, (__mmask16)((1u << count) - 1u), values);
}

/* `count` bytes, or int16, to lanes; the others are anything. */
static inline tf_lanes tf_lanes_widen8(const int8_t *from, uint32_t count) {
    const __mmask16 wanted = (__mmask16)((1u << count) - 1u);
    return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(wanted, from));
}

static inline tf_lanes tf_lanes_widen16(const int16_t *from, uint32_t count) {
    const __mmask16 wanted = (__mmask16)((1u << count) - 1u);
    return _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(wanted, from));
}

/* The lower halves of `low` and of `high`. */
static inline tf_lanes tf_pairs_of(tf_lanes low, tf_lanes high) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
}

/* to[i] = from[i] - zero. */
static inline void tf_codes_less(const int8_t *from, uint32_t count, int32_t zero, int16_t *to) {
    const __m512i zeros = _mm512_set1_epi16((int16_t)zero);
    uint32_t i = 0;
    for (; i + 32u <= count; i += 32u) {
        const __m256i codes = _mm256_loadu_si256((const __m256i *)(const void *)(from + i));
        _mm512_storeu_si512(to + i, _mm512_sub_epi16(_mm512_cvtepi8_epi16(codes), zeros));
    }
    if (i < count) {
        const __mmask32 wanted = (1u << (count - i)) - 1u;
        const __m256i codes = _mm256_maskz_loadu_epi8(wanted, from + i);
        const __m512i values = _mm512_sub_epi16(_mm512_cvtepi8_epi16(codes), zeros);
        _mm512_mask_storeu_epi16(to + i, wanted, values);
    }
}

static inline tf_lanes tf_lanes_less(tf_lanes a, tf_lanes b) {
    return _mm512_sub_epi32(a, b);
}

static inline tf_lanes tf_lanes_xor(tf_lanes a, tf_lanes b) {
    return _mm512_xor_si512(a, b);
}

/* The low words of the products. */
static inline tf_lanes tf_lanes_times(tf_lanes a, tf_lanes b) {
    return _mm512_mullo_epi32(a, b);
}

/* Zeros come in from the left. */
static inline tf_lanes tf_lanes_right_unsigned(tf_lanes values, int32_t by) {
    return _mm512_srl_epi32(values, _mm_cvtsi32_si128(by));
}

/* a * b + 2^(shift - 1), in 64 bits: the lowest 32 bits from bit `shift` (1 … 32) on, and the high
 * word. */
static inline tf_lanes tf_lanes_wide_product(tf_lanes a, tf_lanes b, tf_lanes shift,
                                             tf_lanes *high) {
    const tf_lanes lower = _mm512_set1_epi64(0xffffffff), one = _mm512_set1_epi64(1);
    const tf_lanes even_shift = _mm512_and_si512(shift, lower);
    const tf_lanes odd_shift = _mm512_srli_epi64(shift, 32);
    const tf_lanes even_half = _mm512_sllv_epi64(one, _mm512_sub_epi64(even_shift, one));
    const tf_lanes odd_half = _mm512_sllv_epi64(one, _mm512_sub_epi64(odd_shift, one));
    const tf_lanes even = _mm512_add_epi64(_mm512_mul_epi32(a, b), even_half);
    const tf_lanes odd = _mm512_add_epi64(
        _mm512_mul_epi32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32)), odd_half);
    *high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    const tf_lanes kept = _mm512_slli_epi64(_mm512_srlv_epi64(odd, odd_shift), 32);
    return _mm512_mask_blend_epi32(0xaaaa, _mm512_srlv_epi64(even, even_shift), kept);
}

/* `then` where a > b, else `otherwise`. */
static inline tf_lanes tf_lanes_where_above(tf_lanes a, tf_lanes b, tf_lanes then,
                                            tf_lanes otherwise) {
    return _mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask(a, b), otherwise, then);
}

/* error[i] = 0 where the mask has no bit, for whole 32 of `size` errors; returns how many. Takes
 * note of the largest |error|. */
static inline uint32_t tf_errors_mask(int16_t *error, const uint8_t *mask, uint32_t size,
                                      int32_t *largest) {
    __m512i seen = _mm512_setzero_si512();
    uint32_t i = 0;
    for (; i + 32u <= size; i += 32u) {
        const __m512i kept =
            _mm512_maskz_mov_epi16(tf_load32(mask + i / 8u), _mm512_loadu_si512(error + i));
        _mm512_storeu_si512(error + i, kept);
        seen = _mm512_max_epi16(seen, _mm512_abs_epi16(kept));
    }
    int16_t each[32];
    _mm512_storeu_si512(each, seen);
    for (uint32_t lane = 0; lane < 32u; lane++) {
        tf_note_magnitude(largest, each[lane]);
    }
    return i;
}

#endif
