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

#endif
