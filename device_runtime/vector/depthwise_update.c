/* Depthwise convolution on the host: gradients of trained weights, and the step that they take. */
#include "steps.h"
#include "updates.h"

/* What does not change between the taps of TF_LANES channels. */
typedef struct {
    const tf_convolution *layer;
    const int8_t *input; /* at the first channel */
    uint32_t in_channels;
    const tf_lanes *error; /* rows of pairs of columns; the last of an odd number has no error */
    uint32_t pairs, lanes;
} tile;

static inline tf_lanes input_at(const tile *tile, const int8_t *row, uint32_t column) {
    const tf_convolution *layer = tile->layer;
    if (column >= layer->in_width) {
        return tf_lanes_all(0);
    }
    const int8_t *from = row + column * tile->in_channels;
    return tf_lanes_add(tf_lanes_widen8(from, tile->lanes), tf_lanes_all(-layer->in_zero));
}

static tf_lanes gradients_of_tap(const tile *tile, uint32_t row, uint32_t col) {
    const tf_convolution *layer = tile->layer;
    tf_lanes sums = tf_lanes_all(0);
    for (uint32_t y = 0; y < layer->out_height; y++) {
        const uint32_t in_y = y * layer->stride_height + row - layer->pad_top;
        if (in_y >= layer->in_height) {
            continue;
        }
        const int8_t *from = tile->input + in_y * layer->in_width * tile->in_channels;
        const tf_lanes *error = tile->error + y * tile->pairs;
        uint32_t column = col - layer->pad_left;
        for (uint32_t pair = 0; pair < tile->pairs; pair++) {
            const tf_lanes first = input_at(tile, from, column);
            const tf_lanes second = input_at(tile, from, column + layer->stride_width);
            sums = tf_lanes_add_products(sums, tf_pairs_of(first, second), error[pair]);
            column += 2u * layer->stride_width;
        }
    }
    return sums;
}

static void keep_error(const tile *tile, const int16_t *error, tf_lanes *to) {
    const tf_convolution *layer = tile->layer;
    const uint32_t channels = layer->out_channels;
    for (uint32_t y = 0; y < layer->out_height; y++) {
        for (uint32_t x = 0; x < layer->out_width; x += 2u, error += 2u * channels) {
            const tf_lanes first = tf_lanes_widen16(error, tile->lanes);
            const tf_lanes second = x + 1u < layer->out_width
                                        ? tf_lanes_widen16(error + channels, tile->lanes)
                                        : tf_lanes_all(0);
            *to++ = tf_pairs_of(first, second);
        }
        error -= layer->out_width % 2u == 0u ? 0u : channels;
    }
}

/* Weights value … value + count - 1, of neighbouring channels, take their steps. */
static void update_weights(const tf_trained *trained, uint32_t stream, uint32_t value,
                           uint32_t count, tf_lanes gradients, const tf_lanes_step *step) {
    const uint32_t has_fractions = trained->fractions != NULL;
    const tf_lanes before = tf_lanes_widen8(trained->weights + value, count);
    tf_lanes fractions = tf_lanes_all(0);
    if (has_fractions) {
        fractions = tf_lanes_widen8(trained->fractions + value, count);
    }
    const tf_lanes after = tf_lanes_take_step(before, &fractions, has_fractions, gradients, step,
                                              stream + trained->first_value + value);
    tf_lanes_store_codes(trained->weights + value, after, count);
    if (has_fractions) {
        tf_lanes_store_codes(trained->fractions + value, fractions, count);
    }
}

/* Trained channels t … t + lanes - 1. */
static void run_tile(const tile *tile, const tf_trained *trained, const tf_update *update,
                     uint32_t t, int32_t exponent) {
    const tf_convolution *layer = tile->layer;
    const uint32_t stream = tf_update_stream(update);
    tf_step steps[TF_LANES] = {{0, 0}};
    tf_lanes_step step;
    for (uint32_t i = 0; i < tile->lanes; i++) {
        const tf_gain gain = layer->weight_gain[trained->channels[t + i]];
        steps[i] = tf_make_step(gain, update->learning_rate_q20, exponent);
    }
    const uint32_t of_one_kind = tf_lanes_make_step(steps, tile->lanes, &step);
    for (uint32_t row = 0; row < layer->kernel_height; row++) {
        for (uint32_t col = 0; col < layer->kernel_width; col++) {
            const tf_lanes gradients = gradients_of_tap(tile, row, col);
            const uint32_t value = (row * layer->kernel_width + col) * trained->count + t;
            if (of_one_kind) {
                update_weights(trained, stream, value, tile->lanes, gradients, &step);
                continue;
            }
            int32_t each[TF_LANES];
            tf_lanes_store(each, gradients);
            for (uint32_t i = 0; i < tile->lanes; i++) {
                tf_update_weight(trained, update, stream, value + i, value + i, each[i], steps[i]);
            }
        }
    }
}

uint32_t tf_depthwise_update_in_lanes(const tf_convolution *layer, const int16_t *error,
                                      const tf_scale *scale, const int8_t *input,
                                      const tf_trained *trained, const tf_update *update) {
    const uint32_t pixels = (uint32_t)layer->out_width * layer->out_height;
    const uint32_t pairs = (layer->out_width + 1u) / 2u;
    tf_lanes errors[TF_PIECE];
    if (trained->velocity != NULL || layer->gradient_shift != 0u || pixels > TF_PIECE) {
        return 0;
    }
    const int32_t exponent = scale->exponent + tf_weight_bits(trained);
    for (uint32_t t = 0, lanes; t < trained->count; t += lanes) {
        const uint16_t *channels = trained->channels + t;
        const uint32_t left = trained->count - t;
        for (lanes = 1; lanes < left && lanes < TF_LANES; lanes++) {
            if (channels[lanes] != channels[0] + lanes) {
                break;
            }
        }
        const tile tile = {.layer = layer,
                           .input = input + tf_place_in_input(trained, t),
                           .in_channels = trained->in_channels,
                           .error = errors,
                           .pairs = pairs,
                           .lanes = lanes};
        keep_error(&tile, error + channels[0], errors);
        run_tile(&tile, trained, update, t, exponent);
    }
    return 1;
}
