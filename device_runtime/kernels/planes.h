/* One channel at a time as a *plane*: its rows as int16 with zeros beside them, and the sums of a
 * kernel that slides along those rows.
 *
 * With DSP instructions a word holds two neighbours of a row, which SMLAD multiplies by two taps.
 * Output x of a stride of 1 begins in the middle of a word where x is odd, so the taps come as all
 * overlapping pairs (w0, w1), (w1, w2), …: even outputs take every other one from the first on, odd
 * ones from the second on, and the tap left over at either end is the half of a pair. The portable
 * twin reads plain taps. Rows of 3, 5 and 7 taps at strides of 1 and 2 have code of their own;
 * shorter rows are filled up with zeros to the next of these.
 */
#ifndef TINYFLEET_PLANES_H
#define TINYFLEET_PLANES_H

#include <stdint.h>
#include <string.h>

#if defined(__ARM_FEATURE_DSP) && !defined(TF_PORTABLE_KERNELS)
#define TF_PLANES_DSP 1
#include <arm_acle.h>
#else
#define TF_PLANES_DSP 0
#endif

/* Outputs that are summed in one go; `sums` of a row have room for a whole number of them. */
#define TF_SLIDE_BLOCK 8u

/* Rows of taps that slide along the rows of a plane. */
typedef struct {
    uint32_t width;    /* taps of a row, with those that are filled up */
    uint32_t stride;   /* columns from one output to the next */
    uint32_t taps_row; /* elements of a row of the table */
    uint32_t line;     /* elements of a row of the plane, even */
} tf_slide;

tf_slide tf_make_slide(uint32_t taps, uint32_t stride, uint32_t line);

/* Writes `rows` rows of the table: before zeros, then the `count` values from[0], from[step], …;
 * the next row starts `row_step` later in `from`. */
void tf_widen_taps(const tf_slide *slide, const int8_t *from, int32_t step, int32_t row_step,
                   uint32_t count, uint32_t before, uint32_t rows, int16_t *table);

/* sums[x] = start + the products of `rows` rows of taps, the first of which lies on plane row
 * `plane` with its first tap at column x * stride; x < count. Reads as far as a whole number of
 * blocks needs. */
void tf_slide_row(const tf_slide *slide, const int16_t *plane, const int16_t *table, uint32_t rows,
                  uint32_t count, int32_t start, int32_t *sums);

/* to[i] = from[i * step] - zero for i < count; with two lanes also the next channel's, `plane`
 * elements later. */
void tf_gather_codes(const int8_t *from, uint32_t step, uint32_t count, uint32_t lanes,
                     int32_t zero, int16_t *to, uint32_t plane);
void tf_gather_errors(const int16_t *from, uint32_t step, uint32_t count, uint32_t lanes,
                      int16_t *to, uint32_t plane);

/* sums[i] += the product of error and row from its element i on, both `count` long, which is even;
 * i < taps <= 4. Errors are aligned to words, rows need not be. */
void tf_correlate(const int16_t *error, const int16_t *row, uint32_t count, uint32_t taps,
                  int32_t sums[4]);

static inline uint32_t tf_even_up(uint32_t value) {
    return (value + 1u) & ~1u;
}

#endif
