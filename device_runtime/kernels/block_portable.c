/* Blocks in portable C: the same results as block_dsp.c, in loops that compilers vectorize. */
#include "block.h"
#include "fixed_point.h"

#if !TF_DSP

#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define TF_SMALL_CORE 1 /* no vectors, few registers, little stack */
#else
#define TF_SMALL_CORE 0
#endif

#if TF_SMALL_CORE

/* sums[r][p] += inner product of row r and column p, two columns at a time. */
static void add_products(const int16_t *columns, const int8_t *weights, uint32_t length,
                         int32_t sums[2][TF_BLOCK_PIXELS]) {
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p += 2u, columns += 2u * length) {
        const int16_t *x = columns, *y = columns + length, *end = y;
        const int8_t *w = weights;
        int32_t a = sums[0][p], b = sums[0][p + 1u], c = sums[1][p], d = sums[1][p + 1u];
        for (; x != end; x += 2, y += 2, w += 4) {
            a += x[0] * w[0] + x[1] * w[2];
            b += y[0] * w[0] + y[1] * w[2];
            c += x[0] * w[1] + x[1] * w[3];
            d += y[0] * w[1] + y[1] * w[3];
        }
        sums[0][p] = a, sums[0][p + 1u] = b, sums[1][p] = c, sums[1][p + 1u] = d;
    }
}

#else

/* Values of a row that are widened at a time. */
#define PIECE 128u

static int32_t dot(const int16_t *column, const int16_t *row, uint32_t count) {
    int32_t sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        sum += column[i] * row[i];
    }
    return sum;
}

/* sums[r][p] += inner product of row r and column p. */
static void add_products(const int16_t *columns, const int8_t *weights, uint32_t length,
                         int32_t sums[2][TF_BLOCK_PIXELS]) {
    int16_t rows[2][PIECE];
    for (uint32_t first = 0; first < length; first += PIECE) {
        const uint32_t count = length - first < PIECE ? length - first : PIECE;
        for (uint32_t i = 0; i < count; i++) {
            rows[0][i] = weights[2u * (first + i)];
            rows[1][i] = weights[2u * (first + i) + 1u];
        }
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
            const int16_t *column = columns + p * length + first;
            sums[0][p] += dot(column, rows[0], count);
            sums[1][p] += dot(column, rows[1], count);
        }
    }
}

#endif

void tf_block_prepare(tf_forward_block *block, const tf_convolution *layer, const int16_t *columns,
                      uint32_t length, uint32_t with_mask) {
    (void)with_mask;        /* mask_end says it, */
    block->mask_end = NULL; /* which whoever has a mask sets for every block */
    block->columns = columns;
    block->columns_end = columns + TF_BLOCK_PIXELS * length;
    tf_fill_offsets(block->offsets, layer->out_zero);
}

/* Two sums to codes at output; returns a bit for each that the clamp leaves alone: of the first
 * channel bit 6, of the second bit 7. */
static uint32_t make_codes(const tf_requantizer by[2], int32_t sum0, int32_t sum1, int8_t *output) {
    const int32_t value0 = tf_requantize(&by[0], sum0);
    const int32_t value1 = tf_requantize(&by[1], sum1);
    const int32_t code0 = tf_clamp8(value0), code1 = tf_clamp8(value1);
    output[0] = (int8_t)code0;
    output[1] = (int8_t)code1;
    return (uint32_t)(code0 == value0) << 6 | (uint32_t)(code1 == value1) << 7;
}

/* The sums of one channel go left by its pre_shift. */
static void raise_sums(int32_t sums[TF_BLOCK_PIXELS], int32_t pre_shift) {
    for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
        sums[p] = tf_raise_saturating(sums[p], pre_shift);
    }
}

void tf_block_forward(const tf_forward_block *block) {
    const uint32_t length = (uint32_t)(block->columns_end - block->columns) / TF_BLOCK_PIXELS;
    const uint32_t channels = (uint32_t)(block->output_end - block->output);
    const int8_t *mask_end = block->mask_end;
    uint8_t *mask = block->mask;
    uint32_t bits[TF_BLOCK_PIXELS] = {0, 0, 0, 0};
    for (uint32_t o = 0; o < channels; o += 2u) {
        const int32_t word0 = block->requantize[o], word1 = block->requantize[o + 1u];
        const tf_requantizer by[2] = {{word0, block->offsets[word0 & 31], word0 & 31},
                                      {word1, block->offsets[word1 & 31], word1 & 31}};
        int32_t sums[2][TF_BLOCK_PIXELS];
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
            sums[0][p] = block->bias[o];
            sums[1][p] = block->bias[o + 1u];
        }
        add_products(block->columns, block->weights + o * length, length, sums);
        if (block->pre_shift != NULL) {
            raise_sums(sums[0], block->pre_shift[o]);
            raise_sums(sums[1], block->pre_shift[o + 1u]);
        }
        for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
            int8_t *output = block->output + (p == 0 ? 0 : block->steps[p - 1u]) + o;
            bits[p] = bits[p] >> 2 | make_codes(by, sums[0][p], sums[1][p], output);
        }
        if (block->output + o + 2u == mask_end) {
            for (uint32_t p = 0; p < TF_BLOCK_PIXELS; p++) {
                mask[p == 0 ? 0 : block->mask_steps[p - 1u]] = (uint8_t)bits[p];
            }
            mask_end += 8;
            mask++;
        }
    }
}

#if !defined(TF_VECTOR)

void tf_block_set_stream(tf_gradient_block *block, const int16_t *stream, uint32_t count) {
    block->stream = stream;
    block->stream_end = stream + TF_STREAM_STEP * count;
}

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
