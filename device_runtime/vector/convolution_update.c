/* Full convolution on the host: gradients of trained weights, and the step that they take. */
#include "steps.h"
#include "tinyfleet/row_pairs.h"
#include "updates.h"

/* Errors take so much of the stack at most. */
#define ERROR_BYTES (64u * 1024u)

/* What does not change between the trained channels of a layer. */
typedef struct {
    const tf_convolution *layer;
    const int8_t *input;
    const tf_trained *trained;
    const tf_update *update;
    const int16_t *errors; /* of each output channel, at all pixels: */
    uint32_t pairs;        /* of pixels; the last one of an odd number has no error */
    uint32_t length, packed;
    int32_t exponent;
    uint32_t stream;
} job;

/* Inputs of `lanes` trained channels from `j` on, less the zero point, at what the tap sees from pixel
 * (y, x). */
static tf_lanes input_at(const job *job, uint32_t tap, uint32_t j, uint32_t lanes,
                         uint32_t in_a_row, uint32_t y, uint32_t x) {
    const tf_convolution *layer = job->layer;
    const tf_trained *trained = job->trained;
    const uint32_t in_y = y * layer->stride_height + tap / layer->kernel_width - layer->pad_top;
    const uint32_t in_x = x * layer->stride_width + tap % layer->kernel_width - layer->pad_left;
    if (in_y >= layer->in_height || in_x >= layer->in_width) {
        return tf_lanes_all(0);
    }
    const int8_t *pixel = job->input + (in_y * layer->in_width + in_x) * trained->in_channels;
    const tf_lanes minus = tf_lanes_all(-layer->in_zero);
    if (in_a_row) {
        return tf_lanes_add(tf_lanes_widen8(pixel + tf_place_in_input(trained, j), lanes), minus);
    }
    int8_t codes[TF_LANES] = {0};
    for (uint32_t i = 0; i < lanes; i++) {
        codes[i] = pixel[tf_place_in_input(trained, j + i)];
    }
    return tf_lanes_add(tf_lanes_widen8(codes, TF_LANES), minus);
}

/* The same at all pixels, by pairs of them. */
static void gather(const job *job, uint32_t tap, uint32_t j, uint32_t lanes, tf_lanes *to) {
    const tf_trained *trained = job->trained;
    const uint32_t in_a_row =
        tf_place_in_input(trained, j + lanes - 1u) == tf_place_in_input(trained, j) + lanes - 1u;
    const uint32_t height = job->layer->out_height, width = job->layer->out_width;
    uint32_t y = 0, x = 0;
    for (uint32_t pair = 0; pair < job->pairs; pair++) {
        tf_lanes of[2] = {tf_lanes_all(0), tf_lanes_all(0)};
        for (uint32_t i = 0; i < 2u && y < height; i++) {
            of[i] = input_at(job, tap, j, lanes, in_a_row, y, x);
            if (++x == width) {
                x = 0;
                y++;
            }
        }
        to[pair] = tf_pairs_of(of[0], of[1]);
    }
}

/* Row o's weights l … l + lanes - 1 one by one. */
static void update_singly(const job *job, uint32_t o, uint32_t l, uint32_t lanes,
                          tf_lanes gradients, tf_step step) {
    int32_t each[TF_LANES];
    tf_lanes_store(each, gradients);
    for (uint32_t i = 0; i < lanes; i++) {
        const uint32_t at = tf_packed_place(o, l + i, job->packed);
        tf_update_weight(job->trained, job->update, job->stream, at, o * job->length + l + i,
                         each[i], step);
    }
}

/* A row's bytes of what two rows have interleaved. */
static inline tf_lanes row_of(tf_lanes both, uint32_t row) {
    const tf_lanes by = tf_lanes_all(row == 0u ? 24 : 16);
    return tf_lanes_right(tf_lanes_left(both, by), tf_lanes_all(24));
}

static inline void store_rows(int8_t *to, tf_lanes row0, tf_lanes row1, uint32_t lanes) {
    const tf_lanes low = tf_lanes_and(row0, tf_lanes_all(0xff));
    const tf_lanes both = tf_lanes_add(tf_lanes_left(row1, tf_lanes_all(8)), low);
    int16_t words[TF_LANES];
    if (lanes == TF_LANES) {
        tf_lanes_store16((int16_t *)(void *)to, both, TF_LANES);
        return;
    }
    tf_lanes_store16(words, both, TF_LANES);
    memcpy(to, words, 2u * lanes);
}

/* Weights l … l + lanes - 1 of rows o and, where it is there, o + 1 take their steps. */
static void update_rows(const job *job, uint32_t o, uint32_t l, uint32_t lanes,
                        const tf_lanes gradients[2]) {
    const tf_trained *trained = job->trained;
    const uint32_t rows = job->layer->out_channels - o < 2u ? 1u : 2u;
    tf_lanes_step steps[2];
    uint32_t vectors = trained->velocity == NULL;
    tf_step single[2];
    for (uint32_t row = 0; row < rows; row++) {
        single[row] = tf_make_step(job->layer->weight_gain[o + row], job->update->learning_rate_q20,
                                   job->exponent);
        vectors &= tf_lanes_spread_step(single[row], &steps[row]);
    }
    if (!vectors) {
        for (uint32_t row = 0; row < rows; row++) {
            update_singly(job, o + row, l, lanes, gradients[row], single[row]);
        }
        return;
    }
    const uint32_t at = tf_packed_place(o, l, job->packed);
    const uint32_t random = job->stream + trained->first_value + o * job->length + l;
    const uint32_t has_fractions = trained->fractions != NULL;
    const tf_lanes none = tf_lanes_all(0);
    const int16_t *words = (const int16_t *)(const void *)(trained->weights + at);
    const tf_lanes weights = tf_lanes_widen16(words, lanes);
    tf_lanes fractions = none;
    if (has_fractions) {
        words = (const int16_t *)(const void *)(trained->fractions + at);
        fractions = tf_lanes_widen16(words, lanes);
    }
    tf_lanes moved[2], left[2];
    for (uint32_t row = 0; row < 2u; row++) {
        moved[row] = row_of(weights, row);
        left[row] = row_of(fractions, row);
        if (row < rows) {
            moved[row] = tf_lanes_take_step(moved[row], &left[row], has_fractions, gradients[row],
                                            &steps[row], random + row * job->length);
        }
    }
    store_rows(trained->weights + at, moved[0], moved[1], lanes);
    if (has_fractions) {
        store_rows(trained->fractions + at, left[0], left[1], lanes);
    }
}

uint32_t tf_convolution_update_in_lanes(const tf_convolution *layer, const int16_t *error,
                                        const tf_scale *scale, const int8_t *input,
                                        const tf_trained *trained, const tf_update *update) {
    const uint32_t outputs = layer->out_channels;
    const uint32_t pixels = (uint32_t)layer->out_width * layer->out_height;
    const uint32_t even = (pixels + 1u) & ~1u;
    const uint32_t taps = (uint32_t)layer->kernel_height * layer->kernel_width;
    int16_t errors[ERROR_BYTES / sizeof(int16_t)];
    tf_lanes inputs[TF_PIECE / 2u];
    if (pixels > TF_PIECE || layer->gradient_shift != 0u ||
        (outputs + 1u) * even > ERROR_BYTES / sizeof(int16_t)) {
        return 0;
    }
    for (uint32_t o = 0; o < outputs; o++) {
        errors[o * even + even - 1u] = 0;
    }
    for (uint32_t p = 0; p < pixels; p++) {
        const int16_t *from = error + p * outputs;
        for (uint32_t o = 0; o < outputs; o++) {
            errors[o * even + p] = from[o];
        }
    }
    memset(errors + outputs * even, 0, sizeof *errors * even);
    const uint32_t length = taps * trained->count;
    const job job = {.layer = layer,
                     .input = input,
                     .trained = trained,
                     .update = update,
                     .errors = errors,
                     .pairs = even / 2u,
                     .length = length,
                     .packed = tf_packed_length(length),
                     .exponent = scale->exponent + tf_weight_bits(trained),
                     .stream = tf_update_stream(update)};
    for (uint32_t l = 0, lanes; l < length; l += lanes) {
        const uint32_t tap = l / trained->count, j = l % trained->count;
        const uint32_t left = trained->count - j;
        lanes = left < TF_LANES ? left : TF_LANES;
        gather(&job, tap, j, lanes, inputs);
        for (uint32_t o = 0; o < outputs; o += 2u) {
            const int16_t *first = errors + o * even, *second = first + even;
            tf_lanes sums[2] = {tf_lanes_all(0), tf_lanes_all(0)};
            for (uint32_t pair = 0; pair < job.pairs; pair++) {
                const tf_lanes x = inputs[pair];
                sums[0] = tf_lanes_add_products(sums[0], x, tf_pairs_all(first + 2u * pair));
                sums[1] = tf_lanes_add_products(sums[1], x, tf_pairs_all(second + 2u * pair));
            }
            update_rows(&job, o, l, lanes, sums);
        }
    }
    return 1;
}
