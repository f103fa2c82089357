/* Full convolution, backward: error of the input, gradient and update of the weights. */
#include "dot.h"
#include "fixed_point.h"
#include "weight_update.h"

/* The error of one channel times its multiplier; the shift is chosen so that a pixel's errors use
 * all bits of int16 but `error_headroom`. */
static inline int16_t scaled_error(const tf_convolution *layer, const int16_t *error, uint32_t o,
                                   int32_t shift) {
    return (int16_t)tf_round_shift32(error[o] * layer->error_multiplier[o], shift);
}

/* The scaled errors of output pixel `pixel`, as a column. */
static void scale_pixel(const tf_convolution *layer, const int16_t *error, uint32_t pixel,
                        int32_t shift, int16_t *column) {
    const int16_t *from = error + pixel * layer->out_channels;
    for (uint32_t o = 0; o < layer->out_channels; o++) {
        column[o] = scaled_error(layer, from, o, shift);
    }
}

/* sums[i] += sum over o of column[o] * weights[o * stride + i], i = 0 … 3. */
static void accumulate_four(const int16_t *column, const int8_t *weights, uint32_t stride,
                            uint32_t count, int32_t sums[4]) {
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
    uint32_t o = 0;
#if TF_DSP
    for (; o + 2 <= count; o += 2) {
        const uint32_t word0 = tf_load32(weights);
        const uint32_t word1 = tf_load32(weights + stride);
        const uint32_t even0 = (uint32_t)tf_even(word0), even1 = (uint32_t)tf_even(word1);
        const uint32_t odd0 = (uint32_t)tf_odd(word0), odd1 = (uint32_t)tf_odd(word1);
        const int16x2_t pair = (int16x2_t)tf_load32(column + o);
        s0 = __smlad(pair, (int16x2_t)tf_pack_low(even0, even1), s0);
        s1 = __smlad(pair, (int16x2_t)tf_pack_low(odd0, odd1), s1);
        s2 = __smlad(pair, (int16x2_t)tf_pack_high(even0, even1), s2);
        s3 = __smlad(pair, (int16x2_t)tf_pack_high(odd0, odd1), s3);
        weights += 2u * stride;
    }
#endif
    for (; o < count; o++, weights += stride) {
        s0 += column[o] * weights[0];
        s1 += column[o] * weights[1];
        s2 += column[o] * weights[2];
        s3 += column[o] * weights[3];
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}

static int32_t accumulate_one(const int16_t *column, const int8_t *weights, uint32_t stride,
                              uint32_t count) {
    int32_t sum = 0;
    for (uint32_t o = 0; o < count; o++) {
        sum += column[o] * weights[o * stride];
    }
    return sum;
}

static void store_error(int32_t sum, int32_t shift, int16_t *out, int32_t *magnitude) {
    const int32_t value = tf_clamp(tf_round_shift32(sum, shift), -32767, 32767);
    *out = (int16_t)value;
    tf_note_magnitude(magnitude, value);
}

/* transposed[i][o] = weights[o][i]. */
static void transpose(const int8_t *weights, uint32_t outputs, uint32_t inputs,
                      int8_t *transposed) {
    for (uint32_t o = 0; o < outputs; o++) {
        for (uint32_t i = 0; i < inputs; i++) {
            transposed[i * outputs + o] = weights[o * inputs + i];
        }
    }
}

/* The scaled errors of one output pixel, as column `slot` of a pair for tf_pair_dot. */
static void scale_pair(const tf_convolution *layer, const int16_t *error, uint32_t slot,
                       int32_t shift, int16_t *pair) {
    const uint32_t channels = layer->out_channels;
    for (uint32_t o = 0; o < channels; o++) {
        pair[tf_pair_index(channels, slot, o)] = scaled_error(layer, error, o, shift);
    }
    tf_pair_clear(pair, channels, slot, channels, tf_pair_length(channels) - channels);
}

/* Pointwise layers are a forward pass with transposed weights: worth a copy of them, since every
 * weight is used for every pixel. */
static int32_t pointwise_input_gradient(const tf_convolution *layer, const int16_t *error,
                                        int32_t shift, const int8_t *weights, int16_t *out,
                                        int16_t *pair, int8_t *transposed) {
    const uint32_t pixels = (uint32_t)layer->in_height * layer->in_width;
    const uint32_t inputs = layer->in_channels, outputs = layer->out_channels;
    int32_t magnitude = 0;
    transpose(weights, outputs, inputs, transposed);
    for (uint32_t p = 0; p < pixels; p += 2u) {
        const uint32_t second = p + 1u < pixels ? p + 1u : p;
        scale_pair(layer, error + p * outputs, 0u, shift, pair);
        scale_pair(layer, error + second * outputs, 1u, shift, pair);
        int16_t *to0 = out + p * inputs, *to1 = out + second * inputs;
        const int8_t *row = transposed;
        for (uint32_t i = 0; i < inputs; i += 2u, row += 2u * outputs) {
            const uint32_t rows = inputs - i < 2u ? 1u : 2u;
            int32_t sums[4];
            tf_pair_dot(pair, row, rows == 2u ? outputs : 0u, outputs, sums);
            for (uint32_t r = 0; r < rows; r++) {
                store_error(sums[2u * r], layer->error_shift, &to0[i + r], &magnitude);
                store_error(sums[2u * r + 1u], layer->error_shift, &to1[i + r], &magnitude);
            }
        }
    }
    return magnitude;
}

/* The same without a copy: the weights of an output channel lie side by side, not those of an
 * input channel, so pairs are packed anew for every pixel. */
static int32_t pointwise_without_copy(const tf_convolution *layer, const int16_t *error,
                                      int32_t shift, const int8_t *weights, int16_t *out,
                                      int16_t *column) {
    const uint32_t pixels = (uint32_t)layer->in_height * layer->in_width;
    const uint32_t inputs = layer->in_channels, outputs = layer->out_channels;
    int32_t magnitude = 0;
    for (uint32_t p = 0; p < pixels; p++, out += inputs) {
        scale_pixel(layer, error, p, shift, column);
        uint32_t i = 0;
        for (; i + 4u <= inputs; i += 4u) {
            int32_t sums[4] = {0, 0, 0, 0};
            accumulate_four(column, weights + i, inputs, outputs, sums);
            for (uint32_t lane = 0; lane < 4u; lane++) {
                store_error(sums[lane], layer->error_shift, &out[i + lane], &magnitude);
            }
        }
        for (; i < inputs; i++) {
            store_error(accumulate_one(column, weights + i, inputs, outputs), layer->error_shift,
                        &out[i], &magnitude);
        }
    }
    return magnitude;
}

/* The output row or column that reads input position `at` through tap `tap`, or -1. */
static int32_t output_position(int32_t at, int32_t tap, int32_t pad, int32_t stride, int32_t size) {
    const int32_t scaled = at + pad - tap;
    if (scaled < 0 || scaled % stride != 0 || scaled / stride >= size) {
        return -1;
    }
    return scaled / stride;
}

/* Sum over all taps that input pixel (y, x) feeds, for channels i … i + lanes - 1. */
static void sum_taps(const tf_convolution *layer, const int16_t *error, int32_t shift,
                     const int8_t *weights, int32_t y, int32_t x, uint32_t i, uint32_t lanes,
                     int16_t *column, int32_t sums[4]) {
    const uint32_t channels = layer->in_channels;
    const uint32_t stride = (uint32_t)layer->kernel_height * layer->kernel_width * channels;
    for (int32_t row = 0; row < layer->kernel_height; row++) {
        const int32_t out_y =
            output_position(y, row, layer->pad_top, layer->stride_height, layer->out_height);
        if (out_y < 0) {
            continue;
        }
        for (int32_t col = 0; col < layer->kernel_width; col++) {
            const int32_t out_x =
                output_position(x, col, layer->pad_left, layer->stride_width, layer->out_width);
            if (out_x < 0) {
                continue;
            }
            const int8_t *tap =
                weights + (uint32_t)(row * layer->kernel_width + col) * channels + i;
            scale_pixel(layer, error, (uint32_t)(out_y * layer->out_width + out_x), shift, column);
            if (lanes == 4u) {
                accumulate_four(column, tap, stride, layer->out_channels, sums);
                continue;
            }
            for (uint32_t lane = 0; lane < lanes; lane++) {
                sums[lane] += accumulate_one(column, tap + lane, stride, layer->out_channels);
            }
        }
    }
}

static int32_t spatial_input_gradient(const tf_convolution *layer, const int16_t *error,
                                      int32_t shift, const int8_t *weights, int16_t *out,
                                      int16_t *column) {
    const uint32_t channels = layer->in_channels;
    int32_t magnitude = 0;
    for (int32_t y = 0; y < layer->in_height; y++) {
        for (int32_t x = 0; x < layer->in_width; x++) {
            int16_t *pixel = out + (uint32_t)(y * layer->in_width + x) * channels;
            for (uint32_t i = 0; i < channels; i += 4) {
                const uint32_t lanes = channels - i < 4u ? channels - i : 4u;
                int32_t sums[4] = {0, 0, 0, 0};
                sum_taps(layer, error, shift, weights, y, x, i, lanes, column, sums);
                for (uint32_t lane = 0; lane < lanes; lane++) {
                    store_error(sums[lane], layer->error_shift, &pixel[i + lane], &magnitude);
                }
            }
        }
    }
    return magnitude;
}

static int is_pointwise(const tf_convolution *layer) {
    return layer->kernel_height == 1 && layer->kernel_width == 1 && layer->stride_height == 1 &&
           layer->stride_width == 1 && layer->pad_top == 0 && layer->pad_left == 0 &&
           layer->in_height == layer->out_height && layer->in_width == layer->out_width;
}

void tf_convolution_input_gradient(const tf_convolution *layer, const int16_t *error,
                                   const tf_scale *scale, const int8_t *weights, int16_t *out,
                                   tf_scale *out_scale, int16_t *scratch, int8_t *transposed) {
    const int32_t left = tf_headroom(scale) - layer->error_headroom;
    const int32_t shift = 15 - left;
    if (transposed != NULL) {
        out_scale->magnitude =
            pointwise_input_gradient(layer, error, shift, weights, out, scratch, transposed);
    } else if (is_pointwise(layer)) {
        out_scale->magnitude = pointwise_without_copy(layer, error, shift, weights, out, scratch);
    } else {
        out_scale->magnitude = spatial_input_gradient(layer, error, shift, weights, out, scratch);
    }
    out_scale->exponent = scale->exponent + layer->error_exponent - left + layer->error_shift;
}

/* Gradient of weight (o, tap, i) over all output pixels: sum of error * (input - zero). */
static int32_t weight_gradient(const tf_convolution *layer, const int16_t *error,
                               const int8_t *input, uint32_t o, int32_t row, int32_t col,
                               uint32_t i) {
    int64_t total = 0;
    int32_t line = 0;
    for (int32_t y = 0; y < layer->out_height; y++) {
        const int32_t in_y = y * layer->stride_height + row - layer->pad_top;
        if (in_y < 0 || in_y >= layer->in_height) {
            continue;
        }
        for (int32_t x = 0; x < layer->out_width; x++) {
            const int32_t in_x = x * layer->stride_width + col - layer->pad_left;
            if (in_x < 0 || in_x >= layer->in_width) {
                continue;
            }
            line += error[(uint32_t)(y * layer->out_width + x) * layer->out_channels + o] *
                    (input[(uint32_t)(in_y * layer->in_width + in_x) * layer->in_channels + i] -
                     layer->in_zero);
        }
        if (layer->gradient_shift > 0) {
            total += line;
            line = 0;
        }
    }
    return layer->gradient_shift > 0 ? (int32_t)tf_round_shift(total, layer->gradient_shift) : line;
}

#if TF_DSP
/* Gradients of two output by four input channels of a pointwise layer, two pixels a turn.
 * The zero point is taken off at the end: sum of e * (x - z) = sum of e * x - z * sum of e. */
static void pointwise_gradient_2x4(const tf_convolution *layer, const int16_t *error,
                                   const int8_t *input, uint32_t pixels, int32_t sums0[4],
                                   int32_t sums1[4]) {
    const uint32_t out_step = layer->out_channels, in_step = layer->in_channels;
    const int16x2_t ones = (int16x2_t)0x00010001u;
    int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
    int32_t total0 = 0, total1 = 0;
    uint32_t p = 0;
    for (; p + 2 <= pixels; p += 2) {
        const uint32_t first = tf_load32(error), next = tf_load32(error + out_step);
        const int16x2_t e0 = (int16x2_t)tf_pack_low(first, next);
        const int16x2_t e1 = (int16x2_t)tf_pack_high(first, next);
        const uint32_t word0 = tf_load32(input), word1 = tf_load32(input + in_step);
        const uint32_t even0 = (uint32_t)tf_even(word0), even1 = (uint32_t)tf_even(word1);
        const uint32_t odd0 = (uint32_t)tf_odd(word0), odd1 = (uint32_t)tf_odd(word1);
        const int16x2_t x0 = (int16x2_t)tf_pack_low(even0, even1);
        const int16x2_t x1 = (int16x2_t)tf_pack_low(odd0, odd1);
        const int16x2_t x2 = (int16x2_t)tf_pack_high(even0, even1);
        const int16x2_t x3 = (int16x2_t)tf_pack_high(odd0, odd1);
        a0 = __smlad(e0, x0, a0);
        b0 = __smlad(e1, x0, b0);
        a1 = __smlad(e0, x1, a1);
        b1 = __smlad(e1, x1, b1);
        a2 = __smlad(e0, x2, a2);
        b2 = __smlad(e1, x2, b2);
        a3 = __smlad(e0, x3, a3);
        b3 = __smlad(e1, x3, b3);
        total0 = __smlad(e0, ones, total0);
        total1 = __smlad(e1, ones, total1);
        error += 2u * out_step;
        input += 2u * in_step;
    }
    sums0[0] = a0, sums0[1] = a1, sums0[2] = a2, sums0[3] = a3;
    sums1[0] = b0, sums1[1] = b1, sums1[2] = b2, sums1[3] = b3;
    if (p < pixels) {
        for (uint32_t lane = 0; lane < 4u; lane++) {
            sums0[lane] += error[0] * input[lane];
            sums1[lane] += error[1] * input[lane];
        }
        total0 += error[0];
        total1 += error[1];
    }
    for (uint32_t lane = 0; lane < 4u; lane++) {
        sums0[lane] -= layer->in_zero * total0;
        sums1[lane] -= layer->in_zero * total1;
    }
}
#endif

static void update_row(const tf_convolution *layer, const tf_trained *trained,
                       const tf_update *update, uint32_t line, uint32_t i, const int32_t *gradients,
                       uint32_t count, tf_step step) {
    for (uint32_t lane = 0; lane < count; lane++) {
        tf_update_weight(trained, update, line * layer->in_channels + i + lane,
                         line * trained->count + i + lane - trained->start, gradients[lane], step);
    }
}

void tf_convolution_weight_update(const tf_convolution *layer, const int16_t *error,
                                  const tf_scale *scale, const int8_t *input,
                                  const tf_trained *trained, const tf_update *update) {
    const uint32_t taps = (uint32_t)layer->kernel_height * layer->kernel_width;
    const uint32_t end = (uint32_t)trained->start + trained->count;
    const uint32_t rate = update->learning_rate_q20;
    const int32_t exponent = scale->exponent + layer->gradient_shift + tf_fraction_bits(trained);
    uint32_t o = 0;
#if TF_DSP
    if (is_pointwise(layer) && layer->gradient_shift == 0 && trained->count % 4u == 0u) {
        const uint32_t pixels = (uint32_t)layer->out_height * layer->out_width;
        for (; o + 2 <= layer->out_channels; o += 2) {
            const tf_step step0 = tf_make_step(layer->weight_gain[o], rate, exponent);
            const tf_step step1 = tf_make_step(layer->weight_gain[o + 1], rate, exponent);
            for (uint32_t i = trained->start; i < end; i += 4) {
                int32_t sums0[4], sums1[4];
                pointwise_gradient_2x4(layer, error + o, input + i, pixels, sums0, sums1);
                update_row(layer, trained, update, o, i, sums0, 4, step0);
                update_row(layer, trained, update, o + 1, i, sums1, 4, step1);
            }
        }
    }
#endif
    for (; o < layer->out_channels; o++) {
        const tf_step step = tf_make_step(layer->weight_gain[o], rate, exponent);
        for (uint32_t tap = 0; tap < taps; tap++) {
            const int32_t row = (int32_t)(tap / layer->kernel_width);
            const int32_t col = (int32_t)(tap % layer->kernel_width);
            for (uint32_t i = trained->start; i < end; i++) {
                const int32_t gradient = weight_gradient(layer, error, input, o, row, col, i);
                update_row(layer, trained, update, o * taps + tap, i, &gradient, 1, step);
            }
        }
    }
}
