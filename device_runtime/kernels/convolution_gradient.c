/* Full convolution, backward: the error of its input. Input positions are taken four at a time, a
 * stride apart, so that one tap of the kernel joins them with four neighbours of the output.
 * Pointwise layers are the forward pass turned around: columns of scaled errors meet two columns of
 * the weights. */
#include "block.h"
#include "fixed_point.h"
#include "merge.h"

#ifdef TF_VECTOR
#include "../vector/panels.h"
#endif

/* What does not change between the blocks of a layer. */
typedef struct {
    const tf_convolution *layer;
    const int16_t *error;
    int16_t *out;
    const int8_t *weights; /* packed, of these input channels: */
    uint32_t first_channel, channels;
    uint32_t out_height, out_width; /* of the layer: of the error */
    uint32_t pairs;                 /* of output channels */
    int32_t shift;                  /* of the scaled errors */
    int16_t *stream;
    uint16_t *taps;     /* those in the stream */
    uint32_t pointwise; /* one tap everywhere: what follows from taps stays what it is */
} job;

/* Kernel rows (columns) first, first + stride, … see input position `at` from output positions
 * start, start - 1, … */
typedef struct {
    uint32_t first, count;
    int32_t start;
} meeting;

static meeting meet(uint32_t at, uint32_t pad, uint32_t stride, uint32_t kernel) {
    const uint32_t first = (at + pad) % stride;
    const uint32_t count = kernel > first ? (kernel - first - 1u) / stride + 1u : 0u;
    const meeting m = {first, count, (int32_t)((at + pad) / stride)};
    return m;
}

#if TF_DSP_BLOCKS
static inline uint32_t scale_two(const int16_t *error, int16x2_t multiplier, int32_t half,
                                 int32_t shift) {
    const int16x2_t e = (int16x2_t)tf_load32(error);
    const int32_t low = __smlabb(e, multiplier, half) >> shift;
    const int32_t high = __smlatt(e, multiplier, half) >> shift;
    return tf_pack_lower((uint32_t)low, (uint32_t)high);
}
#endif

/* The errors of an output pixel times their channels' multipliers; the shift is chosen so that
 * they use all bits of int16 but `error_headroom`. */
static __attribute__((noinline)) void scale_pixel(const job *job, const int16_t *error,
                                                  int16_t *to) {
    const uint32_t channels = job->layer->out_channels;
    const int16_t *multiplier = job->layer->error_multiplier;
    const int32_t shift = job->shift, half = shift > 0 ? 1 << (shift - 1) : 0;
#if TF_MVE
    tf_block_scale(error, multiplier, channels & ~1u, shift, to);
    to += channels & ~1u;
#else
    for (uint32_t o = 0; o + 2u <= channels; o += 2u, to += TF_STREAM_STEP) {
#if TF_DSP
        const int16x2_t m = (int16x2_t)tf_load32(multiplier + o);
        tf_store32(to, scale_two(error + o, m, half, shift));
#else
        to[0] = (int16_t)((error[o] * multiplier[o] + half) >> shift);
        to[1] = (int16_t)((error[o + 1u] * multiplier[o + 1u] + half) >> shift);
#endif
    }
#endif
    if (channels % 2u == 1u) {
        to[0] = (int16_t)((error[channels - 1u] * multiplier[channels - 1u] + half) >> shift);
        to[1] = 0;
    }
}

#if TF_DSP_BLOCKS
/* The same for four pixels next to each other, `step` elements from two channels to the next two. */
static void scale_four(const job *job, const int16_t *error, int16_t *to, const uint32_t step) {
    const uint32_t channels = job->layer->out_channels;
    const int16_t *multiplier = job->layer->error_multiplier;
    const int16_t *e0 = error, *e1 = e0 + channels, *e2 = e1 + channels, *e3 = e2 + channels;
    const int32_t shift = job->shift, half = shift > 0 ? 1 << (shift - 1) : 0;
    for (const int16_t *end = e0 + (channels & ~1u); e0 < end; to += step) {
        const int16x2_t m = (int16x2_t)tf_load32(multiplier);
        tf_store32(to, scale_two(e0, m, half, shift));
        tf_store32(to + 2, scale_two(e1, m, half, shift));
        tf_store32(to + 4, scale_two(e2, m, half, shift));
        tf_store32(to + 6, scale_two(e3, m, half, shift));
        multiplier += 2, e0 += 2, e1 += 2, e2 += 2, e3 += 2;
    }
}
#endif

/* `count` input positions a stride apart, for a tap through which the first of them sees output
 * position (y, x). Zero where there is none; the last is repeated up to four. */
static void gather_tap(const job *job, int32_t y, int32_t x, uint32_t count, int16_t *to) {
#if TF_DSP_BLOCKS
    const uint32_t channels = job->layer->out_channels;
    if (channels % 2u == 0 && count == TF_BLOCK_PIXELS && x >= 0 &&
        x + 4 <= (int32_t)job->out_width) {
        const uint32_t at = (uint32_t)y * job->out_width + (uint32_t)x;
        scale_four(job, job->error + at * channels, to + 2, TF_STREAM_STEP);
        return;
    }
#endif
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
#if TF_MVE
        int16_t *pixel = to + 2u * job->pairs * p;
        const uint32_t step = 2u;
#else
        int16_t *pixel = to + 2u + 2u * p;
        const uint32_t step = TF_STREAM_STEP;
#endif
        if (x < 0 || x >= (int32_t)job->out_width) {
            for (uint32_t i = 0; i < job->pairs; i++) {
                tf_store32(pixel + i * step, 0);
            }
        } else {
            const uint32_t at = (uint32_t)y * job->out_width + (uint32_t)x;
            scale_pixel(job, job->error + at * job->layer->out_channels, pixel);
        }
        x += p + 1u < count;
    }
}

/* The same for all taps that meet any output position; returns their number. */
static uint32_t gather(const job *job, const meeting *rows, const meeting *cols, uint32_t count) {
    const tf_convolution *layer = job->layer;
    uint32_t taps = 0;
    for (uint32_t r = 0; r < rows->count; r++) {
        const int32_t y = rows->start - (int32_t)r;
        if (y < 0 || y >= (int32_t)job->out_height) {
            continue;
        }
        for (uint32_t c = 0; c < cols->count; c++) {
            const int32_t x = cols->start - (int32_t)c;
            if (x + (int32_t)count <= 0 || x >= (int32_t)job->out_width) {
                continue;
            }
            job->taps[taps] =
                (uint16_t)((rows->first + r * layer->stride_height) * layer->kernel_width +
                           cols->first + c * layer->stride_width);
            gather_tap(job, y, x, count, job->stream + taps * job->pairs * TF_STREAM_STEP);
            taps++;
        }
    }
    return taps;
}

/* Points the block at the stream, and says where the weights of its errors begin. */
static void set_stream(const job *job, tf_gradient_block *block, uint32_t taps) {
    const uint32_t all_taps = (uint32_t)job->layer->kernel_height * job->layer->kernel_width;
    const uint32_t row_bytes = 2u * tf_packed_length(all_taps * job->channels);
#if TF_MVE
    block->stream = job->stream;
    block->stream_end = job->stream + taps * job->pairs * TF_STREAM_STEP;
    block->taps = job->taps;
    block->tap_bytes = 2u * job->channels;
    block->outputs = 2u * job->pairs;
    block->row_bytes = row_bytes;
#else
    int16_t *to = job->stream;
    tf_block_set_stream(block, to, taps * job->pairs);
    for (uint32_t i = 0; i < taps; i++) {
        uint32_t offset = 2u * job->taps[i] * job->channels;
        for (uint32_t pair = 0; pair < job->pairs; pair++) {
            tf_store32(to, offset);
            offset += row_bytes;
            to += TF_STREAM_STEP;
        }
    }
#endif
}

/* The last of an odd number of channels: blocks make two, so it is made with the one before it,
 * or, of a layer with a single input channel, with whatever lies behind it. */
static void run_last(const job *job, const tf_gradient_block *block, int16_t *output) {
    const uint32_t last = job->channels - 1u, first = last > 0 ? last - 1u : 0u;
    int16_t errors[2u * TF_BLOCK_PIXELS];
    tf_gradient_block two = *block;
    two.output = errors;
    two.weights = job->weights + 2u * first;
    two.weights_end = two.weights + 4;
    for (uint32_t p = 1; p < TF_BLOCK_PIXELS; p++) {
        two.steps[p - 1u] = (int32_t)(4u * p);
    }
    tf_block_gradient(&two);
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
        output[(p == 0 ? 0 : block->steps[p - 1u] / 2) + (int32_t)last] =
            errors[2u * p + last - first];
    }
}

/* `count` input positions, a column stride apart, whose errors begin at `output`. */
static void run_block(const job *job, tf_gradient_block *block, uint32_t taps, uint32_t count,
                      int16_t *output) {
    const uint32_t step = (uint32_t)job->layer->stride_width * job->layer->in_channels;
    const uint32_t even = job->channels & ~1u;
    for (uint32_t p = 1; p < TF_BLOCK_PIXELS; p++) {
        block->steps[p - 1u] = (int32_t)(2u * (p < count ? p : count - 1u) * step);
    }
    if (taps == 0) {
        for (uint32_t p = 0; p < count; p++) {
            memset(output + p * step, 0, 2u * job->channels);
        }
        return;
    }
    if (block->stream_end == NULL || !job->pointwise) {
        set_stream(job, block, taps);
    }
    if (even > 0) {
        block->output = output;
        block->weights = job->weights;
        block->weights_end = job->weights + 2u * even;
        tf_block_gradient(block);
    }
    if (even < job->channels) {
        run_last(job, block, output);
    }
}

/* All input positions. */
static void run_all(const job *job, tf_gradient_block *block) {
    const tf_convolution *layer = job->layer;
    const uint32_t pixels = (uint32_t)layer->in_height * layer->in_width;
    /* Pointwise layers are one long row: blocks go on from one row to the next. */
    const uint32_t height = job->pointwise ? 1u : layer->in_height;
    const uint32_t width = job->pointwise ? pixels : layer->in_width;
    const uint32_t stride = layer->stride_width;
    for (uint32_t y = 0; y < height; y++) {
        const meeting rows = meet(y, layer->pad_top, layer->stride_height, layer->kernel_height);
        for (uint32_t phase = 0; phase < stride; phase++) {
            for (uint32_t x = phase; x < width; x += TF_BLOCK_PIXELS * stride) {
                const meeting cols = meet(x, layer->pad_left, stride, layer->kernel_width);
                const uint32_t left = (width - x - 1u) / stride + 1u;
                const uint32_t count = left < TF_BLOCK_PIXELS ? left : TF_BLOCK_PIXELS;
                const uint32_t taps = gather(job, &rows, &cols, count);
                run_block(job, block, taps, count,
                          job->out + (y * width + x) * layer->in_channels + job->first_channel);
            }
        }
    }
}

/* Saturates -32768, which blocks leave, to -32767; returns the largest |error|. */
static int32_t saturate(int16_t *error, uint32_t size) {
    int32_t largest = 0;
    for (uint32_t i = 0; i < size; i++) {
        if (error[i] == INT16_MIN) {
            error[i] = -INT16_MAX;
        }
        tf_note_magnitude(&largest, error[i]);
    }
    return largest;
}

#if TF_DSP_BLOCKS

/* Four channels of a pixel, crossed (tf_crossed), to columns. */
static inline __attribute__((always_inline)) void scale_crossed(const int16_t *error, int16x2_t m01,
                                                                int16x2_t m23, int32_t half,
                                                                int32_t shift, int16_t *to) {
    const int16x2_t e01 = (int16x2_t)tf_load32(error), e23 = (int16x2_t)tf_load32(error + 2);
    const int32_t a = __smlabb(e01, m01, half) >> shift, b = __smlatt(e01, m01, half) >> shift;
    const int32_t c = __smlabb(e23, m23, half) >> shift, d = __smlatt(e23, m23, half) >> shift;
    tf_store32(to, tf_pack_lower((uint32_t)a, (uint32_t)c));
    tf_store32(to + 2u * TF_BLOCK_PIXELS, tf_pack_lower((uint32_t)b, (uint32_t)d));
}

/* Columns of the scaled errors of four pixels, of a multiple of four channels. */
static void scale_block(const job *job, const int16_t *error, int16_t *to) {
    const uint32_t channels = job->layer->out_channels;
    const int16_t *multiplier = job->layer->error_multiplier;
    const int32_t shift = job->shift, half = shift > 0 ? 1 << (shift - 1) : 0;
    const int16_t *e0 = error, *e1 = e0 + channels, *e2 = e1 + channels, *e3 = e2 + channels;
    for (const int16_t *end = e0 + (channels & ~3u); e0 != end; to += 4u * TF_BLOCK_PIXELS) {
        const int16x2_t m01 = (int16x2_t)tf_load32(multiplier);
        const int16x2_t m23 = (int16x2_t)tf_load32(multiplier + 2);
        scale_crossed(e0, m01, m23, half, shift, to);
        scale_crossed(e1, m01, m23, half, shift, to + 2);
        scale_crossed(e2, m01, m23, half, shift, to + 4);
        scale_crossed(e3, m01, m23, half, shift, to + 6);
        multiplier += 4, e0 += 4, e1 += 4, e2 += 4, e3 += 4;
    }
}

#endif

/* Columns of the scaled errors of `count` pixels from `first` on. */
static void scale_all(const job *job, uint32_t first, uint32_t count) {
    const uint32_t channels = job->layer->out_channels, length = tf_packed_length(channels);
    const int16_t *multiplier = job->layer->error_multiplier;
    const int32_t shift = job->shift, half = shift > 0 ? 1 << (shift - 1) : 0;
    for (uint32_t done = 0; done < count; done += TF_BLOCK_PIXELS) {
        const int16_t *error = job->error + (first + done) * channels;
        int16_t *columns = job->stream + done * length;
        const uint32_t left = count - done;
        const uint32_t pixels = left < TF_BLOCK_PIXELS ? left : TF_BLOCK_PIXELS;
        uint32_t o = 0;
#if TF_MVE
        for (uint32_t p = 0; p < pixels; p++) {
            tf_block_scale(error + p * channels, multiplier, channels, shift, columns + p * length);
        }
        o = channels;
#elif TF_DSP
        if (pixels == TF_BLOCK_PIXELS) {
            scale_block(job, error, columns);
            o = channels & ~3u;
        }
#endif
        for (; o < length; o++) {
            for (uint32_t p = 0; p < pixels; p++) {
                const int32_t scaled =
                    o < channels ? (error[p * channels + o] * multiplier[o] + half) >> shift : 0;
                columns[tf_column_index(length, p, tf_crossed(o))] = (int16_t)scaled;
            }
        }
    }
}

/* The trained one among input channels `i` and `i` + 1 takes its place in a pair of them. */
static __attribute__((noinline)) void put_trained(const job *job, const tf_weights *weights,
                                                  uint32_t trained, uint32_t i, int16_t *widened) {
    const uint32_t row_bytes = 2u * tf_packed_length(weights->count);
    const uint32_t length = tf_packed_length(job->layer->out_channels);
    const int8_t *from = weights->trained + 2u * trained;
    tf_backward_weight *pair = (tf_backward_weight *)widened;
    tf_backward_weight *to = pair + tf_pair_index(length, weights->channels[trained] - i, 0);
    uint32_t at = 0;
#if TF_DSP_BLOCKS
    at = 2u * job->pairs & ~3u;
    for (const int16_t *end = to + 2u * at; to != end; from += 2u * row_bytes, to += 8) {
        uint16_t rows01, rows23;
        memcpy(&rows01, from, sizeof rows01);
        memcpy(&rows23, from + row_bytes, sizeof rows23);
        const uint32_t rows = tf_pack_lower(rows01, rows23);
        tf_store32(to, tf_even(rows));
        tf_store32(to + 4, tf_odd(rows));
    }
    to -= 2u * at;
#endif
    for (; at < 2u * job->pairs; at += 2u, from += row_bytes) {
        to[tf_pair_index(length, 0, tf_crossed(at))] = from[0];
        to[tf_pair_index(length, 0, tf_crossed(at + 1u))] = from[1];
    }
}

/* Both errors of the last pixels of a group, which are in no whole block. */
static __attribute__((noinline)) void run_single(const tf_block_run *run, const int16_t *columns,
                                                 uint32_t pixel, int16_t *out, int32_t *largest) {
    int32_t sums[2];
    tf_block_single(run, columns, pixel, sums);
    for (uint32_t row = 0; row < 2u; row++) {
        const int32_t value = tf_clamp(sums[row] >> run->first.shift, -INT16_MAX, INT16_MAX);
        out[row] = (int16_t)value;
        tf_note_magnitude(largest, value);
    }
}

/* Input channels `i` and, unless it is the last, `i` + 1 of `count` pixels. */
static void run_two(const job *job, tf_block_run *run, uint32_t i, uint32_t count, int16_t *out,
                    int32_t *largest) {
    const uint32_t inputs = job->layer->in_channels, in_blocks = count & ~(TF_BLOCK_PIXELS - 1u);
    const uint32_t length = tf_packed_length(job->layer->out_channels), alone = i + 1u == inputs;
    int16_t *last = (int16_t *)(void *)job->taps;
    int16_t *to = alone ? last : out + i;
    tf_block_aim(run, to, sizeof(int16_t) * (alone ? 2u : inputs));
    if (in_blocks > 0u) {
        tf_block_run_all(run);
    }
    for (uint32_t p = in_blocks; p < count; p++) {
        run_single(run, job->stream + in_blocks * length, p - in_blocks,
                   to + p * run->step / sizeof(int16_t), largest);
    }
    for (uint32_t p = 0; p < count && alone; p++) {
        out[p * inputs + i] = last[2u * p];
    }
}

/* All of a pointwise layer, `at_once` pixels at a time; returns the largest |error|, 32768 where some
 * have still to be saturated. */
static int32_t run_pointwise(const job *job, const tf_weights *weights, uint32_t at_once) {
    const tf_convolution *layer = job->layer;
    const uint32_t inputs = layer->in_channels, outputs = layer->out_channels;
    const uint32_t length = tf_packed_length(outputs), row_bytes = 2u * tf_packed_length(inputs);
    const uint32_t pixels = (uint32_t)layer->in_height * layer->in_width;
    int16_t *pair = job->stream + at_once * length;
    tf_block_run run = {.first = {0, 0, layer->error_shift}, .pair = pair, .columns = job->stream};
    int32_t largest = 0;
    run.start[0] = run.start[1] = layer->error_shift > 0 ? 1 << (layer->error_shift - 1) : 0;
    tf_block_prepare(&run, TF_RUN_ERRORS, length);
    for (uint32_t first = 0, count; first < pixels; first += count) {
        count = pixels - first < at_once ? pixels - first : at_once;
        run.blocks = count / TF_BLOCK_PIXELS;
        scale_all(job, first, count);
        uint32_t trained = 0;
        for (uint32_t i = 0; i < inputs; i += 2u) {
            tf_block_widen_columns(pair, weights->fixed + 2u * i, row_bytes, 2u * job->pairs);
            for (; trained < weights->count && weights->channels[trained] < i + 2u; trained++) {
                put_trained(job, weights, trained, i, pair);
            }
            run_two(job, &run, i, count, job->out + first * inputs, &largest);
        }
    }
    tf_note_magnitude(&largest, (int32_t)((uint32_t)run.first.word & 0xffffu));
    tf_note_magnitude(&largest, (int32_t)((uint32_t)run.first.word >> 16));
    return largest;
}

/* So many input channels of all rows are merged at a time. */
static uint32_t merged_channels(const tf_convolution *layer) {
    const uint32_t taps = (uint32_t)layer->kernel_height * layer->kernel_width;
    const uint32_t row_pairs = (layer->out_channels + 1u) / 2u;
    const uint32_t fitting = TF_MERGED_BYTES / (2u * taps * row_pairs) & ~3u;
    const uint32_t most = fitting > 4u ? fitting : 4u;
    return layer->in_channels < most ? layer->in_channels : most;
}

/* Taps that one input position meets, at most. */
static uint32_t most_taps_of(const tf_convolution *layer) {
    return ((layer->kernel_height - 1u) / layer->stride_height + 1u) *
           ((layer->kernel_width - 1u) / layer->stride_width + 1u);
}

/* Scratch: the stream, the taps in it, and the rows in which trained channels take their places. */
static uint32_t stream_elements(const tf_convolution *layer) {
    return most_taps_of(layer) * ((layer->out_channels + 1u) / 2u) * TF_STREAM_STEP;
}

static uint32_t tap_elements(const tf_convolution *layer) {
    return (most_taps_of(layer) + 1u) & ~1u;
}

/* Scratch of pointwise layers: columns of scaled errors, two columns of the weights, and errors of
 * the last of an odd number of channels. */
static uint32_t pointwise_bytes(const tf_convolution *layer, uint32_t at_once) {
    const uint32_t length = tf_packed_length(layer->out_channels);
    const uint32_t last = layer->in_channels % 2u == 1u ? 2u * at_once : 0u;
    return sizeof(int16_t) * ((at_once + 2u) * length + last);
}

uint32_t tf_convolution_input_gradient_scratch_bytes(const tf_convolution *layer, uint32_t trained,
                                                     uint32_t at_once) {
    if (tf_is_pointwise(layer)) {
        return pointwise_bytes(layer, at_once);
    }
    const uint32_t taps = (uint32_t)layer->kernel_height * layer->kernel_width;
    const uint32_t merged = tf_packed_bytes(layer->out_channels, taps * merged_channels(layer));
    return sizeof(int16_t) * stream_elements(layer) + sizeof(uint16_t) * tap_elements(layer) +
           (trained > 0 ? merged : 0u);
}

static void set_scale(const job *job, const tf_scale *scale, int32_t left, int32_t largest,
                      tf_scale *out_scale) {
    const tf_convolution *layer = job->layer;
    const uint32_t size = (uint32_t)layer->in_height * layer->in_width * layer->in_channels;
    out_scale->magnitude = largest > INT16_MAX ? saturate(job->out, size) : largest;
    out_scale->exponent = scale->exponent + layer->error_exponent - left + layer->error_shift;
}

void tf_convolution_input_gradient(const tf_convolution *layer, const int16_t *error,
                                   const tf_scale *scale, const tf_weights *weights, int16_t *out,
                                   tf_scale *out_scale, int16_t *scratch, uint32_t at_once) {
    const int32_t left = tf_headroom(scale) - layer->error_headroom;
    const uint32_t pairs = (layer->out_channels + 1u) / 2u, inputs = layer->in_channels;
    job job = {.layer = layer,
               .error = error,
               .out = out,
               .weights = weights->fixed,
               .channels = inputs,
               .out_height = layer->out_height,
               .out_width = layer->out_width,
               .pairs = pairs,
               .shift = 15 - left,
               .stream = scratch,
               .taps = (uint16_t *)(scratch + stream_elements(layer)),
               .pointwise = tf_is_pointwise(layer)};
    int8_t *merged = (int8_t *)(job.taps + tap_elements(layer));
    uint32_t at_a_time = weights->count > 0 ? merged_channels(layer) : inputs;
    uint32_t in_blocks = job.pointwise;
#ifdef TF_VECTOR
    /* Pointwise layers go the long way where all of their weights find room, since out may lie over
     * the error. */
    int8_t all_weights[TF_PANEL_BYTES];
    if (job.pointwise && (weights->count == 0 ||
                          tf_packed_bytes(layer->out_channels, inputs) <= sizeof all_weights)) {
        merged = all_weights;
        at_a_time = inputs;
        in_blocks = 0;
        job.out_width *= job.out_height;
        job.out_height = 1;
    }
#endif
    if (in_blocks) {
        job.taps = (uint16_t *)(scratch + (at_once + 2u) * tf_packed_length(layer->out_channels));
        set_scale(&job, scale, left, run_pointwise(&job, weights, at_once), out_scale);
        return;
    }
    tf_gradient_block block;
    block.shift = layer->error_shift;
    block.half = layer->error_shift > 0 ? 1 << (layer->error_shift - 1) : 0;
    block.largest = 0;
    for (; job.first_channel < inputs; job.first_channel += at_a_time) {
        if (weights->count > 0) {
            const uint32_t rest = inputs - job.first_channel;
            job.channels = rest < at_a_time ? rest : at_a_time;
            const tf_weight_part part = {0, pairs, job.first_channel, job.channels};
            tf_merge_weights(layer, weights, &part, merged);
            job.weights = merged;
        }
        block.stream_end = NULL;
        run_all(&job, &block);
    }
    const uint32_t low = block.largest & 0xffffu, high = block.largest >> 16;
    const uint32_t largest = low > high ? low : high;
    /* The last of an odd number of channels is not among what blocks have noted. */
    set_scale(&job, scale, left, inputs % 2u == 1u ? INT16_MAX + 1 : (int32_t)largest, out_scale);
}
