/* Where a pooling window lies on the picture, and scattering errors from windows. */
#ifndef TINYFLEET_POOL_WINDOW_H
#define TINYFLEET_POOL_WINDOW_H

#include <string.h>

#include "fixed_point.h"

/* Input rows or columns `first` … `end` - 1 under a window, none where it lies in the padding only;
 * `before` of the window lie outside. */
typedef struct {
    int32_t first, end, before;
} tf_reach;

static inline tf_reach tf_reach_of(int32_t output, int32_t stride, int32_t pad, int32_t window,
                                   int32_t size) {
    const int32_t start = output * stride - pad;
    const int32_t stop = start + window;
    const int32_t first = start < 0 ? 0 : start > size ? size : start;
    const int32_t end = stop > size ? size : stop < first ? first : stop;
    const tf_reach reach = {first, end, start < 0 ? -start : 0};
    return reach;
}

static inline tf_reach tf_window_rows(const tf_pool_window *window, uint32_t y) {
    return tf_reach_of((int32_t)y, window->stride_height, window->pad_top, window->height,
                       window->in_height);
}

static inline tf_reach tf_window_columns(const tf_pool_window *window, uint32_t x) {
    return tf_reach_of((int32_t)x, window->stride_width, window->pad_left, window->width,
                       window->in_width);
}

static inline uint32_t tf_window_input(const tf_pool_window *window) {
    return (uint32_t)window->in_height * window->in_width * window->channels;
}

#endif
