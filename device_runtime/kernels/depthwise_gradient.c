/* Depthwise convolution, backward: errors of the input.
 *
 * Input positions fall into as many *phases* per axis as the stride has steps: those of one phase
 * see every stride-th tap only, in reverse, and neighbours of a phase see neighbouring errors. So
 * each phase is a convolution of stride 1 of the errors with its own taps.
 */
#include "fixed_point.h"
#include "planes.h"

#ifdef TF_VECTOR
#include "../vector/ring.h"
#include "../vector/updates.h"
#endif

/* Taps of a kernel of `size` that phase `phase` sees. */
static int32_t phase_taps(int32_t size, int32_t stride, int32_t phase) {
    return phase < size ? (size - 1 - phase) / stride + 1 : 0;
}

/* What all channels have in common. */
typedef struct {
    const tf_convolution *layer;
    int16_t *out;
    int32_t shift;      /* from the product with the channel's factor to a code */
    tf_window *windows; /* one per input row, for each phase of the columns */
    int32_t *sums;
    int16_t *tables, *planes;
    uint32_t room; /* elements of a table: of one channel, for one phase of the columns */
    uint32_t line, plane;
    int32_t left; /* columns of zeros left of the errors */
    int32_t magnitude;
#if TF_DSP
    tf_extremes seen; /* what the magnitude doesn't know yet */
#endif
} gradient_job;

#if TF_DSP

static int16_t to_code(int32_t sum, int32_t factor) {
    int32_t code;
    __asm("smmulr %0, %1, %2\n\tssat %0, #16, %0" : "=&r"(code) : "r"(sum), "r"(factor));
    return (int16_t)code;
}

/* Codes of four sums, in pairs too; pointers move on, `thrice` is 3 * step. */
static inline __attribute__((always_inline)) void store_four(const int32_t **sums, int32_t factor,
                                                             int16_t **out, uint32_t step,
                                                             uint32_t thrice, uint32_t pairs[2]) {
    uint32_t a, b;
    __asm volatile("ldmia %[sums]!, {r4, r5, r6, r8}\n\t"
                   "smmulr r4, r4, %[factor]\n\t"
                   "smmulr r5, r5, %[factor]\n\t"
                   "smmulr r6, r6, %[factor]\n\t"
                   "smmulr r8, r8, %[factor]\n\t"
                   "ssat r4, #16, r4\n\t"
                   "ssat r5, #16, r5\n\t"
                   "ssat r6, #16, r6\n\t"
                   "ssat r8, #16, r8\n\t"
                   "strh r4, [%[out]]\n\t"
                   "strh r5, [%[out], %[step], lsl #1]\n\t"
                   "strh r6, [%[out], %[step], lsl #2]\n\t"
                   "strh r8, [%[out], %[thrice], lsl #1]\n\t"
                   "add %[out], %[out], %[step], lsl #3\n\t"
                   "pkhbt %[a], r4, r5, lsl #16\n\t"
                   "pkhbt %[b], r6, r8, lsl #16"
                   : [sums] "+&r"(*sums), [out] "+&r"(*out), [a] "=&r"(a), [b] "=&r"(b)
                   : [factor] "r"(factor), [step] "r"(step), [thrice] "r"(thrice)
                   : "r4", "r5", "r6", "r8", "memory");
    pairs[0] = a;
    pairs[1] = b;
}

/* Codes are the upper words of sum * factor, rounded. May leave -32768. */
static __attribute__((noinline)) void
store_upper_words(gradient_job *job, int32_t factor, uint32_t count, int16_t *out, uint32_t step) {
    const int32_t *sums = job->sums;
    tf_extremes seen = job->seen;
    for (const int32_t *end = sums + (count & ~3u); sums != end;) {
        uint32_t pairs[2];
        store_four(&sums, factor, &out, step, 3u * step, pairs);
        tf_note_pairs(&seen, pairs[0], pairs[1]);
    }
    for (count &= 3u; count > 0u; count--, sums++, out += step) {
        *out = to_code(*sums, factor);
        tf_note_pairs(&seen, (uint16_t)*out, 0);
    }
    job->seen = seen;
}

#endif

static void store_sums(gradient_job *job, int32_t multiplier, uint32_t count, int16_t *out,
                       uint32_t step) {
#if TF_DSP
    if (job->shift >= 16 && job->shift <= 32) {
        const int32_t factor = multiplier * (1 << (32 - job->shift));
        store_upper_words(job, factor, count, out, step);
        return;
    }
#endif
    const int32_t *sums = job->sums;
    int32_t magnitude = job->magnitude;
    for (uint32_t x = 0; x < count; x++, out += step) {
        const int64_t product = (int64_t)sums[x] * multiplier;
        const int32_t value = tf_clamp((int32_t)tf_round_shift(product, job->shift), -32767, 32767);
        tf_note_magnitude(&magnitude, value);
        *out = (int16_t)value;
    }
    job->magnitude = magnitude;
}

/* Strides up to this one have their phases found once for all channels. */
#define KEPT_PHASES 2u

/* The input columns first, first + stride, … */
typedef struct {
    int32_t first;
    int32_t taps; /* of a row, the first of which is that of column `phase` of the kernel */
    int32_t phase;
    uint32_t before;  /* zero taps before them, so that rows begin at words */
    int32_t start;    /* column of the plane where the first window begins */
    uint32_t count;   /* of the columns */
    uint32_t at_once; /* rows that are stored in one go: where they go on without a gap, several */
    tf_slide slide;
} column_phase;

static column_phase columns_from(const gradient_job *job, int32_t first) {
    const tf_convolution *layer = job->layer;
    const int32_t at = first + layer->pad_left, stride = layer->stride_width;
    column_phase columns;
    columns.first = first;
    columns.phase = at % stride;
    columns.taps = phase_taps(layer->kernel_width, stride, columns.phase);
    columns.start = job->left + at / stride - columns.taps + 1;
    columns.before = (uint32_t)columns.start & 1u;
    columns.start -= (int32_t)columns.before;
    columns.count = (uint32_t)((layer->in_width - 1 - first) / stride + 1);
    columns.at_once = columns.count * layer->stride_width == layer->in_width
                          ? tf_rows_at_once(columns.count)
                          : 1u;
    columns.slide = tf_make_slide((uint32_t)columns.taps + columns.before, 1u, job->line);
    return columns;
}

/* Where the windows of the input's rows lie: rows of a window outside of the output are left out.
 * In the table, taps of a phase of rows are in reverse, and phases have room for `most` rows. */
static void find_windows(const gradient_job *job, const column_phase *columns, int32_t most) {
    const tf_convolution *layer = job->layer;
    const int32_t stride = layer->stride_height;
    tf_window *window = job->windows + (uint32_t)columns->first * layer->in_height;
    for (int32_t y = layer->pad_top; y < layer->in_height + layer->pad_top; y++, window++) {
        const int32_t phase = y % stride, last = y / stride;
        const int32_t top = last + 1 - phase_taps(layer->kernel_height, stride, phase);
        const int32_t first = tf_clamp(top, 0, layer->out_height);
        const int32_t end = tf_clamp(last + 1, first, layer->out_height);
        window->plane = first * (int32_t)job->line;
        window->table = (phase * most + first - top) * (int32_t)columns->slide.taps_row;
        window->rows = end - first;
    }
}

/* The tables of one phase of the columns of `lanes` channels. */
static void widen_phase(const gradient_job *job, const column_phase *columns,
                        const tf_channel_taps of[2], uint32_t lanes) {
    const tf_convolution *layer = job->layer;
    const int32_t stride = layer->stride_width, rows_stride = layer->stride_height;
    const int32_t most = phase_taps(layer->kernel_height, rows_stride, 0);
    int16_t *table = job->tables;
    for (int32_t p = 0; p < rows_stride; p++) {
        const int32_t rows = phase_taps(layer->kernel_height, rows_stride, p);
        const int32_t last_row = (p + (rows - 1) * rows_stride) * layer->kernel_width;
        const tf_taps taps = {last_row + columns->phase + (columns->taps - 1) * stride,
                              -stride,
                              -rows_stride * layer->kernel_width,
                              (uint32_t)columns->taps,
                              columns->before,
                              (uint32_t)rows};
        tf_widen_taps(&columns->slide, &taps, of, lanes, table, job->room);
        table += (uint32_t)most * columns->slide.taps_row;
    }
}

/* One phase of the columns of one channel. */
static void one_phase(gradient_job *job, const column_phase *columns, uint32_t lane,
                      uint32_t channel) {
    const tf_convolution *layer = job->layer;
    const uint32_t first = (uint32_t)columns->first, height = layer->in_height;
    const uint32_t count = columns->count, channels = layer->in_channels;
    const uint32_t step = layer->stride_width * channels;
    const int32_t multiplier = layer->error_multiplier[channel];
    int16_t *out = job->out + first * channels + channel;
    const tf_window *windows = job->windows + first * height;
    tf_slide_rows by_rows = {windows,
                             windows,
                             job->planes + lane * job->plane + columns->start,
                             job->tables + lane * job->room,
                             4u * count,
                             0,
                             2u * job->line,
                             job->sums};
    for (uint32_t left = height, rows; left > 0u; left -= rows) {
        rows = left < columns->at_once ? left : columns->at_once;
        by_rows.end = by_rows.window + rows;
        tf_slide_rows_of(&columns->slide, &by_rows);
        by_rows.window = by_rows.end;
        store_sums(job, multiplier, rows * count, out, step);
        out += rows * layer->in_width * channels;
    }
}

/* The same of so many channels from `channel` on. */
static void all_lanes(gradient_job *job, const column_phase *columns, const tf_channel_taps of[2],
                      uint32_t lanes, uint32_t channel) {
    widen_phase(job, columns, of, lanes);
    for (uint32_t lane = 0; lane < lanes; lane++) {
        one_phase(job, columns, lane, channel + lane);
    }
}

/* Columns of zeros that the windows of the first input columns need. */
static int32_t zeros_before(const tf_convolution *layer) {
    int32_t zeros = 0;
    for (int32_t x = 0; x < layer->stride_width && x < layer->in_width; x++) {
        const int32_t at = x + layer->pad_left;
        const int32_t taps =
            phase_taps(layer->kernel_width, layer->stride_width, at % layer->stride_width);
        const int32_t needed = taps - 1 - at / layer->stride_width;
        zeros = needed > zeros ? needed : zeros;
    }
    return zeros;
}

static tf_gathering gathering_of_errors(const tf_convolution *layer, uint32_t lanes, uint32_t line,
                                        uint32_t plane) {
    const uint32_t row = (uint32_t)layer->out_width * layer->out_channels;
    const tf_gathering by = {
        layer->out_height, layer->out_width, layer->out_channels, row, lanes, line, plane};
    return by;
}

/* Elements of a row of a plane that begins with `zeros` columns of zeros. */
static uint32_t line_of(const tf_convolution *layer, uint32_t zeros) {
    const uint32_t reach =
        (layer->in_width - 1u + layer->pad_left) / (uint32_t)layer->stride_width + 1u;
    return tf_even_up(zeros + (reach > layer->out_width ? reach : layer->out_width));
}

static uint32_t elements_of_planes(uint32_t plane) {
    return 2u * plane + 2u * TF_SLIDE_BLOCK;
}

static uint32_t elements_of_table(const tf_convolution *layer) {
    return (layer->kernel_height + layer->stride_height) * tf_room_for_taps(layer->kernel_width);
}

static uint32_t column_phases(const tf_convolution *layer) {
    return layer->stride_width < layer->in_width ? layer->stride_width : layer->in_width;
}

uint32_t tf_depthwise_input_gradient_scratch_bytes(const tf_convolution *layer) {
    /* As many zeros as a layer without padding needs: no layer needs more. */
    const uint32_t zeros = (layer->kernel_width - 1u) / layer->stride_width;
    const uint32_t planes = elements_of_planes(layer->out_height * line_of(layer, zeros));
    return sizeof(tf_window) * column_phases(layer) * layer->in_height +
           sizeof(int32_t) * tf_room_for_sums(layer->in_width, layer->in_height) +
           sizeof(int16_t) * (2u * elements_of_table(layer) + planes);
}

static inline void set_scale(const tf_convolution *layer, const tf_scale *scale, int32_t headroom,
                             int32_t magnitude, tf_scale *out_scale) {
    out_scale->exponent = scale->exponent + layer->error_exponent - headroom + layer->error_shift;
    out_scale->magnitude = magnitude;
}

void tf_depthwise_input_gradient(const tf_convolution *layer, const int16_t *error,
                                 const tf_scale *scale, const tf_weights *weights, int16_t *out,
                                 tf_scale *out_scale, int16_t *scratch) {
    const uint32_t channels = layer->out_channels;
    const int32_t headroom = tf_headroom(scale);
    const uint32_t phases = column_phases(layer);
    column_phase kept[KEPT_PHASES];
    gradient_job job;
    job.layer = layer;
    job.out = out;
    job.shift = 15 + layer->error_shift - headroom;
#ifdef TF_VECTOR
    if (tf_depthwise_gradient_in_lanes(layer, error, weights, out, job.shift, &job.magnitude)) {
        set_scale(layer, scale, headroom, job.magnitude, out_scale);
        return;
    }
#endif
    job.left = zeros_before(layer);
    job.line = line_of(layer, (uint32_t)job.left);
    job.plane = layer->out_height * job.line;
    job.magnitude = 0;
#if TF_DSP
    job.seen = (tf_extremes){0, 0};
#endif
    job.windows = (tf_window *)(void *)scratch;
    job.sums = (int32_t *)(void *)(job.windows + phases * layer->in_height);
    job.tables =
        (int16_t *)(void *)(job.sums + tf_room_for_sums(layer->in_width, layer->in_height));
    job.room = elements_of_table(layer);
    job.planes = job.tables + 2u * job.room;
    for (uint32_t x = 0; x < phases; x++) {
        const column_phase columns = columns_from(&job, (int32_t)x);
        if (x < KEPT_PHASES) {
            kept[x] = columns;
        }
        find_windows(&job, &columns, phase_taps(layer->kernel_height, layer->stride_height, 0));
    }
    memset(job.planes, 0, sizeof(int16_t) * elements_of_planes(job.plane));
    uint32_t trained = 0;
    for (uint32_t c = 0; c < channels; c += 2u) {
        const uint32_t lanes = channels - c < 2u ? 1u : 2u;
        const tf_gathering by = gathering_of_errors(layer, lanes, job.line, job.plane);
        tf_gather_errors(&by, error + c, job.planes + job.left);
        tf_channel_taps of[2];
        tf_find_taps(weights, c, channels, lanes, &trained, of);
        for (uint32_t x = 0; x < phases; x++) {
            if (x < KEPT_PHASES) {
                all_lanes(&job, &kept[x], of, lanes, c);
            } else {
                const column_phase columns = columns_from(&job, (int32_t)x);
                all_lanes(&job, &columns, of, lanes, c);
            }
        }
    }
#if TF_DSP
    tf_note_magnitude(&job.magnitude, tf_magnitude_of(&job.seen));
#endif
    tf_amend_lowest(out, (uint32_t)layer->in_height * layer->in_width * channels, &job.magnitude);
    set_scale(layer, scale, headroom, job.magnitude, out_scale);
}
