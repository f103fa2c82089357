/* Gradient and update of the biases of a convolution, full or depthwise. */
#include "weight_update.h"

void tf_bias_update(const tf_convolution *layer, const int16_t *error, const tf_scale *scale,
                    int32_t *bias, const tf_whole *of_bias, const tf_update *update) {
    const uint32_t pixels = (uint32_t)layer->out_height * layer->out_width;
    const uint32_t channels = layer->out_channels;
    const uint32_t stream = tf_update_stream(update);
    const int32_t exponent = scale->exponent + TF_BIAS_BITS;
    for (uint32_t o = 0; o < channels; o++) {
        const int16_t *next = error + o;
        int32_t gradient = 0;
        for (uint32_t p = 0; p < pixels; p++, next += channels) {
            gradient += *next;
        }
        const tf_step step = tf_make_step(layer->bias_gain[o], update->learning_rate_q20, exponent);
        int32_t *velocity = of_bias->velocity == NULL ? NULL : &of_bias->velocity[o];
        const int32_t change = tf_apply_step(gradient, step);
        const int64_t moved = (int64_t)bias[o] + tf_move(change, velocity, update, TF_BIAS_BITS,
                                                         stream, of_bias->first_value + o);
        const int64_t limit = layer->bias_limit;
        bias[o] = (int32_t)(moved > limit ? limit : (moved < -limit ? -limit : moved));
    }
}
