/* One trained weight takes one step of SGD: q8.8, or int8 with stochastic rounding. */
#ifndef TINYFLEET_WEIGHT_UPDATE_H
#define TINYFLEET_WEIGHT_UPDATE_H

#include "fixed_point.h"
#include "tinyfleet/engine.h"

/* `at` is the weight's place in the tensor, `value` its place among the trained ones. */
static inline void tf_update_weight(const tf_trained *trained, const tf_update *update,
                                    uint32_t at, uint32_t value, int32_t gradient, tf_gain gain,
                                    int32_t exponent)
{
    int8_t *weight = &trained->weights[at];
    if (trained->fractions != NULL) {
        /* weight = round(state / 256), so the fraction lies in [-128, 127]. */
        int8_t *fraction = &trained->fractions[value];
        const int64_t moved = (int64_t)*weight * 256 + *fraction -
                              tf_apply_gain(gradient, gain, exponent + 8);
        const int32_t state = (int32_t)(moved > TF_Q88_LIMIT
                                            ? TF_Q88_LIMIT
                                            : (moved < -TF_Q88_LIMIT ? -TF_Q88_LIMIT : moved));
        *weight = (int8_t)((state + 128) >> 8);
        *fraction = (int8_t)(state - *weight * 256);
        return;
    }
    /* Adding uniform bits below the point before flooring rounds up with the right odds. */
    const uint32_t bits =
        tf_random(update->seed, update->step_index, trained->first_value + value) & 0xffffu;
    const int64_t moved =
        (int64_t)*weight * 65536 - tf_apply_gain(gradient, gain, exponent + 16) + bits;
    const int64_t rounded = moved >> 16;
    *weight = (int8_t)(rounded > 127 ? 127 : (rounded < -127 ? -127 : rounded));
}

#endif
