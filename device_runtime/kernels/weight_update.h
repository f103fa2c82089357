/* How trained values take one step of SGD: changes, velocities, rounding at random. */
#ifndef TINYFLEET_WEIGHT_UPDATE_H
#define TINYFLEET_WEIGHT_UPDATE_H

#include "fixed_point.h"
#include "tinyfleet/random.h"

/* Sums of error * input over so many pixels fit 32 bits: the largest even number that is not above
 * PIXELS_IN_32_BITS of codegen/arithmetic/layers.py. */
#define TF_PIECE 256u

/* Bits that a change has below the unit of what it changes. */
#define TF_STATE_BITS 14 /* q8.8 states, of int8 weights and of the head */
#define TF_STEP_BITS 16  /* int8 weights without fractions */
#define TF_BIAS_BITS 8

#define TF_LARGEST_CHANGE (1 << 30)

/* The stream of random bits of one step. */
static inline uint32_t tf_update_stream(const tf_update *update) {
    return tf_random_stream(update->seed, update->step_index);
}

/* -change / 2^bits, up or down with the right odds. `counter` is the value's index in the delta. */
static inline int32_t tf_round_move(int32_t change, uint32_t bits, uint32_t stream,
                                    uint32_t counter) {
    const int32_t chance = (int32_t)(tf_random_mix(stream + counter) & ((1u << bits) - 1u));
    return (chance - tf_clamp(change, -TF_LARGEST_CHANGE, TF_LARGEST_CHANGE)) >> bits;
}

/* The same where changes add up in a velocity first (tf_update): the move of this step. */
static inline int32_t tf_velocity_move(int32_t change, int32_t *velocity, const tf_update *update,
                                       uint32_t bits, uint32_t stream, uint32_t counter) {
    const int32_t sum = tf_saturate32((int64_t)*velocity + change);
    if (update->apply == 0u) {
        *velocity = sum;
        return 0;
    }
    *velocity = (int32_t)(((int64_t)sum * update->momentum_q8) >> 8);
    return tf_round_move(sum, bits, stream, counter);
}

static inline int32_t tf_move(int32_t change, int32_t *velocity, const tf_update *update,
                              uint32_t bits, uint32_t stream, uint32_t counter) {
    return velocity == NULL ? tf_round_move(change, bits, stream, counter)
                            : tf_velocity_move(change, velocity, update, bits, stream, counter);
}

/* Bits below the point that tf_make_step's exponent must bring for a weight's change. */
static inline int32_t tf_weight_bits(const tf_trained *trained) {
    return trained->fractions != NULL ? 8 + TF_STATE_BITS : TF_STEP_BITS;
}

/* tf_apply_step for a shift of 3 … 32 (wide) or 33 … 62 (narrow), bounded to TF_LARGEST_CHANGE: the
 * former needs both words of the product, the latter only the high one. */
static inline uint32_t tf_is_bounded(tf_step step) {
    return step.shift >= 3 && step.shift <= 62;
}

static inline int32_t tf_apply_wide(int32_t gradient, tf_step step) {
    const int64_t half = (int64_t)(1u << (step.shift - 1));
    const int64_t product = (int64_t)gradient * step.mantissa + half;
    const int32_t high = (int32_t)(product >> 32);
    const int32_t limit = TF_LARGEST_CHANGE >> (32 - step.shift);
    if (high >= limit) {
        return TF_LARGEST_CHANGE;
    }
    if (high < -limit) {
        return -TF_LARGEST_CHANGE;
    }
    const uint32_t low = (uint32_t)product >> 1 >> (step.shift - 1);
    return (int32_t)((uint32_t)high << (32 - step.shift) | low);
}

static inline int32_t tf_apply_narrow(int32_t gradient, tf_step step) {
    const int32_t high = (int32_t)(((int64_t)gradient * step.mantissa) >> 32);
    return (high + (1 << (step.shift - 33))) >> (step.shift - 32);
}

/* -change / 2^bits, up or down with the right odds, for a change that is bounded. */
static inline int32_t tf_round_bounded(int32_t change, uint32_t bits, uint32_t random) {
    return ((int32_t)(tf_random_mix(random) & ((1u << bits) - 1u)) - change) >> bits;
}

static inline int32_t tf_apply_bounded(int32_t gradient, tf_step step) {
    return step.shift > 32 ? tf_apply_narrow(gradient, step) : tf_apply_wide(gradient, step);
}

/* tf_move for a gradient and any step. */
int32_t tf_move_by(int32_t gradient, tf_step step, int32_t *velocity, const tf_update *update,
                   uint32_t bits, uint32_t stream, uint32_t counter);

/* The same, in a few instructions where they do. */
static inline int32_t tf_move_quickly(int32_t gradient, tf_step step, int32_t *velocity,
                                      const tf_update *update, uint32_t bits, uint32_t stream,
                                      uint32_t counter) {
    return velocity == NULL && tf_is_bounded(step)
               ? tf_round_bounded(tf_apply_bounded(gradient, step), bits, stream + counter)
               : tf_move_by(gradient, step, velocity, update, bits, stream, counter);
}

/* Place of trained channel `j` among the channels of the input (tf_trained's in_channels). */
static inline uint32_t tf_place_in_input(const tf_trained *trained, uint32_t j) {
    return trained->in_channels == trained->count ? j : trained->channels[j];
}

/* A q8.8 weight goes `move` states of 1/256 step up. */
static inline void tf_move_state(int8_t *weight, int8_t *fraction, int32_t move) {
    const int32_t state = tf_clamp(*weight * 256 + *fraction + move, -TF_Q88_LIMIT, TF_Q88_LIMIT);
    /* weight = round(state / 256), so the fraction lies in [-128, 127]. */
    const int32_t rounded = (state + 128) >> 8;
    *weight = (int8_t)rounded;
    *fraction = (int8_t)(state - rounded * 256);
}

/* What tf_update_weight does with bounded changes where there is no velocity: to `count` weights,
 * `step` places apart from `at` on. Their random bits are those of counters `counter_step` apart. */
static inline void tf_move_weights(const tf_trained *trained, uint32_t at, uint32_t step,
                                   uint32_t random, uint32_t counter_step, uint32_t count,
                                   const int32_t *changes) {
    int8_t *weight = &trained->weights[at];
    if (trained->fractions == NULL) {
        for (uint32_t i = 0; i < count; i++, weight += step, random += counter_step) {
            const int32_t move = tf_round_bounded(changes[i], TF_STEP_BITS, random);
            *weight = (int8_t)tf_clamp(*weight + move, -127, 127);
        }
        return;
    }
    int8_t *fraction = &trained->fractions[at];
    for (uint32_t i = 0; i < count; i++, random += counter_step) {
        tf_move_state(weight, fraction, tf_round_bounded(changes[i], TF_STATE_BITS, random));
        weight += step, fraction += step;
    }
}

/* The weight at place `at` of the state, which is value `value` of its tensor's in the delta. */
static inline void tf_update_weight(const tf_trained *trained, const tf_update *update,
                                    uint32_t stream, uint32_t at, uint32_t value, int32_t gradient,
                                    tf_step step) {
    int32_t *velocity = trained->velocity == NULL ? NULL : &trained->velocity[at];
    const uint32_t counter = trained->first_value + value;
    int8_t *weight = &trained->weights[at];
    if (trained->fractions == NULL) {
        const int32_t move =
            tf_move_quickly(gradient, step, velocity, update, TF_STEP_BITS, stream, counter);
        *weight = (int8_t)tf_clamp(*weight + move, -127, 127);
        return;
    }
    const int32_t move =
        tf_move_quickly(gradient, step, velocity, update, TF_STATE_BITS, stream, counter);
    tf_move_state(weight, &trained->fractions[at], move);
}

#endif
