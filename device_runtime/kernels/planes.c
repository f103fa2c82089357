/* Planes of single channels and kernels that slide along them. */
#include "planes.h"

void tf_find_taps(const tf_weights *weights, uint32_t channel, uint32_t channels, uint32_t lanes,
                  uint32_t *trained, tf_channel_taps of[2]) {
    for (uint32_t lane = 0; lane < lanes; lane++, channel++) {
        of[lane].first = weights->fixed + channel;
        of[lane].step = channels;
        if (*trained < weights->count && weights->channels[*trained] == channel) {
            of[lane].first = weights->trained + (*trained)++;
            of[lane].step = weights->count;
        }
    }
}

/* Taps as they lie in memory. */
typedef struct {
    const int8_t *first;
    int32_t step, row_step;
    uint32_t count, before, rows;
} source;

static source source_of(const tf_taps *taps, const tf_channel_taps *of) {
    const int32_t step = (int32_t)of->step;
    const source from = {of->first + taps->first * step,
                         taps->step * step,
                         taps->row_step * step,
                         taps->count,
                         taps->before,
                         taps->rows};
    return from;
}

/* The table of one channel. */
static void widen_one(const tf_slide *slide, const source *from, int16_t *table) {
    const int8_t *first = from->first;
    for (uint32_t row = from->rows; row > 0u; row--, first += from->row_step) {
        const int16_t *end = table + slide->taps_row;
        const int8_t *tap = first;
        for (uint32_t i = 0; table != end; i++) {
            int16_t next = 0;
            if (i - from->before < from->count) {
                next = *tap;
                tap += from->step;
            }
            if (slide->overlapping && i > 0u && i + 1u < slide->width) {
                *table++ = next;
            }
            *table++ = next;
        }
    }
}

#if TF_DSP

/* The same tap of two channels that lie side by side. */
static inline uint32_t load_two(const int8_t *tap) {
    uint16_t both;
    memcpy(&both, tap, sizeof both);
    return both;
}

/* Two taps of two channels to a word of each one's table. */
static inline __attribute__((always_inline)) void store_two(uint32_t tap, uint32_t next,
                                                            int16_t *table, int16_t *other) {
    const uint32_t both = tf_pack_lower(tap, next);
    tf_store32(table, tf_even(both));
    tf_store32(other, tf_odd(both));
}

/* Overlapping pairs of rows of `width` taps, without zeros. */
static inline __attribute__((always_inline)) void
widen_overlapping(const source *from, const uint32_t width, int16_t *table, int16_t *other) {
    const int32_t step = from->step, row_step = from->row_step;
    const int8_t *first = from->first;
    for (uint32_t row = from->rows; row > 0u; row--, first += row_step) {
        const int8_t *tap = first;
        uint32_t last = load_two(tap);
        for (uint32_t i = 1; i < width; i++, table += 2, other += 2) {
            tap += step;
            const uint32_t next = load_two(tap);
            store_two(last, next, table, other);
            last = next;
        }
    }
}

/* The same with zeros around. */
static void widen_surrounded(const source *by, const uint32_t taps_row, int16_t *table,
                             int16_t *other) {
    const source from = *by;
    const int8_t *first = from.first;
    for (uint32_t row = from.rows; row > 0u; row--, first += from.row_step) {
        const int16_t *end = table + taps_row;
        const int8_t *tap = first;
        uint32_t last = 0;
        for (uint32_t i = from.before > 0u ? from.before : 1u; i > 1u; i--) {
            store_two(0, 0, table, other);
            table += 2, other += 2;
        }
        uint32_t left = from.count;
        if (from.before == 0u && left > 0u) {
            last = load_two(tap);
            tap += from.step;
            left--;
        }
        for (; left > 0u; left--, tap += from.step, table += 2, other += 2) {
            const uint32_t next = load_two(tap);
            store_two(last, next, table, other);
            last = next;
        }
        for (; table != end; last = 0, table += 2, other += 2) {
            store_two(last, 0, table, other);
        }
    }
}

/* Plain rows, which have a zero behind an odd number of taps at least. */
static void widen_pairs(const source *by, const uint32_t taps_row, int16_t *table, int16_t *other) {
    const source from = *by;
    const int8_t *first = from.first;
    for (uint32_t row = from.rows; row > 0u; row--, first += from.row_step) {
        const int16_t *end = table + taps_row;
        const int8_t *tap = first;
        uint32_t left = from.count;
        for (; left > 1u; left -= 2u, tap += 2 * from.step, table += 2, other += 2) {
            store_two(load_two(tap), load_two(tap + from.step), table, other);
        }
        for (; table != end; left = 0, table += 2, other += 2) {
            store_two(left > 0u ? load_two(tap) : 0u, 0, table, other);
        }
    }
}

static void widen_both(const tf_slide *slide, const source *from, int16_t *table, int16_t *other) {
    const uint32_t whole = slide->overlapping && from->count == slide->width;
    if (whole && from->count == 3u) {
        widen_overlapping(from, 3u, table, other);
    } else if (whole && from->count == 5u) {
        widen_overlapping(from, 5u, table, other);
    } else if (whole && from->count == 7u) {
        widen_overlapping(from, 7u, table, other);
    } else if (slide->overlapping) {
        widen_surrounded(from, slide->taps_row, table, other);
    } else {
        widen_pairs(from, slide->taps_row, table, other);
    }
}

#endif

void tf_widen_taps(const tf_slide *slide, const tf_taps *taps, const tf_channel_taps of[2],
                   uint32_t lanes, int16_t *table, uint32_t room) {
#if TF_DSP
    const uint32_t adjacent =
        lanes == 2u && of[1].first == of[0].first + 1 && of[1].step == of[0].step;
    if (adjacent && (slide->overlapping || taps->before == 0u)) {
        const source both = source_of(taps, of);
        widen_both(slide, &both, table, table + room);
        return;
    }
#endif
    for (uint32_t lane = 0; lane < lanes; lane++) {
        const source one = source_of(taps, &of[lane]);
        widen_one(slide, &one, table + lane * room);
    }
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

#if TF_DSP

/* Errors of two channels: four columns at a time. */
static void gather_two_errors(const tf_gathering *by, const int16_t *from, int16_t *to) {
    const uint32_t bytes = 2u * by->step, plane = 2u * by->plane;
    for (uint32_t row = by->rows; row > 0u; row--, from += by->row_step, to += by->line) {
        const int16_t *next = from;
        int16_t *at = to;
        for (const int16_t *end = to + (by->count & ~3u); at != end;) {
            uint32_t a, b, c, d, upper;
            __asm volatile("ldr %[a], [%[next]]\n\t"
                           "ldr %[b], [%[next], %[bytes]]\n\t"
                           "ldr %[c], [%[next], %[bytes], lsl #1]\n\t"
                           "ldr %[d], [%[next], %[thrice]]\n\t"
                           "add %[next], %[next], %[bytes], lsl #2\n\t"
                           "pkhtb %[upper], %[b], %[a], asr #16\n\t"
                           "pkhbt %[a], %[a], %[b], lsl #16\n\t"
                           "str %[upper], [%[at], %[plane]]\n\t"
                           "str %[a], [%[at]], #4\n\t"
                           "pkhtb %[upper], %[d], %[c], asr #16\n\t"
                           "pkhbt %[c], %[c], %[d], lsl #16\n\t"
                           "str %[upper], [%[at], %[plane]]\n\t"
                           "str %[c], [%[at]], #4"
                           : [next] "+r"(next), [at] "+r"(at), [a] "=&r"(a), [b] "=&r"(b),
                             [c] "=&r"(c), [d] "=&r"(d), [upper] "=&r"(upper)
                           : [bytes] "r"(bytes), [thrice] "r"(3u * bytes), [plane] "r"(plane)
                           : "memory");
        }
        for (uint32_t left = by->count & 3u; left > 0u; left--, next += by->step, at++) {
            at[0] = next[0];
            at[by->plane] = next[1];
        }
    }
}

#endif

static void gather_errors_of_one(const tf_gathering *by, const int16_t *from, int16_t *to) {
    for (uint32_t row = by->rows; row > 0u; row--, from += by->row_step, to += by->line) {
        const int16_t *next = from;
        for (uint32_t i = 0; i < by->count; i++, next += by->step) {
            to[i] = *next;
        }
    }
}

void tf_gather_errors(const tf_gathering *by, const int16_t *from, int16_t *to) {
#if TF_DSP
    if (by->lanes == 2u) {
        gather_two_errors(by, from, to);
        return;
    }
#endif
    for (uint32_t lane = 0; lane < by->lanes; lane++) {
        gather_errors_of_one(by, from + lane, to + lane * by->plane);
    }
}
