/* The work of a round, one bounded piece per step. */
#include <stddef.h>
#include <string.h>

#include "client_parts.h"

#define FETCH_PATIENCE_MS 15000u /* without a chunk: subscribe again, the broker repeats them */
#define RESEND_AFTER_MS 5000u
#define LONGEST_DEADLINE_SECONDS 1000000u /* keeps milliseconds within half their range */

static bool is_same_round(const tf_client *client, const tf_task *task) {
    return client->has_task && client->task.round == task->round &&
           memcmp(client->task.campaign, task->campaign, TF_CAMPAIGN_BYTES) == 0 &&
           memcmp(client->task.plan, task->plan, TF_DIGEST_BYTES) == 0 &&
           memcmp(client->task.weights, task->weights, TF_DIGEST_BYTES) == 0;
}

static bool is_finished_round(const tf_client *client, const tf_task *task) {
    return client->has_finished && client->finished_round == task->round &&
           memcmp(client->finished_campaign, task->campaign, TF_CAMPAIGN_BYTES) == 0;
}

/* Ends the round for this device, whatever became of it. */
static void finish(tf_client *client, tf_device_state state, tf_reason reason) {
    tf_client_want_blob(client, false);
    client->work = TF_WORK_NONE;
    client->has_task = false;
    client->has_finished = true;
    client->finished_round = client->task.round;
    memcpy(client->finished_campaign, client->task.campaign, TF_CAMPAIGN_BYTES);
    client->check_in_seconds = client->task.check_in_seconds;
    tf_client_note(client, state, reason, true);
}

static void decline(tf_client *client, tf_reason reason) {
    finish(client, TF_DEVICE_DECLINED, reason);
}

tf_status tf_round_on_task(tf_client *client, const tf_mqtt_message *message) {
    tf_task task;
    if (message->payload_bytes == 0u) {
        if (client->has_task) {
            tf_client_want_blob(client, false);
            client->work = TF_WORK_NONE;
            client->has_task = false;
            tf_client_note(client, TF_DEVICE_IDLE, TF_REASON_NONE, true);
        }
        return TF_OK;
    }
    const bool is_decoded =
        tf_decode_task(message->payload, message->payload_bytes, &task) == TF_OK;
    if (is_decoded && is_same_round(client, &task)) {
        return TF_OK;
    }
    if (is_decoded && is_finished_round(client, &task)) {
        client->wants_status = true;
        client->status_is_urgent = true;
        client->check_in_seconds = task.check_in_seconds;
        return TF_OK;
    }
    tf_client_want_blob(client, false);
    client->work = TF_WORK_NONE;
    client->has_task = false;
    if (!is_decoded || message->response_topic == NULL ||
        message->response_topic_bytes > TF_MQTT_TOPIC_LIMIT) {
        memset(&client->task, 0, sizeof client->task);
        if (is_decoded) {
            client->task = task;
        }
        tf_client_note(client, TF_DEVICE_DECLINED, TF_REASON_MALFORMED_TASK, true);
        return TF_BAD_INPUT;
    }
    uint32_t seconds = task.deadline_seconds;
    if (message->expiry_seconds < seconds) {
        seconds = message->expiry_seconds; /* the broker counts down while it keeps the task */
    }
    if (seconds > LONGEST_DEADLINE_SECONDS) {
        seconds = LONGEST_DEADLINE_SECONDS;
    }
    client->deadline_at = tf_client_now(client) + seconds * 1000u;
    memcpy(client->delta_topic, message->response_topic, message->response_topic_bytes);
    client->delta_topic[message->response_topic_bytes] = '\0';
    client->task = task;
    client->has_task = true;
    client->restarted = false;
    client->check_in_seconds = 0;
    client->work = TF_WORK_BEGIN;
    return TF_OK;
}

/* The wanted digest in front of `digits`, then "/", then the number of a chunk. */
static bool read_chunk_number(const tf_client *client, const char *digits, uint32_t bytes,
                              uint32_t *number) {
    static const char hex[] = "0123456789abcdef";
    const uint32_t at = 2u * TF_DIGEST_BYTES + 1u;
    if (bytes <= at || bytes > at + 5u || digits[at - 1u] != '/') {
        return false;
    }
    for (uint32_t i = 0; i < TF_DIGEST_BYTES; i++) {
        const uint8_t byte = client->task.weights[i];
        if (digits[2u * i] != hex[byte >> 4] || digits[2u * i + 1u] != hex[byte & 15u]) {
            return false;
        }
    }
    *number = 0;
    for (uint32_t i = at; i < bytes; i++) {
        if (digits[i] < '0' || digits[i] > '9') {
            return false;
        }
        *number = *number * 10u + (uint32_t)(digits[i] - '0');
    }
    return true;
}

tf_status tf_round_on_blob(tf_client *client, const char *digits, uint32_t digits_bytes,
                           const tf_mqtt_message *message) {
    uint32_t number;
    if (client->work != TF_WORK_FETCH || client->flash_failed ||
        !read_chunk_number(client, digits, digits_bytes, &number)) {
        return TF_OK; /* a chunk that came too late or was asked for before a reset */
    }
    const tf_status status =
        tf_weights_write_chunk(&client->weights, number, message->payload, message->payload_bytes);
    if (status == TF_FLASH_FAILED) {
        client->flash_failed = true;
    }
    if (status != TF_OK) {
        return TF_BAD_INPUT;
    }
    client->fetch_since = tf_client_now(client);
    if (client->weights.missing == 0u) {
        tf_client_want_blob(client, false);
        client->work = TF_WORK_VERIFY;
    }
    return TF_OK;
}

/* The weights that the staging slot holds are wrong or can't be completed: erase them, and
 * fetch them once more where a reset or an older download may be the cause. */
static void restart_download(tf_client *client, bool again, tf_reason reason) {
    tf_client_want_blob(client, false);
    if (tf_weights_discard(&client->weights) != TF_OK) {
        decline(client, TF_REASON_FLASH_FAILURE);
    } else if (!again || client->restarted) {
        decline(client, reason);
    } else {
        client->restarted = true;
        client->work = TF_WORK_BEGIN;
    }
}

/* What rounds start from: the candidate, else what the application infers with. */
static const uint8_t *base(const tf_client *client) {
    const uint8_t *candidate = tf_weights_candidate(&client->weights);
    return candidate != NULL ? candidate : tf_weights_current(&client->weights);
}

const uint8_t *tf_round_base_sha256(const tf_client *client) {
    const uint8_t *candidate = tf_weights_candidate_sha256(&client->weights);
    return candidate != NULL ? candidate : tf_weights_current_sha256(&client->weights);
}

static void begin_scoring(tf_client *client, tf_client_work work, const uint8_t *weights) {
    if (tf_scoring_begin(client, weights) != TF_OK) {
        decline(client, TF_REASON_NOT_ENOUGH_SRAM);
        return;
    }
    client->work = work;
    tf_client_note(client, TF_DEVICE_SCORING, TF_REASON_NONE, false);
}

static void begin_training(tf_client *client) {
    client->epoch = 0;
    client->train_steps = 0;
    if (client->task.epochs == 0u) {
        client->work = TF_WORK_MEASURE;
        return;
    }
    tf_scoring_draw_order(client);
    client->work = TF_WORK_TRAIN;
    tf_client_note(client, TF_DEVICE_TRAINING, TF_REASON_NONE, false);
}

static void stage(tf_client *client) {
    const tf_status status = tf_weights_stage(&client->weights, client->task.weights,
                                              client->task.weights_bytes, client->task.chunk_bytes);
    if (status != TF_OK) {
        decline(client,
                status == TF_BAD_INPUT ? TF_REASON_MALFORMED_TASK : TF_REASON_FLASH_FAILURE);
        return;
    }
    client->flash_failed = false;
    client->copied_chunks = 0;
    client->fetch_since = tf_client_now(client);
    tf_client_note(client, TF_DEVICE_FETCHING, TF_REASON_NONE, false);
    if (client->weights.missing == 0u) {
        client->work = TF_WORK_VERIFY;
    } else if (memcmp(client->task.weights, client->config->model->weights_sha256,
                      TF_DIGEST_BYTES) == 0) {
        client->work = TF_WORK_COPY;
    } else {
        client->work = TF_WORK_FETCH;
        tf_client_want_blob(client, true);
    }
}

static void begin_round(tf_client *client) {
    const tf_model *model = client->config->model;
    tf_scoring_count_samples(client);
    client->new_is_staged = false;
    client->plan = tf_engine_find_plan(model, client->task.plan);
    if (client->plan == NULL) {
        decline(client, TF_REASON_UNKNOWN_PLAN);
    } else if (tf_engine_pool_bytes(model, client->plan) > client->pool_bytes) {
        decline(client, TF_REASON_NOT_ENOUGH_SRAM);
    } else if (client->task.weights_bytes != model->weights_bytes) {
        decline(client, TF_REASON_SIZE_MISMATCH);
    } else if (client->held_out_samples == 0u ||
               (client->train_samples == 0u && client->task.epochs != 0u)) {
        decline(client, TF_REASON_NO_SAMPLES);
    } else if (memcmp(client->task.weights, tf_round_base_sha256(client), TF_DIGEST_BYTES) == 0) {
        begin_scoring(client, TF_WORK_SCORE_NEW, base(client));
    } else {
        stage(client);
    }
}

static void copy_factory_chunk(tf_client *client) {
    const tf_model *model = client->config->model;
    const uint32_t start = client->copied_chunks * client->weights.chunk_bytes;
    const uint32_t left = model->weights_bytes - start;
    const uint32_t bytes = left < client->weights.chunk_bytes ? left : client->weights.chunk_bytes;
    if (tf_weights_write_chunk(&client->weights, client->copied_chunks,
                               model->factory_weights + start, bytes) != TF_OK) {
        restart_download(client, true, TF_REASON_FLASH_FAILURE);
        return;
    }
    client->copied_chunks++;
    if (client->weights.missing == 0u) {
        client->work = TF_WORK_VERIFY;
    }
}

static void fetch(tf_client *client) {
    if (client->flash_failed) {
        restart_download(client, true, TF_REASON_FLASH_FAILURE);
        return;
    }
    if (client->has_blob && tf_client_elapsed(client, client->fetch_since) > FETCH_PATIENCE_MS) {
        client->fetch_since = tf_client_now(client);
        client->has_blob = false; /* so that it is subscribed anew */
    }
}

static void verify(tf_client *client) {
    switch (tf_weights_verify(&client->weights)) {
    case TF_OK:
        client->new_is_staged = true;
        /* Nothing can fall by more than everything: no need to score the old ones. */
        if (client->task.max_score_drop_permille >= 1000u) {
            begin_scoring(client, TF_WORK_SCORE_NEW, tf_weights_staged(&client->weights));
        } else {
            begin_scoring(client, TF_WORK_SCORE_ACTIVE, base(client));
        }
        break;
    case TF_BAD_INPUT:
        restart_download(client, client->weights.resumed, TF_REASON_DIGEST_MISMATCH);
        break;
    default:
        restart_download(client, true, TF_REASON_FLASH_FAILURE);
        break;
    }
}

static void score_new(tf_client *client) {
    if (tf_scoring_step(client)) {
        return;
    }
    const uint32_t held_out = client->score.samples;
    if (client->new_is_staged && client->task.max_score_drop_permille < 1000u &&
        client->before.correct > client->score.correct &&
        (uint32_t)(client->before.correct - client->score.correct) * 1000u >
            client->task.max_score_drop_permille * held_out) {
        decline(client, TF_REASON_SCORE_DROPPED);
        return;
    }
    client->before = client->score;
    if (client->new_is_staged) {
        client->work = TF_WORK_COMMIT;
    } else {
        begin_training(client);
    }
}

static void commit(tf_client *client) {
    /* The engine has the staged blob loaded already, and its place doesn't change. */
    if (tf_weights_commit(&client->weights) != TF_OK) {
        decline(client, TF_REASON_FLASH_FAILURE);
    } else {
        begin_training(client);
    }
}

static void train(tf_client *client) {
    if (tf_scoring_train_step(client)) {
        return;
    }
    client->epoch++;
    if (client->epoch < client->task.epochs) {
        tf_scoring_draw_order(client);
        return;
    }
    client->score = (tf_client_score){0, 0, 0, 0};
    client->work = TF_WORK_SCORE_AFTER;
}

static int32_t next_delta_value(void *context) {
    tf_client *client = context;
    return tf_delta_next(&client->cursor);
}

static void measure(tf_client *client) {
    uint32_t values = client->plan->delta_values;
    if (client->task.epochs == 0u) {
        client->score = client->before;
        values = 0;
    }
    tf_delta_begin(&client->cursor, &client->engine);
    tf_delta_measure(&client->encoder, next_delta_value, client, values, &client->coded_bytes,
                     &client->coded_crc32);
    tf_delta_begin(&client->cursor, &client->engine);
    tf_delta_encoder_begin(&client->encoder, next_delta_value, client, values);
    const uint32_t chunks =
        (client->coded_bytes + TF_CODED_CHUNK_BYTES - 1u) / TF_CODED_CHUNK_BYTES;
    client->chunks = (uint16_t)(chunks == 0u ? 1u : chunks);
    client->chunk = 0;
    client->chunk_is_ready = false;
    client->chunk_waits = false;
    client->delta_publication_id = 0;
    client->work = TF_WORK_SEND;
    tf_client_note(client, TF_DEVICE_SENDING, TF_REASON_NONE, false);
}

static void send(tf_client *client) {
    if (client->delta_publication_id != 0u || !tf_mqtt_can_publish(&client->mqtt) ||
        (client->wants_status && client->status_is_urgent) ||
        (client->chunk_waits && tf_client_elapsed(client, client->chunk_since) < RESEND_AFTER_MS)) {
        return;
    }
    if (!client->chunk_is_ready) {
        client->chunk_bytes = (uint16_t)tf_delta_encoder_read(
            &client->encoder, client->config->chunk, TF_CODED_CHUNK_BYTES);
        client->chunk_is_ready = true;
    }
    uint8_t *payload;
    size_t capacity;
    size_t length;
    const tf_status begun =
        tf_mqtt_publish_begin(&client->mqtt, client->delta_topic, strlen(client->delta_topic),
                              false, tf_client_seconds_left(client), &payload, &capacity);
    if (begun == TF_AGAIN) {
        return;
    }
    if (begun != TF_OK) {
        decline(client, TF_REASON_MALFORMED_TASK); /* its response topic can't be sent to */
        return;
    }
    tf_delta delta = {
        .round = client->task.round,
        .coded_bytes = client->coded_bytes,
        .coded_crc32 = client->coded_crc32,
        .train_steps = client->train_steps,
        .loss_before_thousandths = tf_scoring_mean_loss_thousandths(&client->before),
        .loss_after_thousandths = tf_scoring_mean_loss_thousandths(&client->score),
        .chunk = client->chunk,
        .chunks = client->chunks,
        .train_samples = client->task.epochs == 0u ? 0u : client->order_count,
        .held_out_samples = client->score.samples,
        .correct_before = client->before.correct,
        .correct_after = client->score.correct,
        .coded = client->config->chunk,
        .coded_chunk_bytes = client->chunk_bytes,
    };
    memcpy(delta.campaign, client->task.campaign, TF_CAMPAIGN_BYTES);
    memcpy(delta.plan, client->task.plan, TF_PREFIX_BYTES);
    memcpy(delta.weights, client->task.weights, TF_PREFIX_BYTES);
    if (tf_encode_delta(&delta, payload, capacity, &length) != TF_OK ||
        tf_mqtt_publish_commit(&client->mqtt, length, &client->delta_publication_id) != TF_OK) {
        finish(client, TF_DEVICE_FAILED, TF_REASON_MALFORMED_TASK);
    }
}

void tf_round_on_delta_answer(tf_client *client, uint8_t reason) {
    client->delta_publication_id = 0;
    if (client->work != TF_WORK_SEND) {
        return;
    }
    client->chunk_waits = reason == TF_MQTT_NO_MATCHING_SUBSCRIBERS;
    if (client->chunk_waits) {
        client->chunk_since = tf_client_now(client);
    } else if (reason >= TF_MQTT_REASON_UNSPECIFIED) {
        finish(client, TF_DEVICE_FAILED, TF_REASON_NONE);
    } else {
        client->chunk++;
        client->chunk_is_ready = false;
        if (client->chunk == client->chunks) {
            finish(client, TF_DEVICE_IDLE, TF_REASON_NONE);
        }
    }
}

bool tf_round_step(tf_client *client) {
    if (client->has_task && (int32_t)(tf_client_now(client) - client->deadline_at) >= 0) {
        decline(client, TF_REASON_DEADLINE_PASSED);
    }
    switch (client->work) {
    case TF_WORK_NONE:
        break;
    case TF_WORK_BEGIN:
        begin_round(client);
        return true;
    case TF_WORK_COPY:
        copy_factory_chunk(client);
        return true;
    case TF_WORK_FETCH:
        fetch(client);
        return client->work != TF_WORK_FETCH;
    case TF_WORK_VERIFY:
        verify(client);
        return true;
    case TF_WORK_SCORE_ACTIVE:
        if (!tf_scoring_step(client)) {
            client->before = client->score;
            begin_scoring(client, TF_WORK_SCORE_NEW, tf_weights_staged(&client->weights));
        }
        return true;
    case TF_WORK_SCORE_NEW:
        score_new(client);
        return true;
    case TF_WORK_COMMIT:
        commit(client);
        return true;
    case TF_WORK_TRAIN:
        train(client);
        return true;
    case TF_WORK_SCORE_AFTER:
        if (!tf_scoring_step(client)) {
            client->work = TF_WORK_MEASURE;
        }
        return true;
    case TF_WORK_MEASURE:
        measure(client);
        return true;
    case TF_WORK_SEND:
        send(client);
        return client->work != TF_WORK_SEND;
    }
    return false;
}
