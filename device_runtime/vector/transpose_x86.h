/* Weights on their way to panels, with SSE4.1: all processors with AVX have it. */
#ifndef TINYFLEET_TRANSPOSE_X86_H
#define TINYFLEET_TRANSPOSE_X86_H

#include <immintrin.h>
#include <stdint.h>

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

#endif
