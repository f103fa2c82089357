/* Full convolution, backward: gradients of trained weights, and the step that they take. */
#include "block.h"
#include "fixed_point.h"
#include "weight_update.h"

/* Gradients are made of four input channels and two output channels at a time. */
#define LANES 4u
/* Sums over so many pixels fit 32 bits (codegen/layer_arithmetic.py: PIXELS_IN_32_BITS). */
#define PIECE 256u

typedef struct {
    int32_t of[2][LANES];
} gradients;

/* Place of the input of `lane` at `pixel` among `pixels` (rounded up to an even number). */
static inline uint32_t plane_index(uint32_t pixels, uint32_t lane, uint32_t pixel) {
#if TF_DSP
    (void)pixels;
    return (pixel >> 1) * 2u * LANES + 2u * lane + (pixel & 1u);
#else
    return lane * pixels + pixel;
#endif
}

/* What one tap sees of the channels `channels` at all output pixels, minus the zero point. */
static void gather(const tf_convolution *layer, const int8_t *input, uint32_t tap,
                   const uint16_t *channels, uint32_t lanes, int16_t *planes) {
    const uint32_t width = layer->out_width, pixels = width * layer->out_height;
    const uint32_t even = (pixels + 1u) & ~1u;
    const int32_t row = (int32_t)(tap / layer->kernel_width) - layer->pad_top;
    const int32_t col = (int32_t)(tap % layer->kernel_width) - layer->pad_left;
    memset(planes, 0, 2u * LANES * even);
    for (uint32_t y = 0; y < layer->out_height; y++) {
        const int32_t in_y = (int32_t)(y * layer->stride_height) + row;
        if (in_y < 0 || in_y >= layer->in_height) {
            continue;
        }
        for (uint32_t x = 0; x < width; x++) {
            const int32_t in_x = (int32_t)(x * layer->stride_width) + col;
            if (in_x < 0 || in_x >= layer->in_width) {
                continue;
            }
            const int8_t *pixel =
                input + ((uint32_t)in_y * layer->in_width + (uint32_t)in_x) * layer->in_channels;
            for (uint32_t lane = 0; lane < lanes; lane++) {
                planes[plane_index(even, lane, y * width + x)] =
                    (int16_t)(pixel[channels[lane]] - layer->in_zero);
            }
        }
    }
}

/* Sums of error * input over `count` (at most PIECE) pixels from `first` (even) on. */
#if TF_DSP
static gradients sum_piece(const int16_t *planes, const int16_t *error, uint32_t step, uint32_t two,
                           uint32_t first, uint32_t count, uint32_t pixels) {
    int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
    const int16_t *input = planes + first * LANES;
    (void)pixels;
    error += first * step;
    for (; count > 0; input += 2u * LANES, error += 2u * step) {
        uint32_t now = (uint16_t)error[0], next = 0;
        if (two) {
            now = tf_load32(error);
        }
        if (count > 1u) {
            next = two ? tf_load32(error + step) : (uint16_t)error[step];
        }
        const int16x2_t e0 = (int16x2_t)tf_pack_low(now, next);
        const int16x2_t e1 = (int16x2_t)tf_pack_high(now, next);
        const int16x2_t x0 = (int16x2_t)tf_load32(input), x1 = (int16x2_t)tf_load32(input + 2);
        const int16x2_t x2 = (int16x2_t)tf_load32(input + 4), x3 = (int16x2_t)tf_load32(input + 6);
        a0 = __smlad(e0, x0, a0);
        a1 = __smlad(e0, x1, a1);
        a2 = __smlad(e0, x2, a2);
        a3 = __smlad(e0, x3, a3);
        b0 = __smlad(e1, x0, b0);
        b1 = __smlad(e1, x1, b1);
        b2 = __smlad(e1, x2, b2);
        b3 = __smlad(e1, x3, b3);
        count -= count > 1u ? 2u : 1u;
    }
    const gradients sums = {{{a0, a1, a2, a3}, {b0, b1, b2, b3}}};
    return sums;
}
#else
static gradients sum_piece(const int16_t *planes, const int16_t *error, uint32_t step, uint32_t two,
                           uint32_t first, uint32_t count, uint32_t pixels) {
    gradients sums;
    int16_t errors[2][PIECE];
    for (uint32_t i = 0; i < count; i++) {
        errors[0][i] = error[(first + i) * step];
        errors[1][i] = two ? error[(first + i) * step + 1u] : 0;
    }
    for (uint32_t lane = 0; lane < LANES; lane++) {
        const int16_t *plane = planes + lane * pixels + first;
        int32_t sum0 = 0, sum1 = 0;
        for (uint32_t i = 0; i < count; i++) {
            sum0 += plane[i] * errors[0][i];
            sum1 += plane[i] * errors[1][i];
        }
        sums.of[0][lane] = sum0;
        sums.of[1][lane] = sum1;
    }
    return sums;
}
#endif

/* Gradients of four inputs by the output channels of `error` and, with `two`, the next one. */
static gradients sum_all(const tf_convolution *layer, const int16_t *planes, const int16_t *error,
                         uint32_t two) {
    const uint32_t pixels = (uint32_t)layer->out_width * layer->out_height;
    const uint32_t even = (pixels + 1u) & ~1u, step = layer->out_channels;
    if (layer->gradient_shift == 0) {
        if (pixels <= PIECE) {
            return sum_piece(planes, error, step, two, 0, pixels, even);
        }
    }
    int64_t totals[2][LANES] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    for (uint32_t first = 0; first < pixels; first += PIECE) {
        const uint32_t count = pixels - first < PIECE ? pixels - first : PIECE;
        const gradients part = sum_piece(planes, error, step, two, first, count, even);
        for (uint32_t lane = 0; lane < LANES; lane++) {
            totals[0][lane] += part.of[0][lane];
            totals[1][lane] += part.of[1][lane];
        }
    }
    gradients sums;
    for (uint32_t lane = 0; lane < LANES; lane++) {
        sums.of[0][lane] = (int32_t)tf_round_shift(totals[0][lane], layer->gradient_shift);
        sums.of[1][lane] = (int32_t)tf_round_shift(totals[1][lane], layer->gradient_shift);
    }
    return sums;
}

void tf_convolution_weight_update(const tf_convolution *layer, const int16_t *error,
                                  const tf_scale *scale, const int8_t *input,
                                  const tf_trained *trained, const tf_update *update,
                                  int16_t *scratch) {
    const uint32_t taps = (uint32_t)layer->kernel_height * layer->kernel_width;
    const uint32_t length = taps * trained->count, row_pair = 2u * tf_packed_length(length);
    const uint32_t rate = update->learning_rate_q20, stream = tf_update_stream(update);
    const int32_t exponent = scale->exponent + layer->gradient_shift + tf_weight_bits(trained);
    for (uint32_t l = 0; l < length;) {
        const uint32_t tap = l / trained->count, j = l % trained->count;
        const uint32_t lanes = trained->count - j < LANES ? trained->count - j : LANES;
        gather(layer, input, tap, trained->channels + j, lanes, scratch);
        for (uint32_t o = 0; o < layer->out_channels; o += 2u) {
            const uint32_t rows = layer->out_channels - o < 2u ? 1u : 2u;
            const gradients sums = sum_all(layer, scratch, error + o, rows == 2u);
            for (uint32_t r = 0; r < rows; r++) {
                const tf_step step = tf_make_step(layer->weight_gain[o + r], rate, exponent);
                for (uint32_t lane = 0; lane < lanes; lane++) {
                    tf_update_weight(trained, update, stream,
                                     o / 2u * row_pair + 2u * (l + lane) + r,
                                     (o + r) * length + l + lane, sums.of[r][lane], step);
                }
            }
        }
        l += lanes;
    }
}
