/* Clipping in integers: a factor in 1/2^16, and rounding that is right on average. */
#include "clip.h"

#include "tinyfleet/random.h"

#define STREAM 0x636C6970u /* beyond any epoch's; one further for each attempt */

static uint32_t square_root(uint64_t number) {
    uint64_t root = 0;
    for (uint64_t bit = (uint64_t)1 << 31; bit != 0u; bit >>= 1) {
        if ((root + bit) * (root + bit) <= number) {
            root += bit;
        }
    }
    return (uint32_t)root;
}

tf_clip tf_clip_first(uint32_t clip, uint64_t squares) {
    const uint64_t norm = (uint64_t)square_root(squares) + 1u;
    const tf_clip first = {true, false, (uint32_t)(((uint64_t)clip << 16) / norm), STREAM};
    return first;
}

tf_clip tf_clip_next(tf_clip clip, tf_clip first, uint32_t attempt) {
    if (attempt == TF_CLIP_ATTEMPTS) {
        first.truncates = true;
        return first;
    }
    clip.factor -= clip.factor / 16u;
    clip.stream++;
    return clip;
}

int32_t tf_clip_value(const tf_clip *clip, uint32_t seed, uint32_t index, int32_t value) {
    if (!clip->is_needed) {
        return value;
    }
    const int64_t scaled = (int64_t)value * clip->factor;
    if (clip->truncates) {
        return (int32_t)(scaled / 65536);
    }
    return (int32_t)((scaled + (int64_t)(tf_random(seed, clip->stream, index) & 0xFFFFu)) >> 16);
}
