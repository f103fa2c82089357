/* Counter-based random bits (docs/specification/arithmetic.md): the same for the same counter. */
#ifndef TINYFLEET_RANDOM_H
#define TINYFLEET_RANDOM_H

#include <stdint.h>

static inline uint32_t tf_random_mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

/* What all counters of a stream have in common. */
static inline uint32_t tf_random_stream(uint32_t key, uint32_t stream) {
    return tf_random_mix(tf_random_mix(key + 0x9e3779b9u) + stream);
}

static inline uint32_t tf_random(uint32_t key, uint32_t stream, uint32_t counter) {
    return tf_random_mix(tf_random_stream(key, stream) + counter);
}

#endif
