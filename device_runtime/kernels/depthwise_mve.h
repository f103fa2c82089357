/* Depthwise convolution, forward, with vectors (Helium): four channels of four neighbouring outputs
 * at a time. */
#ifndef TINYFLEET_DEPTHWISE_MVE_H
#define TINYFLEET_DEPTHWISE_MVE_H

#include "planes.h"

#if TF_MVE

/* What a layer's rows are gathered to, four channels beside each other: `high` - `low` rows of
 * `line` columns, behind which may be read as far as behind two planes; and their taps. */
typedef struct {
    int32_t low, high; /* input rows */
    uint32_t line;
    int8_t *taps, *columns;
} tf_four_channels;

/* Whether the function below makes this layer of these tensors. */
uint32_t tf_depthwise_has_vectors(const tf_convolution *layer, const int8_t *input,
                                  const int8_t *output);

/* What tf_depthwise_forward does; all bits of the mask are set before. */
void tf_depthwise_forward_in_vectors(const tf_convolution *layer, const tf_span *span,
                                     const int8_t *input, const tf_weights *weights,
                                     const int32_t *bias, int8_t *output, uint8_t *mask,
                                     const tf_four_channels *room);

#endif

#endif
