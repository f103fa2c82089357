/* Discrete Gaussian noise from the keystream of a key (docs/specification/noise.md). */
#ifndef TINYFLEET_NOISE_H
#define TINYFLEET_NOISE_H

#include <stdint.h>

#define TF_NOISE_BLOCK_BYTES 64u

/* All fields are the sampler's own. */
typedef struct {
    const uint8_t *key;
    uint32_t variance;
    uint32_t counter; /* of the next block */
    uint8_t position; /* in the block */
    uint8_t scale;    /* s: proposals have a scale of 2^s */
    uint8_t block[TF_NOISE_BLOCK_BYTES];
} tf_noise;

/* Starts the stream of `key` (32 bytes, read for as long as values are drawn); `variance`
 * 1 … TF_NOISE_LARGEST_VARIANCE. */
#define TF_NOISE_LARGEST_VARIANCE (1u << 24)
void tf_noise_begin(tf_noise *noise, const uint8_t *key, uint32_t variance);

/* The next value. How long it takes depends on it. */
int32_t tf_noise_next(tf_noise *noise);

#endif
