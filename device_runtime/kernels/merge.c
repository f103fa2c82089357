/* Trained channels among the others: a copy of what the blob has, patched. Costs a few instructions
 * a weight, where a second inner product over the trained channels would cost some per pixel. */
#include "merge.h"
#include "block.h"

static void copy_pairs(int8_t *to, const int8_t *from, uint32_t count) {
    uint32_t i = 0;
    for (; i + 2u <= count; i += 2u) {
        tf_store32(to + 2u * i, tf_load32(from + 2u * i));
    }
    if (i < count) {
        memcpy(to + 2u * i, from + 2u * i, 2u);
    }
}

void tf_merge_weights(const tf_convolution *layer, const tf_weights *weights,
                      const tf_weight_part *part, int8_t *merged) {
    const uint32_t taps = (uint32_t)layer->kernel_height * layer->kernel_width;
    const uint32_t inputs = layer->in_channels, count = weights->count;
    const uint32_t end = part->first_channel + part->channels;
    const uint32_t fixed_bytes = 2u * tf_packed_length(taps * inputs);
    const uint32_t trained_bytes = 2u * tf_packed_length(taps * count);
    const uint32_t used = taps * part->channels, length = tf_packed_length(used);
    uint32_t first_trained = 0, end_trained;
    while (first_trained < count && weights->channels[first_trained] < part->first_channel) {
        first_trained++;
    }
    for (end_trained = first_trained; end_trained < count; end_trained++) {
        if (weights->channels[end_trained] >= end) {
            break;
        }
    }
    for (uint32_t pair = part->first_pair; pair < part->end_pair; pair++) {
        const int8_t *fixed = weights->fixed + pair * fixed_bytes + 2u * part->first_channel;
        const int8_t *trained = weights->trained + pair * trained_bytes;
        for (uint32_t tap = 0; tap < taps; tap++) {
            int8_t *to = merged + 2u * tap * part->channels;
            copy_pairs(to, fixed + 2u * tap * inputs, part->channels);
            for (uint32_t j = first_trained; j < end_trained; j++) {
                memcpy(to + 2u * (weights->channels[j] - part->first_channel),
                       trained + 2u * (tap * count + j), 2u);
            }
        }
        memset(merged + 2u * used, 0, 2u * (length - used));
        merged += 2u * length;
    }
}
