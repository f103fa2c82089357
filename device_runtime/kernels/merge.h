/* Rows of packed weights in which trained channels have taken their places. */
#ifndef TINYFLEET_MERGE_H
#define TINYFLEET_MERGE_H

#include "tinyfleet/kernels.h"

/* So much of a layer's weights is merged at a time, or a little more where rows are long. */
#define TF_MERGED_BYTES 4096u

/* Part of the weights of a layer: some row pairs and, of every tap, some input channels. */
typedef struct {
    uint32_t first_pair, end_pair;
    uint32_t first_channel, channels;
} tf_weight_part;

/* Writes a packed matrix of the part's rows, taps * part->channels values long, to `merged`. */
void tf_merge_weights(const tf_convolution *layer, const tf_weights *weights,
                      const tf_weight_part *part, int8_t *merged);

#endif
