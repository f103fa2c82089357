/* Lanes: vectors of 32-bit sums on the host, where kernels are compiled with TF_VECTOR and for an
 * instruction set that has them (codegen/host_kernels.py). Boards know nothing of it.
 *
 * All arithmetic is exact or wraps around like that of the portable twins, so that the order of sums
 * doesn't matter and the bits are the same.
 */
#ifndef TINYFLEET_LANES_H
#define TINYFLEET_LANES_H

#include "../kernels/pairs.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

#include <immintrin.h>

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

/* 2 * TF_LANES bytes, or int16, to pairs of int16. */
static inline tf_lanes tf_pairs_widen(const int8_t *from) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

static inline tf_lanes tf_pairs_load(const int16_t *from) {
    return _mm512_loadu_si512(from);
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

#elif defined(__AVX2__)

#include <immintrin.h>

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

static inline tf_lanes tf_pairs_load(const int16_t *from) {
    return _mm256_loadu_si256((const __m256i *)(const void *)from);
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

#else
#error "TF_VECTOR needs AVX2 or AVX-512"
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

/* Four words each of four rows, `row` bytes apart: the first words of all, the second ones `step`
 * bytes later, and so on. In every word the two bytes in the middle change places. */
static inline void tf_transpose_words(const int8_t *from, uint32_t row, int8_t *to, uint32_t step) {
    const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    __m128i rows[4];
    for (uint32_t i = 0; i < 4u; i++) {
        rows[i] = _mm_loadu_si128((const __m128i *)(const void *)(from + i * row));
        rows[i] = _mm_shuffle_epi8(rows[i], order);
    }
    const __m128i low01 = _mm_unpacklo_epi32(rows[0], rows[1]);
    const __m128i low23 = _mm_unpacklo_epi32(rows[2], rows[3]);
    const __m128i high01 = _mm_unpackhi_epi32(rows[0], rows[1]);
    const __m128i high23 = _mm_unpackhi_epi32(rows[2], rows[3]);
    _mm_storeu_si128((__m128i *)(void *)to, _mm_unpacklo_epi64(low01, low23));
    _mm_storeu_si128((__m128i *)(void *)(to + step), _mm_unpackhi_epi64(low01, low23));
    _mm_storeu_si128((__m128i *)(void *)(to + 2u * step), _mm_unpacklo_epi64(high01, high23));
    _mm_storeu_si128((__m128i *)(void *)(to + 3u * step), _mm_unpackhi_epi64(high01, high23));
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
    by.word = by.count == TF_LANES ? tf_lanes_load(words) : tf_lanes_load_some(words, by.count);
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
        const tf_lanes low = tf_lanes_add(tf_lanes_all(1), ~by->limit);
        sums = tf_lanes_left(tf_lanes_clamp(sums, low, by->limit), by->raise);
    }
    const tf_lanes high = tf_lanes_high_product(sums, by->word);
    const tf_lanes values = tf_lanes_right(tf_lanes_add(high, by->offset), by->shift);
    return tf_lanes_store_codes(output, values, by->count);
}

/* ORs the lowest `count` bits into a mask from bit `index` on. */
static inline void tf_lanes_put_bits(uint8_t *mask, uint32_t index, uint32_t bits, uint32_t count) {
    bits &= (1u << count) - 1u;
    for (; count > 8u; count -= 8u, bits >>= 8, index += 8u) {
        tf_put_bits(mask, index, bits & 0xffu, 8u);
    }
    tf_put_bits(mask, index, bits, count);
}

#endif
