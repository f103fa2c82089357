/* Depthwise convolution, forward: two channels are gathered into planes, then each is made by
 * itself, row by row. */
#include "fixed_point.h"
#include "planes.h"

/* What all channels have in common. */
typedef struct {
    const tf_convolution *layer;
    const tf_span *span;
    int8_t *output;
    uint8_t *mask;
    tf_slide slide;
    int32_t low, high; /* input rows that the span needs */
    int16_t *table;
    int32_t *sums; /* of one output row */
    int16_t *planes;
    uint32_t plane; /* elements */
} forward_job;

/* Clears the mask's bit of every output that the clamp changed. */
static void mark_clamped(uint8_t *mask, uint32_t index, uint32_t step, const int32_t *values,
                         uint32_t count) {
    for (uint32_t x = 0; x < count; x++, index += step) {
        if (values[x] != tf_clamp8(values[x])) {
            mask[index >> 3] &= (uint8_t) ~(1u << (index & 7u));
        }
    }
}

static void store_row(const tf_requantizer *by, const int32_t *sums, uint32_t count, int8_t *output,
                      uint32_t step) {
    for (uint32_t x = 0; x < count; x++, output += step) {
        *output = (int8_t)tf_clamp8(tf_requantize(by, sums[x]));
    }
}

static void gather_rows(const forward_job *job, const int8_t *input, uint32_t lanes) {
    const tf_convolution *layer = job->layer;
    const uint32_t ring = job->span->in_ring, row = (uint32_t)layer->in_width * layer->in_channels;
    uint32_t slot = (uint32_t)job->low % ring;
    int16_t *to = job->planes + layer->pad_left;
    for (int32_t y = job->low; y < job->high; y++, to += job->slide.line) {
        tf_gather_codes(input + slot * row, layer->in_channels, layer->in_width, lanes,
                        layer->in_zero, to, job->plane);
        slot = slot + 1u == ring ? 0u : slot + 1u;
    }
}

static void one_channel(const forward_job *job, const int16_t *plane, uint32_t channel,
                        int32_t bias) {
    const tf_convolution *layer = job->layer;
    const tf_requantizer by = tf_make_requantizer(layer->requantize[channel], layer->out_zero);
    const uint32_t channels = layer->out_channels, width = layer->out_width;
    for (int32_t y = job->span->first; y < job->span->end; y++) {
        /* Rows of the window that lie outside the input are left out. */
        const int32_t top = y * layer->stride_height - layer->pad_top;
        const int32_t skipped = top < 0 ? -top : 0;
        const int32_t bottom = tf_clamp(top + layer->kernel_height, 0, layer->in_height);
        const int32_t rows = bottom - top - skipped;
        int32_t *sums = job->sums;
        tf_slide_row(&job->slide, plane + (uint32_t)(top + skipped - job->low) * job->slide.line,
                     job->table + (uint32_t)skipped * job->slide.taps_row,
                     rows > 0 ? (uint32_t)rows : 0u, width, bias, sums);
        for (uint32_t x = 0; layer->pre_shift > 0 && x < width; x++) {
            sums[x] = tf_raise(sums[x], layer->pre_shift);
        }
        const uint32_t out_row = (uint32_t)y % job->span->out_ring;
        store_row(&by, sums, width, job->output + out_row * width * channels + channel, channels);
        if (job->mask != NULL) {
            for (uint32_t x = 0; x < width; x++) {
                sums[x] = tf_requantize(&by, sums[x]);
            }
            mark_clamped(job->mask, (uint32_t)y * width * channels + channel, channels, sums,
                         width);
        }
    }
}

static void widen_taps(const forward_job *job, const tf_weights *weights, uint32_t channel,
                       uint32_t *trained) {
    const tf_convolution *layer = job->layer;
    const int8_t *from = weights->fixed + channel;
    uint32_t step = layer->out_channels;
    if (*trained < weights->count && weights->channels[*trained] == channel) {
        from = weights->trained + *trained;
        step = weights->count;
        (*trained)++;
    }
    tf_widen_taps(&job->slide, from, (int32_t)step, (int32_t)(step * layer->kernel_width),
                  layer->kernel_width, 0, layer->kernel_height, job->table);
}

static void set_bits(uint8_t *mask, uint32_t size) {
    memset(mask, 0xff, size / 8u);
    if (size % 8u != 0u) {
        mask[size / 8u] = (uint8_t)((1u << size % 8u) - 1u);
    }
}

void tf_depthwise_forward(const tf_convolution *layer, const tf_span *span, const int8_t *input,
                          const tf_weights *weights, const int32_t *bias, int8_t *output,
                          uint8_t *mask, int16_t *scratch) {
    const uint32_t channels = layer->out_channels;
    const uint32_t used = (layer->out_width - 1u) * layer->stride_width + layer->kernel_width;
    const uint32_t given = (uint32_t)layer->pad_left + layer->in_width;
    forward_job job;
    job.layer = layer;
    job.span = span;
    job.output = output;
    job.mask = mask;
    job.slide = tf_make_slide(layer->kernel_width, layer->stride_width,
                              tf_even_up(used > given ? used : given));
    job.low = tf_clamp(span->first * layer->stride_height - layer->pad_top, 0, layer->in_height);
    job.high =
        tf_clamp((span->end - 1) * layer->stride_height - layer->pad_top + layer->kernel_height, 0,
                 layer->in_height);
    job.sums = (int32_t *)(void *)scratch;
    job.table = scratch + 2u * ((layer->out_width + TF_SLIDE_BLOCK - 1u) & ~(TF_SLIDE_BLOCK - 1u));
    job.planes = job.table + layer->kernel_height * job.slide.taps_row;
    job.plane = (uint32_t)(job.high - job.low) * job.slide.line;
    memset(job.planes, 0,
           sizeof(int16_t) * (2u * job.plane + TF_SLIDE_BLOCK * (layer->stride_width + 1u)));
    if (mask != NULL) {
        set_bits(mask, (uint32_t)layer->out_height * layer->out_width * channels);
    }
    uint32_t trained = 0;
    for (uint32_t c = 0; c < channels; c += 2u) {
        const uint32_t lanes = channels - c < 2u ? 1u : 2u;
        gather_rows(&job, input + c, lanes);
        for (uint32_t lane = 0; lane < lanes; lane++) {
            widen_taps(&job, weights, c + lane, &trained);
            one_channel(&job, job.planes + lane * job.plane, c + lane, bias[c + lane]);
        }
    }
}
