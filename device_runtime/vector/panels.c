/* Blocks on the host: the same results as in portable C, a channel in every lane. */
#include "panels.h"

#if defined(__SSE4_1__)
#include "transpose_x86.h"
#endif

/* Of a word of packed weights, two values of two rows, each row's values side by side. */
static inline uint32_t by_row(uint32_t word) {
    return (word & 0xff0000ffu) | (word & 0x00ff0000u) >> 8 | (word & 0x0000ff00u) << 8;
}

void tf_make_panels(const int8_t *packed, uint32_t channels, uint32_t length, int8_t *panels) {
    const uint32_t words = length / 2u, row = 2u * length; /* of two rows; bytes */
    for (uint32_t first = 0; first < channels; first += TF_LANES) {
        const uint32_t left = (channels - first + 1u) / 2u;
        const uint32_t pairs = left < TF_LANES / 2u ? left : TF_LANES / 2u;
        uint32_t pair = 0;
#if defined(__SSE4_1__)
        for (; pair + 4u <= pairs; pair += 4u) {
            const int8_t *from = packed + pair * row;
            int8_t *to = panels + 4u * pair;
            uint32_t at = 0;
            for (; at + 4u <= words; at += 4u, from += 16, to += 8u * TF_LANES) {
                tf_transpose_words(from, row, to, 2u * TF_LANES);
            }
            for (; at < words; at++, from += 4, to += 2u * TF_LANES) {
                for (uint32_t i = 0; i < 4u; i++) {
                    tf_store32(to + 4u * i, by_row(tf_load32(from + i * row)));
                }
            }
        }
#endif
        for (; pair < TF_LANES / 2u; pair++) {
            const int8_t *from = packed + pair * row;
            for (uint32_t at = 0; at < words; at++) {
                const uint32_t word = pair < pairs ? by_row(tf_load32(from + 4u * at)) : 0u;
                tf_store32(panels + 2u * TF_LANES * at + 4u * pair, word);
            }
        }
        packed += TF_LANES * length;
        panels += TF_LANES * length;
    }
}

/* Sums of one panel over four pixels. Even and odd pairs are added apart, so that no sum waits for
 * the one before it. */
static inline __attribute__((always_inline)) void sum_four(const int16_t *columns,
                                                           const int8_t *panel, uint32_t length,
                                                           tf_lanes bias, tf_lanes sums[4]) {
    const int16_t *x0 = columns, *x1 = x0 + length, *x2 = x1 + length, *x3 = x2 + length;
    const tf_lanes none = tf_lanes_all(0);
    tf_lanes a0 = bias, a1 = bias, a2 = bias, a3 = bias, b0 = none, b1 = none, b2 = none, b3 = none;
    for (uint32_t at = 0; at < length; at += 4u, panel += 4u * TF_LANES) {
        const tf_lanes first = tf_pairs_widen(panel);
        const tf_lanes second = tf_pairs_widen(panel + 2u * TF_LANES);
        a0 = tf_lanes_add_products(a0, first, tf_pairs_all(x0 + at));
        a1 = tf_lanes_add_products(a1, first, tf_pairs_all(x1 + at));
        a2 = tf_lanes_add_products(a2, first, tf_pairs_all(x2 + at));
        a3 = tf_lanes_add_products(a3, first, tf_pairs_all(x3 + at));
        b0 = tf_lanes_add_products(b0, second, tf_pairs_all(x0 + at + 2u));
        b1 = tf_lanes_add_products(b1, second, tf_pairs_all(x1 + at + 2u));
        b2 = tf_lanes_add_products(b2, second, tf_pairs_all(x2 + at + 2u));
        b3 = tf_lanes_add_products(b3, second, tf_pairs_all(x3 + at + 2u));
    }
    sums[0] = tf_lanes_add(a0, b0);
    sums[1] = tf_lanes_add(a1, b1);
    sums[2] = tf_lanes_add(a2, b2);
    sums[3] = tf_lanes_add(a3, b3);
}

/* The same over eight. */
static inline __attribute__((always_inline)) void sum_eight(const int16_t *columns,
                                                            const int8_t *panel, uint32_t length,
                                                            tf_lanes bias, tf_lanes sums[8]) {
    const int16_t *x0 = columns, *x1 = x0 + length, *x2 = x1 + length, *x3 = x2 + length;
    const int16_t *x4 = x3 + length, *x5 = x4 + length, *x6 = x5 + length, *x7 = x6 + length;
    tf_lanes s0 = bias, s1 = bias, s2 = bias, s3 = bias, s4 = bias, s5 = bias, s6 = bias, s7 = bias;
    for (uint32_t at = 0; at < length; at += 2u, panel += 2u * TF_LANES) {
        const tf_lanes weights = tf_pairs_widen(panel);
        s0 = tf_lanes_add_products(s0, weights, tf_pairs_all(x0 + at));
        s1 = tf_lanes_add_products(s1, weights, tf_pairs_all(x1 + at));
        s2 = tf_lanes_add_products(s2, weights, tf_pairs_all(x2 + at));
        s3 = tf_lanes_add_products(s3, weights, tf_pairs_all(x3 + at));
        s4 = tf_lanes_add_products(s4, weights, tf_pairs_all(x4 + at));
        s5 = tf_lanes_add_products(s5, weights, tf_pairs_all(x5 + at));
        s6 = tf_lanes_add_products(s6, weights, tf_pairs_all(x6 + at));
        s7 = tf_lanes_add_products(s7, weights, tf_pairs_all(x7 + at));
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
    sums[4] = s4;
    sums[5] = s5;
    sums[6] = s6;
    sums[7] = s7;
}

void tf_panels_forward(const tf_panel_block *block, uint32_t pixels, int8_t *output, uint8_t *mask,
                       uint32_t index) {
    const uint32_t length = block->length, step = block->step;
    const int8_t *panel = block->panels;
    for (uint32_t first = 0; first < block->channels; first += TF_LANES) {
        const uint8_t *pre_shift = block->pre_shift == NULL ? NULL : block->pre_shift + first;
        const tf_lanes_requantizer by = tf_lanes_make_requantizer(
            block->requantize + first, pre_shift, block->zero, block->channels - first);
        const tf_lanes bias = tf_lanes_load_some(block->bias + first, by.count);
        const int16_t *columns = block->columns;
        uint32_t at = first;
        for (uint32_t left = pixels, count; left > 0u; left -= count) {
            tf_lanes sums[8];
            if (left >= 8u) {
                count = 8u;
                sum_eight(columns, panel, length, bias, sums);
            } else {
                count = left < 4u ? left : 4u;
                sum_four(columns, panel, length, bias, sums);
            }
            columns += count * length;
            for (uint32_t p = 0; p < count; p++, at += step) {
                const uint32_t bits = tf_lanes_requantize(&by, sums[p], output + at);
                if (mask != NULL) {
                    tf_lanes_put_bits(mask, index + at, bits, by.count);
                }
            }
        }
        panel += TF_LANES * length;
    }
}

/* Errors of TF_LANES input channels of four pixels, of which the first `count` are kept. */
static inline __attribute__((always_inline)) tf_lanes sum_errors(const tf_gradient_block *block,
                                                                 uint32_t at, uint32_t count,
                                                                 tf_lanes largest) {
    const tf_lanes half = tf_lanes_all(block->half);
    tf_lanes sums[TF_BLOCK_PIXELS] = {half, half, half, half};
    for (const int16_t *from = block->stream; from < block->stream_end; from += TF_STREAM_STEP) {
        const int8_t *row = block->weights + tf_load32(from) + 2u * at;
        const tf_lanes weights =
            count == TF_LANES ? tf_pairs_widen(row) : tf_pairs_widen_some(row, count);
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
            const tf_lanes errors = tf_pairs_all(from + 2u + 2u * p);
            sums[p] = tf_lanes_add_products(sums[p], weights, errors);
        }
    }
    const tf_lanes shift = tf_lanes_all(block->shift);
    const tf_lanes low = tf_lanes_all(-32767), high = tf_lanes_all(32767);
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
        int16_t *out = block->output + (p == 0 ? 0 : block->steps[p - 1u] / 2) + at;
        const tf_lanes values = tf_lanes_clamp(tf_lanes_right(sums[p], shift), low, high);
        tf_lanes_store16(out, values, count);
        largest = tf_lanes_largest(largest, tf_lanes_magnitude(values));
    }
    return largest;
}

void tf_block_gradient(tf_gradient_block *block) {
    const uint32_t channels = (uint32_t)(block->weights_end - block->weights) / 2u;
    tf_lanes largest = tf_lanes_all((int32_t)block->largest);
    if (channels < TF_LANES) {
        largest = sum_errors(block, 0, channels, largest);
    }
    for (uint32_t at = 0; channels >= TF_LANES && at < channels; at += TF_LANES) {
        /* The last lanes may make some channels a second time. */
        const uint32_t left = channels - at;
        at = left < TF_LANES ? channels - TF_LANES : at;
        largest = sum_errors(block, at, TF_LANES, largest);
    }
    block->largest = (uint32_t)tf_lanes_highest(largest);
}
