/* Products with a state, and errors of many steps. */
#include "recurrence.h"

const int16_t tf_sigmoid_table[257] = {
    16384, 16640, 16896, 17151, 17407, 17661, 17916, 18169, 18421, 18673, 18923, 19173, 19420,
    19667, 19912, 20155, 20397, 20636, 20874, 21110, 21344, 21575, 21804, 22031, 22255, 22477,
    22696, 22913, 23127, 23338, 23547, 23753, 23955, 24155, 24352, 24546, 24737, 24925, 25110,
    25292, 25471, 25646, 25819, 25988, 26155, 26318, 26479, 26636, 26790, 26941, 27090, 27235,
    27377, 27516, 27653, 27786, 27917, 28045, 28169, 28292, 28411, 28528, 28642, 28753, 28862,
    28968, 29072, 29173, 29272, 29368, 29462, 29554, 29644, 29731, 29816, 29899, 29979, 30058,
    30135, 30210, 30282, 30353, 30422, 30489, 30555, 30618, 30680, 30740, 30799, 30856, 30912,
    30966, 31018, 31069, 31119, 31167, 31214, 31260, 31304, 31347, 31389, 31430, 31469, 31508,
    31545, 31581, 31616, 31651, 31684, 31716, 31747, 31778, 31807, 31836, 31864, 31891, 31917,
    31943, 31968, 31992, 32015, 32038, 32060, 32081, 32102, 32122, 32141, 32160, 32179, 32196,
    32214, 32231, 32247, 32263, 32278, 32293, 32307, 32321, 32335, 32348, 32361, 32373, 32385,
    32397, 32408, 32419, 32430, 32440, 32450, 32460, 32469, 32478, 32487, 32496, 32504, 32512,
    32520, 32527, 32535, 32542, 32549, 32555, 32562, 32568, 32574, 32580, 32586, 32592, 32597,
    32602, 32607, 32612, 32617, 32622, 32626, 32630, 32635, 32639, 32643, 32647, 32650, 32654,
    32657, 32661, 32664, 32667, 32670, 32673, 32676, 32679, 32682, 32684, 32687, 32689, 32692,
    32694, 32696, 32699, 32701, 32703, 32705, 32707, 32709, 32711, 32712, 32714, 32716, 32717,
    32719, 32720, 32722, 32723, 32725, 32726, 32727, 32728, 32730, 32731, 32732, 32733, 32734,
    32735, 32736, 32737, 32738, 32739, 32740, 32741, 32742, 32742, 32743, 32744, 32745, 32745,
    32746, 32747, 32747, 32748, 32749, 32749, 32750, 32750, 32751, 32752, 32752, 32753, 32753,
    32753, 32754, 32754, 32755, 32755, 32756, 32756, 32756, 32757, 32757,
};

#if TF_DSP

/* Values 0, 2, 1, 3 of each four: what the halves of words with weights 0 and 2, 1 and 3 meet. */
static void pair_up(const int16_t *vector, uint32_t units, int16_t *paired) {
    for (uint32_t i = 0; i + 4u <= units; i += 4u) {
        const uint32_t first = tf_load32(vector + i), second = tf_load32(vector + i + 2u);
        tf_store32(paired + i, tf_pack_lower(first, second));
        tf_store32(paired + i + 2u, tf_pack_upper(first, second));
    }
}

/* Of two rows; returns how many values of each are in the sums. */
static uint32_t products_of_quads(const int8_t *first, const int8_t *second, uint32_t units,
                                  const int16_t *paired, int32_t *sums) {
    int32_t a = 0, b = 0;
    uint32_t i = 0;
    for (; i + 4u <= units; i += 4u) {
        const uint32_t even = tf_load32(paired + i), odd = tf_load32(paired + i + 2u);
        const uint32_t four = tf_load32(first + i), others = tf_load32(second + i);
        a = __smlad((int16x2_t)tf_even(four), (int16x2_t)even, a);
        b = __smlad((int16x2_t)tf_even(others), (int16x2_t)even, b);
        a = __smlad((int16x2_t)tf_odd(four), (int16x2_t)odd, a);
        b = __smlad((int16x2_t)tf_odd(others), (int16x2_t)odd, b);
    }
    sums[0] = a;
    sums[1] = b;
    return i;
}

/* sums += two rows times a term each, the halves of `terms`; returns how many are done. */
static uint32_t add_quads(const int8_t *first, const int8_t *second, uint32_t units, uint32_t terms,
                          int32_t *sums) {
    uint32_t i = 0;
    for (; i + 4u <= units; i += 4u) {
        const uint32_t four = tf_load32(first + i), others = tf_load32(second + i);
        const uint32_t even = tf_even(four), even_others = tf_even(others);
        const uint32_t odd = tf_odd(four), odd_others = tf_odd(others);
        const int16x2_t by = (int16x2_t)terms;
        sums[i] = __smlad((int16x2_t)tf_pack_lower(even, even_others), by, sums[i]);
        sums[i + 1u] = __smlad((int16x2_t)tf_pack_lower(odd, odd_others), by, sums[i + 1u]);
        sums[i + 2u] = __smlad((int16x2_t)tf_pack_upper(even, even_others), by, sums[i + 2u]);
        sums[i + 3u] = __smlad((int16x2_t)tf_pack_upper(odd, odd_others), by, sums[i + 3u]);
    }
    return i;
}

#endif

void tf_recurrent_products(const int8_t *weights, uint32_t rows, uint32_t units,
                           const int16_t *vector, int16_t *paired, int32_t *sums) {
#if TF_DSP
    pair_up(vector, units, paired);
#else
    (void)paired;
#endif
    for (uint32_t row = 0; row < rows; row += 2u, weights += 2u * units) {
        const uint32_t both = row + 1u < rows ? 2u : 1u;
        const int8_t *second = weights + (both - 1u) * units;
        int32_t pair[2] = {0, 0};
        uint32_t i = 0;
#if TF_DSP
        i = products_of_quads(weights, second, units, paired, pair);
#endif
        for (; i < units; i++) {
            pair[0] += weights[i] * vector[i];
            pair[1] += second[i] * vector[i];
        }
        memcpy(sums + row, pair, both * sizeof *sums);
    }
}

int32_t tf_normalize(const int32_t *values, uint32_t size, int16_t *codes, int32_t *magnitude) {
    int32_t largest = 0;
    for (uint32_t i = 0; i < size; i++) {
        tf_note_magnitude(&largest, values[i]);
    }
    const int32_t shift = largest == 0 ? 0 : tf_bit_length((uint32_t)largest) - 15;
    const int32_t left = shift < 0 ? -shift : 0, right = shift > 0 ? shift : 0;
    for (uint32_t i = 0; i < size; i++) {
        const int32_t code = tf_round_shift32(values[i] * (1 << left), right);
        codes[i] = (int16_t)tf_clamp(code, -32767, 32767);
    }
    *magnitude = largest;
    return shift;
}

void tf_merge_errors(tf_carried *carried, const int16_t *arriving, uint32_t units, int32_t headroom,
                     int32_t exponent, int32_t *room) {
    if (tf_largest_error(arriving, units) == 0) {
        return;
    }
    if (carried->magnitude == 0) {
        for (uint32_t i = 0; i < units; i++) {
            carried->codes[i] = (int16_t)(arriving[i] * (1 << headroom));
        }
        carried->exponent = exponent;
        carried->magnitude = 1;
        return;
    }
    const int32_t apart = tf_clamp(exponent - carried->exponent, -31, 31);
    const int32_t own = apart > 0 ? apart : 0, other = apart < 0 ? -apart : 0;
    for (uint32_t i = 0; i < carried->size; i++) {
        room[i] = tf_round_shift32(carried->codes[i] * (1 << 14), own);
        if (i < units) {
            room[i] += tf_round_shift32(arriving[i] * (1 << (14 + headroom)), other);
        }
    }
    const int32_t higher = carried->exponent > exponent ? carried->exponent : exponent;
    const int32_t shift = tf_normalize(room, carried->size, carried->codes, &carried->magnitude);
    carried->exponent = higher - 14 + shift;
}

void tf_recurrent_back(const tf_recurrence *layer, uint32_t first, uint32_t rows,
                       const int16_t *codes, int32_t exponent, int32_t *sums) {
    const uint32_t units = layer->units;
    const int32_t room = layer->row_headroom;
    const int8_t *weights = layer->recurrent + first * units;
    memset(sums, 0, units * sizeof *sums);
    for (uint32_t row = 0; row < rows; row += 2u, weights += 2u * units) {
        const uint32_t both = row + 1u < rows ? 2u : 1u;
        const int8_t *second = weights + (both - 1u) * units;
        int32_t terms[2] = {0, 0};
        for (uint32_t i = 0; i < both; i++) {
            const int32_t product = codes[row + i] * layer->rows[first + row + i];
            terms[i] = tf_round_shift32(product, 15 + room);
        }
        uint32_t i = 0;
#if TF_DSP
        i = add_quads(weights, second, units, tf_pack_lower((uint32_t)terms[0], (uint32_t)terms[1]),
                      sums);
#endif
        for (; i < units; i++) {
            sums[i] += weights[i] * terms[0] + second[i] * terms[1];
        }
    }
    const int32_t shift = -(layer->row_exponent + room + exponent);
    for (uint32_t i = 0; i < units; i++) {
        sums[i] = shift < 62 ? tf_hold_gradient(tf_round_shift(sums[i], shift)) : 0;
    }
}

void tf_write_state(const tf_recurrence *layer, const int16_t *state, int8_t *output,
                    tf_mask_writer *mask) {
    const tf_requantizer by = tf_make_requantizer(layer->requantize, layer->out_zero);
    for (uint32_t i = 0; i < layer->units; i++) {
        const int32_t value = tf_requantize(&by, tf_raise_saturating(state[i], layer->pre_shift));
        const int32_t code = tf_clamp8(value);
        output[i] = (int8_t)code;
        tf_mask_put(mask, code == value);
    }
}

void tf_gather_steps(const tf_recurrence *layer, const int32_t *exponents, uint32_t width,
                     int16_t *out, tf_scale *out_scale) {
    int32_t highest = TF_NO_EXPONENT, magnitude = 0;
    for (uint32_t step = 0; step < layer->steps; step++) {
        highest = exponents[step] > highest ? exponents[step] : highest;
    }
    highest = highest == TF_NO_EXPONENT ? 0 : highest;
    for (uint32_t step = 0; step < layer->steps; step++, out += width) {
        if (exponents[step] == TF_NO_EXPONENT) {
            continue;
        }
        const int32_t below = tf_clamp(highest - exponents[step], 0, 16);
        for (uint32_t i = 0; i < width; i++) {
            const int32_t value = tf_round_shift32(out[i] * layer->error_multiplier, 15 + below);
            out[i] = (int16_t)value;
            tf_note_magnitude(&magnitude, value);
        }
    }
    out_scale->exponent = highest + layer->error_exponent;
    out_scale->magnitude = magnitude;
}
