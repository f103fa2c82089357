/* Blocks on the host: all output channels of four pixels, a lane each.
 *
 * Weights lie in *panels* there: of TF_LANES rows the first two values of each, then the next two.
 * What a layer needs of them is made at every call, on the stack.
 */
#ifndef TINYFLEET_PANELS_H
#define TINYFLEET_PANELS_H

#include "../kernels/block.h"
#include "lanes.h"

/* Panels of a layer take so much of the stack at most, and so much the columns that they meet. */
#define TF_PANEL_BYTES (96u * 1024u)
#define TF_COLUMN_BYTES (48u * 1024u)

/* Pixels whose columns are made at a time, unless they take more than that. */
#define TF_PANEL_PIXELS 32u

static inline uint32_t tf_lanes_up(uint32_t channels) {
    return (channels + TF_LANES - 1u) / TF_LANES * TF_LANES;
}

/* Rows 0 … channels - 1 of packed weights of this packed length, as panels: tf_lanes_up(channels) *
 * length bytes. */
void tf_make_panels(const int8_t *packed, uint32_t channels, uint32_t length, int8_t *panels);

typedef struct {
    const int8_t *panels;
    const int32_t *bias; /* these are of `channels` channels: */
    const tf_multiplier *requantize;
    const uint8_t *pre_shift; /* NULL: no sum goes left */
    uint32_t channels, length;
    const int16_t *columns;
    uint32_t step; /* from a pixel's output to the next one's */
    int32_t zero;
} tf_panel_block;

/* Codes of all channels of `pixels` pixels whose columns are ready, a multiple of four of them; mask
 * is NULL, or gets their bits from bit `index` on. */
void tf_panels_forward(const tf_panel_block *block, uint32_t pixels, int8_t *output, uint8_t *mask,
                       uint32_t index);

#endif
