/* Steps of SGD on the host, for a weight in every lane: what weight_update.h does for one. */
#ifndef TINYFLEET_STEPS_H
#define TINYFLEET_STEPS_H

#include "../kernels/weight_update.h"
#include "lanes.h"

/* How gradients become changes. */
typedef struct {
    tf_lanes mantissa, shift;
    uint32_t narrow; /* all shifts are 33 … 62; else 1 … 32 */
} tf_lanes_step;

/* Steps of `count` (1 … TF_LANES) lanes; returns 0 where not all of them are of one kind. */
static inline uint32_t tf_lanes_make_step(const tf_step *steps, uint32_t count,
                                          tf_lanes_step *step) {
    int32_t mantissa[TF_LANES], shift[TF_LANES];
    int32_t lowest = steps[0].shift, highest = lowest;
    for (uint32_t i = 0; i < TF_LANES; i++) {
        const tf_step *one = &steps[i < count ? i : 0u];
        mantissa[i] = one->mantissa;
        shift[i] = one->shift;
        lowest = one->shift < lowest ? one->shift : lowest;
        highest = one->shift > highest ? one->shift : highest;
    }
    step->mantissa = tf_lanes_load(mantissa);
    step->shift = tf_lanes_load(shift);
    step->narrow = lowest > 32;
    return (lowest > 32 && highest <= 62) || (lowest >= 3 && highest <= 32);
}

/* The same for one step in all lanes. */
static inline uint32_t tf_lanes_spread_step(tf_step one, tf_lanes_step *step) {
    step->mantissa = tf_lanes_all(one.mantissa);
    step->shift = tf_lanes_all(one.shift);
    step->narrow = one.shift > 32;
    return one.shift >= 3 && one.shift <= 62;
}

/* tf_apply_step, bounded to TF_LARGEST_CHANGE. */
static inline tf_lanes tf_lanes_change(tf_lanes gradients, const tf_lanes_step *step) {
    if (step->narrow) {
        const tf_lanes shift = tf_lanes_less(step->shift, tf_lanes_all(32));
        const tf_lanes half = tf_lanes_left(tf_lanes_all(1), tf_lanes_less(shift, tf_lanes_all(1)));
        const tf_lanes high = tf_lanes_high_product(gradients, step->mantissa);
        return tf_lanes_right(tf_lanes_add(high, half), shift);
    }
    tf_lanes high;
    const tf_lanes low = tf_lanes_wide_product(gradients, step->mantissa, step->shift, &high);
    const tf_lanes largest = tf_lanes_all(TF_LARGEST_CHANGE), none = tf_lanes_all(0);
    const tf_lanes limit = tf_lanes_right(largest, tf_lanes_less(tf_lanes_all(32), step->shift));
    const tf_lanes below =
        tf_lanes_where_above(tf_lanes_less(none, limit), high, tf_lanes_less(none, largest), low);
    return tf_lanes_where_above(limit, high, below, largest);
}

/* tf_random_mix. */
static inline tf_lanes tf_lanes_mix(tf_lanes x) {
    x = tf_lanes_xor(x, tf_lanes_right_unsigned(x, 16));
    x = tf_lanes_times(x, tf_lanes_all(0x7feb352d));
    x = tf_lanes_xor(x, tf_lanes_right_unsigned(x, 15));
    x = tf_lanes_times(x, tf_lanes_all((int32_t)0x846ca68bu));
    return tf_lanes_xor(x, tf_lanes_right_unsigned(x, 16));
}

/* tf_round_move for values whose counters follow each other; `random`: the stream plus the first. */
static inline tf_lanes tf_lanes_move(tf_lanes changes, uint32_t bits, uint32_t random) {
    int32_t places[TF_LANES];
    for (uint32_t i = 0; i < TF_LANES; i++) {
        places[i] = (int32_t)i;
    }
    const tf_lanes counters = tf_lanes_add(tf_lanes_all((int32_t)random), tf_lanes_load(places));
    const tf_lanes chances =
        tf_lanes_and(tf_lanes_mix(counters), tf_lanes_all((int32_t)((1u << bits) - 1u)));
    return tf_lanes_right(tf_lanes_less(chances, changes), tf_lanes_all((int32_t)bits));
}

/* tf_move_state; the fractions take the place of those given. */
static inline tf_lanes tf_lanes_move_state(tf_lanes weights, tf_lanes *fractions, tf_lanes moves) {
    const tf_lanes eight = tf_lanes_all(8), limit = tf_lanes_all(TF_Q88_LIMIT);
    const tf_lanes before = tf_lanes_add(tf_lanes_left(weights, eight), *fractions);
    const tf_lanes state =
        tf_lanes_clamp(tf_lanes_add(before, moves), tf_lanes_all(-TF_Q88_LIMIT), limit);
    const tf_lanes rounded = tf_lanes_right(tf_lanes_add(state, tf_lanes_all(128)), eight);
    *fractions = tf_lanes_less(state, tf_lanes_left(rounded, eight));
    return rounded;
}

/* The weights of one row, with or without fractions, after a step with these gradients. */
static inline tf_lanes tf_lanes_take_step(tf_lanes weights, tf_lanes *fractions,
                                          uint32_t has_fractions, tf_lanes gradients,
                                          const tf_lanes_step *step, uint32_t random) {
    const tf_lanes changes = tf_lanes_change(gradients, step);
    if (has_fractions) {
        return tf_lanes_move_state(weights, fractions,
                                   tf_lanes_move(changes, TF_STATE_BITS, random));
    }
    const tf_lanes moved = tf_lanes_add(weights, tf_lanes_move(changes, TF_STEP_BITS, random));
    return tf_lanes_clamp(moved, tf_lanes_all(-127), tf_lanes_all(127));
}

#endif
