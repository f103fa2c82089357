/* Columns of what output pixels of a full convolution see. */
#ifndef TINYFLEET_COLUMNS_H
#define TINYFLEET_COLUMNS_H

#include "block.h"

/* Where columns come from, and where they go. */
typedef struct {
    const tf_convolution *layer;
    const int8_t *input;
    uint32_t in_height, in_width, in_ring, out_width;
    tf_column *all_columns;
    tf_column *columns;              /* those of the block at hand */
    uint32_t length;                 /* of a column */
    uint32_t line;                   /* values that one kernel row sees */
    uint32_t step;                   /* from what a pixel sees to what the next one sees */
    uint32_t inner_first, inner_end; /* x where four pixels in a row see no border */
} tf_columns;

/* Sets which x begin four pixels of one row that see no border on either side. */
void tf_find_inner(tf_columns *by);

/* Columns of output pixel (y, x) and the `count` - 1 (at most 3) that follow, to by->columns. */
void tf_gather_block(const tf_columns *by, uint32_t y, uint32_t x, uint32_t count);

/* The same for any number of pixels: block by block, from by->all_columns on. */
void tf_gather_columns(tf_columns *by, uint32_t y, uint32_t x, uint32_t count);

/* Zeros behind the values of a block's columns. */
void tf_fill_up(tf_column *columns, uint32_t used, uint32_t length);

#endif
