/* Samples meet the engine: scoring on the held-out ones, training on the others. */
#include "scoring.h"

#include <stddef.h>

#define CHOICE 0x63686F69u /* stream of random numbers, beyond any epoch's */

static bool is_usable(const tf_client *client, const tf_record *record, bool held_out) {
    const tf_model *model = client->config->model;
    return record->held_out == held_out && record->payload_bytes == model->sample_bytes &&
           record->label < model->labels;
}

void tf_scoring_count_samples(tf_client *client) {
    const tf_model *model = client->config->model;
    const uint32_t train =
        tf_sample_log_count(&client->log, false, model->sample_bytes, model->labels);
    const uint32_t held_out =
        tf_sample_log_count(&client->log, true, model->sample_bytes, model->labels);
    const uint32_t room = client->config->sample_order_size;
    client->train_samples = (uint16_t)(train < room ? train : room);
    client->held_out_samples = (uint16_t)(held_out < UINT16_MAX ? held_out : UINT16_MAX);
}

tf_status tf_scoring_begin(tf_client *client, const uint8_t *weights) {
    const tf_status status = tf_engine_load(&client->engine, client->config->model, client->plan,
                                            weights, client->config->pool, client->pool_bytes);
    client->score = (tf_client_score){0, 0, 0, 0};
    return status;
}

bool tf_scoring_step(tf_client *client) {
    tf_client_score *score = &client->score;
    tf_record record;
    do {
        if (score->samples == UINT16_MAX ||
            tf_sample_log_next(&client->log, &score->cursor, &record) != TF_OK) {
            return false;
        }
    } while (!is_usable(client, &record, true));
    const int32_t label = record.label;
    const int32_t predicted =
        tf_engine_score(&client->engine, (const int8_t *)record.payload, label);
    score->samples++;
    score->correct = (uint16_t)(score->correct + (predicted == label));
    score->loss_q16 += client->engine.frame.loss_q16;
    return true;
}

uint32_t tf_scoring_mean_loss_thousandths(const tf_client_score *score) {
    if (score->samples == 0u) {
        return 0;
    }
    const uint64_t parts = (uint64_t)score->samples << 16;
    const uint64_t mean = (score->loss_q16 * 1000u + parts / 2u) / parts;
    return mean < UINT32_MAX ? (uint32_t)mean : UINT32_MAX;
}

/* Notes where the n-th train sample is, so that a step finds it without counting. Where there are
 * more than room for, the newest count, or, since a reservoir has no newest, a fair choice. */
static void note_place(tf_client *client, uint32_t n, uint16_t place) {
    uint16_t *order = client->config->sample_order;
    const uint32_t room = client->config->sample_order_size;
    if (n < room) {
        order[n] = place;
    } else if (client->config->regions.samples.keep == TF_KEEP_RESERVOIR) {
        const uint32_t at = tf_random(client->task.seed, CHOICE, n) % (n + 1u);
        if (at < room) {
            order[at] = place;
        }
    } else {
        order[n % room] = place;
    }
}

void tf_scoring_draw_order(tf_client *client) {
    uint16_t *order = client->config->sample_order;
    uint32_t cursor = 0;
    uint32_t found = 0;
    tf_record record;
    while (tf_sample_log_next(&client->log, &cursor, &record) == TF_OK) {
        if (is_usable(client, &record, false)) {
            note_place(client, found++, record.place);
        }
    }
    const uint16_t count =
        (uint16_t)(found < client->config->sample_order_size ? found
                                                             : client->config->sample_order_size);
    for (uint32_t i = count; i-- > 1u;) {
        const uint32_t j = tf_random(client->task.seed, client->epoch, i) % (i + 1u);
        const uint16_t swapped = order[i];
        order[i] = order[j];
        order[j] = swapped;
    }
    client->order_count = count;
    client->order_next = 0;
}

bool tf_scoring_train_step(tf_client *client) {
    if (client->order_next == client->order_count) {
        return false;
    }
    const uint16_t place = client->config->sample_order[client->order_next++];
    tf_record record;
    /* The application adds samples while this goes on: what had to go for them is skipped, and what
     * lies in its place may be held out. */
    if (tf_sample_log_at(&client->log, place, &record) == TF_OK &&
        is_usable(client, &record, false)) {
        tf_engine_train_step(&client->engine, (const int8_t *)record.payload, record.label,
                             client->task.learning_rate_q20, client->task.seed);
        client->train_steps++;
    }
    return true;
}
