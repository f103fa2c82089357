/* Rounds many values as training steps and deltas do, for tests of what rounding adds. */
#include "../../../device_runtime/kernels/weight_update.h"
#include "tinyfleet/engine.h"

/* moves[i]: the change of value i, rounded at random in that step. */
void round_changes(uint32_t seed, uint32_t step, int32_t change, uint32_t bits, uint32_t count,
                   int32_t *moves) {
    tf_update update = {.seed = seed, .step_index = step};
    const uint32_t stream = tf_update_stream(&update);
    for (uint32_t i = 0; i < count; i++) {
        moves[i] = tf_round_move(change, bits, stream, i);
    }
}

/* deltas[i]: `change` states of an int16 tensor, in units of 2^shift. */
void round_delta(uint32_t seed, int16_t change, uint8_t shift, uint16_t count, int16_t *state,
                 const uint8_t *zeros, int32_t *deltas) {
    const tf_segment segment = {
        .values = count, .row = count, .count = count, .bytes = 2, .shift = shift};
    const tf_plan plan = {.delta_values = count, .segment_count = 1, .segments = &segment};
    const tf_engine engine = {
        .plan = &plan,
        .frame = {.weights = zeros, .state = (uint8_t *)state, .seed = seed},
    };
    tf_delta_cursor cursor;
    for (uint16_t i = 0; i < count; i++) {
        state[i] = change;
    }
    tf_delta_begin(&cursor, &engine);
    for (uint16_t i = 0; i < count; i++) {
        deltas[i] = tf_delta_next(&cursor);
    }
}
