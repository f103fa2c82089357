/* The classifier: wide logits, q8.8 weights, its gradients and update. */
#include "fixed_point.h"

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

static int16_t moved(int32_t weight, int32_t change) {
    return (int16_t)tf_clamp(weight - tf_clamp(change, -65536, 65536), -TF_Q88_LIMIT, TF_Q88_LIMIT);
}

/* One row of weights, for an error of a logit. */
static void update_row(int16_t *row, const int8_t *input, uint32_t count, int32_t zero,
                       int32_t error, tf_step step) {
    if (step.shift < 33 || step.shift > 62) {
        for (uint32_t i = 0; i < count; i++) {
            row[i] = moved(row[i], tf_apply_step(error * (input[i] - zero), step));
        }
        return;
    }
    /* As tf_apply_step, with the choice made once. */
    const int32_t shift = step.shift - 32, half = 1 << (shift - 1);
    for (uint32_t i = 0; i < count; i++) {
        const int32_t gradient = error * (input[i] - zero);
        const int32_t high = (int32_t)(((int64_t)gradient * step.mantissa) >> 32);
        row[i] = moved(row[i], (high + half) >> shift);
    }
}

void tf_head_update(const tf_head *layer, const int16_t *error, const tf_scale *scale,
                    const int8_t *input, int16_t *weights, int32_t *bias, const tf_update *update) {
    const uint32_t rate = update->learning_rate_q20;
    const tf_step step = tf_make_step(layer->weight_gain, rate, scale->exponent);
    const tf_step bias_step = tf_make_step(layer->bias_gain, rate, scale->exponent);
    for (uint32_t o = 0; o < layer->classes; o++) {
        update_row(weights + o * layer->in_channels, input, layer->in_channels, layer->in_zero,
                   error[o], step);
        bias[o] = tf_saturate32((int64_t)bias[o] - tf_apply_step(error[o], bias_step));
    }
}
