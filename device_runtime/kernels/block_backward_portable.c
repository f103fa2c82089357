/* Blocks of the backward pass in portable C: input errors of layers with several taps, the same
 * results as those of block_backward_dsp.c. */
#include "block.h"

#if !TF_DSP

void tf_block_set_stream(tf_gradient_block *block, const int16_t *stream, uint32_t count) {
    block->stream = stream;
    block->stream_end = stream + TF_STREAM_STEP * count;
}

#if !defined(TF_VECTOR)

#if TF_SMALL_CORE

/* Keeps the errors of two channels, of which `largest` takes note. */
static void store_two(const tf_gradient_block *block, const int32_t sums[2], int16_t *out,
                      int32_t *largest) {
    for (uint32_t i = 0; i < 2u; i++) {
        const int32_t value = tf_clamp(sums[i] >> block->shift, -32767, 32767);
        tf_note_magnitude(largest, value);
        out[i] = (int16_t)value;
    }
}

/* Two input channels of two pixels at a time. */
void tf_block_gradient(tf_gradient_block *block) {
    int32_t largest = (int32_t)block->largest;
    int16_t *output = block->output;
    for (const int8_t *at = block->weights; at != block->weights_end; at += 4, output += 2) {
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p += 2u) {
            int32_t first[2] = {block->half, block->half}, second[2] = {block->half, block->half};
            for (const int16_t *from = block->stream; from != block->stream_end;
                 from += TF_STREAM_STEP) {
                const int16_t *e = from + 2u + 2u * p;
                /* By halves: cores without unaligned accesses load words byte by byte. */
                const uint32_t high = (uint16_t)from[1];
                const int8_t *w = at + (high << 16 | (uint16_t)from[0]);
                first[0] += e[0] * w[0] + e[1] * w[1];
                first[1] += e[0] * w[2] + e[1] * w[3];
                second[0] += e[2] * w[0] + e[3] * w[1];
                second[1] += e[2] * w[2] + e[3] * w[3];
            }
            int16_t *out = output + (p == 0 ? 0 : block->steps[p - 1u] / 2);
            store_two(block, first, out, &largest);
            store_two(block, second, output + block->steps[p] / 2, &largest);
        }
    }
    block->largest = (uint32_t)largest;
}

#else

/* Values of a row that are widened at a time. */
#define PIECE 128u

/* sums[p][i] += errors of two output channels at pixel p * their weights for input channel i. */
static void add_scaled(const int16_t *errors, const int8_t *weights, uint32_t count,
                       int32_t sums[TF_BLOCK_PIXELS][PIECE]) {
    int16_t row0[PIECE], row1[PIECE];
    for (uint32_t i = 0; i < count; i++) {
        row0[i] = weights[2u * i];
        row1[i] = weights[2u * i + 1u];
    }
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
        const int16_t a = errors[2u * p], b = errors[2u * p + 1u];
        for (uint32_t i = 0; i < count; i++) {
            sums[p][i] += a * row0[i] + b * row1[i];
        }
    }
}

static void store_errors(tf_gradient_block *block, uint32_t at, uint32_t count,
                         int32_t sums[TF_BLOCK_PIXELS][PIECE]) {
    int32_t largest = (int32_t)block->largest;
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
        int16_t *out = block->output + (p == 0 ? 0 : block->steps[p - 1u] / 2) + at;
        for (uint32_t i = 0; i < count; i++) {
            const int32_t value = tf_clamp(sums[p][i] >> block->shift, -32767, 32767);
            const int32_t size = value < 0 ? -value : value;
            out[i] = (int16_t)value;
            largest = size > largest ? size : largest;
        }
    }
    block->largest = (uint32_t)largest;
}

void tf_block_gradient(tf_gradient_block *block) {
    const uint32_t channels = (uint32_t)(block->weights_end - block->weights) / 2u;
    for (uint32_t at = 0; at < channels; at += PIECE) {
        const uint32_t count = channels - at < PIECE ? channels - at : PIECE;
        int32_t sums[TF_BLOCK_PIXELS][PIECE];
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
            for (uint32_t i = 0; i < count; i++) {
                sums[p][i] = block->half;
            }
        }
        for (const int16_t *from = block->stream; from < block->stream_end;
             from += TF_STREAM_STEP) {
            add_scaled(from + 2, block->weights + tf_load32(from) + 2u * at, count, sums);
        }
        store_errors(block, at, count, sums);
    }
}

#endif

#endif

#endif
