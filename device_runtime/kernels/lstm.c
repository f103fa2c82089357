/* Long short-term memory. */
#include "recurrence.h"

static void find_gates(const tf_recurrence *layer, const int8_t *input, const int16_t *h,
                       int16_t *paired, int32_t *gates) {
    const uint32_t units = layer->units;
    const tf_gates by = tf_gates_of(layer, 0);
    tf_recurrent_products(layer->recurrent, 4u * units, units, h, paired, gates);
    for (uint32_t i = 0; i < 4u * units; i++) {
        const int32_t x = tf_gate_input(&by, input[i]) + tf_gate_state(&by, i, gates[i]);
        gates[i] = i < 3u * units ? tf_sigmoid(x) : tf_tanh(tf_twice(x));
    }
}

/* c behind a step: at most 1 more than before it. */
static inline int32_t next_cell(int32_t c, int32_t i, int32_t f, int32_t g) {
    return (int32_t)tf_q15_wide(c, f) + tf_q15(i, g);
}

/* tanh(c), whose argument has 15 bits below 1. */
static inline int32_t bent_cell(int32_t c) {
    return tf_tanh((int32_t)(((int64_t)c + 2) >> 2));
}

void tf_lstm_forward(const tf_recurrence *layer, const int8_t *input, int8_t *output, uint8_t *mask,
                     int32_t *states, int32_t *scratch) {
    const uint32_t units = layer->units;
    int32_t *gates = scratch, *c = gates + 4u * units, *kept_c = states;
    const int32_t *i_gate = gates, *o = i_gate + units, *f = o + units, *g = f + units;
    int16_t *paired = (int16_t *)(c + units), *h = paired + units;
    int16_t *kept_h = states == NULL ? NULL : (int16_t *)(states + layer->steps * units);
    tf_mask_writer written = {mask, 0, 0};
    memset(c, 0, units * sizeof *c);
    memset(h, 0, units * sizeof *h);
    for (uint32_t step = 0; step < layer->steps; step++, input += 4u * units) {
        if (states != NULL) {
            memcpy(kept_c, c, units * sizeof *c);
            memcpy(kept_h, h, units * sizeof *h);
            kept_c += units;
            kept_h += units;
        }
        find_gates(layer, input, h, paired, gates);
        for (uint32_t i = 0; i < units; i++) {
            c[i] = next_cell(c[i], i_gate[i], f[i], g[i]);
            h[i] = (int16_t)tf_q15(o[i], bent_cell(c[i]));
        }
        if (!layer->last) {
            tf_write_state(layer, h, output, &written);
            output += units;
        }
    }
    if (layer->last) {
        tf_write_state(layer, h, output, &written);
    }
    tf_mask_end(&written);
}

/* Errors of the gates in their place, and of c before the step in `past`. */
static void errors_of_gates(uint32_t units, const int32_t *c, const int16_t *carried,
                            int32_t *gates, int32_t *past) {
    int32_t *i_gate = gates, *o = i_gate + units, *f = o + units, *g = f + units;
    for (uint32_t i = 0; i < units; i++) {
        const int32_t in = i_gate[i], out = o[i], keep = f[i], new = g[i];
        const int32_t bent = bent_cell(next_cell(c[i], in, keep, new));
        const int32_t dh = carried[i];
        const int32_t dc =
            carried[units + i] + tf_q15(tf_q15(dh, out), TF_ONE - tf_q15(bent, bent));
        i_gate[i] = tf_q15(tf_q15(dc, new), tf_q15(in, TF_ONE - in));
        o[i] = tf_q15(tf_q15(dh, bent), tf_q15(out, TF_ONE - out));
        f[i] = tf_hold_gradient(tf_q15_wide(tf_q15_wide(c[i], dc), tf_q15(keep, TF_ONE - keep)));
        g[i] = tf_q15(tf_q15(dc, in), TF_ONE - tf_q15(new, new));
        past[i] = tf_q15(dc, keep);
    }
}

void tf_lstm_input_gradient(const tf_recurrence *layer, const int16_t *error, const tf_scale *scale,
                            const int8_t *input, const int32_t *states, int16_t *out,
                            tf_scale *out_scale, int32_t *scratch) {
    const uint32_t units = layer->units, width = 4u * units;
    const int32_t headroom = tf_headroom(scale);
    int32_t *exponents = scratch, *gates = exponents + layer->steps, *next = gates + width;
    int16_t *terms = (int16_t *)(next + 2u * units), *paired = terms + width;
    tf_carried carried = {paired + units, 2u * units, 0, 0};
    memset(carried.codes, 0, carried.size * sizeof *carried.codes);
    for (uint32_t step = layer->steps; step-- > 0u;) {
        const int32_t *c = states + step * units;
        const int16_t *h = (const int16_t *)(states + layer->steps * units) + step * units;
        int16_t *row = out + step * width;
        if (!layer->last || step + 1u == layer->steps) {
            const int16_t *arriving = error + (layer->last ? 0u : step * units);
            tf_merge_errors(&carried, arriving, units, headroom, scale->exponent - headroom, next);
        }
        find_gates(layer, input + step * width, h, paired, gates);
        errors_of_gates(units, c, carried.codes, gates, next + units);
        int32_t magnitude;
        const int32_t shift = tf_normalize(gates, width, row, &magnitude);
        exponents[step] = magnitude == 0 ? TF_NO_EXPONENT : carried.exponent + shift;
        memcpy(terms, row, width * sizeof *terms);
        tf_recurrent_back(layer, 0, width, terms, shift, next);
        carried.exponent += tf_normalize(next, carried.size, carried.codes, &carried.magnitude);
    }
    tf_gather_steps(layer, exponents, width, out, out_scale);
}
