/* Gated recurrent units. */
#include "recurrence.h"

/* What a step is computed in. */
typedef struct {
    int32_t *gates; /* z, r, n */
    int32_t *inner; /* what the state adds to n before the reset, in Q12; may be n's place */
    int16_t *read;  /* r * h, where the reset comes first */
    int16_t *paired;
} step_room;

static void find_gates(const tf_recurrence *layer, const int8_t *input, const int16_t *h,
                       const step_room *room) {
    const uint32_t units = layer->units;
    const tf_gates by = tf_gates_of(layer, 0), of_n = tf_gates_of(layer, 2u * units);
    const int8_t *weights = layer->recurrent + 2u * units * units;
    int32_t *gates = room->gates, *inner = room->inner;
    int32_t *r = gates + units, *n = r + units;
    tf_recurrent_products(layer->recurrent, 2u * units, units, h, room->paired, gates);
    for (uint32_t i = 0; i < 2u * units; i++) {
        const int32_t state = tf_gate_state(&by, i, gates[i]);
        gates[i] = tf_sigmoid(tf_gate_input(&by, input[i]) + state);
    }
    input += 2u * units;
    if (layer->inner_bias == NULL) {
        for (uint32_t i = 0; i < units; i++) {
            room->read[i] = (int16_t)tf_q15(r[i], h[i]);
        }
        tf_recurrent_products(weights, units, units, room->read, room->paired, n);
        for (uint32_t i = 0; i < units; i++) {
            const int32_t state = tf_gate_state(&of_n, i, n[i]);
            n[i] = tf_tanh(tf_twice(tf_gate_input(&of_n, input[i]) + state));
        }
        return;
    }
    tf_recurrent_products(weights, units, units, h, room->paired, n);
    for (uint32_t i = 0; i < units; i++) {
        const int32_t state = tf_gate_state(&of_n, i, n[i] + layer->inner_bias[i]);
        const int32_t reset = (int32_t)tf_q15_wide(state, r[i]);
        inner[i] = state;
        n[i] = tf_tanh(tf_twice(tf_gate_input(&of_n, input[i]) + reset));
    }
}

void tf_gru_forward(const tf_recurrence *layer, const int8_t *input, int8_t *output, uint8_t *mask,
                    int32_t *states, int32_t *scratch) {
    const uint32_t units = layer->units;
    int16_t *h = (int16_t *)(scratch + 3u * units), *kept = (int16_t *)states;
    const step_room room = {scratch, scratch + 2u * units, h + units, h + 2u * units};
    const int32_t *z = room.gates, *n = room.gates + 2u * units;
    tf_mask_writer written = {mask, 0, 0};
    memset(h, 0, units * sizeof *h);
    for (uint32_t step = 0; step < layer->steps; step++, input += 3u * units) {
        if (kept != NULL) {
            memcpy(kept, h, units * sizeof *h);
            kept += units;
        }
        find_gates(layer, input, h, &room);
        for (uint32_t i = 0; i < units; i++) {
            h[i] = (int16_t)(n[i] + tf_q15(z[i], h[i] - n[i]));
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

/* Errors of the gates in their place, from those of the state behind the step; what the state before
 * it gets past the gates in `past`, and r in `read` where that multiplies n's errors on their way. */
static void errors_of_gates(const tf_recurrence *layer, const int16_t *h, const tf_carried *carried,
                            const step_room *room, int16_t *terms, int32_t *past) {
    const uint32_t units = layer->units;
    int32_t *z = room->gates, *r = z + units, *n = r + units;
    const int32_t first = layer->inner_bias == NULL;
    for (uint32_t i = 0; i < units; i++) {
        const int32_t dh = carried->codes[i];
        const int32_t slope = TF_ONE - tf_q15(n[i], n[i]);
        const int32_t of_z = tf_q15(dh, h[i] - n[i]);
        past[i] = tf_q15(dh, z[i]);
        n[i] = tf_q15(tf_q15(dh, TF_ONE - z[i]), slope);
        z[i] = tf_q15(of_z, tf_q15(z[i], TF_ONE - z[i]));
        terms[i] = (int16_t)n[i];
    }
    if (first) {
        tf_recurrent_back(layer, 2u * units, units, terms, 0, room->inner);
    }
    for (uint32_t i = 0; i < units; i++) {
        const int32_t gate = r[i];
        int64_t of_r;
        if (first) {
            of_r = tf_q15_wide(room->inner[i], h[i]);
            past[i] = tf_hold_gradient(past[i] + tf_q15_wide(room->inner[i], gate));
        } else {
            of_r = ((int64_t)n[i] * room->inner[i] + (1 << 11)) >> 12;
            room->read[i] = (int16_t)gate;
        }
        r[i] = (int32_t)tf_q15_wide(tf_hold_gradient(of_r), tf_q15(gate, TF_ONE - gate));
    }
}

void tf_gru_input_gradient(const tf_recurrence *layer, const int16_t *error, const tf_scale *scale,
                           const int8_t *input, const int32_t *states, int16_t *out,
                           tf_scale *out_scale, int32_t *scratch) {
    const uint32_t units = layer->units, width = 3u * units;
    const int32_t headroom = tf_headroom(scale), first = layer->inner_bias == NULL;
    int32_t *exponents = scratch, *inner = exponents + layer->steps + width;
    int32_t *past = inner + units;
    int16_t *terms = (int16_t *)(past + units), *read = terms + width;
    const step_room room = {exponents + layer->steps, inner, read, read + units};
    tf_carried carried = {read + 2u * units, units, 0, 0};
    memset(carried.codes, 0, units * sizeof *carried.codes);
    for (uint32_t step = layer->steps; step-- > 0u;) {
        const int16_t *h = (const int16_t *)states + step * units;
        int16_t *row = out + step * width;
        if (!layer->last || step + 1u == layer->steps) {
            const int16_t *arriving = error + (layer->last ? 0u : step * units);
            tf_merge_errors(&carried, arriving, units, headroom, scale->exponent - headroom, past);
        }
        find_gates(layer, input + step * width, h, &room);
        errors_of_gates(layer, h, &carried, &room, terms, past);
        int32_t magnitude;
        const int32_t shift = tf_normalize(room.gates, width, row, &magnitude);
        exponents[step] = magnitude == 0 ? TF_NO_EXPONENT : carried.exponent + shift;
        memcpy(terms, row, width * sizeof *terms);
        for (uint32_t i = 0; !first && i < units; i++) {
            terms[2u * units + i] = (int16_t)tf_q15(terms[2u * units + i], read[i]);
        }
        tf_recurrent_back(layer, 0, first ? 2u * units : width, terms, shift, inner);
        for (uint32_t i = 0; i < units; i++) {
            past[i] = tf_hold_gradient((int64_t)past[i] + inner[i]);
        }
        carried.exponent += tf_normalize(past, units, carried.codes, &carried.magnitude);
    }
    tf_gather_steps(layer, exponents, width, out, out_scale);
}
