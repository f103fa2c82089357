/* Depthwise convolution, backward: gradients of trained weights, and the step that they take.
 *
 * One channel at a time is brought together: its errors, and every input row as stride_width rows of
 * its own, of every stride-th column each. Then neighbours of either are neighbours in memory, and
 * the taps of a kernel's row that see the same columns are taken together. The step comes when all
 * gradients of the channel are there.
 */
#include "planes.h"
#include "weight_update.h"

#ifdef TF_VECTOR
#include "../vector/updates.h"
#endif

/* Strides up to this one have their phases found once for all channels. */
#define KEPT_PHASES 2u

/* The input columns that lie under the kernel's columns phase, phase + stride_width, … */
typedef struct {
    tf_gathering by;
    uint32_t to;  /* element of the plane where they begin */
    int32_t from; /* column */
} column_phase;

/* What all channels have in common. */
typedef struct {
    const tf_convolution *layer;
    const tf_trained *trained;
    const tf_update *update;
    uint32_t stream;           /* of random bits */
    int32_t *gradients;        /* of a channel */
    int16_t *error, *input;    /* planes */
    uint32_t error_line, line; /* elements of a row */
    column_phase kept[KEPT_PHASES];
    tf_gathering of_errors;
    uint32_t taps, longer;    /* of a kernel's row in each phase; phases that have one more */
    tf_correlation first_row; /* errors that the kernel's first row meets inside the input */
    int32_t first, last;      /* rows of the input that it meets there */
    tf_step step;             /* of the channel at hand */
} update_job;

#if TF_DSP

/* Four columns of a channel: pointers move on. `minus` is the zero point's negative, twice. */
static inline __attribute__((always_inline)) void
gather_codes(const int8_t **from, uint32_t step, uint32_t thrice, uint32_t minus, int16_t **to) {
    uint32_t a, b, c;
    __asm volatile("ldrb %[a], [%[from]]\n\t"
                   "ldrb %[b], [%[from], %[step]]\n\t"
                   "ldrb %[c], [%[from], %[step], lsl #1]\n\t"
                   "orr %[a], %[a], %[b], lsl #16\n\t"
                   "ldrb %[b], [%[from], %[thrice]]\n\t"
                   "add %[from], %[from], %[step], lsl #2\n\t"
                   "sxtab16 %[a], %[minus], %[a]\n\t"
                   "orr %[c], %[c], %[b], lsl #16\n\t"
                   "sxtab16 %[c], %[minus], %[c]\n\t"
                   "str %[a], [%[to]], #4\n\t"
                   "str %[c], [%[to]], #4"
                   : [from] "+&r"(*from), [to] "+&r"(*to), [a] "=&r"(a), [b] "=&r"(b), [c] "=&r"(c)
                   : [step] "r"(step), [thrice] "r"(thrice), [minus] "r"(minus)
                   : "memory");
}

/* The same of errors, `bytes` apart, to where a word begins. */
static inline __attribute__((always_inline)) void
gather_errors(const int16_t **from, uint32_t bytes, uint32_t thrice, int16_t **to) {
    uint32_t a, b, c;
    __asm volatile("ldrh %[a], [%[from]]\n\t"
                   "ldrh %[b], [%[from], %[bytes]]\n\t"
                   "ldrh %[c], [%[from], %[bytes], lsl #1]\n\t"
                   "orr %[a], %[a], %[b], lsl #16\n\t"
                   "ldrh %[b], [%[from], %[thrice]]\n\t"
                   "add %[from], %[from], %[bytes], lsl #2\n\t"
                   "orr %[c], %[c], %[b], lsl #16\n\t"
                   "strd %[a], %[c], [%[to]], #8"
                   : [from] "+&r"(*from), [to] "+&r"(*to), [a] "=&r"(a), [b] "=&r"(b), [c] "=&r"(c)
                   : [bytes] "r"(bytes), [thrice] "r"(thrice)
                   : "memory");
}

#endif

/* What tf_gather_codes does for one channel. */
static void codes_of_channel(const tf_gathering *by, const int8_t *from, int32_t zero,
                             int16_t *to) {
#if TF_DSP
    const uint32_t step = by->step, count = by->count, minus = tf_minus(zero);
    const uint32_t row_gap = by->row_step - count * step, line_gap = by->line - count;
    for (uint32_t row = by->rows; row > 0u; row--, from += row_gap, to += line_gap) {
        uint32_t left = count;
        for (; left >= 8u; left -= 8u) {
            gather_codes(&from, step, 3u * step, minus, &to);
            gather_codes(&from, step, 3u * step, minus, &to);
        }
        if (left >= 4u) {
            left -= 4u;
            gather_codes(&from, step, 3u * step, minus, &to);
        }
        for (; left > 0u; left--, from += step) {
            *to++ = (int16_t)(*from - zero);
        }
    }
#else
    tf_gather_codes(by, from, zero, to);
#endif
}

static void errors_of_channel(const tf_gathering *by, const int16_t *from, int16_t *to) {
#if TF_DSP
    const uint32_t step = by->step, gap = by->line - by->count;
    for (uint32_t row = by->rows; row > 0u; row--, to += gap) {
        uint32_t left = by->count;
        for (; left >= 8u; left -= 8u) {
            gather_errors(&from, 2u * step, 6u * step, &to);
            gather_errors(&from, 2u * step, 6u * step, &to);
        }
        if (left >= 4u) {
            left -= 4u;
            gather_errors(&from, 2u * step, 6u * step, &to);
        }
        for (; left > 0u; left--, from += step) {
            *to++ = *from;
        }
    }
#else
    tf_gather_errors(by, from, to);
#endif
}

static column_phase find_phase(const update_job *job, int32_t phase) {
    const tf_convolution *layer = job->layer;
    const int32_t stride = layer->stride_width, line = (int32_t)job->line;
    const uint32_t channels = job->trained->in_channels;
    /* Element i lies under column i * stride + phase - pad_left. */
    const int32_t offset = layer->pad_left - phase;
    const int32_t first = tf_clamp((offset + stride - 1) / stride, 0, line);
    const int32_t behind = layer->in_width - 1 + offset;
    const int32_t end = tf_clamp(behind < 0 ? 0 : behind / stride + 1, first, line);
    const column_phase columns = {{layer->in_height, (uint32_t)(end - first),
                                   layer->stride_width * channels, layer->in_width * channels, 1u,
                                   layer->stride_width * job->line, 0u},
                                  (uint32_t)phase * job->line + (uint32_t)first,
                                  first * stride - offset};
    return columns;
}

static void gather_phase(const update_job *job, const column_phase *columns, const int8_t *input) {
    codes_of_channel(&columns->by, input + columns->from * (int32_t)job->trained->in_channels,
                     job->layer->in_zero, job->input + columns->to);
}

static __attribute__((noinline)) void gather_channel(const update_job *job, const int8_t *input,
                                                     const int16_t *error) {
    for (uint32_t phase = 0; phase < job->layer->stride_width; phase++) {
        if (phase < KEPT_PHASES) {
            gather_phase(job, &job->kept[phase], input);
        } else {
            const column_phase columns = find_phase(job, (int32_t)phase);
            gather_phase(job, &columns, input);
        }
    }
    errors_of_channel(&job->of_errors, error, job->error);
}

/* tf_correlate in 64 bits, over parts that fit 32, rounded to what the layer's gradients keep. */
static __attribute__((noinline)) void correlate_widely(const tf_correlation *by, uint32_t taps,
                                                       uint32_t shift, int32_t *gradients) {
    const uint32_t line = by->row_bytes / sizeof *by->error;
    const uint32_t plane_line = line + by->rest_bytes / sizeof *by->plane;
    const uint32_t most = line < TF_PIECE ? TF_PIECE / line : 1u;
    const int16_t *error = by->error, *plane = by->plane;
    int64_t totals[TF_TAPS_AT_ONCE] = {0};
    for (uint32_t left = (uint32_t)(by->end - error) / line, rows; left > 0u; left -= rows) {
        rows = left < most ? left : most;
        for (uint32_t x = 0; x < line; x += TF_PIECE) {
            const uint32_t count = line - x < TF_PIECE ? line - x : TF_PIECE;
            const tf_correlation part = {error + x, plane + x, error + x + rows * count,
                                         sizeof *error * count,
                                         sizeof *plane * (plane_line - count)};
            tf_correlate(&part, taps, gradients);
            for (uint32_t i = 0; i < taps; i++) {
                totals[i] += gradients[i];
            }
        }
        error += rows * line;
        plane += rows * plane_line;
    }
    for (uint32_t i = 0; i < taps; i++) {
        gradients[i] = (int32_t)tf_round_shift(totals[i], (int32_t)shift);
    }
}

/* Where there are velocities, or changes may be out of bounds. */
static __attribute__((noinline, cold)) void update_slowly(const update_job *job, uint32_t value,
                                                          uint32_t taps) {
    for (uint32_t i = 0; i < taps; i++, value += job->trained->count) {
        tf_update_weight(job->trained, job->update, job->stream, value, value, job->gradients[i],
                         job->step);
    }
}

/* The taps of a channel take their steps; `value` is the first one's place. */
static __attribute__((noinline)) void update_weights(const update_job *job, uint32_t value,
                                                     uint32_t taps) {
    const tf_trained *trained = job->trained;
    const tf_step step = job->step;
    int32_t *gradients = job->gradients;
    if (trained->velocity != NULL || !tf_is_bounded(step)) {
        update_slowly(job, value, taps);
        return;
    }
    for (uint32_t i = 0; i < taps; i++) {
        gradients[i] = tf_apply_bounded(gradients[i], step);
    }
    tf_move_weights(trained, value, trained->count, job->stream + trained->first_value + value,
                    trained->count, taps, gradients);
}

/* Of so many taps in a row, those that are taken together: behind four the next begin at a word. */
static inline uint32_t taps_at_once(uint32_t left) {
    return left == TF_TAPS_AT_ONCE || left < 4u ? left : 4u;
}

/* Gradients of a kernel's row whose first tap lies at by->plane. */
static __attribute__((noinline)) void find_row(const update_job *job, tf_correlation *by,
                                               int32_t *gradients) {
    const uint32_t stride = job->layer->stride_width, shift = job->layer->gradient_shift;
    const int16_t *plane = by->plane;
    for (uint32_t phase = 0; phase < stride; phase++, plane += job->line) {
        int32_t *to = gradients + phase;
        by->plane = plane;
        for (uint32_t left = job->taps + (phase < job->longer), taps; left > 0u; left -= taps) {
            int32_t sums[TF_TAPS_AT_ONCE];
            taps = taps_at_once(left);
            if (shift == 0u) {
                tf_correlate(by, taps, sums);
            } else {
                correlate_widely(by, taps, shift, sums);
            }
            for (uint32_t i = 0; i < taps; i++, to += stride) {
                *to = sums[i];
            }
            by->plane += taps;
        }
    }
}

/* Gradients of a channel's taps. */
static __attribute__((noinline)) void find_gradients(const update_job *job) {
    const tf_convolution *layer = job->layer;
    const int32_t rows_stride = layer->stride_height, in_height = layer->in_height;
    const uint32_t in_line = layer->stride_width * job->line, width = layer->kernel_width;
    const uint32_t is_simple =
        layer->stride_width == 1u && layer->gradient_shift == 0u && taps_at_once(width) == width;
    int32_t first = job->first, last = job->last;
    int32_t *gradients = job->gradients;
    tf_correlation by = job->first_row;
    for (uint32_t row = layer->kernel_height; row > 0u; row--, gradients += width) {
        by.plane = job->input;
        if (by.error != by.end) {
            by.plane += (uint32_t)first * in_line;
        }
        if (is_simple) {
            tf_correlate(&by, width, gradients);
        } else {
            find_row(job, &by, gradients);
        }
        if (++first >= rows_stride && by.error != job->error) {
            by.error -= job->error_line;
            first -= rows_stride;
        }
        for (last++; last >= in_height && by.end != by.error; last -= rows_stride) {
            by.end -= job->error_line;
        }
    }
}

/* Gradients and planes of a layer; returns the bytes of all of them. */
static uint32_t place(update_job *job, const tf_convolution *layer, int16_t *scratch) {
    const uint32_t stride = layer->stride_width;
    const uint32_t taps = (uint32_t)layer->kernel_height * layer->kernel_width;
    job->layer = layer;
    job->error_line = tf_even_up(layer->out_width);
    job->line = job->error_line + tf_even_up((layer->kernel_width - 1u) / stride);
    const uint32_t errors = layer->out_height * job->error_line;
    if (scratch != NULL) {
        job->gradients = (int32_t *)(void *)scratch;
        job->error = (int16_t *)(void *)(job->gradients + taps);
        job->input = job->error + errors;
    }
    return sizeof *job->gradients * taps +
           sizeof *job->error * (errors + layer->in_height * stride * job->line);
}

/* What follows from the planes' places. */
static void prepare(update_job *job) {
    const tf_convolution *layer = job->layer;
    const uint32_t width = layer->out_width, channels = layer->out_channels;
    for (uint32_t phase = 0; phase < KEPT_PHASES && phase < layer->stride_width; phase++) {
        job->kept[phase] = find_phase(job, (int32_t)phase);
    }
    /* Rows of errors are one where nothing lies between them. */
    const uint32_t rows = job->error_line == width ? layer->out_height : 1u;
    job->of_errors = (tf_gathering){layer->out_height / rows,
                                    width * rows,
                                    channels,
                                    width * channels * rows,
                                    1u,
                                    job->error_line * rows,
                                    0u};
    job->taps = (uint32_t)layer->kernel_width / layer->stride_width;
    job->longer = (uint32_t)layer->kernel_width % layer->stride_width;
    const int32_t stride = layer->stride_height, height = layer->out_height, pad = layer->pad_top;
    const int32_t first = tf_clamp((pad + stride - 1) / stride, 0, height);
    const int32_t end = tf_clamp((layer->in_height - 1 + pad) / stride + 1, first, height);
    const uint32_t plane_rows = (uint32_t)layer->stride_height * layer->stride_width * job->line;
    job->first = first * stride - pad;
    job->last = (end - 1) * stride - pad;
    job->first_row.error = job->error + (uint32_t)first * job->error_line;
    job->first_row.end = job->error + (uint32_t)end * job->error_line;
    job->first_row.row_bytes = sizeof *job->error * job->error_line;
    job->first_row.rest_bytes = sizeof *job->input * (plane_rows - job->error_line);
}

uint32_t tf_depthwise_weight_update_scratch_bytes(const tf_convolution *layer) {
    update_job job;
    return place(&job, layer, NULL);
}

void tf_depthwise_weight_update(const tf_convolution *layer, const int16_t *error,
                                const tf_scale *scale, const int8_t *input,
                                const tf_trained *trained, const tf_update *update,
                                int16_t *scratch) {
#ifdef TF_VECTOR
    if (tf_depthwise_update_in_lanes(layer, error, scale, input, trained, update)) {
        return;
    }
#endif
    const int32_t exponent = scale->exponent + layer->gradient_shift + tf_weight_bits(trained);
    update_job job = {.trained = trained, .update = update, .stream = tf_update_stream(update)};
    memset(scratch, 0, place(&job, layer, scratch));
    prepare(&job);
    const uint32_t taps = (uint32_t)layer->kernel_height * layer->kernel_width;
    for (uint32_t t = 0; t < trained->count; t++) {
        const uint32_t channel = trained->channels[t];
        gather_channel(&job, input + tf_place_in_input(trained, t), error + channel);
        job.step = tf_make_step(layer->weight_gain[channel], update->learning_rate_q20, exponent);
        find_gradients(&job);
        update_weights(&job, t, taps);
    }
}
