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

/* The lower, or upper, halves of both. No compiler finds the instructions everywhere. */
static inline uint32_t pack(uint32_t low, uint32_t high) {
    uint32_t both;
    __asm("pkhbt %0, %1, %2, lsl #16" : "=r"(both) : "r"(low), "r"(high));
    return both;
}

static inline uint32_t pack_upper(uint32_t low, uint32_t high) {
    uint32_t both;
    __asm("pkhtb %0, %1, %2, asr #16" : "=r"(both) : "r"(high), "r"(low));
    return both;
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

/* Overlapping pairs of one row: `count` taps behind `before` zeros; room for `width`. */
static inline __attribute__((always_inline)) void
widen_overlapping(const int8_t *tap, int32_t step, const uint32_t count, const uint32_t before,
                  const uint32_t width, int16_t *row) {
    int16_t last = 0;
    uint32_t i = before;
    if (before == 0u) {
        last = *tap;
        tap += step;
        i = 1;
    }
    for (; i < before + count; i++, tap += step) {
        row[2u * i - 2u] = last;
        last = *tap;
        row[2u * i - 1u] = last;
    }
    for (; i < width; i++) {
        row[2u * i - 2u] = last;
        row[2u * i - 1u] = 0;
        last = 0;
    }
}

void tf_widen_taps(const tf_slide *slide, const int8_t *from, int32_t step, int32_t row_step,
                   uint32_t count, uint32_t before, uint32_t rows, int16_t *table) {
    const uint32_t taps_row = slide->taps_row, width = slide->width;
    if (!slide->overlapping && count != taps_row) {
        memset(table, 0, sizeof(int16_t) * rows * taps_row);
    }
    for (uint32_t r = 0; r < rows; r++, from += row_step, table += taps_row) {
        if (!slide->overlapping) {
            const int8_t *tap = from;
            for (uint32_t i = before; i < before + count; i++, tap += step) {
                table[i] = *tap;
            }
        } else if (count == width && width == 3u) {
            widen_overlapping(from, step, 3u, 0u, 3u, table);
        } else if (count == width && width == 5u) {
            widen_overlapping(from, step, 5u, 0u, 5u, table);
        } else if (count == width) {
            widen_overlapping(from, step, 7u, 0u, 7u, table);
        } else {
            if (before > 1u) {
                memset(table, 0, sizeof(int16_t) * taps_row);
            }
            widen_overlapping(from, step, count, before, width, table);
        }
    }
}

static inline __attribute__((always_inline)) void gather_codes(const tf_gathering *by,
                                                               const int8_t *from, int32_t zero,
                                                               int16_t *to, const uint32_t lanes) {
    const uint32_t step = by->step, plane = by->plane;
    for (uint32_t row = by->rows; row > 0u; row--, from += by->row_step, to += by->line) {
        const int8_t *next = from;
        int16_t *at = to;
        uint32_t left = by->count;
#if TF_PLANES_DSP
        const uint32_t minus = pack((uint32_t)-zero, (uint32_t)-zero);
        for (; left >= 4u; left -= 4u, next += 4u * step, at += 4) {
            const int8_t *later = next + 2u * step;
            if (lanes == 2u) {
                const uint32_t a = pack(load16(next), load16(next + step));
                const uint32_t b = pack(load16(later), load16(later + step));
                store32(at, even_plus(minus, a));
                store32(at + 2, even_plus(minus, b));
                store32(at + plane, odd_plus(minus, a));
                store32(at + plane + 2, odd_plus(minus, b));
            } else {
                store32(at, even_plus(minus, pack((uint8_t)next[0], (uint8_t)next[step])));
                store32(at + 2, even_plus(minus, pack((uint8_t)later[0], (uint8_t)later[step])));
            }
        }
#endif
        for (; left > 0u; left--, next += step, at++) {
            at[0] = (int16_t)(next[0] - zero);
            if (lanes == 2u) {
                at[plane] = (int16_t)(next[1] - zero);
            }
        }
    }
}

void tf_gather_codes(const tf_gathering *by, const int8_t *from, int32_t zero, int16_t *to) {
    if (by->lanes == 2u) {
        gather_codes(by, from, zero, to, 2u);
    } else {
        gather_codes(by, from, zero, to, 1u);
    }
}

static inline __attribute__((always_inline)) void
gather_errors(const tf_gathering *by, const int16_t *from, int16_t *to, const uint32_t lanes) {
    const uint32_t step = by->step, plane = by->plane;
    for (uint32_t row = by->rows; row > 0u; row--, from += by->row_step, to += by->line) {
        const int16_t *next = from;
        int16_t *at = to;
        uint32_t left = by->count;
#if TF_PLANES_DSP
        for (; lanes == 2u && left >= 2u; left -= 2u, next += 2u * step, at += 2) {
            const uint32_t a = load32(next), b = load32(next + step);
            store32(at, pack(a, b));
            store32(at + plane, pack_upper(a, b));
        }
#endif
        for (; left > 0u; left--, next += step, at++) {
            at[0] = next[0];
            if (lanes == 2u) {
                at[plane] = next[1];
            }
        }
    }
}

void tf_gather_errors(const tf_gathering *by, const int16_t *from, int16_t *to) {
    if (by->lanes == 2u) {
        gather_errors(by, from, to, 2u);
    } else {
        gather_errors(by, from, to, 1u);
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
