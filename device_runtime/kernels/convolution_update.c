/* Full convolution, backward: gradients of trained weights, and the step that they take. */
#include "block.h"
#include "fixed_point.h"
#include "weight_update.h"

/* Sums over so many pixels fit 32 bits (codegen/layer_arithmetic.py: PIXELS_IN_32_BITS). */
#define PIECE 256u

/* Errors of two output channels, or of the only one there is. */
typedef struct {
    const int16_t *first;
    uint32_t step; /* from pixel to pixel */
    uint32_t both;
} error_pair;

/* What one tap sees of up to four channels at all output pixels, minus the zero point. */
static void gather(const tf_convolution *layer, const int8_t *input, uint32_t tap,
                   const uint16_t *channels, uint32_t lanes, int16_t *planes) {
    const uint32_t width = layer->out_width, pixels = width * layer->out_height;
    const uint32_t even = (pixels + 1u) & ~1u;
    const int32_t row = (int32_t)(tap / layer->kernel_width) - layer->pad_top;
    const int32_t col = (int32_t)(tap % layer->kernel_width) - layer->pad_left;
    memset(planes, 0, 2u * TF_BLOCK_LANES * even);
    for (uint32_t y = 0; y < layer->out_height; y++) {
        const int32_t in_y = (int32_t)(y * layer->stride_height) + row;
        if (in_y < 0 || in_y >= layer->in_height) {
            continue;
        }
        const int8_t *line = input + (uint32_t)in_y * layer->in_width * layer->in_channels;
        for (uint32_t x = 0; x < width; x++) {
            const int32_t in_x = (int32_t)(x * layer->stride_width) + col;
            if (in_x < 0 || in_x >= layer->in_width) {
                continue;
            }
            const int8_t *pixel = line + (uint32_t)in_x * layer->in_channels;
            int16_t *to = planes + tf_plane_index(even, 0, y * width + x);
            for (uint32_t lane = 0; lane < lanes; lane++) {
                to[tf_plane_index(even, lane, 0)] =
                    (int16_t)(pixel[channels[lane]] - layer->in_zero);
            }
        }
    }
}

/* Adds error * input of one pixel. */
static void add_pixel(const int16_t *planes, uint32_t pixels, uint32_t pixel,
                      const error_pair *error, tf_gradients *sums) {
    const int16_t *at = error->first + pixel * error->step;
    for (uint32_t lane = 0; lane < TF_BLOCK_LANES; lane++) {
        const int32_t input = planes[tf_plane_index(pixels, lane, pixel)];
        sums->of[0][lane] += at[0] * input;
        sums->of[1][lane] += error->both ? at[1] * input : 0;
    }
}

/* Adds error * input of `count` (at most PIECE) pixels from `first` (even) on. */
static void add_piece(const int16_t *planes, uint32_t pixels, uint32_t first, uint32_t count,
                      const error_pair *error, tf_gradients *sums) {
    uint32_t i = 0;
#if TF_DSP
    if (error->both && count >= 2u) {
        i = count & ~1u;
        tf_block_correlate(planes + tf_plane_index(pixels, 0, first),
                           error->first + first * error->step, 2u * error->step, i / 2u, sums);
    }
#else
    int16_t errors[2][PIECE];
    for (; i < count; i++) {
        const int16_t *at = error->first + (first + i) * error->step;
        errors[0][i] = at[0];
        errors[1][i] = error->both ? at[1] : 0;
    }
    for (uint32_t lane = 0; lane < TF_BLOCK_LANES; lane++) {
        const int16_t *plane = planes + tf_plane_index(pixels, lane, first);
        int32_t sum0 = 0, sum1 = 0;
        for (i = 0; i < count; i++) {
            sum0 += plane[i] * errors[0][i];
            sum1 += plane[i] * errors[1][i];
        }
        sums->of[0][lane] += sum0;
        sums->of[1][lane] += sum1;
    }
#endif
    for (; i < count; i++) {
        add_pixel(planes, pixels, first + i, error, sums);
    }
}

/* The same over all pixels, in 64 bits, and rounded to what the layer's gradients keep. */
static void add_wide(const tf_convolution *layer, const int16_t *planes, uint32_t even,
                     const error_pair *error, tf_gradients *sums) {
    const uint32_t pixels = (uint32_t)layer->out_width * layer->out_height;
    int64_t totals[2][TF_BLOCK_LANES] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    for (uint32_t first = 0; first < pixels; first += PIECE) {
        const uint32_t count = pixels - first < PIECE ? pixels - first : PIECE;
        tf_gradients part = {{{0, 0, 0, 0}, {0, 0, 0, 0}}};
        add_piece(planes, even, first, count, error, &part);
        for (uint32_t lane = 0; lane < TF_BLOCK_LANES; lane++) {
            totals[0][lane] += part.of[0][lane];
            totals[1][lane] += part.of[1][lane];
        }
    }
    for (uint32_t lane = 0; lane < TF_BLOCK_LANES; lane++) {
        sums->of[0][lane] = (int32_t)tf_round_shift(totals[0][lane], layer->gradient_shift);
        sums->of[1][lane] = (int32_t)tf_round_shift(totals[1][lane], layer->gradient_shift);
    }
}

void tf_convolution_weight_update(const tf_convolution *layer, const int16_t *error,
                                  const tf_scale *scale, const int8_t *input,
                                  const tf_trained *trained, const tf_update *update,
                                  int16_t *scratch) {
    const uint32_t outputs = layer->out_channels;
    const uint32_t pixels = (uint32_t)layer->out_width * layer->out_height;
    const uint32_t even = (pixels + 1u) & ~1u;
    const uint32_t taps = (uint32_t)layer->kernel_height * layer->kernel_width;
    const uint32_t length = taps * trained->count, row_bytes = 2u * tf_packed_length(length);
    const uint32_t rate = update->learning_rate_q20;
    const int32_t exponent = scale->exponent + layer->gradient_shift + tf_fraction_bits(trained);
    for (uint32_t tap = 0, j = 0, l = 0; l < length; j = l % trained->count) {
        const uint32_t left = trained->count - j;
        const uint32_t lanes = left < TF_BLOCK_LANES ? left : TF_BLOCK_LANES;
        tap = l / trained->count;
        gather(layer, input, tap, trained->channels + j, lanes, scratch);
        for (uint32_t o = 0; o < outputs; o += 2u) {
            const uint32_t rows = outputs - o < 2u ? 1u : 2u;
            const error_pair two = {error + o, outputs, rows == 2u};
            tf_gradients sums = {{{0, 0, 0, 0}, {0, 0, 0, 0}}};
            if (pixels <= PIECE) {
                add_piece(scratch, even, 0, pixels, &two, &sums);
            } else {
                add_wide(layer, scratch, even, &two, &sums);
            }
            for (uint32_t r = 0; r < rows; r++) {
                const tf_step step = tf_make_step(layer->weight_gain[o + r], rate, exponent);
                const uint32_t at = o / 2u * row_bytes + 2u * l + r;
                const uint32_t value = (o + r) * length + l;
                for (uint32_t lane = 0; lane < lanes; lane++) {
                    tf_update_weight(trained, update, at + 2u * lane, value + lane,
                                     sums.of[r][lane], step);
                }
            }
        }
        l += lanes;
    }
}
