/* One trained weight takes one step of SGD: q8.8, or int8 with stochastic rounding. */
#ifndef TINYFLEET_WEIGHT_UPDATE_H
#define TINYFLEET_WEIGHT_UPDATE_H

#include "fixed_point.h"
#include "tinyfleet/engine.h"

/* Bits below the point of a step: see tf_make_step's exponent. */
static inline int32_t tf_fraction_bits(const tf_trained *trained) {
    return trained->fractions != NULL ? 8 : 16;
}

/* `value` is the weight's place among the trained ones; `step` was made with tf_fraction_bits
 * added to the exponent. */
static inline void tf_update_weight(const tf_trained *trained, const tf_update *update,
                                    uint32_t value, int32_t gradient, tf_step step) {
    int8_t *weight = &trained->weights[value];
    if (trained->fractions != NULL) {
        /* Beyond 2^16 the state saturates in any case; the bound keeps the sum in 32 bits. */
        const int32_t change = tf_clamp(tf_apply_step(gradient, step), -65536, 65536);
        int8_t *fraction = &trained->fractions[value];
        const int32_t state =
            tf_clamp(*weight * 256 + *fraction - change, -TF_Q88_LIMIT, TF_Q88_LIMIT);
        /* weight = round(state / 256), so the fraction lies in [-128, 127]. */
        const int32_t rounded = (state + 128) >> 8;
        *weight = (int8_t)rounded;
        *fraction = (int8_t)(state - rounded * 256);
        return;
    }
    const int32_t change = tf_clamp(tf_apply_step(gradient, step), -(1 << 25), 1 << 25);
    /* Adding uniform bits below the point before flooring rounds up with the right odds. */
    const uint32_t bits =
        tf_random(update->seed, update->step_index, trained->first_value + value) & 0xffffu;
    const int32_t moved = *weight * 65536 - change + (int32_t)bits;
    *weight = (int8_t)tf_clamp(moved >> 16, -127, 127);
}

#endif
