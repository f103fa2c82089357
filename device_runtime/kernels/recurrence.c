/* Products with a state, and errors of many steps. */
#include "recurrence.h"

const int16_t tf_sigmoid_table[513] = {
    11,    11,    12,    12,    12,    13,    13,    14,    14,    15,    15,    15,    16,
    16,    17,    18,    18,    19,    19,    20,    21,    21,    22,    23,    23,    24,
    25,    26,    26,    27,    28,    29,    30,    31,    32,    33,    34,    35,    36,
    37,    38,    40,    41,    42,    43,    45,    46,    48,    49,    51,    52,    54,
    56,    57,    59,    61,    63,    65,    67,    69,    72,    74,    76,    79,    81,
    84,    86,    89,    92,    95,    98,    101,   104,   107,   111,   114,   118,   121,
    125,   129,   133,   138,   142,   146,   151,   156,   161,   166,   171,   176,   182,
    188,   194,   200,   206,   213,   219,   226,   233,   241,   248,   256,   264,   272,
    281,   290,   299,   308,   318,   328,   338,   349,   360,   371,   383,   395,   407,
    420,   433,   447,   461,   475,   490,   505,   521,   537,   554,   572,   589,   608,
    627,   646,   666,   687,   708,   730,   753,   776,   800,   825,   851,   877,   904,
    932,   961,   990,   1021,  1052,  1084,  1117,  1152,  1187,  1223,  1260,  1299,  1338,
    1379,  1421,  1464,  1508,  1554,  1601,  1649,  1699,  1750,  1802,  1856,  1912,  1969,
    2028,  2088,  2150,  2213,  2279,  2346,  2415,  2486,  2558,  2633,  2710,  2789,  2869,
    2952,  3037,  3124,  3214,  3306,  3400,  3496,  3595,  3696,  3800,  3906,  4015,  4126,
    4240,  4357,  4476,  4599,  4723,  4851,  4982,  5115,  5252,  5391,  5533,  5678,  5827,
    5978,  6132,  6289,  6450,  6613,  6780,  6949,  7122,  7297,  7476,  7658,  7843,  8031,
    8222,  8416,  8613,  8813,  9015,  9221,  9430,  9641,  9855,  10072, 10291, 10513, 10737,
    10964, 11193, 11424, 11658, 11894, 12132, 12371, 12613, 12856, 13101, 13348, 13595, 13845,
    14095, 14347, 14599, 14852, 15107, 15361, 15617, 15872, 16128, 16384, 16640, 16896, 17151,
    17407, 17661, 17916, 18169, 18421, 18673, 18923, 19173, 19420, 19667, 19912, 20155, 20397,
    20636, 20874, 21110, 21344, 21575, 21804, 22031, 22255, 22477, 22696, 22913, 23127, 23338,
    23547, 23753, 23955, 24155, 24352, 24546, 24737, 24925, 25110, 25292, 25471, 25646, 25819,
    25988, 26155, 26318, 26479, 26636, 26790, 26941, 27090, 27235, 27377, 27516, 27653, 27786,
    27917, 28045, 28169, 28292, 28411, 28528, 28642, 28753, 28862, 28968, 29072, 29173, 29272,
    29368, 29462, 29554, 29644, 29731, 29816, 29899, 29979, 30058, 30135, 30210, 30282, 30353,
    30422, 30489, 30555, 30618, 30680, 30740, 30799, 30856, 30912, 30966, 31018, 31069, 31119,
    31167, 31214, 31260, 31304, 31347, 31389, 31430, 31469, 31508, 31545, 31581, 31616, 31651,
    31684, 31716, 31747, 31778, 31807, 31836, 31864, 31891, 31917, 31943, 31968, 31992, 32015,
    32038, 32060, 32081, 32102, 32122, 32141, 32160, 32179, 32196, 32214, 32231, 32247, 32263,
    32278, 32293, 32307, 32321, 32335, 32348, 32361, 32373, 32385, 32397, 32408, 32419, 32430,
    32440, 32450, 32460, 32469, 32478, 32487, 32496, 32504, 32512, 32520, 32527, 32535, 32542,
    32549, 32555, 32562, 32568, 32574, 32580, 32586, 32592, 32597, 32602, 32607, 32612, 32617,
    32622, 32626, 32630, 32635, 32639, 32643, 32647, 32650, 32654, 32657, 32661, 32664, 32667,
    32670, 32673, 32676, 32679, 32682, 32684, 32687, 32689, 32692, 32694, 32696, 32699, 32701,
    32703, 32705, 32707, 32709, 32711, 32712, 32714, 32716, 32717, 32719, 32720, 32722, 32723,
    32725, 32726, 32727, 32728, 32730, 32731, 32732, 32733, 32734, 32735, 32736, 32737, 32738,
    32739, 32740, 32741, 32742, 32742, 32743, 32744, 32745, 32745, 32746, 32747, 32747, 32748,
    32749, 32749, 32750, 32750, 32751, 32752, 32752, 32753, 32753, 32753, 32754, 32754, 32755,
    32755, 32756, 32756, 32756, 32757, 32757,
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

#endif

void tf_recurrent_products(const int8_t *weights, uint32_t rows, uint32_t units,
                           const int16_t *vector, int16_t *paired, int32_t *sums) {
    uint32_t done = 0;
#if TF_DSP
    if (rows >= 4u && units >= 4u) {
        const uint32_t last = rows - 4u;
        done = units & ~3u;
        pair_up(vector, units, paired);
        tf_recurrent_rows(weights, units, paired, units / 4u, sums, rows / 4u);
        if (rows % 4u != 0u) {
            tf_recurrent_rows(weights + last * units, units, paired, units / 4u, sums + last, 1);
        }
    }
#else
    (void)paired;
#endif
    if (done == 0u) {
        memset(sums, 0, rows * sizeof *sums);
    }
    for (uint32_t row = 0; done < units && row < rows; row += 2u) {
        const uint32_t both = row + 1u < rows ? 1u : 0u;
        const int8_t *one = weights + row * units, *second = one + both * units;
        int32_t sum = sums[row], other = sums[row + both];
        for (uint32_t i = done; i < units; i++) {
            sum += one[i] * vector[i];
            other += second[i] * vector[i];
        }
        sums[row + both] = other;
        sums[row] = sum;
    }
}

int32_t tf_normalize(const int32_t *values, uint32_t size, int16_t *codes, int32_t *magnitude) {
    int32_t bits = 0; /* as long as the largest */
    for (uint32_t i = 0; i < size; i++) {
        bits |= values[i] < 0 ? -values[i] : values[i];
    }
    const int32_t shift = bits == 0 ? 0 : tf_bit_length((uint32_t)bits) - 15;
    const int32_t left = shift < 0 ? -shift : 0, right = shift > 0 ? shift : 0;
    const int32_t half = right == 0 ? 0 : 1 << (right - 1);
    for (uint32_t i = 0; i < size; i++) {
        const int32_t code = (values[i] * (1 << left) + half) >> right;
        codes[i] = (int16_t)tf_clamp(code, -32767, 32767);
    }
    *magnitude = bits;
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

void tf_recurrent_back(const tf_recurrence *layer, uint32_t first, uint32_t rows, int16_t *codes,
                       int32_t exponent, int32_t *sums) {
    const uint32_t units = layer->units;
    const int32_t room = layer->row_headroom;
    const int8_t *weights = layer->recurrent + first * units;
    uint32_t columns = 0, quads = 0;
    for (uint32_t row = 0; row < rows; row++) {
        const int32_t product = codes[row] * layer->rows[first + row];
        codes[row] = (int16_t)tf_round_shift32(product, 15 + room);
    }
#if TF_DSP
    if (rows >= 4u && units >= 4u) {
        columns = units & ~3u;
        quads = rows & ~3u;
        tf_recurrent_columns(weights, units, codes, rows / 4u, sums, units / 4u);
    }
#endif
    memset(sums + columns, 0, (units - columns) * sizeof *sums);
    for (uint32_t row = columns < units ? 0u : quads; row < rows; row += 2u) {
        const uint32_t both = row + 1u < rows ? 1u : 0u;
        const int8_t *one = weights + row * units, *second = one + both * units;
        const int32_t term = codes[row], other = both != 0u ? codes[row + 1u] : 0;
        for (uint32_t i = row < quads ? columns : 0u; i < units; i++) {
            sums[i] += one[i] * term + second[i] * other;
        }
    }
    const int32_t shift = -(layer->row_exponent + room + exponent);
    const int32_t right = tf_clamp(shift - 1, 0, 31);
    for (uint32_t i = 0; i < units; i++) {
        sums[i] = shift > 0 ? ((sums[i] >> right) + 1) >> 1
                            : tf_hold_gradient(tf_round_shift(sums[i], shift));
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
