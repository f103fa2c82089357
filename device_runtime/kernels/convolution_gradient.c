/* Full convolution, backward: the error of its input. Input positions are taken four at a time, a
 * stride apart, so that one tap of the kernel joins them with four neighbours of the output. */
#include "block.h"
#include "fixed_point.h"

/* What does not change between the blocks of a layer. */
typedef struct {
    const tf_convolution *layer;
    const tf_weights *weights;
    const int16_t *error;
    int16_t *out;
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

#if TF_DSP
static inline uint32_t scale_two(const int16_t *error, int16x2_t multiplier, int32_t half,
                                 int32_t shift) {
    const int16x2_t e = (int16x2_t)tf_load32(error);
    const int32_t low = __smlabb(e, multiplier, half) >> shift;
    const int32_t high = __smlatt(e, multiplier, half) >> shift;
    return tf_pack_low((uint32_t)low, (uint32_t)high);
}
#endif

/* The errors of an output pixel times their channels' multipliers; the shift is chosen so that
 * they use all bits of int16 but `error_headroom`. */
static void scale_pixel(const job *job, const int16_t *error, int16_t *to) {
    const uint32_t channels = job->layer->out_channels;
    const int16_t *multiplier = job->layer->error_multiplier;
    const int32_t shift = job->shift, half = shift > 0 ? 1 << (shift - 1) : 0;
    for (uint32_t o = 0; o + 2u <= channels; o += 2u, to += TF_STREAM_STEP) {
#if TF_DSP
        const int16x2_t m = (int16x2_t)tf_load32(multiplier + o);
        tf_store32(to, scale_two(error + o, m, half, shift));
#else
        to[0] = (int16_t)((error[o] * multiplier[o] + half) >> shift);
        to[1] = (int16_t)((error[o + 1u] * multiplier[o + 1u] + half) >> shift);
#endif
    }
    if (channels % 2u == 1u) {
        to[0] = (int16_t)((error[channels - 1u] * multiplier[channels - 1u] + half) >> shift);
        to[1] = 0;
    }
}

#if TF_DSP
/* The same for four pixels next to each other. */
static void scale_four(const job *job, const int16_t *error, int16_t *to) {
    const uint32_t channels = job->layer->out_channels;
    const int16_t *multiplier = job->layer->error_multiplier;
    const int16_t *e0 = error, *e1 = e0 + channels, *e2 = e1 + channels, *e3 = e2 + channels;
    const int32_t shift = job->shift, half = shift > 0 ? 1 << (shift - 1) : 0;
    for (const int16_t *end = e0 + (channels & ~1u); e0 < end; to += TF_STREAM_STEP) {
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
#if TF_DSP
    const uint32_t channels = job->layer->out_channels;
    if (channels % 2u == 0 && count == TF_BLOCK_PIXELS && x >= 0 &&
        x + 4 <= (int32_t)job->out_width) {
        const uint32_t at = (uint32_t)y * job->out_width + (uint32_t)x;
        scale_four(job, job->error + at * channels, to + 2);
        return;
    }
#endif
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
        int16_t *pixel = to + 2u + 2u * p;
        if (x < 0 || x >= (int32_t)job->out_width) {
            for (uint32_t i = 0; i < job->pairs; i++) {
                tf_store32(pixel + i * TF_STREAM_STEP, 0);
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

/* Where the weights of the stream's errors begin in a matrix with `channels` per tap. */
static void put_offsets(const job *job, uint32_t taps, uint32_t channels) {
    const uint32_t all_taps = (uint32_t)job->layer->kernel_height * job->layer->kernel_width;
    const uint32_t row_bytes = 2u * tf_packed_length(all_taps * channels);
    int16_t *to = job->stream;
    for (uint32_t i = 0; i < taps; i++) {
        uint32_t offset = 2u * job->taps[i] * channels;
        for (uint32_t pair = 0; pair < job->pairs; pair++) {
            tf_store32(to, offset);
            offset += row_bytes;
            to += TF_STREAM_STEP;
        }
    }
}

/* Channels first and first + 1 of a matrix; those in `wanted` (bits 0 and 1) go to places[0] and
 * places[1] of every pixel at `output`. Of a layer with a single input channel, whatever lies
 * behind a row is multiplied as well, and thrown away. */
static void run_two(const tf_gradient_block *block, const int8_t *weights, uint32_t first,
                    uint32_t wanted, const uint16_t *places, int16_t *output) {
    int16_t errors[2u * TF_BLOCK_PIXELS];
    tf_gradient_block two = *block;
    two.output = errors;
    two.weights = weights + 2u * first;
    two.weights_end = two.weights + 4;
    for (uint32_t p = 1; p < TF_BLOCK_PIXELS; p++) {
        two.steps[p - 1u] = (int32_t)(4u * p);
    }
    tf_block_gradient(&two);
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
        int16_t *to = output + (p == 0 ? 0 : block->steps[p - 1u] / 2);
        for (uint32_t i = 0; i < 2u; i++) {
            if ((wanted >> i & 1u) != 0) {
                to[places[i]] = errors[2u * p + i];
            }
        }
    }
}

/* All input channels by the fixed weights, but pairs of which both are trained. */
static void run_fixed(const job *job, tf_gradient_block *block, int16_t *output) {
    const tf_weights *weights = job->weights;
    const uint32_t channels = job->layer->in_channels, even = channels & ~1u;
    uint32_t next = 0;
    for (uint32_t first = 0, end = 0; first < even; first = end + 2u) {
        for (end = first; end < even; end += 2u) {
            while (next < weights->count && weights->channels[next] < end) {
                next++;
            }
            if (next + 1u < weights->count && weights->channels[next] == end &&
                weights->channels[next + 1u] == end + 1u) {
                break;
            }
        }
        if (end > first) {
            block->output = output + first;
            block->weights = weights->fixed + 2u * first;
            block->weights_end = weights->fixed + 2u * end;
            tf_block_gradient(block);
        }
    }
    if (even < channels) {
        const uint32_t from = channels > 1u ? channels - 2u : 0;
        const uint16_t places[2] = {(uint16_t)from, (uint16_t)(channels - 1u)};
        run_two(block, weights->fixed, from, channels > 1u ? 2u : 1u, places, output);
    }
}

static void run_trained(const job *job, tf_gradient_block *block, int16_t *output) {
    const tf_weights *weights = job->weights;
    const uint32_t count = weights->count;
    for (uint32_t j = 0; j + 2u <= count; j += 2u) {
        run_two(block, weights->trained, j, 3u, weights->channels + j, output);
    }
    if (count == 1u) {
        const uint16_t places[2] = {weights->channels[0], 0};
        run_two(block, weights->trained, 0, 1u, places, output);
    } else if (count % 2u == 1u) {
        run_two(block, weights->trained, count - 2u, 2u, weights->channels + count - 2u, output);
    }
}

/* `count` input positions, a column stride apart, whose errors begin at `output`. */
static void run_block(const job *job, tf_gradient_block *block, uint32_t taps, uint32_t count,
                      int16_t *output) {
    const uint32_t channels = job->layer->in_channels;
    const uint32_t step = job->layer->stride_width * channels;
    for (uint32_t p = 1; p < TF_BLOCK_PIXELS; p++) {
        block->steps[p - 1u] = (int32_t)(2u * (p < count ? p : count - 1u) * step);
    }
    if (taps == 0) {
        for (uint32_t p = 0; p < count; p++) {
            memset(output + p * step, 0, 2u * channels);
        }
        return;
    }
    if (block->stream_end == NULL || !job->pointwise || job->weights->count > 0) {
        tf_block_set_stream(block, job->stream, taps * job->pairs);
        put_offsets(job, taps, channels);
    }
    run_fixed(job, block, output);
    if (job->weights->count > 0) {
        put_offsets(job, taps, job->weights->count);
        run_trained(job, block, output);
    }
}

/* Rows `height` of `width` input positions each. */
static void run_all(const job *job, tf_gradient_block *block, uint32_t height, uint32_t width) {
    const tf_convolution *layer = job->layer;
    const uint32_t stride = layer->stride_width;
    for (uint32_t y = 0; y < height; y++) {
        const meeting rows = meet(y, layer->pad_top, layer->stride_height, layer->kernel_height);
        for (uint32_t phase = 0; phase < stride; phase++) {
            for (uint32_t x = phase; x < width; x += TF_BLOCK_PIXELS * stride) {
                const meeting cols = meet(x, layer->pad_left, stride, layer->kernel_width);
                const uint32_t left = (width - x - 1u) / stride + 1u;
                const uint32_t count = left < TF_BLOCK_PIXELS ? left : TF_BLOCK_PIXELS;
                const uint32_t taps = gather(job, &rows, &cols, count);
                run_block(job, block, taps, count, job->out + (y * width + x) * layer->in_channels);
            }
        }
    }
}

static uint32_t is_pointwise(const tf_convolution *layer) {
    return layer->kernel_height == 1 && layer->kernel_width == 1 && layer->stride_height == 1 &&
           layer->stride_width == 1 && layer->pad_top == 0 && layer->pad_left == 0;
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

void tf_convolution_input_gradient(const tf_convolution *layer, const int16_t *error,
                                   const tf_scale *scale, const tf_weights *weights, int16_t *out,
                                   tf_scale *out_scale, int16_t *scratch) {
    const int32_t left = tf_headroom(scale) - layer->error_headroom;
    const uint32_t most_taps = ((layer->kernel_height - 1u) / layer->stride_height + 1u) *
                               ((layer->kernel_width - 1u) / layer->stride_width + 1u);
    const uint32_t pairs = (layer->out_channels + 1u) / 2u;
    job job = {layer,
               weights,
               error,
               out,
               layer->out_height,
               layer->out_width,
               pairs,
               15 - left,
               scratch,
               (uint16_t *)(scratch + most_taps * pairs * TF_STREAM_STEP),
               is_pointwise(layer)};
    tf_gradient_block block;
    block.shift = layer->error_shift;
    block.half = layer->error_shift > 0 ? 1 << (layer->error_shift - 1) : 0;
    block.largest = 0;
    block.stream_end = NULL;
    if (job.pointwise) { /* one long row: blocks go on from one row to the next */
        job.out_width *= job.out_height;
        job.out_height = 1;
        run_all(&job, &block, 1, job.out_width);
    } else {
        run_all(&job, &block, layer->in_height, layer->in_width);
    }
    const uint32_t low = block.largest & 0xffffu, high = block.largest >> 16;
    const uint32_t largest = low > high ? low : high;
    /* What two channels at a time have made is not all there to stay. */
    const uint32_t uncertain = weights->count > 0 || layer->in_channels % 2u == 1u;
    out_scale->magnitude =
        largest > INT16_MAX || uncertain
            ? saturate(out, (uint32_t)layer->in_height * layer->in_width * layer->in_channels)
            : (int32_t)largest;
    out_scale->exponent = scale->exponent + layer->error_exponent - left + layer->error_shift;
}
