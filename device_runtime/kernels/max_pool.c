/* Largest value under each window, and its gradient: the error goes to the first of the largest. */
#include "pool_window.h"

/* Places of windows with more than 256 positions take two bytes. */
static inline uint32_t is_wide(const tf_pool_window *window) {
    return (uint32_t)window->height * window->width > 256u;
}

static inline void put_place(uint8_t *places, uint32_t wide, uint32_t index, uint32_t place) {
    if (wide != 0u) {
        places[2u * index + 1u] = (uint8_t)(place >> 8);
    }
    places[index << wide] = (uint8_t)place;
}

static inline uint32_t get_place(const uint8_t *places, uint32_t wide, uint32_t index) {
    const uint32_t low = places[index << wide];
    return wide != 0u ? low | (uint32_t)places[2u * index + 1u] << 8 : low;
}

void tf_max_pool_forward(const tf_pool_window *window, const int8_t *input, int8_t *output,
                         uint8_t *places) {
    const uint32_t channels = window->channels, wide = is_wide(window);
    uint32_t index = 0;
    for (uint32_t y = 0; y < window->out_height; y++) {
        const tf_reach rows = tf_window_rows(window, y);
        for (uint32_t x = 0; x < window->out_width; x++) {
            const tf_reach columns = tf_window_columns(window, x);
            for (uint32_t c = 0; c < channels; c++, index++) {
                int32_t largest = -129;
                uint32_t place = 0;
                for (int32_t row = rows.first; row < rows.end; row++) {
                    const uint32_t line = (uint32_t)row * window->in_width;
                    /* Row and column within the window, padding included. */
                    const int32_t down = row - rows.first + rows.before;
                    for (int32_t column = columns.first; column < columns.end; column++) {
                        const int32_t value = input[(line + (uint32_t)column) * channels + c];
                        if (value > largest) {
                            const int32_t right = column - columns.first + columns.before;
                            largest = value;
                            place = (uint32_t)(down * window->width + right);
                        }
                    }
                }
                output[index] = (int8_t)largest;
                if (places != NULL) {
                    put_place(places, wide, index, place);
                }
            }
        }
    }
}

void tf_max_pool_input_gradient(const tf_pool_window *window, const int16_t *error,
                                const tf_scale *scale, const uint8_t *places, int16_t *out,
                                tf_scale *out_scale) {
    const uint32_t channels = window->channels, wide = is_wide(window);
    const int32_t shift = tf_shift_to_leave(scale, window->overlap_bits);
    const uint32_t size = tf_window_input(window);
    memset(out, 0, size * sizeof *out);
    uint32_t index = 0;
    for (uint32_t y = 0; y < window->out_height; y++) {
        for (uint32_t x = 0; x < window->out_width; x++) {
            for (uint32_t c = 0; c < channels; c++, index++) {
                const uint32_t place = get_place(places, wide, index);
                const uint32_t row =
                    y * window->stride_height + place / window->width - window->pad_top;
                const uint32_t column =
                    x * window->stride_width + place % window->width - window->pad_left;
                int16_t *target = out + (row * window->in_width + column) * channels + c;
                *target = (int16_t)(*target + tf_round_shift32(error[index], shift));
            }
        }
    }
    out_scale->exponent = scale->exponent + shift;
    out_scale->magnitude = tf_largest_error(out, size);
}
