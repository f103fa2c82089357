/* Walking over a tensor and a smaller one that stands for it; sums of what an element stands for. */
#ifndef TINYFLEET_BROADCAST_H
#define TINYFLEET_BROADCAST_H

#include <string.h>

#include "fixed_point.h"

/* Elements of the smaller tensor. */
static inline uint32_t tf_broadcast_size(const tf_broadcast *by) {
    uint32_t size = by->channel == 0u ? 1u : by->channels;
    size *= by->column == 0u ? 1u : by->width;
    return size * (by->row == 0u ? 1u : by->height);
}

/* Where the smaller tensor has the first channel of a pixel. */
static inline uint32_t tf_broadcast_place(const tf_broadcast *by, uint32_t y, uint32_t x) {
    return y * by->row + x * by->column;
}

/* Bits of the largest |sum|. */
static inline int32_t tf_bits_of_sums(const int32_t *sums, uint32_t size) {
    int32_t magnitude = 0;
    for (uint32_t i = 0; i < size; i++) {
        tf_note_magnitude(&magnitude, sums[i]);
    }
    return tf_bit_length((uint32_t)magnitude);
}

/* A mask that is written bit by bit; `bytes` is NULL where none is wanted. */
typedef struct {
    uint8_t *bytes;
    uint32_t bits, count;
} tf_mask_writer;

static inline void tf_mask_put(tf_mask_writer *mask, uint32_t bit) {
    mask->bits |= bit << mask->count;
    if (++mask->count == 8u) {
        if (mask->bytes != NULL) {
            *mask->bytes++ = (uint8_t)mask->bits;
        }
        mask->bits = mask->count = 0;
    }
}

static inline void tf_mask_end(const tf_mask_writer *mask) {
    if (mask->bytes != NULL && mask->count > 0u) {
        *mask->bytes = (uint8_t)mask->bits;
    }
}

#endif
