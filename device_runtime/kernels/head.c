/* The classifier: wide logits, q8.8 weights, its gradients and update. */
#include "pairs.h"
#include "weight_update.h"

#ifdef TF_VECTOR
#include "../vector/updates.h"
#endif

#if TF_DSP

/* *sum += the products of both halves. Compilers move the sum's halves about for __smlald. */
static inline void add_pairs(int64_t *sum, uint32_t a, uint32_t b) {
    __asm("smlald %Q0, %R0, %1, %2" : "+r"(*sum) : "r"(a), "r"(b));
}

#endif

/* sums[0], sums[1] += the inner products of `input` less the zero point and two rows of weights. */
static void add_products(const tf_head *layer, const int8_t *input, const int16_t *first,
                         const int16_t *second, int64_t sums[2]) {
    const int8_t *end = input + layer->in_channels;
    int64_t a = sums[0], b = sums[1];
#if TF_DSP
    const uint32_t minus = tf_minus(layer->in_zero);
    const int8_t *quads_end = end - layer->in_channels % 4u;
    for (; input != quads_end; input += 4, first += 4, second += 4) {
        const uint32_t codes = tf_load32(input);
        const uint32_t even = tf_even_plus(minus, codes), odd = tf_odd_plus(minus, codes);
        const uint32_t low = tf_pack_lower(even, odd), high = tf_pack_upper(even, odd);
        add_pairs(&a, tf_load32(first), low);
        add_pairs(&a, tf_load32(first + 2), high);
        add_pairs(&b, tf_load32(second), low);
        add_pairs(&b, tf_load32(second + 2), high);
    }
#endif
    for (; input != end; input++, first++, second++) {
        a += (*input - layer->in_zero) * *first;
        b += (*input - layer->in_zero) * *second;
    }
    sums[0] = a;
    sums[1] = b;
}

void tf_head_forward(const tf_head *layer, const int8_t *input, const int16_t *weights,
                     const int32_t *bias, int32_t *logits) {
    for (uint32_t o = 0; o < layer->classes; o += 2u) {
        /* Of an odd number of classes, the last is its own partner. */
        const uint32_t next = o + 1u < layer->classes ? o + 1u : o;
        int64_t sums[2] = {bias[o], bias[next]};
        add_products(layer, input, weights + o * layer->in_channels,
                     weights + next * layer->in_channels, sums);
        logits[o] = tf_saturate32(sums[0]);
        logits[next] = tf_saturate32(sums[1]);
    }
}

/* Errors of channels `channel` and the next one (which is left 0 behind the last), as exact as the
 * sums are. */
static void weighted_sums(const tf_head *layer, const int16_t *error, const int16_t *weights,
                          uint32_t channel, int64_t sums[2]) {
    const uint32_t channels = layer->in_channels;
    const int16_t *row = weights + channel, *end = error + layer->classes;
    int64_t a = 0, b = 0;
    if (channel + 1u == channels) {
        for (; error != end; error++, row += channels) {
            a += (int64_t)*error * row[0];
        }
    }
#if TF_DSP
    const int16_t *pairs_end = end - ((end - error) & 1);
    for (; error != pairs_end; error += 2, row += 2u * channels) {
        const uint32_t both = tf_load32(error);
        const uint32_t first = tf_load32(row), second = tf_load32(row + channels);
        add_pairs(&a, both, tf_pack_lower(first, second));
        add_pairs(&b, both, tf_pack_upper(first, second));
    }
#endif
    for (; error != end; error++, row += channels) {
        a += (int64_t)*error * row[0];
        b += (int64_t)*error * row[1];
    }
    sums[0] = a * layer->error_multiplier;
    sums[1] = b * layer->error_multiplier;
}

void tf_head_input_gradient(const tf_head *layer, const int16_t *error, const tf_scale *scale,
                            const int16_t *weights, int16_t *out, tf_scale *out_scale) {
    /* Twice over the classes, since the scale must be known before the first value is kept. */
    int64_t sums[2];
    uint64_t largest = 0;
    for (uint32_t i = 0; i < layer->in_channels; i += 2u) {
        weighted_sums(layer, error, weights, i, sums);
        for (uint32_t j = 0; j < 2u; j++) {
            const uint64_t size = (uint64_t)(sums[j] < 0 ? -sums[j] : sums[j]);
            largest = size > largest ? size : largest;
        }
    }
    const int32_t shift = tf_bit_length64(largest) - 15;
    int32_t magnitude = 0;
    for (uint32_t i = 0; i < layer->in_channels; i += 2u) {
        weighted_sums(layer, error, weights, i, sums);
        for (uint32_t j = 0; j < 2u && i + j < layer->in_channels; j++) {
            const int32_t value = tf_clamp((int32_t)tf_round_shift(sums[j], shift), -32767, 32767);
            out[i + j] = (int16_t)value;
            tf_note_magnitude(&magnitude, value);
        }
    }
    out_scale->exponent = scale->exponent + layer->error_exponent - 15 + shift;
    out_scale->magnitude = magnitude;
}

/* All weights where there are no velocities. */
static void update_weights(const tf_head *layer, const int16_t *error, tf_step step,
                           const int8_t *input, int16_t *weights, uint32_t random) {
    const int32_t zero = layer->in_zero;
    const int8_t *end = input + layer->in_channels;
    for (uint32_t o = 0; o < layer->classes; o++) {
        const int32_t by = error[o];
        for (const int8_t *next = input; next != end; next++, weights++) {
            const int32_t change = tf_apply_bounded(by * (*next - zero), step);
            const int32_t moved = *weights + tf_round_bounded(change, TF_STATE_BITS, random++);
            *weights = (int16_t)tf_clamp(moved, -TF_Q88_LIMIT, TF_Q88_LIMIT);
        }
    }
}

void tf_head_update(const tf_head *layer, const int16_t *error, const tf_scale *scale,
                    const int8_t *input, int16_t *weights, const tf_whole *of_weights,
                    int32_t *bias, const tf_whole *of_bias, const tf_update *update) {
    const uint32_t rate = update->learning_rate_q20;
    const uint32_t stream = tf_update_stream(update);
    const tf_step step = tf_make_step(layer->weight_gain, rate, scale->exponent + TF_STATE_BITS);
    const tf_step bias_step = tf_make_step(layer->bias_gain, rate, scale->exponent + TF_BIAS_BITS);
    uint32_t at = 0, weights_are_done = 0;
#ifdef TF_VECTOR
    weights_are_done =
        tf_head_update_in_lanes(layer, error, step, input, weights, of_weights, update);
#endif
    if (!weights_are_done && of_weights->velocity == NULL && tf_is_bounded(step)) {
        update_weights(layer, error, step, input, weights, stream + of_weights->first_value);
        weights_are_done = 1;
    }
    for (uint32_t o = 0; o < layer->classes; o++) {
        for (uint32_t i = 0; i < layer->in_channels && !weights_are_done; i++, at++) {
            const int32_t gradient = error[o] * (input[i] - layer->in_zero);
            int32_t *velocity = of_weights->velocity == NULL ? NULL : &of_weights->velocity[at];
            const int32_t move = tf_move_by(gradient, step, velocity, update, TF_STATE_BITS, stream,
                                            of_weights->first_value + at);
            weights[at] = (int16_t)tf_clamp(weights[at] + move, -TF_Q88_LIMIT, TF_Q88_LIMIT);
        }
        int32_t *velocity = of_bias->velocity == NULL ? NULL : &of_bias->velocity[o];
        const int32_t move = tf_move_by(error[o], bias_step, velocity, update, TF_BIAS_BITS, stream,
                                        of_bias->first_value + o);
        bias[o] = tf_saturate32((int64_t)bias[o] + move);
    }
}
