/* Depthwise convolutions on the host: a channel in every lane, TF_LANES channels at a time.
 *
 * A *ring* keeps as many rows of them as windows are high, each column beside the next one, so that
 * one instruction takes two taps. Rows are kept before outputs take their place.
 */
#ifndef TINYFLEET_RING_H
#define TINYFLEET_RING_H

#include "lanes.h"

/* Taps and ring take so much of the stack at most. */
#define TF_RING_BYTES (96u * 1024u)

/* Outputs that are made side by side. */
#define TF_RING_PIXELS 4u

/* Row y of a ring of `rows` rows of `line` pairs of columns. */
static inline tf_lanes *tf_ring_row(tf_lanes *ring, uint32_t y, uint32_t rows, uint32_t line) {
    return ring + y % rows * line;
}

/* sums[i] += the products of `rows` rows of `pairs` pairs of taps and of what lies from at[row] +
 * i * apart on, `next` pairs of columns from one pair of taps to the next. */
static inline __attribute__((always_inline)) void
tf_ring_add(const tf_lanes *const *at, uint32_t rows, const tf_lanes *taps, const uint32_t pairs,
            uint32_t apart, uint32_t next, tf_lanes sums[TF_RING_PIXELS]) {
    tf_lanes a = sums[0], b = sums[1], c = sums[2], d = sums[3];
    for (uint32_t row = 0; row < rows; row++) {
        const tf_lanes *x = at[row];
        for (uint32_t pair = 0; pair < pairs; pair++, x += next, taps++) {
            a = tf_lanes_add_products(a, x[0], taps[0]);
            b = tf_lanes_add_products(b, x[apart], taps[0]);
            c = tf_lanes_add_products(c, x[2u * apart], taps[0]);
            d = tf_lanes_add_products(d, x[3u * apart], taps[0]);
        }
    }
    sums[0] = a;
    sums[1] = b;
    sums[2] = c;
    sums[3] = d;
}

/* The same with code of its own for the usual widths. */
static inline void tf_ring_add_any(const tf_lanes *const *at, uint32_t rows, const tf_lanes *taps,
                                   uint32_t pairs, uint32_t apart, uint32_t next,
                                   tf_lanes sums[TF_RING_PIXELS]) {
    if (pairs == 2u) {
        tf_ring_add(at, rows, taps, 2u, apart, next, sums);
    } else if (pairs == 1u) {
        tf_ring_add(at, rows, taps, 1u, apart, next, sums);
    } else {
        tf_ring_add(at, rows, taps, pairs, apart, next, sums);
    }
}

/* Where the taps of a tile of channels come from. */
typedef struct {
    const tf_weights *weights;
    uint32_t channels;        /* of the layer */
    uint32_t channel, count;  /* those of the tile */
    uint32_t trained, behind; /* of weights->channels, those in the tile */
} tf_tile_taps;

/* The next tile's; begins behind the one before it. */
static inline void tf_next_tile_taps(tf_tile_taps *tile, uint32_t channel, uint32_t count) {
    const tf_weights *weights = tile->weights;
    tile->channel = channel;
    tile->count = count;
    tile->trained = tile->behind;
    while (tile->behind < weights->count && weights->channels[tile->behind] < channel + count) {
        tile->behind++;
    }
}

/* Weight `tap` of all channels of the tile. */
static inline tf_lanes tf_tile_tap(const tf_tile_taps *tile, uint32_t tap) {
    const tf_weights *weights = tile->weights;
    const int8_t *fixed = weights->fixed + tap * tile->channels + tile->channel;
    if (tile->trained == tile->behind) {
        return tf_lanes_widen8(fixed, tile->count);
    }
    int8_t codes[TF_LANES] = {0};
    memcpy(codes, fixed, tile->count);
    for (uint32_t i = tile->trained; i < tile->behind; i++) {
        codes[weights->channels[i] - tile->channel] = weights->trained[tap * weights->count + i];
    }
    return tf_lanes_widen8(codes, TF_LANES);
}

/* Whether row `y` of what is made, of rows of so many bytes from `to` on, leaves the rows of `from`
 * (`all` of them) alone that are not in the ring yet, those from `kept` on. */
static inline uint32_t tf_row_spares(const void *to, uint32_t y, uint32_t to_bytes,
                                     const void *from, uint32_t kept, uint32_t all,
                                     uint32_t from_bytes) {
    const uintptr_t begin = (uintptr_t)to + y * to_bytes, end = begin + to_bytes;
    const uintptr_t left = (uintptr_t)from + kept * from_bytes;
    return kept >= all || end <= left || begin >= (uintptr_t)from + all * from_bytes;
}

/* tf_depthwise_forward and the errors of tf_depthwise_input_gradient, without their scratch; return
 * 0, and have done nothing, where the ring finds no room, or comes too late. */
uint32_t tf_depthwise_forward_in_lanes(const tf_convolution *layer, const tf_span *span,
                                       const int8_t *input, const tf_weights *weights,
                                       const int32_t *bias, int8_t *output, uint8_t *mask);
uint32_t tf_depthwise_gradient_in_lanes(const tf_convolution *layer, const int16_t *error,
                                        const tf_weights *weights, int16_t *out, int32_t shift,
                                        int32_t *magnitude);

#endif
