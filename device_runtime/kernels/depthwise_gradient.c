/* Depthwise convolution, backward. */
#include "fixed_point.h"
#include "weight_update.h"

/* First output position whose window can reach input position `at`, and the one past the last. */
static void reaching(int32_t at, int32_t pad, int32_t stride, int32_t kernel, int32_t size,
                     int32_t *first, int32_t *last)
{
    const int32_t low = at + pad - kernel + 1;
    *first = low <= 0 ? 0 : (low + stride - 1) / stride;
    const int32_t high = (at + pad) / stride + 1;
    *last = high > size ? size : high;
}

void tf_depthwise_input_gradient(const tf_convolution *layer, const int16_t *error,
                                 const tf_scale *scale, const int8_t *weights, int16_t *out,
                                 tf_scale *out_scale)
{
    const uint32_t channels = layer->out_channels;
    const int32_t left = tf_headroom(scale);
    const int32_t shift = 15 + layer->error_shift - left;
    int32_t magnitude = 0;
    for (int32_t y = 0; y < layer->in_height; y++) {
        int32_t first_y, last_y;
        reaching(y, layer->pad_top, layer->stride_height, layer->kernel_height,
                 layer->out_height, &first_y, &last_y);
        for (int32_t x = 0; x < layer->in_width; x++) {
            int32_t first_x, last_x;
            reaching(x, layer->pad_left, layer->stride_width, layer->kernel_width,
                     layer->out_width, &first_x, &last_x);
            int16_t *pixel = out + (uint32_t)(y * layer->in_width + x) * channels;
            for (uint32_t c = 0; c < channels; c++) {
                int32_t sum = 0;
                for (int32_t i = first_y; i < last_y; i++) {
                    const int32_t row = y + layer->pad_top - i * layer->stride_height;
                    const int16_t *from =
                        error + (uint32_t)(i * layer->out_width + first_x) * channels + c;
                    for (int32_t j = first_x; j < last_x; j++, from += channels) {
                        const int32_t col = x + layer->pad_left - j * layer->stride_width;
                        sum += *from *
                               weights[(uint32_t)(row * layer->kernel_width + col) * channels + c];
                    }
                }
                const int64_t product = (int64_t)sum * layer->error_multiplier[c];
                const int32_t value =
                    tf_clamp((int32_t)tf_round_shift(product, shift), -32767, 32767);
                pixel[c] = (int16_t)value;
                tf_note_magnitude(&magnitude, value);
            }
        }
    }
    out_scale->exponent = scale->exponent + layer->error_exponent - left + layer->error_shift;
    out_scale->magnitude = magnitude;
}

static int32_t weight_gradient(const tf_convolution *layer, const int16_t *error,
                               const int8_t *input, int32_t row, int32_t col, uint32_t c)
{
    const uint32_t channels = layer->out_channels;
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
            line += error[(uint32_t)(y * layer->out_width + x) * channels + c] *
                    (input[(uint32_t)(in_y * layer->in_width + in_x) * channels + c] -
                     layer->in_zero);
        }
        if (layer->gradient_shift > 0) {
            total += line;
            line = 0;
        }
    }
    return layer->gradient_shift > 0 ? (int32_t)tf_round_shift(total, layer->gradient_shift)
                                     : line;
}

void tf_depthwise_weight_update(const tf_convolution *layer, const int16_t *error,
                                const tf_scale *scale, const int8_t *input,
                                const tf_trained *trained, const tf_update *update)
{
    const uint32_t taps = (uint32_t)layer->kernel_height * layer->kernel_width;
    const uint32_t end = (uint32_t)trained->start + trained->count;
    for (uint32_t c = trained->start; c < end; c++) {
        const tf_gain gain = tf_step_gain(layer->weight_gain[c], update->learning_rate_q20);
        for (uint32_t tap = 0; tap < taps; tap++) {
            const int32_t gradient =
                weight_gradient(layer, error, input, (int32_t)(tap / layer->kernel_width),
                                (int32_t)(tap % layer->kernel_width), c);
            tf_update_weight(trained, update, tap * layer->out_channels + c,
                             tap * trained->count + c - trained->start, gradient, gain,
                             scale->exponent + layer->gradient_shift);
        }
    }
}
