/* What an update will need of a layer's input: the channels whose weights are trained. */
#include "tinyfleet/kernels.h"

void tf_keep_channels(const uint16_t *channels, uint32_t count, const int8_t *input, uint32_t all,
                      uint32_t pixels, int8_t *kept) {
    for (; pixels > 0u; pixels--, input += all) {
        for (uint32_t i = 0; i < count; i++) {
            *kept++ = input[channels[i]];
        }
    }
}
