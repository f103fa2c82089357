/* Lanes of AVX2: as lanes_avx512.h. */
#ifndef TINYFLEET_LANES_AVX2_H
#define TINYFLEET_LANES_AVX2_H

#include <immintrin.h>

#include "../kernels/pairs.h"

#define TF_LANES 8u
typedef __m256i tf_lanes;

static inline tf_lanes tf_lanes_all(int32_t value) {
    return _mm256_set1_epi32(value);
}

static inline tf_lanes tf_lanes_load(const int32_t *from) {
    return _mm256_loadu_si256((const __m256i *)(const void *)from);
}

static inline tf_lanes tf_lanes_load_some(const int32_t *from, uint32_t count) {
    const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_epi32(from, _mm256_cmpgt_epi32(tf_lanes_all((int32_t)count), places));
}

static inline void tf_lanes_store(int32_t *to, tf_lanes values) {
    _mm256_storeu_si256((__m256i *)(void *)to, values);
}

static inline tf_lanes tf_pairs_widen(const int8_t *from) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)from));
}

static inline tf_lanes tf_lanes_add_products(tf_lanes sums, tf_lanes a, tf_lanes b) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
}

static inline tf_lanes tf_lanes_add(tf_lanes a, tf_lanes b) {
    return _mm256_add_epi32(a, b);
}

static inline tf_lanes tf_lanes_and(tf_lanes a, tf_lanes b) {
    return _mm256_and_si256(a, b);
}

static inline tf_lanes tf_lanes_clamp(tf_lanes values, tf_lanes low, tf_lanes high) {
    return _mm256_min_epi32(_mm256_max_epi32(values, low), high);
}

static inline tf_lanes tf_lanes_largest(tf_lanes a, tf_lanes b) {
    return _mm256_max_epi32(a, b);
}

static inline tf_lanes tf_lanes_magnitude(tf_lanes values) {
    return _mm256_abs_epi32(values);
}

static inline tf_lanes tf_lanes_left(tf_lanes values, tf_lanes by) {
    return _mm256_sllv_epi32(values, by);
}

static inline tf_lanes tf_lanes_right(tf_lanes values, tf_lanes by) {
    return _mm256_srav_epi32(values, by);
}

static inline tf_lanes tf_lanes_high_product(tf_lanes a, tf_lanes b) {
    const __m256i even = _mm256_srli_epi64(_mm256_mul_epi32(a, b), 32);
    const __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    return _mm256_blend_epi32(even, odd, 0xaa);
}

static inline tf_lanes tf_lanes_rounded_product(tf_lanes a, tf_lanes b) {
    const __m256i half = _mm256_set1_epi64x(1ll << 31);
    const __m256i even = _mm256_add_epi64(_mm256_mul_epi32(a, b), half);
    const __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    return _mm256_blend_epi32(_mm256_srli_epi64(even, 32), _mm256_add_epi64(odd, half), 0xaa);
}

static inline uint32_t tf_lanes_store_codes(int8_t *to, tf_lanes values, uint32_t count) {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
    const __m128i codes = _mm_packs_epi16(words, words);
    if (count == TF_LANES) {
        _mm_storel_epi64((__m128i *)(void *)to, codes);
    } else {
        memcpy(to, &codes, count);
    }
    const __m256i kept = _mm256_cmpeq_epi32(_mm256_cvtepi8_epi32(codes), values);
    return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(kept));
}

static inline void tf_lanes_store16(int16_t *to, tf_lanes values, uint32_t count) {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
    if (count == TF_LANES) {
        _mm_storeu_si128((__m128i *)(void *)to, words);
    } else {
        memcpy(to, &words, sizeof *to * count);
    }
}

static inline tf_lanes tf_lanes_widen8(const int8_t *from, uint32_t count) {
    __m128i bytes = _mm_setzero_si128();
    if (count == TF_LANES) {
        bytes = _mm_loadl_epi64((const __m128i *)(const void *)from);
    } else {
        memcpy(&bytes, from, count);
    }
    return _mm256_cvtepi8_epi32(bytes);
}

static inline tf_lanes tf_lanes_widen16(const int16_t *from, uint32_t count) {
    __m128i words = _mm_setzero_si128();
    if (count == TF_LANES) {
        words = _mm_loadu_si128((const __m128i *)(const void *)from);
    } else {
        memcpy(&words, from, sizeof *from * count);
    }
    return _mm256_cvtepi16_epi32(words);
}

static inline tf_lanes tf_pairs_of(tf_lanes low, tf_lanes high) {
    return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa);
}

static inline void tf_codes_less(const int8_t *from, uint32_t count, int32_t zero, int16_t *to) {
    const __m256i zeros = _mm256_set1_epi16((int16_t)zero);
    uint32_t i = 0;
    for (; i + 16u <= count; i += 16u) {
        const __m128i codes = _mm_loadu_si128((const __m128i *)(const void *)(from + i));
        const __m256i values = _mm256_sub_epi16(_mm256_cvtepi8_epi16(codes), zeros);
        _mm256_storeu_si256((__m256i *)(void *)(to + i), values);
    }
    if (i + 8u <= count) {
        const __m128i codes = _mm_loadl_epi64((const __m128i *)(const void *)(from + i));
        const __m128i values =
            _mm_sub_epi16(_mm_cvtepi8_epi16(codes), _mm256_castsi256_si128(zeros));
        _mm_storeu_si128((__m128i *)(void *)(to + i), values);
        i += 8u;
    }
    for (; i < count; i++) {
        to[i] = (int16_t)(from[i] - zero);
    }
}

static inline tf_lanes tf_lanes_less(tf_lanes a, tf_lanes b) {
    return _mm256_sub_epi32(a, b);
}

static inline tf_lanes tf_lanes_xor(tf_lanes a, tf_lanes b) {
    return _mm256_xor_si256(a, b);
}

static inline tf_lanes tf_lanes_times(tf_lanes a, tf_lanes b) {
    return _mm256_mullo_epi32(a, b);
}

static inline tf_lanes tf_lanes_right_unsigned(tf_lanes values, int32_t by) {
    return _mm256_srl_epi32(values, _mm_cvtsi32_si128(by));
}

static inline tf_lanes tf_lanes_wide_product(tf_lanes a, tf_lanes b, tf_lanes shift,
                                             tf_lanes *high) {
    const tf_lanes lower = _mm256_set1_epi64x(0xffffffff), one = _mm256_set1_epi64x(1);
    const tf_lanes even_shift = _mm256_and_si256(shift, lower);
    const tf_lanes odd_shift = _mm256_srli_epi64(shift, 32);
    const tf_lanes even_half = _mm256_sllv_epi64(one, _mm256_sub_epi64(even_shift, one));
    const tf_lanes odd_half = _mm256_sllv_epi64(one, _mm256_sub_epi64(odd_shift, one));
    const tf_lanes even = _mm256_add_epi64(_mm256_mul_epi32(a, b), even_half);
    const tf_lanes odd = _mm256_add_epi64(
        _mm256_mul_epi32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32)), odd_half);
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    const tf_lanes kept = _mm256_slli_epi64(_mm256_srlv_epi64(odd, odd_shift), 32);
    return _mm256_blend_epi32(_mm256_srlv_epi64(even, even_shift), kept, 0xaa);
}

static inline tf_lanes tf_lanes_where_above(tf_lanes a, tf_lanes b, tf_lanes then,
                                            tf_lanes otherwise) {
    return _mm256_blendv_epi8(otherwise, then, _mm256_cmpgt_epi32(a, b));
}

static inline uint32_t tf_errors_mask(int16_t *error, const uint8_t *mask, uint32_t size,
                                      int32_t *largest) {
    const __m256i places = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048,
                                             4096, 8192, 16384, -32768);
    __m256i seen = _mm256_setzero_si256();
    uint32_t i = 0;
    for (; i + 16u <= size; i += 16u) {
        __m256i *at = (__m256i *)(void *)(error + i);
        uint16_t bits;
        memcpy(&bits, mask + i / 8u, sizeof bits);
        const __m256i set = _mm256_and_si256(_mm256_set1_epi16((int16_t)bits), places);
        const __m256i kept =
            _mm256_and_si256(_mm256_loadu_si256(at), _mm256_cmpeq_epi16(set, places));
        _mm256_storeu_si256(at, kept);
        seen = _mm256_max_epi16(seen, _mm256_abs_epi16(kept));
    }
    int16_t each[16];
    _mm256_storeu_si256((__m256i *)(void *)each, seen);
    for (uint32_t lane = 0; lane < 16u; lane++) {
        tf_note_magnitude(largest, each[lane]);
    }
    return i;
}

#endif
