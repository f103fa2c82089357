/* The classifier: wide logits, q8.8 weights, its gradients and update. */
#include "fixed_point.h"

static int32_t saturate32(int64_t value)
{
    if (value > INT32_MAX) {
        return INT32_MAX;
    }
    return value < -INT32_MAX ? -INT32_MAX : (int32_t)value;
}

void tf_head_forward(const tf_head *layer, const int8_t *input, const int16_t *weights,
                     const int32_t *bias, int32_t *logits)
{
    for (uint32_t o = 0; o < layer->classes; o++) {
        int64_t sum = bias[o];
        for (uint32_t i = 0; i < layer->in_channels; i++) {
            sum += (input[i] - layer->in_zero) * weights[o * layer->in_channels + i];
        }
        logits[o] = saturate32(sum);
    }
}

static int64_t weighted_sum(const tf_head *layer, const int16_t *error, const int16_t *weights,
                            uint32_t channel)
{
    int64_t sum = 0;
    for (uint32_t o = 0; o < layer->classes; o++) {
        sum += (int64_t)error[o] * weights[o * layer->in_channels + channel];
    }
    return sum * layer->error_multiplier;
}

void tf_head_input_gradient(const tf_head *layer, const int16_t *error, const tf_scale *scale,
                            const int16_t *weights, int16_t *out, tf_scale *out_scale)
{
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
                    const int8_t *input, int16_t *weights, int32_t *bias,
                    const tf_update *update)
{
    const tf_gain weight_gain = tf_step_gain(layer->weight_gain, update->learning_rate_q20);
    const tf_gain bias_gain = tf_step_gain(layer->bias_gain, update->learning_rate_q20);
    for (uint32_t o = 0; o < layer->classes; o++) {
        int16_t *row = weights + o * layer->in_channels;
        for (uint32_t i = 0; i < layer->in_channels; i++) {
            const int32_t gradient = error[o] * (input[i] - layer->in_zero);
            const int64_t next =
                (int64_t)row[i] - tf_apply_gain(gradient, weight_gain, scale->exponent);
            row[i] = (int16_t)(next > TF_Q88_LIMIT
                                   ? TF_Q88_LIMIT
                                   : (next < -TF_Q88_LIMIT ? -TF_Q88_LIMIT : next));
        }
        bias[o] =
            saturate32((int64_t)bias[o] - tf_apply_gain(error[o], bias_gain, scale->exponent));
    }
}
