/* Runs the programs of a model: memory, working copies, steps, deltas. */
#include "tinyfleet/engine.h"
#include "tinyfleet/row_pairs.h"

#include <stddef.h>
#include <string.h>

#define ALIGNMENT 8u
#define DELTA_STREAM 0xffffffffu /* no training step has this index */

static uint32_t aligned(uint32_t bytes) {
    return (bytes + ALIGNMENT - 1u) & ~(ALIGNMENT - 1u);
}

const tf_plan *tf_engine_find_plan(const tf_model *model, const uint8_t id[TF_DIGEST_BYTES]) {
    for (uint16_t i = 0; i < model->plan_count; i++) {
        if (memcmp(model->plans[i].id, id, TF_DIGEST_BYTES) == 0) {
            return &model->plans[i];
        }
    }
    return NULL;
}

uint32_t tf_engine_pool_bytes(const tf_model *model, const tf_plan *plan) {
    return ALIGNMENT + aligned(plan->arena_bytes) + aligned(plan->state_bytes) +
           aligned((uint32_t)sizeof(int32_t) * model->classes);
}

/* Place of value `column` of line `line` in a tensor with `width` values a line. */
static uint32_t place(const tf_segment *segment, uint32_t line, uint32_t column, uint32_t width) {
    if (segment->packed == 0u) {
        return line * width + column;
    }
    const uint32_t at = line % segment->taps * width + column;
    return tf_packed_place(line / segment->taps, at, tf_packed_length(segment->taps * width));
}

static uint32_t place_in_blob(const tf_segment *segment, uint32_t line, uint32_t at) {
    const uint32_t channel = segment->channels == NULL ? at : segment->channels[at];
    return place(segment, line, channel, segment->row);
}

/* Copies the trained values of a segment into the state. What fills up its rows stays as it is. */
static void load_segment(const tf_segment *segment, const uint8_t *weights, uint8_t *state) {
    const uint8_t *from = weights + segment->blob_offset;
    uint8_t *to = state + segment->state_offset;
    const uint32_t lines = segment->values / segment->count;
    for (uint32_t line = 0; line < lines; line++) {
        for (uint32_t at = 0; at < segment->count; at++) {
            const uint32_t source = place_in_blob(segment, line, at) * segment->bytes;
            const uint32_t target = place(segment, line, at, segment->count) * segment->bytes;
            memcpy(to + target, from + source, segment->bytes);
        }
    }
}

tf_status tf_engine_load(tf_engine *engine, const tf_model *model, const tf_plan *plan,
                         const uint8_t *weights, void *pool, uint32_t pool_bytes) {
    if (pool_bytes < tf_engine_pool_bytes(model, plan)) {
        return TF_NO_MEMORY;
    }
    uint8_t *next = (uint8_t *)(((uintptr_t)pool + ALIGNMENT - 1u) & ~(uintptr_t)(ALIGNMENT - 1u));
    memset(engine, 0, sizeof *engine);
    engine->plan = plan;
    engine->classes = model->classes;
    engine->binary = model->binary != 0u;
    engine->frame.weights = weights;
    engine->frame.updates = TF_UPDATE_SHARED | TF_UPDATE_PERSONAL;
    engine->frame.arena = next;
    next += aligned(plan->arena_bytes);
    engine->frame.state = next;
    next += aligned(plan->state_bytes);
    engine->frame.logits = (int32_t *)(void *)next;
    memset(engine->frame.state, 0, plan->state_bytes);
    for (uint16_t s = 0; s < plan->segment_count; s++) {
        load_segment(&plan->segments[s], weights, engine->frame.state);
    }
    return TF_OK;
}

int32_t tf_engine_predict(tf_engine *engine, const int8_t *sample) {
    tf_frame *frame = &engine->frame;
    frame->input = sample;
    engine->plan->forward(frame);
    if (engine->binary) {
        int32_t bits = 0;
        for (int32_t i = 0; i < engine->classes; i++) {
            bits |= (int32_t)(frame->logits[i] >= 0) << i;
        }
        return bits;
    }
    int32_t best = 0;
    for (int32_t i = 1; i < engine->classes; i++) {
        if (frame->logits[i] > frame->logits[best]) {
            best = i;
        }
    }
    return best;
}

int32_t tf_engine_score(tf_engine *engine, const int8_t *sample, int32_t label) {
    const int32_t predicted = tf_engine_predict(engine, sample);
    engine->frame.label = label;
    engine->plan->loss(&engine->frame);
    return predicted;
}

void tf_engine_train_step(tf_engine *engine, const int8_t *sample, int32_t label,
                          uint32_t learning_rate_q20, uint32_t seed) {
    tf_frame *frame = &engine->frame;
    frame->input = sample;
    frame->label = label;
    frame->learning_rate_q20 = learning_rate_q20 / engine->plan->accumulate;
    frame->seed = seed;
    engine->plan->forward(frame);
    engine->plan->loss(frame);
    engine->plan->backward(frame);
    frame->step_index++;
}

void tf_delta_begin(tf_delta_cursor *cursor, const tf_engine *engine) {
    const tf_delta_cursor start = {engine, 0, 0, 0};
    *cursor = start;
}

/* Element `at` of a little-endian tensor of `bytes` wide signed integers, 4-byte aligned. */
static int32_t element(const uint8_t *tensor, uint32_t at, uint8_t bytes) {
    if (bytes == 1u) {
        return (int8_t)tensor[at];
    }
    if (bytes == 2u) {
        int16_t value;
        memcpy(&value, tensor + 2u * at, sizeof value);
        return value;
    }
    int32_t value;
    memcpy(&value, tensor + 4u * at, sizeof value);
    return value;
}

int32_t tf_delta_next(tf_delta_cursor *cursor) {
    const tf_plan *plan = cursor->engine->plan;
    const tf_frame *frame = &cursor->engine->frame;
    while (cursor->engine->keeps_personal && plan->segments[cursor->segment].personal != 0u) {
        cursor->value += plan->segments[cursor->segment].values;
        cursor->segment++;
    }
    const tf_segment *segment = &plan->segments[cursor->segment];
    const uint32_t line = cursor->within / segment->count;
    const uint32_t column = cursor->within % segment->count;
    const uint32_t at = place(segment, line, column, segment->count);
    const uint32_t before = place_in_blob(segment, line, column);
    const int32_t unit = segment->bytes == 1u ? 256 : 1;
    int64_t change = (int64_t)element(frame->state + segment->state_offset, at, segment->bytes) -
                     element(frame->weights + segment->blob_offset, before, segment->bytes);
    change *= unit;
    if (segment->has_fraction != 0) {
        change += (int8_t)frame->state[segment->fraction_offset + at];
    }
    const uint32_t dropped = (1u << segment->shift) - 1u;
    change += tf_random(frame->seed, DELTA_STREAM, cursor->value++) & dropped;
    change >>= segment->shift;
    if (++cursor->within == segment->values) {
        cursor->within = 0;
        cursor->segment++;
    }
    return change > INT32_MAX ? INT32_MAX : (change < -INT32_MAX ? -INT32_MAX : (int32_t)change);
}

/* --- what a device keeps for itself --------------------------------------------------------- */

/* Bytes that the state has for the values of a segment. */
static uint32_t copy_bytes(const tf_segment *segment) {
    uint32_t places = segment->values;
    if (segment->packed != 0u) {
        const uint32_t row = segment->taps * segment->count;
        places = tf_packed_bytes(segment->values / row, row);
    }
    return (places * segment->bytes + 3u) & ~3u;
}

/* Values and fractions lie behind each other. */
static uint32_t kept_bytes(const tf_segment *segment) {
    return copy_bytes(segment) * (segment->has_fraction != 0u ? 2u : 1u);
}

static bool is_kept(const tf_segment *segment, bool personal_only) {
    return !personal_only || segment->personal != 0u;
}

uint32_t tf_engine_kept_bytes(const tf_plan *plan, bool personal_only) {
    uint32_t bytes = 0;
    for (uint16_t s = 0; s < plan->segment_count; s++) {
        if (is_kept(&plan->segments[s], personal_only)) {
            bytes += kept_bytes(&plan->segments[s]);
        }
    }
    return bytes;
}

uint32_t tf_engine_kept_word(const tf_engine *engine, bool personal_only, uint32_t index) {
    const tf_segment *segment = engine->plan->segments;
    uint32_t offset = 4u * index;
    while (!is_kept(segment, personal_only) || offset >= kept_bytes(segment)) {
        offset -= is_kept(segment, personal_only) ? kept_bytes(segment) : 0u;
        segment++;
    }
    uint32_t word;
    memcpy(&word, engine->frame.state + segment->state_offset + offset, sizeof word);
    return word;
}

static void put_element(uint8_t *tensor, uint32_t at, uint8_t bytes, int32_t value) {
    if (bytes == 1u) {
        tensor[at] = (uint8_t)value;
    } else if (bytes == 2u) {
        const int16_t narrow = (int16_t)value;
        memcpy(tensor + 2u * at, &narrow, sizeof narrow);
    } else {
        memcpy(tensor + 4u * at, &value, sizeof value);
    }
}

/* Moves the state from the version's values, which it has, towards the kept ones. */
static void lay_over(tf_frame *frame, const tf_segment *segment, const uint8_t *kept,
                     uint32_t mix) {
    const uint8_t *fractions = kept + copy_bytes(segment);
    uint8_t *state = frame->state + segment->state_offset;
    for (uint32_t value = 0; value < segment->values; value++) {
        const uint32_t line = value / segment->count;
        const uint32_t at = place(segment, line, value % segment->count, segment->count);
        const int64_t unit = segment->has_fraction != 0u ? 256 : 1;
        const int64_t before = element(state, at, segment->bytes) * unit;
        int64_t wanted = element(kept, at, segment->bytes) * unit;
        if (segment->has_fraction != 0u) {
            wanted += (int8_t)fractions[at];
        }
        const int64_t mixed = before + (((wanted - before) * mix + TF_WHOLE_MIX / 2u) >> 8);
        if (segment->has_fraction != 0u) {
            const int32_t whole = (int32_t)((mixed + 128) >> 8);
            state[at] = (uint8_t)whole;
            frame->state[segment->fraction_offset + at] = (uint8_t)(mixed - whole * 256);
        } else {
            put_element(state, at, segment->bytes, (int32_t)mixed);
        }
    }
}

void tf_engine_lay_over(tf_engine *engine, const uint8_t *kept, bool personal_only, uint32_t mix) {
    for (uint16_t s = 0; s < engine->plan->segment_count; s++) {
        const tf_segment *segment = &engine->plan->segments[s];
        if (is_kept(segment, personal_only)) {
            lay_over(&engine->frame, segment, kept, mix);
            kept += kept_bytes(segment);
        }
    }
}
