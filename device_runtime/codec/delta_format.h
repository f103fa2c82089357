/* What encoder and decoder of a delta share. */
#ifndef TF_CODEC_DELTA_FORMAT_H
#define TF_CODEC_DELTA_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#define TF_DELTA_RUN_CODE 15u
#define TF_DELTA_RUN_LIMIT 256u
#define TF_DELTA_ESCAPE 20u /* ones in front of 32 plain bits */

/* 0, -1, 1, -2, 2 … to 0, 1, 2, 3, 4 … */
static inline uint32_t tf_delta_zigzag(int32_t value) {
    return ((uint32_t)value << 1) ^ (value < 0 ? UINT32_MAX : 0u);
}

/* The k = 0 … 14 that codes these zigzag values in the fewest bits, the smallest on a tie. */
unsigned tf_delta_best_parameter(const uint32_t *values, unsigned count);

#endif
