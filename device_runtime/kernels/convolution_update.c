/* Full convolution, backward: gradients of trained weights, and the step that they take. */
#include "block.h"
#include "fixed_point.h"
#include "weight_update.h"

#ifdef TF_VECTOR
#include "../vector/updates.h"
#endif

/* What does not change between the trained channels of a layer. */
typedef struct {
    const tf_convolution *layer;
    const int16_t *error;
    const int8_t *input;
    const tf_trained *trained;
    const tf_update *update;
    int16_t *planes;
    uint32_t pixels, even;   /* of the output; rounded up to an even number */
    uint32_t length, packed; /* of a row of the trained matrix; filled up */
    int32_t exponent;        /* of the steps */
    uint32_t stream;         /* of random bits */
} job;

/* Inputs of `lanes` trained channels from `j` on, minus the zero point, at what the tap sees from
 * each output pixel. */
static __attribute__((noinline)) void gather(const job *job, uint32_t tap, uint32_t j,
                                             uint32_t lanes) {
    const tf_convolution *layer = job->layer;
    const tf_trained *trained = job->trained;
    const uint32_t width = layer->out_width;
    const int32_t row = (int32_t)(tap / layer->kernel_width) - layer->pad_top;
    const int32_t col = (int32_t)(tap % layer->kernel_width) - layer->pad_left;
    const int32_t zero = layer->in_zero;
    /* Lanes that are not wanted repeat the last. */
    const uint32_t last = j + lanes - 1u;
    const uint32_t c0 = tf_place_in_input(trained, j);
    const uint32_t c1 = tf_place_in_input(trained, lanes > 1u ? j + 1u : last);
    const uint32_t c2 = tf_place_in_input(trained, lanes > 2u ? j + 2u : last);
    const uint32_t c3 = tf_place_in_input(trained, last);
    uint32_t at = 0;
    for (uint32_t y = 0; y < layer->out_height; y++) {
        const int32_t in_y = (int32_t)(y * layer->stride_height) + row;
        const uint32_t inside = in_y >= 0 && in_y < layer->in_height;
        const int8_t *line =
            job->input + (inside ? (uint32_t)in_y : 0u) * layer->in_width * trained->in_channels;
        int32_t in_x = col;
        for (uint32_t x = 0; x < width; x++, at++, in_x += layer->stride_width) {
            int16_t *to = job->planes + tf_plane_index(job->even, 0, at);
            if (!inside || in_x < 0 || in_x >= layer->in_width) {
                for (uint32_t lane = 0; lane < TF_BLOCK_LANES; lane++) {
                    to[tf_plane_index(job->even, lane, 0)] = 0;
                }
                continue;
            }
            const int8_t *pixel = line + (uint32_t)in_x * trained->in_channels;
            to[0] = (int16_t)(pixel[c0] - zero);
            to[tf_plane_index(job->even, 1, 0)] = (int16_t)(pixel[c1] - zero);
            to[tf_plane_index(job->even, 2, 0)] = (int16_t)(pixel[c2] - zero);
            to[tf_plane_index(job->even, 3, 0)] = (int16_t)(pixel[c3] - zero);
        }
    }
}

/* Adds error * input of one pixel; `both` output channels or only the first. */
static void add_pixel(const job *job, const int16_t *error, uint32_t both, uint32_t pixel,
                      tf_gradients *sums) {
    const int16_t *at = error + pixel * job->layer->out_channels;
    for (uint32_t lane = 0; lane < TF_BLOCK_LANES; lane++) {
        const int32_t input = job->planes[tf_plane_index(job->even, lane, pixel)];
        sums->of[0][lane] += at[0] * input;
        sums->of[1][lane] += both ? at[1] * input : 0;
    }
}

/* Sums of error * input over `count` (at most TF_PIECE) pixels from `first` (even) on. */
static void sum_piece(const job *job, const int16_t *error, uint32_t both, uint32_t first,
                      uint32_t count, tf_gradients *sums) {
    const uint32_t step = job->layer->out_channels;
    uint32_t done = 0;
#if TF_DSP
    if (both && count >= 2u) {
        done = count & ~1u;
        tf_block_correlate(job->planes + tf_plane_index(job->even, 0, first), error + first * step,
                           2u * step, done / 2u, sums);
    } else {
        memset(sums, 0, sizeof *sums);
    }
#else
    int16_t errors[2][TF_PIECE];
    for (; done < count; done++) {
        const int16_t *at = error + (first + done) * step;
        errors[0][done] = at[0];
        errors[1][done] = both ? at[1] : 0;
    }
    for (uint32_t lane = 0; lane < TF_BLOCK_LANES; lane++) {
        const int16_t *plane = job->planes + tf_plane_index(job->even, lane, first);
        int32_t sum0 = 0, sum1 = 0;
        for (uint32_t i = 0; i < count; i++) {
            sum0 += plane[i] * errors[0][i];
            sum1 += plane[i] * errors[1][i];
        }
        sums->of[0][lane] = sum0;
        sums->of[1][lane] = sum1;
    }
#endif
    for (; done < count; done++) {
        add_pixel(job, error, both, first + done, sums);
    }
}

/* The same over all pixels, in 64 bits, and rounded to what the layer's gradients keep. */
static __attribute__((noinline)) void sum_wide(const job *job, const int16_t *error, uint32_t both,
                                               tf_gradients *sums) {
    int64_t totals[2][TF_BLOCK_LANES] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    for (uint32_t first = 0; first < job->pixels; first += TF_PIECE) {
        const uint32_t left = job->pixels - first;
        tf_gradients part;
        sum_piece(job, error, both, first, left < TF_PIECE ? left : TF_PIECE, &part);
        for (uint32_t lane = 0; lane < TF_BLOCK_LANES; lane++) {
            totals[0][lane] += part.of[0][lane];
            totals[1][lane] += part.of[1][lane];
        }
    }
    for (uint32_t lane = 0; lane < TF_BLOCK_LANES; lane++) {
        sums->of[0][lane] = (int32_t)tf_round_shift(totals[0][lane], job->layer->gradient_shift);
        sums->of[1][lane] = (int32_t)tf_round_shift(totals[1][lane], job->layer->gradient_shift);
    }
}

/* Weights l … l + lanes - 1 of row o take their steps. */
static __attribute__((noinline)) void update_row(const job *job, uint32_t o, uint32_t l,
                                                 uint32_t lanes, const int32_t *gradients) {
    const tf_trained *trained = job->trained;
    const tf_step step =
        tf_make_step(job->layer->weight_gain[o], job->update->learning_rate_q20, job->exponent);
    const uint32_t at = tf_packed_place(o, l, job->packed);
    const uint32_t value = o * job->length + l;
    if (trained->velocity == NULL && tf_is_bounded(step)) {
        int32_t changes[TF_BLOCK_LANES];
        for (uint32_t lane = 0; lane < TF_BLOCK_LANES; lane++) {
            changes[lane] = tf_apply_bounded(gradients[lane], step);
        }
        tf_move_weights(trained, at, 2u, job->stream + trained->first_value + value, 1u, lanes,
                        changes);
        return;
    }
    for (uint32_t lane = 0; lane < lanes; lane++) {
        tf_update_weight(trained, job->update, job->stream, at + 2u * lane, value + lane,
                         gradients[lane], step);
    }
}

static uint32_t pixels_of(const tf_convolution *layer) {
    return (uint32_t)layer->out_width * layer->out_height;
}

uint32_t tf_convolution_weight_update_scratch_bytes(const tf_convolution *layer) {
    return sizeof(int16_t) * TF_BLOCK_LANES * ((pixels_of(layer) + 1u) & ~1u);
}

void tf_convolution_weight_update(const tf_convolution *layer, const int16_t *error,
                                  const tf_scale *scale, const int8_t *input,
                                  const tf_trained *trained, const tf_update *update,
                                  int16_t *scratch) {
#ifdef TF_VECTOR
    if (tf_convolution_update_in_lanes(layer, error, scale, input, trained, update)) {
        return;
    }
#endif
    const uint32_t outputs = layer->out_channels;
    const uint32_t pixels = pixels_of(layer);
    const uint32_t even = (pixels + 1u) & ~1u;
    const uint32_t length = (uint32_t)layer->kernel_height * layer->kernel_width * trained->count;
    const int32_t exponent = scale->exponent + layer->gradient_shift + tf_weight_bits(trained);
    const job job = {layer,    error,
                     input,    trained,
                     update,   scratch,
                     pixels,   even,
                     length,   tf_packed_length(length),
                     exponent, tf_update_stream(update)};
    for (uint32_t l = 0; l < length;) {
        const uint32_t tap = l / trained->count, j = l % trained->count;
        const uint32_t left = trained->count - j;
        const uint32_t lanes = left < TF_BLOCK_LANES ? left : TF_BLOCK_LANES;
        gather(&job, tap, j, lanes);
        for (uint32_t o = 0; o < outputs; o += 2u) {
            const uint32_t both = outputs - o > 1u;
            tf_gradients sums;
            if (pixels <= TF_PIECE) {
                sum_piece(&job, error + o, both, 0, pixels, &sums);
            } else {
                sum_wide(&job, error + o, both, &sums);
            }
            update_row(&job, o, l, lanes, sums.of[0]);
            if (both) {
                update_row(&job, o + 1u, l, lanes, sums.of[1]);
            }
        }
        l += lanes;
    }
}
