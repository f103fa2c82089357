/* Float kernels of a dense training step, as an engine has them that trains everything: forward,
 * error of the input, gradient of weights and biases, SGD. Tensors are [H][W][C], weights
 * [O][Kh][Kw][I] or, depthwise, [Kh][Kw][C].
 *
 * `blocked`: pointwise layers as matrix products in blocks of 4 x 4 that stay in registers; without
 * it, and for all other layers, loops that keep one sum.
 */
#include <stdint.h>
#include <string.h>

typedef struct {
    int32_t in_height, in_width, in_channels;
    int32_t out_height, out_width, out_channels;
    int32_t kernel_height, kernel_width, stride_height, stride_width, pad_top, pad_left;
    float low, high; /* of the activation */
    int32_t blocked;
} dense_layer;

static int is_pointwise(const dense_layer *l) {
    return l->blocked && l->kernel_height == 1 && l->kernel_width == 1 && l->stride_height == 1 &&
           l->stride_width == 1;
}

/* c[m][n] += the sum over k of a[m * am + k * ak] * b[n * bn + k * bk]; c's rows are `n` long. */
static void multiply(const float *a, int32_t am, int32_t ak, const float *b, int32_t bn, int32_t bk,
                     float *c, int32_t m, int32_t n, int32_t k) {
    for (int32_t i = 0; i < m; i += 4) {
        const int32_t rows = m - i < 4 ? m - i : 4;
        for (int32_t j = 0; j < n; j += 4) {
            const int32_t columns = n - j < 4 ? n - j : 4;
            const float *x = a + i * am, *y = b + j * bn;
            if (rows == 4 && columns == 4) {
                float s[4][4] = {{0}};
                for (int32_t at = 0; at < k; at++, x += ak, y += bk) {
                    const float x0 = x[0], x1 = x[am], x2 = x[2 * am], x3 = x[3 * am];
                    const float y0 = y[0], y1 = y[bn], y2 = y[2 * bn], y3 = y[3 * bn];
                    s[0][0] += x0 * y0, s[0][1] += x0 * y1, s[0][2] += x0 * y2, s[0][3] += x0 * y3;
                    s[1][0] += x1 * y0, s[1][1] += x1 * y1, s[1][2] += x1 * y2, s[1][3] += x1 * y3;
                    s[2][0] += x2 * y0, s[2][1] += x2 * y1, s[2][2] += x2 * y2, s[2][3] += x2 * y3;
                    s[3][0] += x3 * y0, s[3][1] += x3 * y1, s[3][2] += x3 * y2, s[3][3] += x3 * y3;
                }
                for (int32_t p = 0; p < 4; p++) {
                    for (int32_t q = 0; q < 4; q++) {
                        c[(i + p) * n + j + q] += s[p][q];
                    }
                }
                continue;
            }
            for (int32_t p = 0; p < rows; p++) {
                for (int32_t q = 0; q < columns; q++) {
                    float sum = 0;
                    for (int32_t at = 0; at < k; at++) {
                        sum += x[p * am + at * ak] * y[q * bn + at * bk];
                    }
                    c[(i + p) * n + j + q] += sum;
                }
            }
        }
    }
}

static float clamped(const dense_layer *l, float value) {
    return value < l->low ? l->low : (value > l->high ? l->high : value);
}

/* Rows and columns of the input under tap (row, column) of output pixel (y, x); -1: outside. */
static int32_t input_at(const dense_layer *l, int32_t y, int32_t x, int32_t row, int32_t column) {
    const int32_t in_y = y * l->stride_height - l->pad_top + row;
    const int32_t in_x = x * l->stride_width - l->pad_left + column;
    if (in_y < 0 || in_y >= l->in_height || in_x < 0 || in_x >= l->in_width) {
        return -1;
    }
    return (in_y * l->in_width + in_x) * l->in_channels;
}

void tf_dense_convolution_forward(const dense_layer *l, const float *x, const float *w,
                                  const float *b, float *out) {
    const int32_t pixels = l->out_height * l->out_width, inputs = l->in_channels;
    const int32_t outputs = l->out_channels;
    for (int32_t p = 0; p < pixels; p++) {
        memcpy(out + p * outputs, b, sizeof *b * (uint32_t)outputs);
    }
    if (is_pointwise(l)) {
        multiply(x, inputs, 1, w, inputs, 1, out, pixels, outputs, inputs);
    }
    for (int32_t p = 0; p < pixels; p++) {
        for (int32_t o = 0; o < outputs; o++) {
            float sum = out[p * outputs + o];
            for (int32_t tap = 0; tap < l->kernel_height * l->kernel_width && !is_pointwise(l);
                 tap++) {
                const int32_t at = input_at(l, p / l->out_width, p % l->out_width,
                                            tap / l->kernel_width, tap % l->kernel_width);
                const float *row =
                    w + (o * l->kernel_height * l->kernel_width + tap) * l->in_channels;
                for (int32_t i = 0; i < inputs && at >= 0; i++) {
                    sum += x[at + i] * row[i];
                }
            }
            out[p * outputs + o] = clamped(l, sum);
        }
    }
}

/* dx, which is zero before, and dw and db, too. dx may be NULL. */
void tf_dense_convolution_backward(const dense_layer *l, const float *x, const float *w,
                                   const float *dy, float *dx, float *dw, float *db) {
    const int32_t pixels = l->out_height * l->out_width, inputs = l->in_channels;
    const int32_t outputs = l->out_channels;
    for (int32_t p = 0; p < pixels; p++) {
        for (int32_t o = 0; o < outputs; o++) {
            db[o] += dy[p * outputs + o];
        }
    }
    if (is_pointwise(l)) {
        if (dx != NULL) {
            multiply(dy, outputs, 1, w, 1, inputs, dx, pixels, inputs, outputs);
        }
        multiply(dy, 1, outputs, x, 1, inputs, dw, outputs, inputs, pixels);
        return;
    }
    for (int32_t p = 0; p < pixels; p++) {
        for (int32_t tap = 0; tap < l->kernel_height * l->kernel_width; tap++) {
            const int32_t at = input_at(l, p / l->out_width, p % l->out_width,
                                        tap / l->kernel_width, tap % l->kernel_width);
            for (int32_t o = 0; o < outputs && at >= 0; o++) {
                const int32_t row = (o * l->kernel_height * l->kernel_width + tap) * inputs;
                const float error = dy[p * outputs + o];
                for (int32_t i = 0; i < inputs && dx != NULL; i++) {
                    dx[at + i] += error * w[row + i];
                }
                for (int32_t i = 0; i < inputs; i++) {
                    dw[row + i] += error * x[at + i];
                }
            }
        }
    }
}

void tf_dense_depthwise_forward(const dense_layer *l, const float *x, const float *w,
                                const float *b, float *out) {
    const int32_t channels = l->out_channels;
    for (int32_t p = 0; p < l->out_height * l->out_width; p++, out += channels) {
        memcpy(out, b, sizeof *b * (uint32_t)channels);
        for (int32_t tap = 0; tap < l->kernel_height * l->kernel_width; tap++) {
            const int32_t at = input_at(l, p / l->out_width, p % l->out_width,
                                        tap / l->kernel_width, tap % l->kernel_width);
            for (int32_t c = 0; c < channels && at >= 0; c++) {
                out[c] += x[at + c] * w[tap * channels + c];
            }
        }
        for (int32_t c = 0; c < channels; c++) {
            out[c] = clamped(l, out[c]);
        }
    }
}

void tf_dense_depthwise_backward(const dense_layer *l, const float *x, const float *w,
                                 const float *dy, float *dx, float *dw, float *db) {
    const int32_t channels = l->out_channels;
    for (int32_t p = 0; p < l->out_height * l->out_width; p++, dy += channels) {
        for (int32_t tap = 0; tap < l->kernel_height * l->kernel_width; tap++) {
            const int32_t at = input_at(l, p / l->out_width, p % l->out_width,
                                        tap / l->kernel_width, tap % l->kernel_width);
            for (int32_t c = 0; c < channels && at >= 0; c++) {
                dx[at + c] += dy[c] * w[tap * channels + c];
                dw[tap * channels + c] += dy[c] * x[at + c];
            }
        }
        for (int32_t c = 0; c < channels; c++) {
            db[c] += dy[c];
        }
    }
}

/* dy = 0 where the activation has clamped. */
void tf_dense_clamp_backward(const dense_layer *l, const float *y, float *dy, int32_t size) {
    for (int32_t i = 0; i < size; i++) {
        dy[i] = y[i] > l->low && y[i] < l->high ? dy[i] : 0;
    }
}

void tf_dense_add_forward(const dense_layer *l, const float *a, const float *b, float *out,
                          int32_t size) {
    for (int32_t i = 0; i < size; i++) {
        out[i] = clamped(l, a[i] + b[i]);
    }
}

void tf_dense_accumulate(float *sum, const float *more, int32_t size) {
    for (int32_t i = 0; i < size; i++) {
        sum[i] += more[i];
    }
}

void tf_dense_pool_forward(const float *x, float *out, int32_t pixels, int32_t channels) {
    memset(out, 0, sizeof *out * (uint32_t)channels);
    for (int32_t p = 0; p < pixels; p++) {
        for (int32_t c = 0; c < channels; c++) {
            out[c] += x[p * channels + c] / (float)pixels;
        }
    }
}

void tf_dense_pool_backward(const float *dy, float *dx, int32_t pixels, int32_t channels) {
    for (int32_t p = 0; p < pixels; p++) {
        for (int32_t c = 0; c < channels; c++) {
            dx[p * channels + c] = dy[c] / (float)pixels;
        }
    }
}

/* `rate_q20`: real rate times 2^20. */
void tf_dense_sgd(float *w, const float *dw, int32_t size, int32_t rate_q20) {
    const float rate = (float)rate_q20 / 1048576.0f;
    for (int32_t i = 0; i < size; i++) {
        w[i] -= rate * dw[i];
    }
}
