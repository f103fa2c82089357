/* Planes of single channels and kernels that slide along them. */
#include "planes.h"

typedef uint32_t __attribute__((may_alias)) word;

#if TF_PLANES_DSP

static uint32_t load16(const int8_t *from) {
    uint16_t two;
    memcpy(&two, from, sizeof two);
    return two;
}

static uint32_t load32(const int16_t *from) {
    uint32_t two;
    memcpy(&two, from, sizeof two);
    return two;
}

static void store32(int16_t *to, uint32_t two) {
    memcpy(to, &two, sizeof two);
}

static uint32_t pack(uint32_t low, uint32_t high) {
    return (low & 0xffffu) | (high << 16);
}

static uint32_t pack_upper(uint32_t low, uint32_t high) {
    return (low >> 16) | (high & 0xffff0000u);
}

/* Bytes 0 and 2, or 1 and 3, plus the halves of `add`. */
static inline uint32_t even_plus(uint32_t add, uint32_t bytes) {
    uint32_t sum;
    __asm("sxtab16 %0, %1, %2" : "=r"(sum) : "r"(add), "r"(bytes));
    return sum;
}

static inline uint32_t odd_plus(uint32_t add, uint32_t bytes) {
    uint32_t sum;
    __asm("sxtab16 %0, %1, %2, ror #8" : "=r"(sum) : "r"(add), "r"(bytes));
    return sum;
}

#endif

static int has_own_code(const tf_slide *slide) {
    return slide->width <= 7u && slide->stride <= 2u;
}

tf_slide tf_make_slide(uint32_t taps, uint32_t stride, uint32_t line) {
    tf_slide slide = {taps, stride, tf_even_up(taps), line};
    if (taps <= 7u && stride <= 2u) {
        slide.width = taps <= 3u ? 3u : (taps <= 5u ? 5u : 7u);
        slide.taps_row = slide.width + 1u;
#if TF_PLANES_DSP
        slide.taps_row = stride == 1u ? 2u * (slide.width - 1u) : slide.width + 1u;
#endif
    }
    return slide;
}

void tf_widen_taps(const tf_slide *slide, const int8_t *from, int32_t step, int32_t row_step,
                   uint32_t count, uint32_t before, uint32_t rows, int16_t *table) {
#if TF_PLANES_DSP
    const int overlapping = has_own_code(slide) && slide->stride == 1u;
#else
    const int overlapping = 0;
#endif
    if (count != (overlapping ? slide->width : slide->taps_row)) {
        memset(table, 0, sizeof(int16_t) * rows * slide->taps_row);
    }
    for (uint32_t r = 0; r < rows; r++, from += row_step, table += slide->taps_row) {
        const int8_t *tap = from;
        if (!overlapping) {
            for (uint32_t i = before; i < before + count; i++, tap += step) {
                table[i] = *tap;
            }
            continue;
        }
        for (uint32_t i = before; i < before + count; i++, tap += step) {
            if (i > 0u) {
                table[2u * i - 1u] = *tap;
            }
            if (i + 1u < slide->width) {
                table[2u * i] = *tap;
            }
        }
    }
}

#if TF_PLANES_DSP

#define BLOCK 4u

static inline __attribute__((always_inline)) void
block_of_stride_1(const word *x, const word *t, const uint32_t width, int32_t sums[4]) {
    const uint32_t last = width / 2u; /* word of the last tap of an even output */
    for (uint32_t i = 0; i < 4u; i += 2u) {
        const word *at = x + i / 2u;
        sums[i + 1u] = __smlatb((int32_t)at[0], (int32_t)t[0], sums[i + 1u]);
        for (uint32_t j = 0; j < last; j++) {
            sums[i] = __smlad((int16x2_t)at[j], (int16x2_t)t[2u * j], sums[i]);
            sums[i + 1u] = __smlad((int16x2_t)at[j + 1u], (int16x2_t)t[2u * j + 1u], sums[i + 1u]);
        }
        sums[i] = __smlabt((int32_t)at[last], (int32_t)t[width - 2u], sums[i]);
    }
}

static inline __attribute__((always_inline)) void
block_of_stride_2(const word *x, const word *t, const uint32_t width, int32_t sums[4]) {
    for (uint32_t i = 0; i < 4u; i++) {
        for (uint32_t j = 0; j < (width + 1u) / 2u; j++) {
            sums[i] = __smlad((int16x2_t)x[i + j], (int16x2_t)t[j], sums[i]);
        }
    }
}

static inline __attribute__((always_inline)) void
slide_blocks(const tf_slide *slide, const int16_t *plane, const int16_t *table, uint32_t rows,
             uint32_t count, int32_t start, int32_t *sums, const uint32_t width,
             const uint32_t stride) {
    for (int32_t left = (int32_t)count; left > 0; left -= 4, plane += 4u * stride, sums += 4) {
        int32_t s[4] = {start, start, start, start};
        const int16_t *x = plane, *t = table;
        for (uint32_t r = rows; r > 0u; r--, x += slide->line, t += slide->taps_row) {
            if (stride == 1u) {
                block_of_stride_1((const word *)x, (const word *)t, width, s);
            } else {
                block_of_stride_2((const word *)x, (const word *)t, width, s);
            }
        }
        for (uint32_t i = 0; i < 4u; i++) {
            sums[i] = s[i];
        }
    }
}

static int32_t one_output(const tf_slide *slide, const int16_t *x, const int16_t *t, uint32_t rows,
                          int32_t sum) {
    for (uint32_t r = rows; r > 0u; r--, x += slide->line, t += slide->taps_row) {
        for (uint32_t j = 0; j < slide->taps_row; j += 2u) {
            sum = __smlad((int16x2_t)load32(x + j), (int16x2_t)load32(t + j), sum);
        }
    }
    return sum;
}

#else

#define BLOCK 8u

static inline __attribute__((always_inline)) void
slide_blocks(const tf_slide *slide, const int16_t *plane, const int16_t *table, uint32_t rows,
             uint32_t count, int32_t start, int32_t *sums, const uint32_t width,
             const uint32_t stride) {
    for (int32_t left = (int32_t)count; left > 0; left -= 8, plane += 8u * stride, sums += 8) {
        int32_t s[8];
        for (uint32_t i = 0; i < 8u; i++) {
            s[i] = start;
        }
        const int16_t *x = plane, *t = table;
        for (uint32_t r = rows; r > 0u; r--, x += slide->line, t += slide->taps_row) {
            for (uint32_t j = 0; j < width; j++) {
                for (uint32_t i = 0; i < 8u; i++) {
                    s[i] += x[i * stride + j] * t[j];
                }
            }
        }
        for (uint32_t i = 0; i < 8u; i++) {
            sums[i] = s[i];
        }
    }
}

static int32_t one_output(const tf_slide *slide, const int16_t *x, const int16_t *t, uint32_t rows,
                          int32_t sum) {
    for (uint32_t r = rows; r > 0u; r--, x += slide->line, t += slide->taps_row) {
        for (uint32_t j = 0; j < slide->width; j++) {
            sum += x[j] * t[j];
        }
    }
    return sum;
}

#endif

void tf_slide_row(const tf_slide *slide, const int16_t *plane, const int16_t *table, uint32_t rows,
                  uint32_t count, int32_t start, int32_t *sums) {
    if (!has_own_code(slide)) {
        for (uint32_t x = 0; x < count; x++) {
            sums[x] = one_output(slide, plane + x * slide->stride, table, rows, start);
        }
    } else if (slide->stride == 1u) {
        if (slide->width == 3u) {
            slide_blocks(slide, plane, table, rows, count, start, sums, 3u, 1u);
        } else if (slide->width == 5u) {
            slide_blocks(slide, plane, table, rows, count, start, sums, 5u, 1u);
        } else {
            slide_blocks(slide, plane, table, rows, count, start, sums, 7u, 1u);
        }
    } else {
        if (slide->width == 3u) {
            slide_blocks(slide, plane, table, rows, count, start, sums, 3u, 2u);
        } else if (slide->width == 5u) {
            slide_blocks(slide, plane, table, rows, count, start, sums, 5u, 2u);
        } else {
            slide_blocks(slide, plane, table, rows, count, start, sums, 7u, 2u);
        }
    }
}

void tf_gather_codes(const int8_t *from, uint32_t step, uint32_t count, uint32_t lanes,
                     int32_t zero, int16_t *to, uint32_t plane) {
    uint32_t i = 0;
#if TF_PLANES_DSP
    const uint32_t minus = pack((uint32_t)-zero, (uint32_t)-zero);
    if (lanes == 2u) {
        for (; i + 2u <= count; i += 2u, from += 2u * step) {
            const uint32_t bytes = pack(load16(from), load16(from + step));
            store32(to + i, even_plus(minus, bytes));
            store32(to + plane + i, odd_plus(minus, bytes));
        }
    } else {
        for (; i + 2u <= count; i += 2u, from += 2u * step) {
            store32(to + i, even_plus(minus, pack((uint8_t)from[0], (uint8_t)from[step])));
        }
    }
#endif
    for (; i < count; i++, from += step) {
        to[i] = (int16_t)(from[0] - zero);
        if (lanes == 2u) {
            to[plane + i] = (int16_t)(from[1] - zero);
        }
    }
}

void tf_gather_errors(const int16_t *from, uint32_t step, uint32_t count, uint32_t lanes,
                      int16_t *to, uint32_t plane) {
    uint32_t i = 0;
#if TF_PLANES_DSP
    for (; lanes == 2u && i + 2u <= count; i += 2u, from += 2u * step) {
        const uint32_t a = load32(from), b = load32(from + step);
        store32(to + i, pack(a, b));
        store32(to + plane + i, pack_upper(a, b));
    }
#endif
    for (; i < count; i++, from += step) {
        to[i] = from[0];
        if (lanes == 2u) {
            to[plane + i] = from[1];
        }
    }
}

#if TF_PLANES_DSP

static inline __attribute__((always_inline)) void correlate(const int16_t *error,
                                                            const int16_t *row, uint32_t count,
                                                            const uint32_t taps, int32_t sums[4]) {
    int32_t s[4] = {sums[0], sums[1], sums[2], sums[3]};
    const int16_t *end = error + count;
    for (; error != end; error += 2, row += 2) {
        const int16x2_t e = (int16x2_t) * (const word *)error;
        for (uint32_t i = 0; i < taps; i++) {
            s[i] = __smlad(e, (int16x2_t)load32(row + i), s[i]);
        }
    }
    memcpy(sums, s, sizeof s);
}

#else

static inline __attribute__((always_inline)) void correlate(const int16_t *error,
                                                            const int16_t *row, uint32_t count,
                                                            const uint32_t taps, int32_t sums[4]) {
    for (uint32_t i = 0; i < taps; i++) {
        int32_t sum = 0;
        for (uint32_t x = 0; x < count; x++) {
            sum += error[x] * row[i + x];
        }
        sums[i] += sum;
    }
}

#endif

void tf_correlate(const int16_t *error, const int16_t *row, uint32_t count, uint32_t taps,
                  int32_t sums[4]) {
    if (taps == 1u) {
        correlate(error, row, count, 1u, sums);
    } else if (taps == 2u) {
        correlate(error, row, count, 2u, sums);
    } else if (taps == 3u) {
        correlate(error, row, count, 3u, sums);
    } else {
        correlate(error, row, count, 4u, sums);
    }
}
