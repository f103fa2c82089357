/* A model small enough to follow by hand, for tests of what is built around the engine.
 *
 * 16 inputs (or more: -DINPUTS), 4 classes: logits are integer dot products, training is the multiclass perceptron
 * (on a mistake the right class' row gains the input, the predicted one loses it). Weights blob:
 * int16 [4][inputs], then int32 [4] biases. Plan 0 trains both, plan 1 the biases only, plan 2 asks
 * for more memory than any board has, plan 3 is plan 0 with personal biases.
 */
#include <stddef.h>
#include <string.h>

#include "tinyfleet/engine.h"

#ifndef INPUTS
#define INPUTS 16
/* The SHA-256 of 144 zero bytes. */
#define FACTORY_SHA256                                                                            \
    0x81, 0xc6, 0x11, 0xf3, 0x5b, 0xff, 0x79, 0x49, 0x15, 0x38, 0xb2, 0xf7, 0xcf, 0x20, 0x1c,     \
        0x75, 0x97, 0xa6, 0x61, 0xa5, 0xc5, 0x49, 0x63, 0x35, 0x41, 0xc6, 0x2b, 0xdc, 0x8a, 0xf1, \
        0x61, 0x3f
#endif
#ifndef MODEL_DIGEST
#define MODEL_DIGEST 0x796E6974u
#endif
#ifndef PERSONAL_LAYOUT
#define PERSONAL_LAYOUT 0x42494153u
#endif
#define CLASSES 4
#define BIAS_STEP 4000 /* of a personal bias: so large that it decides something */
#define WEIGHTS_BYTES (CLASSES * INPUTS * 2 + CLASSES * 4)
#define BIASES_AT (CLASSES * INPUTS * 2)

static const uint8_t factory_weights[WEIGHTS_BYTES] __attribute__((aligned(4))) = {0};

static void forward_over(tf_frame *frame, const uint8_t *weights, const uint8_t *biases) {
    for (int class = 0; class < CLASSES; class ++) {
        int32_t sum;
        memcpy(&sum, biases + 4 * class, 4);
        for (int i = 0; i < INPUTS; i++) {
            int16_t weight;
            memcpy(&weight, weights + 2 * (class * INPUTS + i), 2);
            sum += weight * frame->input[i];
        }
        frame->logits[class] = sum;
    }
}

static void forward_all(tf_frame *frame) {
    forward_over(frame, frame->state, frame->state + BIASES_AT);
}

static void forward_biases(tf_frame *frame) {
    forward_over(frame, frame->weights, frame->state);
}

static int best_class(const tf_frame *frame) {
    int best = 0;
    for (int class = 1; class < CLASSES; class ++) {
        if (frame->logits[class] > frame->logits[best]) {
            best = class;
        }
    }
    return best;
}

static void loss(tf_frame *frame) {
    const int32_t gap = frame->logits[best_class(frame)] - frame->logits[frame->label];
    frame->loss_q16 = (uint32_t)gap << 6;
}

static void add_to_bias(uint8_t *biases, int class, int32_t amount) {
    int32_t bias;
    memcpy(&bias, biases + 4 * class, 4);
    bias += amount;
    memcpy(biases + 4 * class, &bias, 4);
}

static void add_to_row(uint8_t *weights, int class, const int8_t *input, int sign) {
    for (int i = 0; i < INPUTS; i++) {
        int16_t weight;
        memcpy(&weight, weights + 2 * (class * INPUTS + i), 2);
        weight = (int16_t)(weight + sign * (input[i] >> 3));
        memcpy(weights + 2 * (class * INPUTS + i), &weight, 2);
    }
}

static void backward_all(tf_frame *frame) {
    const int best = best_class(frame);
    if (best != frame->label) {
        add_to_row(frame->state, frame->label, frame->input, 1);
        add_to_row(frame->state, best, frame->input, -1);
        add_to_bias(frame->state + BIASES_AT, frame->label, 1);
        add_to_bias(frame->state + BIASES_AT, best, -1);
    }
}

static void backward_personal(tf_frame *frame) {
    const int best = best_class(frame);
    if (best == frame->label) {
        return;
    }
    if ((frame->updates & TF_UPDATE_SHARED) != 0u) {
        add_to_row(frame->state, frame->label, frame->input, 1);
        add_to_row(frame->state, best, frame->input, -1);
    }
    if ((frame->updates & TF_UPDATE_PERSONAL) != 0u) {
        add_to_bias(frame->state + BIASES_AT, frame->label, BIAS_STEP);
        add_to_bias(frame->state + BIASES_AT, best, -BIAS_STEP);
    }
}

static void backward_biases(tf_frame *frame) {
    const int best = best_class(frame);
    if (best != frame->label) {
        add_to_bias(frame->state, frame->label, 1);
        add_to_bias(frame->state, best, -1);
    }
}

static const tf_segment all_segments[] = {
    {.values = CLASSES * INPUTS, .row = INPUTS, .count = INPUTS, .bytes = 2},
    {.values = CLASSES,
     .blob_offset = BIASES_AT,
     .state_offset = BIASES_AT,
     .row = CLASSES,
     .count = CLASSES,
     .bytes = 4},
};

static const tf_segment personal_segments[] = {
    {.values = CLASSES * INPUTS, .row = INPUTS, .count = INPUTS, .bytes = 2},
    {.values = CLASSES,
     .blob_offset = BIASES_AT,
     .state_offset = BIASES_AT,
     .row = CLASSES,
     .count = CLASSES,
     .bytes = 4,
     .personal = 1},
};

static const tf_segment bias_segments[] = {
    {.values = CLASSES, .blob_offset = BIASES_AT, .row = CLASSES, .count = CLASSES, .bytes = 4},
};

static const tf_plan plans[] = {
    {.id = "plan 0: weights and biases.....",
     .arena_bytes = 8,
     .state_bytes = WEIGHTS_BYTES,
     .delta_values = CLASSES * INPUTS + CLASSES,
     .segment_count = 2,
     .accumulate = 1,
     .segments = all_segments,
     .forward = forward_all,
     .loss = loss,
     .backward = backward_all},
    {.id = "plan 1: biases.................",
     .arena_bytes = 8,
     .state_bytes = CLASSES * 4,
     .delta_values = CLASSES,
     .segment_count = 1,
     .accumulate = 1,
     .segments = bias_segments,
     .forward = forward_biases,
     .loss = loss,
     .backward = backward_biases},
    {.id = "plan 2: far too large..........",
     .arena_bytes = 1u << 20,
     .state_bytes = 16,
     .delta_values = CLASSES,
     .segment_count = 1,
     .accumulate = 1,
     .segments = bias_segments,
     .forward = forward_biases,
     .loss = loss,
     .backward = backward_biases},
    {.id = "plan 3: biases are personal....",
     .arena_bytes = 8,
     .state_bytes = WEIGHTS_BYTES,
     .delta_values = CLASSES * INPUTS + CLASSES,
     .shared_values = CLASSES * INPUTS,
     .personal_layout = PERSONAL_LAYOUT,
     .local_layout = 0x4C41434Fu,
     .segment_count = 2,
     .accumulate = 1,
     .segments = personal_segments,
     .forward = forward_all,
     .loss = loss,
     .backward = backward_personal},
};

const tf_model tf_the_model = {
    .bundle_id = "bundle of the tiny model.......",
    .weights_sha256 = {FACTORY_SHA256},
    .factory_weights = factory_weights,
    .model_digest = MODEL_DIGEST,
    .sample_digest = 0x74696E79u,
    .weights_bytes = WEIGHTS_BYTES,
    .sample_bytes = INPUTS,
    .labels = CLASSES,
    .classes = CLASSES,
    .plan_count = sizeof plans / sizeof plans[0],
    .plans = plans,
};
