/* The classifier on the host: its weights take their step. */
#include "steps.h"
#include "updates.h"

uint32_t tf_head_update_in_lanes(const tf_head *layer, const int16_t *error, tf_step step,
                                 const int8_t *input, int16_t *weights, const tf_whole *of_weights,
                                 const tf_update *update) {
    const tf_lanes zero = tf_lanes_all(layer->in_zero), limit = tf_lanes_all(TF_Q88_LIMIT);
    const uint32_t channels = layer->in_channels;
    uint32_t random = tf_update_stream(update) + of_weights->first_value;
    tf_lanes_step by;
    if (of_weights->velocity != NULL || !tf_lanes_spread_step(step, &by)) {
        return 0;
    }
    for (uint32_t o = 0; o < layer->classes; o++) {
        const tf_lanes class_error = tf_lanes_all(error[o]);
        for (uint32_t i = 0; i < channels; i += TF_LANES) {
            const uint32_t left = channels - i, count = left < TF_LANES ? left : TF_LANES;
            const tf_lanes codes = tf_lanes_less(tf_lanes_widen8(input + i, count), zero);
            const tf_lanes changes = tf_lanes_change(tf_lanes_times(codes, class_error), &by);
            const tf_lanes moves = tf_lanes_move(changes, TF_STATE_BITS, random + i);
            const tf_lanes moved = tf_lanes_add(tf_lanes_widen16(weights + i, count), moves);
            tf_lanes_store16(weights + i, tf_lanes_clamp(moved, tf_lanes_all(-TF_Q88_LIMIT), limit),
                             count);
        }
        weights += channels;
        random += channels;
    }
    return 1;
}
