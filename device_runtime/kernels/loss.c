/* Cross entropies of softmax and sigmoid in fixed point, base 2: tables with linear interpolation. */
#include "fixed_point.h"

#define ONE_Q30 (1 << 30)
#define LARGEST_DISTANCE (31u << 16)
#define LN2_Q16 45426

/* clang-format off */
/* round(2^(30 - i/64)) and round(2^16 * log2(1 + i/64)) for i = 0 … 64. */
static const int32_t exp2_table[65] = {
    1073741824, 1062175491, 1050733751, 1039415261, 1028218693, 1017142735, 1006186087, 995347464,
    984625594, 974019220, 963527098, 953147997, 942880699, 932724001, 922676710, 912737649,
    902905651, 893179563, 883558244, 874040567, 864625413, 855311680, 846098274, 836984114,
    827968132, 819049271, 810226483, 801498734, 792865000, 784324269, 775875538, 767517817,
    759250125, 751071493, 742980960, 734977579, 727060411, 719228525, 711481005, 703816941,
    696235434, 688735596, 681316545, 673977412, 666717336, 659535466, 652430958, 645402981,
    638450708, 631573326, 624770026, 618040012, 611382493, 604796689, 598281827, 591837143,
    585461881, 579155293, 572916640, 566745190, 560640218, 554601009, 548626854, 542717053,
    536870912,
};
static const int32_t log2_table[65] = {
    0, 1466, 2909, 4331, 5732, 7112, 8473, 9814, 11136, 12440,
    13727, 14996, 16248, 17484, 18704, 19909, 21098, 22272, 23433, 24579,
    25711, 26830, 27936, 29029, 30109, 31178, 32234, 33279, 34312, 35334,
    36346, 37346, 38336, 39316, 40286, 41246, 42196, 43137, 44068, 44990,
    45904, 46809, 47705, 48593, 49472, 50344, 51207, 52063, 52911, 53751,
    54584, 55410, 56229, 57040, 57845, 58643, 59434, 60219, 60997, 61769,
    62534, 63294, 64047, 64794, 65536,
};
/* clang-format on */

/* 2^-distance in Q30; distance in Q16. Relative error below 2e-5. */
static uint32_t exp2_negative(uint32_t distance) {
    const uint32_t fraction = distance & 0xffffu;
    const uint32_t i = fraction >> 10;
    const int32_t rest = (int32_t)(fraction & 1023u);
    const int32_t step = exp2_table[i] - exp2_table[i + 1];
    return (uint32_t)(exp2_table[i] - (int32_t)(((int64_t)step * rest) >> 10)) >> (distance >> 16);
}

/* log2(value) in Q16 of a value >= 1. */
static int32_t log2_q16(uint64_t value) {
    const int32_t length = tf_bit_length64(value);
    const uint32_t mantissa =
        (uint32_t)(length > 31 ? value >> (length - 31) : value << (31 - length));
    const uint32_t fraction = mantissa & (ONE_Q30 - 1u);
    const uint32_t i = fraction >> 24;
    const int32_t rest = (int32_t)(fraction >> 8 & 0xffffu);
    const int32_t step = log2_table[i + 1] - log2_table[i];
    return ((length - 1) << 16) + log2_table[i] + ((step * rest) >> 16);
}

/* How far `logit` lies below the largest, in powers of two, Q16. */
static uint32_t distance_below(int64_t largest, int64_t logit, tf_gain gain) {
    const uint64_t difference = (uint64_t)(largest - logit);
    const uint64_t product = difference * (gain >> 8); /* 32 and 24 bits */
    const int32_t shift = -(int8_t)(gain & 0xffu);
    uint64_t distance;
    if (shift > 63) {
        distance = 0;
    } else if (shift >= 0) {
        distance = product >> shift;
    } else {
        distance = tf_bit_length64(product) - shift > 63 ? LARGEST_DISTANCE : product << -shift;
    }
    return distance > LARGEST_DISTANCE ? LARGEST_DISTANCE : (uint32_t)distance;
}

uint32_t tf_cross_entropy(const tf_head *layer, const int32_t *logits, int32_t label,
                          int16_t *error, tf_scale *scale) {
    int32_t largest = logits[0];
    for (uint32_t o = 1; o < layer->classes; o++) {
        largest = logits[o] > largest ? logits[o] : largest;
    }
    uint64_t total = 0;
    for (uint32_t o = 0; o < layer->classes; o++) {
        total += exp2_negative(distance_below(largest, logits[o], layer->loss));
    }
    /* The scale must be known before the first value is kept: find the largest first. */
    int32_t magnitude_q30 = 0;
    for (int pass = 0; pass < 2; pass++) {
        const int32_t shift = tf_bit_length((uint32_t)magnitude_q30) - 15;
        int32_t magnitude = 0;
        for (uint32_t o = 0; o < layer->classes; o++) {
            const uint64_t power = exp2_negative(distance_below(largest, logits[o], layer->loss));
            const int32_t probability = (int32_t)((power << 30) / total);
            const int32_t value = probability - ((int32_t)o == label ? ONE_Q30 : 0);
            if (pass == 0) {
                tf_note_magnitude(&magnitude_q30, value);
            } else {
                const int64_t rounded = tf_round_shift(value, shift);
                const int32_t kept = tf_clamp((int32_t)rounded, -32767, 32767);
                error[o] = (int16_t)kept;
                tf_note_magnitude(&magnitude, kept);
            }
        }
        scale->exponent = -30 + shift;
        scale->magnitude = magnitude;
    }
    const uint32_t below = distance_below(largest, logits[label], layer->loss);
    const int64_t bits = (int64_t)below + log2_q16(total) - (30 << 16);
    return bits <= 0 ? 0u : (uint32_t)((bits * LN2_Q16) >> 16);
}

/* How far a logit lies from 0, in powers of two, Q16. */
static uint32_t distance_from_zero(int32_t logit, tf_gain gain) {
    return logit < 0 ? distance_below(0, logit, gain) : distance_below(logit, 0, gain);
}

/* Probability less target in Q30. */
static int32_t binary_error(int32_t logit, uint32_t target, tf_gain gain) {
    const uint64_t power = exp2_negative(distance_from_zero(logit, gain));
    const int32_t unlikely = (int32_t)((power << 30) / (ONE_Q30 + power));
    if (target != 0u) {
        return logit < 0 ? unlikely - ONE_Q30 : -unlikely;
    }
    return logit < 0 ? unlikely : ONE_Q30 - unlikely;
}

uint32_t tf_binary_cross_entropy(const tf_head *layer, const int32_t *logits, int32_t label,
                                 int16_t *error, tf_scale *scale) {
    const uint32_t outputs = layer->classes;
    const int32_t part_q20 = (int32_t)(((1u << 20) + outputs / 2u) / outputs);
    int32_t largest = 0;
    uint64_t bits = 0;
    for (uint32_t o = 0; o < outputs; o++) {
        const uint32_t target = (uint32_t)label >> o & 1u;
        const uint32_t distance = distance_from_zero(logits[o], layer->loss);
        tf_note_magnitude(&largest, binary_error(logits[o], target, layer->loss));
        bits += (uint32_t)log2_q16((uint64_t)ONE_Q30 + exp2_negative(distance)) - (30u << 16);
        bits += (logits[o] < 0) == (target != 0u) ? distance : 0u;
    }
    const int32_t shift = tf_bit_length64((uint64_t)largest * (uint64_t)part_q20) - 15;
    int32_t magnitude = 0;
    for (uint32_t o = 0; o < outputs; o++) {
        const int64_t exact =
            (int64_t)binary_error(logits[o], (uint32_t)label >> o & 1u, layer->loss) * part_q20;
        const int32_t kept = tf_clamp((int32_t)tf_round_shift(exact, shift), -32767, 32767);
        error[o] = (int16_t)kept;
        tf_note_magnitude(&magnitude, kept);
    }
    scale->exponent = -50 + shift;
    scale->magnitude = magnitude;
    return (uint32_t)((bits * LN2_Q16 >> 16) / outputs);
}
