/* Weight updates on the host: what convolution_update.c, depthwise_gradient.c and head.c do, a weight
 * in every lane. All return 0, and have done nothing, where this way isn't open: velocities, sums
 * that need 64 bits, or layers that find no room. */
#ifndef TINYFLEET_UPDATES_H
#define TINYFLEET_UPDATES_H

#include "../kernels/fixed_point.h"

uint32_t tf_convolution_update_in_lanes(const tf_convolution *layer, const int16_t *error,
                                        const tf_scale *scale, const int8_t *input,
                                        const tf_trained *trained, const tf_update *update);
uint32_t tf_depthwise_update_in_lanes(const tf_convolution *layer, const int16_t *error,
                                      const tf_scale *scale, const int8_t *input,
                                      const tf_trained *trained, const tf_update *update);
/* The weights alone. */
uint32_t tf_head_update_in_lanes(const tf_head *layer, const int16_t *error, tf_step step,
                                 const int8_t *input, int16_t *weights, const tf_whole *of_weights,
                                 const tf_update *update);

#endif
