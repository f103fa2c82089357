/* Layer normalization: groups of elements less their mean, by their deviation; or less nothing, by
 * the root of their mean square. */
#include "pairs.h"

#define CHUNK 32u /* elements that are standardized at a time, bits of a word of the mask */

/* Of one group. A standardized value times 2^bits is code * step + start, times the upper half of
 * `factor`, >> shift; one over the deviation of count times the codes is
 * factor * 2^(-37 - power). */
typedef struct {
    int32_t step, start;
    tf_requantizer by; /* its word is `factor`: at most 2^30 */
    int32_t power;
    int32_t spiky; /* a value may be beyond 15 bits */
} moments;

/* Of 31 or 32 bits, rounded down. */
static uint32_t square_root(uint32_t value) {
#if defined(__ARM_FEATURE_IDIV)
    /* Newton's steps come from above and end where they would rise. */
    uint32_t root = 1u << 16, next = ((value >> 16) + root) / 2u;
    while (next < root) {
        root = next;
        next = (root + value / root) / 2u;
    }
    return root;
#else
    uint32_t root = 0;
    for (uint32_t bit = 1u << 15; bit != 0u; bit >>= 1) {
        const uint32_t larger = root | bit;
        if (larger * larger <= value) {
            root = larger;
        }
    }
    return root;
#endif
}

static moments moments_of(const tf_layer_normalization *layer, const int8_t *input) {
    const int32_t count = layer->count;
    int32_t sum = 0, squares = 0, i = 0;
#if TF_DSP
    const int16x2_t ones = (int16x2_t)0x00010001u;
    for (; i + 4 <= count; i += 4) {
        const uint32_t four = tf_load32(input + i);
        const int16x2_t even = (int16x2_t)tf_even(four), odd = (int16x2_t)tf_odd(four);
        squares = __smlad(even, even, squares);
        squares = __smlad(odd, odd, squares);
        sum = __smlad(even, ones, sum);
        sum = __smlad(odd, ones, sum);
    }
#endif
    for (; i < count; i++) {
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
    const int32_t shift = tf_clamp(power + layer->lift + 5 - layer->bits, 1, 30);
    const moments made = {
        .step = count * (1 << layer->lift),
        .start = -origin * (1 << layer->lift),
        .by = {(int32_t)((1u << 31) / square_root(scaled) << 14), 1 << (shift - 1), shift},
        .power = power,
        .spiky = count - layer->centred >= 1 << (30 - 2 * layer->bits) || layer->bits == 8,
    };
    return made;
}

/* Values of `size` codes. */
static void standardize(const moments *of, const int8_t *input, uint32_t size, int16_t *values) {
    const int32_t step = of->step, start = of->start;
    const tf_requantizer by = of->by;
    const int16_t *end = values + size;
    for (uint32_t quads = size / 4u; quads > 0u; quads--) {
        for (uint32_t k = 0; k < 4u; k++) {
            *values++ = (int16_t)tf_saturate16(tf_requantize(&by, *input++ * step + start));
        }
    }
    while (values != end) {
        *values++ = (int16_t)tf_saturate16(tf_requantize(&by, *input++ * step + start));
    }
    for (values -= size; of->spiky && values != end; values++) {
        *values = *values < -32767 ? -32767 : *values;
    }
}

/* How codes are made of values by an element's multiplier and offset. */
typedef struct {
    int32_t drop, shift, add;
} outputs;

/* Writes a code; puts above `bits`, which go right, whether the clamp changed nothing. */
static inline uint32_t make_code(const outputs *by, int32_t value, int32_t multiplier,
                                 int32_t offset, int8_t *output, uint32_t bits) {
    const int32_t total = (value * multiplier >> by->drop) + offset;
    const int32_t twice = (total >> by->shift) + by->add;
#if TF_DSP
    int32_t code;
    __asm("ssat %0, #8, %1, asr #1" : "=r"(code) : "r"(twice));
#else
    const int32_t code = tf_clamp8(twice >> 1);
#endif
    *output = (int8_t)code;
    bits >>= 1;
    if (code == twice >> 1) {
        bits |= 0x80000000u;
    }
    return bits;
}

/* Codes of the group's elements from `first` on; returns their bits of the mask. */
static uint32_t make_codes(const tf_layer_normalization *layer, uint32_t first,
                           const int16_t *values, uint32_t size, int8_t *output) {
    const outputs by = {layer->drop, layer->shift - 1, 2 * layer->out_zero + 1};
    const int16_t *multiplier = layer->multiplier + first, *end = values + size;
    const int32_t *offset = layer->offset + first;
    uint32_t bits = 0;
    for (uint32_t quads = size / 4u; quads > 0u; quads--) {
        for (uint32_t k = 0; k < 4u; k++) {
            bits = make_code(&by, *values++, *multiplier++, *offset++, output++, bits);
        }
    }
    while (values != end) {
        bits = make_code(&by, *values++, *multiplier++, *offset++, output++, bits);
    }
    return bits >> (CHUNK - size);
}

void tf_layer_normalization_forward(const tf_layer_normalization *layer, const int8_t *input,
                                    int8_t *output, uint8_t *mask) {
    const uint32_t count = layer->count;
    uint32_t bits = 0, used = 0; /* of a word of the mask */
    int16_t values[CHUNK];
    for (uint32_t group = 0; group < layer->groups; group++) {
        const moments of = moments_of(layer, input);
        for (uint32_t first = 0, size; first < count; first += size) {
            size = count - first < CHUNK - used ? count - first : CHUNK - used;
            standardize(&of, input + first, size, values);
            bits |= make_codes(layer, first, values, size, output + first) << used;
            used += size;
            if (used == CHUNK) {
                if (mask != NULL) {
                    tf_store32(mask, bits);
                    mask += 4;
                }
                bits = used = 0;
            }
        }
        input += count;
        output += count;
    }
    if (mask != NULL) {
        memcpy(mask, &bits, (used + 7u) / 8u);
    }
}

/* Errors by the multipliers: codes of 15 bits. */
typedef struct {
    const int16_t *multiplier;
    int32_t half, right;
} own_errors;

static void find_own(const own_errors *by, uint32_t first, const int16_t *error, uint32_t size,
                     int16_t *own) {
    const int32_t half = by->half, right = by->right;
    const int16_t *multiplier = by->multiplier + first;
    uint32_t i = 0;
#if TF_DSP
    for (; i + 2u <= size; i += 2u) {
        const uint32_t pair = tf_load32(error + i), factors = tf_load32(multiplier + i);
        int32_t low, high;
        __asm("smlabb %0, %1, %2, %3" : "=r"(low) : "r"(pair), "r"(factors), "r"(half));
        __asm("smlatt %0, %1, %2, %3" : "=r"(high) : "r"(pair), "r"(factors), "r"(half));
        tf_store32(own + i, tf_pack_lower((uint32_t)(low >> right), (uint32_t)(high >> right)));
    }
#endif
    for (; i < size; i++) {
        own[i] = (int16_t)((error[i] * multiplier[i] + half) >> right);
    }
}

/* What a group's errors have in common: their sum, 0 where values aren't less the mean, and how much
 * of them lies along the values. */
typedef struct {
    int32_t sum, along;
    int64_t bound; /* no error that leaves the group, before its factor, is larger */
} shares;

static shares shares_of(const tf_layer_normalization *layer, const moments *of,
                        const own_errors *by, const int16_t *error, const int8_t *input) {
    const uint32_t count = layer->count;
    int32_t sum = 0, own_magnitude = 0, magnitude = 0;
    int64_t along = 0;
    int16_t values[CHUNK], own[CHUNK];
#if TF_DSP
    tf_extremes of_own = {0, 0}, of_values = {0, 0};
    const int16x2_t ones = (int16x2_t)0x00010001u;
#endif
    for (uint32_t first = 0, size; first < count; first += size) {
        size = count - first < CHUNK ? count - first : CHUNK;
        standardize(of, input + first, size, values);
        find_own(by, first, error + first, size, own);
#if TF_DSP
        for (uint32_t i = size; i % 4u != 0u; i++) {
            own[i] = values[i] = 0;
        }
        for (uint32_t i = 0; i < size; i += 4u) {
            const uint32_t a = tf_load32(own + i), b = tf_load32(own + i + 2u);
            const uint32_t c = tf_load32(values + i), d = tf_load32(values + i + 2u);
            sum = __smlad((int16x2_t)a, ones, sum);
            sum = __smlad((int16x2_t)b, ones, sum);
            along = __smlald((int16x2_t)a, (int16x2_t)c, along);
            along = __smlald((int16x2_t)b, (int16x2_t)d, along);
            tf_note_pairs(&of_own, a, b);
            tf_note_pairs(&of_values, c, d);
        }
#else
        for (uint32_t i = 0; i < size; i++) {
            sum += own[i];
            along += own[i] * values[i];
            tf_note_magnitude(&own_magnitude, own[i]);
            tf_note_magnitude(&magnitude, values[i]);
        }
#endif
    }
#if TF_DSP
    tf_note_magnitude(&own_magnitude, tf_magnitude_of(&of_own));
    tf_note_magnitude(&magnitude, tf_magnitude_of(&of_values));
#endif
    if (layer->centred == 0u) {
        sum = 0;
    }
    const int32_t share = (int32_t)tf_round_shift(along, layer->bits);
    const int64_t size = share < 0 ? -(int64_t)share : share;
    const shares made = {
        .sum = sum,
        .along = share,
        .bound = (int64_t)count * own_magnitude + (sum < 0 ? -sum : sum) +
                 ((size * magnitude) >> layer->bits) + 1,
    };
    return made;
}

/* How errors leave a group: ((count * own - sum - value * along >> bits) * factor) >> shift, each
 * rounded. */
typedef struct {
    int32_t count, sum, along, factor;
    int32_t bits, shift;
} ways_out;

/* Writes codes of `size` errors. */
static void write_wide(const ways_out *by, const int16_t *own, const int16_t *values, uint32_t size,
                       int16_t *out, int32_t *magnitude) {
    for (uint32_t i = 0; i < size; i++) {
        const int64_t part = (int64_t)values[i] * by->along;
        const int64_t whole = (int64_t)by->count * own[i] - by->sum;
        const int64_t rest = whole - tf_round_shift(part, by->bits);
        const int64_t value = tf_round_shift(rest * (by->factor >> 14), by->shift);
        out[i] = (int16_t)tf_clamp((int32_t)value, -32767, 32767);
        tf_note_magnitude(magnitude, out[i]);
    }
}

/* Whether all but products fits 32 bits where no error is beyond `bound`. */
static int32_t is_narrow(const ways_out *by, int64_t bound) {
    const int32_t size = by->along < 0 ? -by->along : by->along;
    return bound < 1 << 30 && size >> (14 + by->bits) == 0 && by->shift <= 48;
}

/* The same with upper words of products, which drop what is below the rounded bits. */
static void write_narrow(const ways_out *by, const int16_t *own, const int16_t *values,
                         uint32_t size, int16_t *out, int32_t *magnitude) {
    /* As `bound` has no more bits than `shift`, there is room where that is small. */
    const int32_t lift = tf_clamp(19 - by->shift, 0, 18), shift = by->shift + lift - 18;
    const int32_t count = by->count, sum = by->sum, along = by->along * (1 << (17 - by->bits));
    const tf_requantizer to = {by->factor, 1 << (shift - 1), shift};
    uint32_t i = 0;
#if TF_DSP
    tf_extremes seen = {0, 0};
    for (; i + 4u <= size; i += 4u) {
        uint32_t codes[2];
        for (uint32_t pair = 0; pair < 2u; pair++) {
            const uint32_t two = tf_load32(values + i + 2u * pair);
            const uint32_t errors = tf_load32(own + i + 2u * pair);
            int32_t low, high, of_low, of_high;
            __asm("smlabb %0, %1, %2, %3" : "=r"(low) : "r"(errors), "r"(count), "r"(-sum));
            __asm("smlatb %0, %1, %2, %3" : "=r"(high) : "r"(errors), "r"(count), "r"(-sum));
            __asm("smulwb %0, %1, %2" : "=r"(of_low) : "r"(along), "r"(two));
            __asm("smulwt %0, %1, %2" : "=r"(of_high) : "r"(along), "r"(two));
            low = tf_requantize(&to, (low - ((of_low + 1) >> 1)) * (1 << lift));
            high = tf_requantize(&to, (high - ((of_high + 1) >> 1)) * (1 << lift));
            codes[pair] =
                tf_pack_lower((uint32_t)tf_saturate16(low), (uint32_t)tf_saturate16(high));
            tf_store32(out + i + 2u * pair, codes[pair]);
        }
        tf_note_pairs(&seen, codes[0], codes[1]);
    }
    tf_note_magnitude(magnitude, tf_magnitude_of(&seen));
#endif
    for (; i < size; i++) {
        const int32_t part = (tf_high_product(values[i] * 65536, along) + 1) >> 1;
        const int32_t rest = (count * own[i] - sum - part) * (1 << lift);
        out[i] = (int16_t)tf_saturate16(tf_requantize(&to, rest));
        tf_note_magnitude(magnitude, out[i]);
    }
}

void tf_layer_normalization_input_gradient(const tf_layer_normalization *layer,
                                           const int16_t *error, const tf_scale *scale,
                                           const int8_t *input, int16_t *out, tf_scale *out_scale) {
    const int32_t headroom = tf_headroom(scale), right = 15 - headroom;
    const own_errors by = {layer->multiplier, right == 0 ? 0 : 1 << (right - 1), right};
    const uint32_t count = layer->count;
    int32_t top = 0; /* bits of the largest: a bound and a factor have 16 at least */
    for (uint32_t group = 0; group < layer->groups; group++) {
        const uint32_t at = group * count;
        const moments of = moments_of(layer, input + at);
        const shares its = shares_of(layer, &of, &by, error + at, input + at);
        const int64_t largest = its.bound * (of.by.word >> 14);
        const int32_t bits = tf_bit_length64((uint64_t)largest) - of.power;
        top = bits > top ? bits : top;
    }
    int32_t magnitude = 0;
    for (uint32_t group = 0; group < layer->groups; group++) {
        const uint32_t at = group * count;
        const moments of = moments_of(layer, input + at);
        const shares its = shares_of(layer, &of, &by, error + at, input + at);
        const int32_t shift = of.power + top - 15;
        const ways_out to = {(int32_t)count, its.sum,     its.along,
                             of.by.word,     layer->bits, shift < 62 ? shift : 62};
        const int32_t narrow = is_narrow(&to, its.bound);
        for (uint32_t first = 0, size; first < count; first += size) {
            int16_t values[CHUNK], own[CHUNK];
            size = count - first < CHUNK ? count - first : CHUNK;
            standardize(&of, input + at + first, size, values);
            find_own(&by, first, error + at + first, size, own);
            (narrow ? write_narrow : write_wide)(&to, own, values, size, out + at + first,
                                                 &magnitude);
        }
    }
    tf_amend_lowest(out, layer->groups * count, &magnitude);
    out_scale->exponent = scale->exponent - headroom + layer->exponent + top - 38;
    out_scale->magnitude = magnitude;
}
