/* Counter-based random bits: any value of any stream without the ones before it. */
#include "tinyfleet/engine.h"

static uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

uint32_t tf_random(uint32_t key, uint32_t stream, uint32_t counter) {
    return mix(mix(mix(key + 0x9e3779b9u) + stream) + counter);
}
