/* Depthwise convolution, backward. */
#include "fixed_point.h"
#include "lanes.h"
#include "weight_update.h"

/* First output position whose window can reach input position `at`, and the one past the last. */
static void reaching(int32_t at, int32_t pad, int32_t stride, int32_t kernel, int32_t size,
                     int32_t *first, int32_t *last) {
    const int32_t low = at + pad - kernel + 1;
    *first = low <= 0 ? 0 : (low + stride - 1) / stride;
    const int32_t high = (at + pad) / stride + 1;
    *last = high > size ? size : high;
}

/* Output pixels that read one input pixel, and the taps through which they do. */
typedef struct {
    const int16_t *error; /* of the first output pixel, channel 0 */
    const int8_t *tap;    /* through which it reads, channel 0 */
    int32_t rows, cols;
    int32_t error_row, error_col; /* elements from one output pixel to the next */
    int32_t tap_row, tap_col;     /* elements from one tap to the next; they run backwards */
} readers;

static readers readers_of(const tf_convolution *layer, const int16_t *error, const int8_t *weights,
                          int32_t y, int32_t x) {
    const int32_t channels = layer->out_channels;
    int32_t first_y, last_y, first_x, last_x;
    reaching(y, layer->pad_top, layer->stride_height, layer->kernel_height, layer->out_height,
             &first_y, &last_y);
    reaching(x, layer->pad_left, layer->stride_width, layer->kernel_width, layer->out_width,
             &first_x, &last_x);
    const int32_t row = y + layer->pad_top - first_y * layer->stride_height;
    const int32_t col = x + layer->pad_left - first_x * layer->stride_width;
    readers r;
    r.rows = last_y - first_y;
    r.cols = last_x - first_x;
    r.error = error + (first_y * layer->out_width + first_x) * channels;
    r.tap = weights + (row * layer->kernel_width + col) * channels;
    r.error_row = layer->out_width * channels;
    r.error_col = channels;
    r.tap_row = -layer->stride_height * layer->kernel_width * channels;
    r.tap_col = -layer->stride_width * channels;
    return r;
}

static void sum_four(const readers *r, uint32_t channel, int32_t sums[4]) {
    int32_t local[4] = {0, 0, 0, 0};
    for (int32_t i = 0; i < r->rows; i++) {
        const int16_t *error = r->error + i * r->error_row + channel;
        const int8_t *tap = r->tap + i * r->tap_row + channel;
        for (int32_t j = 0; j < r->cols; j++) {
            tf_accumulate_s16(error + j * r->error_col, tap + j * r->tap_col, 0, local);
        }
    }
    memcpy(sums, local, sizeof local);
}

static int32_t sum_one(const readers *r, uint32_t channel) {
    int32_t sum = 0;
    for (int32_t i = 0; i < r->rows; i++) {
        for (int32_t j = 0; j < r->cols; j++) {
            sum += r->error[i * r->error_row + j * r->error_col + (int32_t)channel] *
                   r->tap[i * r->tap_row + j * r->tap_col + (int32_t)channel];
        }
    }
    return sum;
}

static int16_t scaled(const tf_convolution *layer, uint32_t channel, int32_t sum, int32_t shift,
                      int32_t *magnitude) {
    const int64_t product = (int64_t)sum * layer->error_multiplier[channel];
    const int32_t value = tf_clamp((int32_t)tf_round_shift(product, shift), -32767, 32767);
    tf_note_magnitude(magnitude, value);
    return (int16_t)value;
}

void tf_depthwise_input_gradient(const tf_convolution *layer, const int16_t *error,
                                 const tf_scale *scale, const int8_t *weights, int16_t *out,
                                 tf_scale *out_scale) {
    const uint32_t channels = layer->out_channels;
    const int32_t left = tf_headroom(scale);
    const int32_t shift = 15 + layer->error_shift - left;
    int32_t magnitude = 0;
    for (int32_t y = 0; y < layer->in_height; y++) {
        for (int32_t x = 0; x < layer->in_width; x++, out += channels) {
            const readers r = readers_of(layer, error, weights, y, x);
            uint32_t c = 0;
            for (; c + 4 <= channels; c += 4) {
                int32_t sums[4];
                sum_four(&r, c, sums);
                for (uint32_t lane = 0; lane < 4u; lane++) {
                    out[c + lane] = scaled(layer, c + lane, sums[lane], shift, &magnitude);
                }
            }
            for (; c < channels; c++) {
                out[c] = scaled(layer, c, sum_one(&r, c), shift, &magnitude);
            }
        }
    }
    out_scale->exponent = scale->exponent + layer->error_exponent - left + layer->error_shift;
    out_scale->magnitude = magnitude;
}

/* First output position whose tap `tap` lies inside the input, and the one past the last. */
static void covered(int32_t tap, int32_t pad, int32_t stride, int32_t in_size, int32_t out_size,
                    int32_t *first, int32_t *last) {
    const int32_t before = pad - tap;
    *first = before <= 0 ? 0 : (before + stride - 1) / stride;
    const int32_t reach = in_size - 1 + before;
    const int32_t end = reach < 0 ? 0 : reach / stride + 1;
    *last = end > out_size ? out_size : end;
}

/* Gradients of `lanes` (4 or 1) channels of one tap: sums of error * (input - zero). */
static void tap_gradient(const tf_convolution *layer, const int16_t *error, const int8_t *input,
                         int32_t row, int32_t col, uint32_t lanes, int32_t gradients[4]) {
    const int32_t channels = layer->out_channels;
    int32_t first_y, last_y, first_x, last_x;
    covered(row, layer->pad_top, layer->stride_height, layer->in_height, layer->out_height,
            &first_y, &last_y);
    covered(col, layer->pad_left, layer->stride_width, layer->in_width, layer->out_width, &first_x,
            &last_x);
    int64_t totals[4] = {0, 0, 0, 0};
    int32_t sums[4] = {0, 0, 0, 0};
    for (int32_t y = first_y; y < last_y; y++) {
        const int32_t in_y = y * layer->stride_height + row - layer->pad_top;
        const int32_t in_x = first_x * layer->stride_width + col - layer->pad_left;
        const int16_t *from = error + (y * layer->out_width + first_x) * channels;
        const int8_t *seen = input + (in_y * layer->in_width + in_x) * channels;
        for (int32_t x = first_x; x < last_x; x++) {
            if (lanes == 4u) {
                tf_accumulate_s16(from, seen, layer->in_zero, sums);
            } else {
                sums[0] += *from * (*seen - layer->in_zero);
            }
            from += channels;
            seen += layer->stride_width * channels;
        }
        for (uint32_t lane = 0; layer->gradient_shift > 0 && lane < lanes; lane++) {
            totals[lane] += sums[lane];
            sums[lane] = 0;
        }
    }
    for (uint32_t lane = 0; lane < lanes; lane++) {
        gradients[lane] = layer->gradient_shift > 0
                              ? (int32_t)tf_round_shift(totals[lane], layer->gradient_shift)
                              : sums[lane];
    }
}

void tf_depthwise_weight_update(const tf_convolution *layer, const int16_t *error,
                                const tf_scale *scale, const int8_t *input,
                                const tf_trained *trained, const tf_update *update) {
    const uint32_t taps = (uint32_t)layer->kernel_height * layer->kernel_width;
    const uint32_t end = (uint32_t)trained->start + trained->count;
    const int32_t exponent = scale->exponent + layer->gradient_shift + tf_fraction_bits(trained);
    uint32_t lanes;
    for (uint32_t c = trained->start; c < end; c += lanes) {
        lanes = end - c >= 4u ? 4u : 1u;
        tf_step steps[4];
        for (uint32_t lane = 0; lane < lanes; lane++) {
            steps[lane] =
                tf_make_step(layer->weight_gain[c + lane], update->learning_rate_q20, exponent);
        }
        for (uint32_t tap = 0; tap < taps; tap++) {
            int32_t gradients[4];
            tap_gradient(layer, error + c, input + c, (int32_t)(tap / layer->kernel_width),
                         (int32_t)(tap % layer->kernel_width), lanes, gradients);
            for (uint32_t lane = 0; lane < lanes; lane++) {
                tf_update_weight(trained, update, tap * layer->out_channels + c + lane,
                                 tap * trained->count + c + lane - trained->start, gradients[lane],
                                 steps[lane]);
            }
        }
    }
}
