/* Layer normalization: groups of elements less their mean, by their deviation; or less nothing, by
 * the root of their mean square. */
#include "fixed_point.h"

/* Of one group. A standardized value times 2^bits is code * step - origin, times the upper half of
 * `factor`, >> shift; one over the deviation of count times the codes is
 * factor * 2^(-37 - power). */
typedef struct {
    int32_t step, origin;
    int32_t factor; /* at most 2^30 */
    int32_t shift, power;
} moments;

/* Rounded down. */
static uint32_t square_root(uint32_t value) {
    uint32_t root = 0;
    for (uint32_t bit = 1u << 15; bit != 0u; bit >>= 1) {
        const uint32_t larger = root | bit;
        if (larger * larger <= value) {
            root = larger;
        }
    }
    return root;
}

static moments moments_of(const tf_layer_normalization *layer, const int8_t *input) {
    const int32_t count = layer->count;
    int32_t sum = 0, squares = 0;
    for (int32_t i = 0; i < count; i++) {
        const int32_t code = input[i];
        sum += code;
        squares += code * code;
    }
    /* Count times what codes are less of: their mean, or real zero. */
    const int32_t origin = layer->centred != 0u ? sum : count * layer->in_zero;
    const uint64_t spread =
        (uint64_t)((int64_t)count * squares + (int64_t)origin * (origin - 2 * sum));
    uint64_t variance = (spread << 16) + layer->epsilon;
    variance = variance == 0u ? 1u : variance;
    const int32_t bits = tf_bit_length64(variance);
    /* As a power of four times 31 or 32 bits. */
    const int32_t power = (bits - 31) >> 1;
    const uint32_t scaled =
        (uint32_t)(power < 0 ? variance << (-2 * power) : variance >> (2 * power));
    const int32_t shift = power + layer->lift + 5 - layer->bits;
    const moments made = {
        .step = count * (1 << layer->lift),
        .origin = origin * (1 << layer->lift),
        .factor = (int32_t)((1u << 31) / square_root(scaled) << 14),
        .shift = tf_clamp(shift, 1, 30),
        .power = power,
    };
    return made;
}

static inline int32_t standardized(const moments *by, int32_t code) {
    const int32_t high = (int32_t)(((int64_t)(code * by->step - by->origin) * by->factor) >> 32);
    return tf_clamp((high + (1 << (by->shift - 1))) >> by->shift, -32767, 32767);
}

void tf_layer_normalization_forward(const tf_layer_normalization *layer, const int8_t *input,
                                    int8_t *output, uint8_t *mask) {
    const int32_t zero = layer->out_zero, drop = layer->drop, shift = layer->shift;
    const uint32_t count = layer->count;
    const int16_t *multiplier = layer->multiplier;
    const int32_t *offset = layer->offset;
    tf_mask_writer written = {mask, 0, 0};
    for (uint32_t group = 0; group < layer->groups; group++) {
        const moments by = moments_of(layer, input);
        for (uint32_t i = 0; i < count; i++) {
            const int32_t product = standardized(&by, *input++) * multiplier[i];
            const int32_t total = (product >> drop) + offset[i];
            const int32_t value = tf_round_shift32(total, shift) + zero;
            const int32_t code = tf_clamp8(value);
            *output++ = (int8_t)code;
            tf_mask_put(&written, code == value);
        }
    }
    tf_mask_end(&written);
}

/* What a group's errors have in common: their sum, 0 where values aren't less the mean, and how much
 * of them lies along the values. */
typedef struct {
    int32_t sum, along;
    int64_t bound; /* no error that leaves the group, before its factor, is larger */
} shares;

static shares shares_of(const tf_layer_normalization *layer, const moments *by,
                        const int16_t *error, const int8_t *input, int32_t right) {
    int32_t sum = 0, own_magnitude = 0, magnitude = 0;
    int64_t along = 0;
    for (uint32_t i = 0; i < layer->count; i++) {
        const int32_t own = tf_round_shift32(error[i] * layer->multiplier[i], right);
        const int32_t value = standardized(by, input[i]);
        sum += own;
        along += own * value;
        tf_note_magnitude(&own_magnitude, own);
        tf_note_magnitude(&magnitude, value);
    }
    if (layer->centred == 0u) {
        sum = 0;
    }
    const int32_t share = (int32_t)tf_round_shift(along, layer->bits);
    const int64_t size = share < 0 ? -(int64_t)share : share;
    const shares made = {
        .sum = sum,
        .along = share,
        .bound = (int64_t)layer->count * own_magnitude + (sum < 0 ? -sum : sum) +
                 ((size * magnitude) >> layer->bits) + 1,
    };
    return made;
}

void tf_layer_normalization_input_gradient(const tf_layer_normalization *layer,
                                           const int16_t *error, const tf_scale *scale,
                                           const int8_t *input, int16_t *out, tf_scale *out_scale) {
    const int32_t headroom = tf_headroom(scale), right = 15 - headroom;
    const int32_t count = layer->count;
    int32_t top = 0; /* bits of the largest: a bound and a factor have 16 at least */
    for (uint32_t group = 0; group < layer->groups; group++) {
        const uint32_t at = group * layer->count;
        const moments by = moments_of(layer, input + at);
        const shares of = shares_of(layer, &by, error + at, input + at, right);
        const int64_t largest = of.bound * (by.factor >> 14);
        const int32_t bits = tf_bit_length64((uint64_t)largest) - by.power;
        top = bits > top ? bits : top;
    }
    int32_t magnitude = 0;
    for (uint32_t group = 0; group < layer->groups; group++) {
        const moments by = moments_of(layer, input);
        const shares of = shares_of(layer, &by, error, input, right);
        const int32_t shift = by.power + top - 15 < 62 ? by.power + top - 15 : 62;
        for (int32_t i = 0; i < count; i++) {
            const int32_t own = tf_round_shift32(*error++ * layer->multiplier[i], right);
            const int64_t part = (int64_t)standardized(&by, *input++) * of.along;
            const int64_t rest = (int64_t)count * own - of.sum - tf_round_shift(part, layer->bits);
            const int32_t value = (int32_t)tf_round_shift(rest * (by.factor >> 14), shift);
            const int32_t code = tf_clamp(value, -32767, 32767);
            *out++ = (int16_t)code;
            tf_note_magnitude(&magnitude, code);
        }
    }
    out_scale->exponent = scale->exponent - headroom + layer->exponent + top - 38;
    out_scale->magnitude = magnitude;
}
