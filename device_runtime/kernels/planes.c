/* Planes of single channels and kernels that slide along them. */
#include "planes.h"

#if TF_DSP

/* Overlapping pairs of rows of `width` taps, of which `count` come from `from` behind `before`
 * zeros, and the others are zero. */
static inline __attribute__((always_inline)) void
widen_overlapping(const int8_t *from, int32_t step, int32_t row_step, const uint32_t count,
                  const uint32_t before, const uint32_t width, uint32_t rows, int16_t *table) {
    for (; rows > 0u; rows--, from += row_step) {
        const int8_t *tap = from;
        uint32_t last = 0;
        for (uint32_t i = 0; i < width; i++) {
            uint32_t next = 0;
            if (i >= before && i < before + count) {
                next = (uint32_t)*tap;
                tap += step;
            }
            if (i > 0u) {
                tf_store32(table, tf_pack_lower(last, next));
                table += 2;
            }
            last = next;
        }
    }
}

#endif

/* Plain rows of `length` values. */
static void widen_plainly(const int8_t *from, int32_t step, int32_t row_step, uint32_t count,
                          uint32_t before, uint32_t length, uint32_t rows, int16_t *table) {
    if (count < length) {
        memset(table, 0, sizeof(int16_t) * rows * length);
    }
    for (; rows > 0u; rows--, from += row_step, table += length) {
        const int8_t *tap = from;
        for (uint32_t i = before; i < before + count; i++, tap += step) {
            table[i] = *tap;
        }
    }
}

void tf_widen_taps(const tf_slide *slide, const int8_t *from, int32_t step, int32_t row_step,
                   uint32_t count, uint32_t before, uint32_t rows, int16_t *table) {
    if (!slide->overlapping) {
        widen_plainly(from, step, row_step, count, before, slide->taps_row, rows, table);
        return;
    }
#if TF_DSP
    const uint32_t width = slide->width;
    if (count < width) {
        widen_overlapping(from, step, row_step, count, before, width, rows, table);
    } else if (width == 3u) {
        widen_overlapping(from, step, row_step, 3u, 0u, 3u, rows, table);
    } else if (width == 5u) {
        widen_overlapping(from, step, row_step, 5u, 0u, 5u, rows, table);
    } else {
        widen_overlapping(from, step, row_step, 7u, 0u, 7u, rows, table);
    }
#endif
}

#if TF_DSP

/* Four columns of two channels: pointers move on. `thrice` is 3 * step, `minus` the zero point's
 * negative, twice. */
static inline __attribute__((always_inline)) void gather_four(const int8_t **from, uint32_t step,
                                                              uint32_t thrice, uint32_t minus,
                                                              int16_t **to, int16_t **other) {
    uint32_t a, b, c, d;
    __asm volatile("ldrh %[a], [%[from]]\n\t"
                   "ldrh %[b], [%[from], %[step]]\n\t"
                   "ldrh %[c], [%[from], %[step], lsl #1]\n\t"
                   "ldrh %[d], [%[from], %[thrice]]\n\t"
                   "add %[from], %[from], %[step], lsl #2\n\t"
                   "pkhbt %[a], %[a], %[b], lsl #16\n\t"
                   "pkhbt %[c], %[c], %[d], lsl #16\n\t"
                   "sxtab16 %[b], %[minus], %[a]\n\t"
                   "sxtab16 %[a], %[minus], %[a], ror #8\n\t"
                   "sxtab16 %[d], %[minus], %[c]\n\t"
                   "sxtab16 %[c], %[minus], %[c], ror #8\n\t"
                   "str %[b], [%[to]], #4\n\t"
                   "str %[d], [%[to]], #4\n\t"
                   "str %[a], [%[other]], #4\n\t"
                   "str %[c], [%[other]], #4"
                   : [from] "+r"(*from), [to] "+r"(*to), [other] "+r"(*other), [a] "=&r"(a),
                     [b] "=&r"(b), [c] "=&r"(c), [d] "=&r"(d)
                   : [step] "r"(step), [thrice] "r"(thrice), [minus] "r"(minus)
                   : "memory");
}

#endif

static void gather_two(const tf_gathering *by, const int8_t *from, int32_t zero, int16_t *to) {
    const uint32_t step = by->step, count = by->count;
    const uint32_t row_gap = by->row_step - count * step, line_gap = by->line - count;
    int16_t *other = to + by->plane;
#if TF_DSP
    const uint32_t minus = tf_minus(zero);
#endif
    for (uint32_t row = by->rows; row > 0u; row--) {
        uint32_t left = count;
#if TF_DSP
        for (; left >= 8u; left -= 8u) {
            gather_four(&from, step, 3u * step, minus, &to, &other);
            gather_four(&from, step, 3u * step, minus, &to, &other);
        }
        if (left >= 4u) {
            left -= 4u;
            gather_four(&from, step, 3u * step, minus, &to, &other);
        }
#endif
        for (; left > 0u; left--, from += step) {
            *to++ = (int16_t)(from[0] - zero);
            *other++ = (int16_t)(from[1] - zero);
        }
        from += row_gap;
        to += line_gap;
        other += line_gap;
    }
}

static void gather_one(const tf_gathering *by, const int8_t *from, int32_t zero, int16_t *to) {
    for (uint32_t row = by->rows; row > 0u; row--, from += by->row_step, to += by->line) {
        const int8_t *next = from;
        for (uint32_t i = 0; i < by->count; i++, next += by->step) {
            to[i] = (int16_t)(*next - zero);
        }
    }
}

void tf_gather_codes(const tf_gathering *by, const int8_t *from, int32_t zero, int16_t *to) {
    if (by->lanes == 2u) {
        gather_two(by, from, zero, to);
    } else {
        gather_one(by, from, zero, to);
    }
}

static inline __attribute__((always_inline)) void
gather_errors(const tf_gathering *by, const int16_t *from, int16_t *to, const uint32_t lanes) {
    const uint32_t step = by->step, plane = by->plane;
    for (uint32_t row = by->rows; row > 0u; row--, from += by->row_step, to += by->line) {
        const int16_t *next = from;
        int16_t *at = to;
        uint32_t left = by->count;
#if TF_DSP
        for (; lanes == 2u && left >= 2u; left -= 2u, next += 2u * step, at += 2) {
            const uint32_t a = tf_load32(next), b = tf_load32(next + step);
            tf_store32(at, tf_pack_lower(a, b));
            tf_store32(at + plane, tf_pack_upper(a, b));
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

static inline __attribute__((always_inline)) void correlate(const tf_correlation *by,
                                                            const uint32_t taps, int32_t sums[4]) {
    const int16_t *error = by->error, *plane = by->plane;
    int32_t s[4] = {0, 0, 0, 0};
    for (uint32_t row = by->rows; row > 0u; row--) {
#if TF_DSP
        const int16_t *next = plane, *end = error + by->count;
        for (const int16_t *e = error; e != end; e += 2, next += 2) {
            const int16x2_t pair = (int16x2_t)tf_load32(e);
            for (uint32_t i = 0; i < taps; i++) {
                s[i] = __smlad(pair, (int16x2_t)tf_load32(next + i), s[i]);
            }
        }
#else
        for (uint32_t i = 0; i < taps; i++) {
            int32_t sum = 0;
            for (uint32_t x = 0; x < by->count; x++) {
                sum += error[x] * plane[i + x];
            }
            s[i] += sum;
        }
#endif
        error += by->error_step;
        plane += by->plane_step;
    }
    for (uint32_t i = 0; i < taps; i++) {
        sums[i] = s[i];
    }
}

void tf_correlate(const tf_correlation *by, uint32_t taps, int32_t sums[4]) {
    if (taps == 1u) {
        correlate(by, 1u, sums);
    } else if (taps == 2u) {
        correlate(by, 2u, sums);
    } else if (taps == 3u) {
        correlate(by, 3u, sums);
    } else {
        correlate(by, 4u, sums);
    }
}
