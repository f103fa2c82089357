/* The classifier: wide logits, q8.8 weights, its gradients and update. */
#include "weight_update.h"

void tf_head_forward(const tf_head *layer, const int8_t *input, const int16_t *weights,
                     const int32_t *bias, int32_t *logits) {
    for (uint32_t o = 0; o < layer->classes; o++) {
        int64_t sum = bias[o];
        for (uint32_t i = 0; i < layer->in_channels; i++) {
            sum += (input[i] - layer->in_zero) * weights[o * layer->in_channels + i];
        }
        logits[o] = tf_saturate32(sum);
    }
}

static int64_t weighted_sum(const tf_head *layer, const int16_t *error, const int16_t *weights,
                            uint32_t channel) {
    int64_t sum = 0;
    for (uint32_t o = 0; o < layer->classes; o++) {
        sum += (int64_t)error[o] * weights[o * layer->in_channels + channel];
    }
    return sum * layer->error_multiplier;
}

void tf_head_input_gradient(const tf_head *layer, const int16_t *error, const tf_scale *scale,
                            const int16_t *weights, int16_t *out, tf_scale *out_scale) {
    /* Twice over the classes, since the scale must be known before the first value is kept. */
    uint64_t largest = 0;
    for (uint32_t i = 0; i < layer->in_channels; i++) {
        const int64_t sum = weighted_sum(layer, error, weights, i);
        const uint64_t size = (uint64_t)(sum < 0 ? -sum : sum);
        largest = size > largest ? size : largest;
    }
    const int32_t shift = tf_bit_length64(largest) - 15;
    int32_t magnitude = 0;
    for (uint32_t i = 0; i < layer->in_channels; i++) {
        const int64_t sum = tf_round_shift(weighted_sum(layer, error, weights, i), shift);
        const int32_t value = tf_clamp((int32_t)sum, -32767, 32767);
        out[i] = (int16_t)value;
        tf_note_magnitude(&magnitude, value);
    }
    out_scale->exponent = scale->exponent + layer->error_exponent - 15 + shift;
    out_scale->magnitude = magnitude;
}

void tf_head_update(const tf_head *layer, const int16_t *error, const tf_scale *scale,
                    const int8_t *input, int16_t *weights, const tf_whole *of_weights,
                    int32_t *bias, const tf_whole *of_bias, const tf_update *update) {
    const uint32_t rate = update->learning_rate_q20;
    const uint32_t stream = tf_update_stream(update);
    const tf_step step = tf_make_step(layer->weight_gain, rate, scale->exponent + TF_STATE_BITS);
    const tf_step bias_step = tf_make_step(layer->bias_gain, rate, scale->exponent + TF_BIAS_BITS);
    uint32_t at = 0;
    for (uint32_t o = 0; o < layer->classes; o++) {
        for (uint32_t i = 0; i < layer->in_channels; i++, at++) {
            const int32_t gradient = error[o] * (input[i] - layer->in_zero);
            int32_t *velocity = of_weights->velocity == NULL ? NULL : &of_weights->velocity[at];
            const int32_t move = tf_move(tf_apply_step(gradient, step), velocity, update,
                                         TF_STATE_BITS, stream, of_weights->first_value + at);
            weights[at] = (int16_t)tf_clamp(weights[at] + move, -TF_Q88_LIMIT, TF_Q88_LIMIT);
        }
        int32_t *velocity = of_bias->velocity == NULL ? NULL : &of_bias->velocity[o];
        const int32_t move = tf_move(tf_apply_step(error[o], bias_step), velocity, update,
                                     TF_BIAS_BITS, stream, of_bias->first_value + o);
        bias[o] = tf_saturate32((int64_t)bias[o] + move);
    }
}
