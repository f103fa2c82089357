/* What is long of a step and rare: one copy for all updates. */
#include "weight_update.h"

int32_t tf_move_by(int32_t gradient, tf_step step, int32_t *velocity, const tf_update *update,
                   uint32_t bits, uint32_t stream, uint32_t counter) {
    return tf_move(tf_apply_step(gradient, step), velocity, update, bits, stream, counter);
}
