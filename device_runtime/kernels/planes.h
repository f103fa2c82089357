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

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "pairs.h"

/* Outputs that are summed in one go, at most; `sums` of a row have room for a whole number. */
#define TF_SLIDE_BLOCK 8u

/* Sums that are made before they are stored, unless a row has more. */
#define TF_SUMS_AT_ONCE 256u

/* Where the window of an output row begins, in elements of the plane and of the table of taps, and
 * how many rows it has. */
typedef struct {
    int32_t plane, table, rows;
} tf_window;

/* The sums of some output rows. Assembler knows the order of these. */
typedef struct {
    const tf_window *window, *end; /* of these rows */
    const int16_t *plane, *table;
    uint32_t row_bytes; /* of the sums of one row */
    int32_t start;      /* of every sum */
    uint32_t line_bytes;
    int32_t *sums; /* rows follow each other without a gap */
} tf_slide_rows;

/* Rows of taps that slide along the rows of a plane. */
typedef struct {
    uint32_t width;                         /* taps of a row, with those that are filled up */
    uint32_t stride;                        /* columns from one output to the next */
    uint32_t taps_row;                      /* elements of a row of the table */
    uint32_t line;                          /* elements of a row of the plane, even */
    int overlapping;                        /* the table has all overlapping pairs */
    void (*run)(const tf_slide_rows *rows); /* NULL: no code for this width and stride */
} tf_slide;

tf_slide tf_make_slide(uint32_t taps, uint32_t stride, uint32_t line);

/* The taps of a channel, `step` from one to the next. */
typedef struct {
    const int8_t *first;
    uint32_t step;
} tf_channel_taps;

/* Those of `channel` and, with two `lanes`, of the next one; `trained` channels lie before them among
 * those of the weights, and goes on. */
void tf_find_taps(const tf_weights *weights, uint32_t channel, uint32_t channels, uint32_t lanes,
                  uint32_t *trained, tf_channel_taps of[2]);

/* Rows of a table: `rows` of them, each `before` zeros, then `count` taps and zeros: those from tap
 * `first` on, `step` from one to the next and `row_step` from row to row. */
typedef struct {
    int32_t first, step, row_step;
    uint32_t count, before, rows;
} tf_taps;

/* Writes the tables of these taps of one channel or of two, the second one's `room` elements behind
 * the first one's. */
void tf_widen_taps(const tf_slide *slide, const tf_taps *taps, const tf_channel_taps of[2],
                   uint32_t lanes, int16_t *table, uint32_t room);

/* sum x of a row = start + the products of the window's rows of taps, where the first tap lies at
 * column x * stride. Reads, and writes behind the last row, as far as a whole number of blocks
 * needs. */
void tf_slide_slowly(const tf_slide *slide, const tf_slide_rows *by);

static inline void tf_slide_rows_of(const tf_slide *slide, const tf_slide_rows *by) {
    if (slide->run != NULL) {
        slide->run(by);
    } else {
        tf_slide_slowly(slide, by);
    }
}

/* Where planes are gathered from: `rows` rows of `count` columns of one channel in a tensor of many,
 * and where they go: the next channel, with two lanes, `plane` elements later. */
typedef struct {
    uint32_t rows, count;
    uint32_t step, row_step; /* elements from a column, and from a row, to the next in the tensor */
    uint32_t lanes;
    uint32_t line, plane;
} tf_gathering;

/* Codes minus their zero point. */
void tf_gather_codes(const tf_gathering *by, const int8_t *from, int32_t zero, int16_t *to);
void tf_gather_errors(const tf_gathering *by, const int16_t *from, int16_t *to);

/* Rows of errors and the rows of a plane that they are multiplied with. Assembler knows the order of
 * these. */
typedef struct {
    const int16_t *error, *plane; /* at words */
    const int16_t *end;           /* of the errors, whose rows follow each other without a gap */
    uint32_t row_bytes;           /* of errors: a whole number of words */
    uint32_t rest_bytes;          /* of a row of the plane behind them, words too */
} tf_correlation;

#define TF_TAPS_AT_ONCE 5u

/* sums[i] = the product of the errors and of the plane from its element i on; i < taps. */
void tf_correlate(const tf_correlation *by, uint32_t taps, int32_t *sums);

/* Output rows of this width whose sums are made before they are stored. */
static inline uint32_t tf_rows_at_once(uint32_t width) {
    return width < TF_SUMS_AT_ONCE ? TF_SUMS_AT_ONCE / width : 1u;
}

/* Of `rows` rows, that may be made in parts. */
static inline uint32_t tf_room_for_sums(uint32_t width, uint32_t rows) {
    const uint32_t most = width < TF_SUMS_AT_ONCE ? TF_SUMS_AT_ONCE : width;
    return (width * rows < most ? width * rows : most) + TF_SLIDE_BLOCK;
}

static inline uint32_t tf_even_up(uint32_t value) {
    return (value + 1u) & ~1u;
}

/* Elements of a row of the table of taps, at most: overlapping pairs of a row of this width, which
 * may have a tap of zeros before it and be filled up to the next width with code of its own. */
static inline uint32_t tf_room_for_taps(uint32_t width) {
    return 2u * width + 4u;
}

#endif
