/* Mean under each window, into the same scale or another one, and its gradient. */
#include "pool_window.h"

/* Positions that a window averages over along one axis. */
static inline int32_t counted(int32_t output, int32_t stride, int32_t pad, int32_t window,
                              int32_t size, int32_t before, int32_t after) {
    const int32_t start = output * stride - pad;
    const int32_t end = start + window;
    return (end > size + after ? size + after : end) - (start < -before ? -before : start);
}

static int32_t counted_rows(const tf_average_pooling *layer, uint32_t y) {
    const tf_pool_window *window = &layer->window;
    return counted((int32_t)y, window->stride_height, window->pad_top, window->height,
                   window->in_height, layer->counted_top, layer->counted_bottom);
}

static int32_t counted_columns(const tf_average_pooling *layer, uint32_t x) {
    const tf_pool_window *window = &layer->window;
    return counted((int32_t)x, window->stride_width, window->pad_left, window->width,
                   window->in_width, layer->counted_left, layer->counted_right);
}

void tf_average_pool_forward(const tf_average_pooling *layer, const int8_t *input, int8_t *output,
                             uint8_t *mask) {
    const tf_pool_window *window = &layer->window;
    const uint32_t channels = window->channels;
    tf_mask_writer written = {mask, 0, 0};
    for (uint32_t y = 0; y < window->out_height; y++) {
        const tf_reach rows = tf_window_rows(window, y);
        const int32_t down = counted_rows(layer, y);
        for (uint32_t x = 0; x < window->out_width; x++) {
            const tf_reach columns = tf_window_columns(window, x);
            const int32_t count = down * counted_columns(layer, x);
            const int32_t inside = (rows.end - rows.first) * (columns.end - columns.first);
            for (uint32_t c = 0; c < channels; c++) {
                int32_t sum = -inside * layer->in_zero;
                for (int32_t row = rows.first; row < rows.end; row++) {
                    const uint32_t line = (uint32_t)row * window->in_width;
                    for (int32_t column = columns.first; column < columns.end; column++) {
                        sum += input[(line + (uint32_t)column) * channels + c];
                    }
                }
                int32_t value;
                if (layer->requantize == NULL) {
                    value = tf_mean_code(sum, layer->in_zero, count);
                } else {
                    const tf_requantizer by = tf_make_requantizer(
                        layer->requantize[count - layer->least_count], layer->out_zero);
                    value = tf_requantize(&by, tf_raise(sum, layer->pre_shift));
                }
                const int32_t clamped = tf_clamp8(value);
                *output++ = (int8_t)clamped;
                tf_mask_put(&written, clamped == value);
            }
        }
    }
    tf_mask_end(&written);
}

void tf_average_pool_input_gradient(const tf_average_pooling *layer, const int16_t *error,
                                    const tf_scale *scale, int16_t *out, tf_scale *out_scale) {
    const tf_pool_window *window = &layer->window;
    const uint32_t channels = window->channels;
    const int32_t left = tf_headroom(scale) - window->overlap_bits;
    const uint32_t size = tf_window_input(window);
    memset(out, 0, size * sizeof *out);
    for (uint32_t y = 0; y < window->out_height; y++) {
        const tf_reach rows = tf_window_rows(window, y);
        const int32_t down = counted_rows(layer, y);
        for (uint32_t x = 0; x < window->out_width; x++) {
            const tf_reach columns = tf_window_columns(window, x);
            const int32_t count = down * counted_columns(layer, x);
            const int32_t factor = layer->error_multiplier[count - layer->least_count];
            for (uint32_t c = 0; c < channels; c++) {
                const int32_t part = tf_round_shift32(*error++ * factor, 15 - left);
                for (int32_t row = rows.first; row < rows.end; row++) {
                    const uint32_t line = (uint32_t)row * window->in_width;
                    for (int32_t column = columns.first; column < columns.end; column++) {
                        int16_t *target = out + (line + (uint32_t)column) * channels + c;
                        *target = (int16_t)(*target + part);
                    }
                }
            }
        }
    }
    out_scale->exponent = scale->exponent + layer->error_exponent - left;
    out_scale->magnitude = tf_largest_error(out, size);
}
