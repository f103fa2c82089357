/* From a task to its receipt. */
#include "round.h"

#include <stddef.h>
#include <string.h>

#include "admission.h"
#include "clock.h"
#include "coding.h"
#include "fetch.h"
#include "personal.h"
#include "report.h"
#include "scoring.h"
#include "sending.h"

static bool is_round(const tf_task *task, const uint8_t *campaign, uint32_t round) {
    return task->round == round && memcmp(task->campaign, campaign, TF_CAMPAIGN_BYTES) == 0;
}

/* Whether a task differs from the one that is worked on in lease and times alone. */
static bool is_same_work(const tf_client *client, const tf_task *task) {
    const tf_task *mine = &client->task;
    return client->has_task && is_round(mine, task->campaign, task->round) &&
           memcmp(mine->plan, task->plan, TF_DIGEST_BYTES) == 0 &&
           memcmp(mine->weights, task->weights, TF_DIGEST_BYTES) == 0 &&
           memcmp(mine->unmaskers, task->unmaskers, TF_PREFIX_BYTES) == 0 &&
           mine->weights_bytes == task->weights_bytes &&
           mine->learning_rate_q20 == task->learning_rate_q20 && mine->seed == task->seed &&
           mine->clip == task->clip && mine->noise_variance == task->noise_variance &&
           mine->chunk_bytes == task->chunk_bytes &&
           mine->uplink_chunk_bytes == task->uplink_chunk_bytes &&
           mine->max_score_drop_permille == task->max_score_drop_permille &&
           mine->value_bound == task->value_bound && mine->norm_share == task->norm_share &&
           mine->least_devices == task->least_devices && mine->personal == task->personal &&
           mine->mask_bits == task->mask_bits && mine->action == task->action &&
           mine->epochs == task->epochs && mine->coding == task->coding &&
           mine->weighting == task->weighting;
}

static bool is_finished(const tf_client *client, const tf_task *task) {
    return client->has_finished &&
           is_round(task, client->finished_campaign, client->finished_round);
}

/* Leaves the task, whatever became of it. */
static void leave(tf_client *client) {
    tf_fetch_stop(client);
    (void)tf_sending_drop(client); /* where it is half written, the next task waits for the rest */
    client->work = TF_WORK_NONE;
    client->has_task = false;
}

/* Leaves the task, and begins its round no more in this boot; only one that was `called_off` it does
 * again, under a higher lease. */
static void end(tf_client *client, bool called_off, tf_device_state state, tf_reason reason,
                bool urgent) {
    leave(client);
    client->has_finished = true;
    client->was_called_off = called_off;
    client->finished_round = client->task.round;
    memcpy(client->finished_campaign, client->task.campaign, TF_CAMPAIGN_BYTES);
    tf_report_note(client, &client->task, state, reason, urgent);
}

/* Ends the round for this device. */
static void finish(tf_client *client, tf_device_state state, tf_reason reason, bool urgent) {
    end(client, false, state, reason, urgent);
    client->check_in_seconds = client->task.check_in_seconds;
}

static void decline(tf_client *client, tf_reason reason) {
    finish(client, TF_DEVICE_DECLINED, reason, true);
}

/* --- messages ------------------------------------------------------------------------------- */

/* Says so once; what the device works on goes on. The notice names a round only where an older lease
 * does, and another one: with what anybody may have written the real round would be declined. */
static void refuse(tf_client *client, tf_task *task, tf_reason reason) {
    if (reason != TF_REASON_OLDER_LEASE ||
        (client->has_task && is_round(&client->task, task->campaign, task->round))) {
        memset(task, 0, sizeof *task);
    }
    tf_report_note_besides(client, task, TF_DEVICE_DECLINED, reason);
}

static tf_status take_malformed(tf_client *client, tf_task *task) {
    if (tf_keys_has_authority(&client->keys)) {
        refuse(client, task, TF_REASON_MALFORMED_TASK);
        return TF_BAD_INPUT;
    }
    leave(client);
    client->task = *task;
    tf_report_note(client, task, TF_DEVICE_DECLINED, TF_REASON_MALFORMED_TASK, true);
    return TF_BAD_INPUT;
}

/* Whether a delta waits for its receipt that is sealed for others than the keyring's unmaskers. */
static bool holds_sealed_for_others(const tf_client *client) {
    return client->sending.is_held && client->sending.is_masked &&
           !tf_keys_can_mask(&client->keys, client->task.unmaskers);
}

static void take_response_topic(tf_client *client, const tf_mqtt_message *message) {
    memcpy(client->delta_topic, message->response_topic, message->response_topic_bytes);
    client->delta_topic[message->response_topic_bytes] = '\0';
}

tf_status tf_round_on_task(tf_client *client, const tf_mqtt_message *message) {
    tf_task task;
    tf_task_parts parts;
    memset(&task, 0, sizeof task);
    if (message->payload_bytes == 0u) {
        if (client->has_task) {
            end(client, true, TF_DEVICE_IDLE, TF_REASON_NONE, false);
        }
        return TF_OK;
    }
    if (tf_decode_task(message->payload, message->payload_bytes, &task, &parts) != TF_OK) {
        memset(&task, 0, sizeof task);
        return take_malformed(client, &task);
    }
    const tf_reason refusal = tf_admission_check(client, message, &task, &parts);
    if (holds_sealed_for_others(client)) {
        decline(client, TF_REASON_OTHER_UNMASKERS); /* a newer keyring came */
    }
    if (refusal != TF_REASON_NONE) {
        refuse(client, &task, refusal);
        return TF_OK;
    }
    if (message->response_topic == NULL || message->response_topic_bytes > TF_MQTT_TOPIC_LIMIT) {
        return take_malformed(client, &task);
    }
    const bool is_raised = task.lease > client->lease;
    tf_admission_note(client, &task);
    if (is_same_work(client, &task)) {
        client->task.lease = task.lease;
        take_response_topic(client, message);
        return TF_OK;
    }
    if (is_finished(client, &task) && !client->was_called_off) {
        client->check_in_seconds = task.check_in_seconds;
        return TF_OK; /* the broker has the status that says so */
    }
    if (is_finished(client, &task) && !is_raised) {
        /* Nobody has to sign an empty task: whoever repeats it and the task that it ends would wear
         * out the flash, and have a masked delta with other noise each time. */
        refuse(client, &task, TF_REASON_OLDER_LEASE);
        return TF_OK;
    }
    leave(client);
    uint32_t seconds = task.deadline_seconds;
    if (message->expiry_seconds < seconds) {
        seconds = message->expiry_seconds; /* the broker counts down while it keeps the task */
    }
    client->deadline_at = tf_client_now(client) + seconds * 1000u;
    take_response_topic(client, message);
    client->task = task;
    client->has_task = true;
    client->restarted = false;
    client->journal_failed = false;
    client->check_in_seconds = 0;
    client->work = TF_WORK_BEGIN;
    return TF_OK;
}

tf_status tf_round_on_receipt(tf_client *client, const tf_mqtt_message *message) {
    tf_receipt receipt;
    if (tf_decode_receipt(message->payload, message->payload_bytes, &receipt) != TF_OK) {
        return TF_BAD_INPUT;
    }
    if (!client->has_task || !is_round(&client->task, receipt.campaign, receipt.round)) {
        return TF_OK; /* of another round, or once more */
    }
    /* One that comes while the device works again, after a reset, ends that as well. */
    if (receipt.result == TF_RECEIPT_COUNTED) {
        finish(client, TF_DEVICE_IDLE, TF_REASON_NONE, false);
    } else if (receipt.result == TF_RECEIPT_LATE) {
        decline(client, TF_REASON_DEADLINE_PASSED);
    } else {
        finish(client, TF_DEVICE_FAILED, TF_REASON_REFUSED_BY_GATEWAY, true);
    }
    return TF_OK;
}

/* --- weights -------------------------------------------------------------------------------- */

/* What the staging slot holds is wrong or can't be completed: it is erased, and fetched once
 * more where a reset or an older download may be the cause. */
static void restart_download(tf_client *client, bool again, tf_reason reason) {
    tf_fetch_stop(client);
    client->discards_for_good = !again || client->restarted;
    client->discard_reason = reason;
    client->work = TF_WORK_DISCARD;
}

static void discard(tf_client *client) {
    if (tf_weights_discard(&client->weights) != TF_OK) {
        decline(client, TF_REASON_FLASH_FAILURE);
    } else if (client->discards_for_good) {
        decline(client, client->discard_reason);
    } else {
        client->restarted = true;
        client->work = TF_WORK_BEGIN;
    }
}

static bool is_digest(const uint8_t *digest, const uint8_t *other) {
    return digest != NULL && memcmp(digest, other, TF_DIGEST_BYTES) == 0;
}

/* The weights of the task, where the device has them; else NULL. */
static const uint8_t *find_weights(const tf_client *client) {
    const tf_weights_store *store = &client->weights;
    if (is_digest(tf_weights_candidate_sha256(store), client->task.weights)) {
        return tf_weights_candidate(store);
    }
    if (is_digest(tf_weights_current_sha256(store), client->task.weights)) {
        return tf_weights_current(store);
    }
    return NULL;
}

static void stage(tf_client *client) {
    const tf_status status = tf_weights_stage(&client->weights, client->task.weights,
                                              client->task.weights_bytes, client->task.chunk_bytes);
    if (status != TF_OK) {
        decline(client,
                status == TF_BAD_INPUT ? TF_REASON_MALFORMED_TASK : TF_REASON_FLASH_FAILURE);
        return;
    }
    client->copied_chunks = 0;
    tf_report_note(client, &client->task, TF_DEVICE_FETCHING, TF_REASON_NONE, false);
    if (client->weights.missing == 0u) {
        client->work = TF_WORK_VERIFY;
    } else if (is_digest(client->config->model->weights_sha256, client->task.weights)) {
        client->work = TF_WORK_COPY;
    } else {
        client->work = TF_WORK_FETCH;
        tf_fetch_begin(client, client->task.weights);
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
    if (!tf_admission_is_kept(client)) {
        /* A lease or keys that have come since: what is there stays, the rest is asked for again. */
        tf_fetch_stop(client);
        client->work = TF_WORK_BEGIN;
        return;
    }
    switch (tf_fetch_step(client)) {
    case TF_FETCH_GOES_ON:
        break;
    case TF_FETCH_DONE:
        tf_fetch_stop(client);
        client->work = TF_WORK_VERIFY;
        break;
    case TF_FETCH_FLASH_FAILED:
        restart_download(client, true, TF_REASON_FLASH_FAILURE);
        break;
    }
}

/* --- scores --------------------------------------------------------------------------------- */

static void begin_scoring(tf_client *client, tf_client_work work, const uint8_t *weights) {
    if (tf_scoring_begin(client, weights) != TF_OK) {
        decline(client, TF_REASON_NOT_ENOUGH_SRAM);
        return;
    }
    client->work = work;
    tf_report_note(client, &client->task, TF_DEVICE_SCORING, TF_REASON_NONE, false);
}

/* Whether the task's weights have to be compared with those that the application has: before
 * they are kept, and before they are released. Nothing can fall by more than everything. */
static bool has_gate(const tf_client *client) {
    return client->task.max_score_drop_permille < 1000u &&
           (client->new_is_staged || client->task.action == TF_ACTION_RELEASE) &&
           !is_digest(tf_weights_current_sha256(&client->weights), client->task.weights);
}

static void begin_with(tf_client *client, const uint8_t *base) {
    client->base = base;
    if (has_gate(client)) {
        begin_scoring(client, TF_WORK_SCORE_CURRENT, tf_weights_current(&client->weights));
    } else {
        begin_scoring(client, TF_WORK_SCORE_NEW, base);
    }
}

static void verify(tf_client *client) {
    switch (tf_weights_verify(&client->weights)) {
    case TF_OK:
        client->new_is_staged = true;
        begin_with(client, tf_weights_staged(&client->weights));
        break;
    case TF_BAD_INPUT:
        restart_download(client, client->weights.resumed, TF_REASON_DIGEST_MISMATCH);
        break;
    default:
        restart_download(client, true, TF_REASON_FLASH_FAILURE);
        break;
    }
}

static void begin_training(tf_client *client) {
    if (tf_personal_begin_training(client) != TF_OK) {
        decline(client, TF_REASON_NOT_ENOUGH_SRAM);
        return;
    }
    client->epoch = 0;
    tf_scoring_draw_order(client);
    client->work = TF_WORK_TRAIN;
    tf_report_note(client, &client->task, TF_DEVICE_TRAINING, TF_REASON_NONE, false);
}

/* Nothing is left to do but to say how it went, and perhaps to choose. */
static void begin_end(tf_client *client) {
    client->work = TF_WORK_MEASURE;
    if (tf_personal_judges(client)) {
        tf_personal_begin_judging(client);
        client->work = TF_WORK_JUDGE;
    }
}

/* With weights that are scored and kept. */
static void begin_action(tf_client *client) {
    client->train_steps = 0;
    if (client->task.action == TF_ACTION_TRAIN) {
        begin_training(client);
    } else if (client->task.action == TF_ACTION_RELEASE) {
        client->work = TF_WORK_RELEASE;
    } else {
        begin_end(client);
    }
}

static void score_new(tf_client *client) {
    if (tf_scoring_step(client)) {
        return;
    }
    const uint32_t held_out = client->score.samples;
    if (has_gate(client) && client->before.correct > client->score.correct &&
        (uint32_t)(client->before.correct - client->score.correct) * 1000u >
            client->task.max_score_drop_permille * held_out) {
        decline(client, TF_REASON_SCORE_DROPPED);
        return;
    }
    client->before = client->score;
    if (client->new_is_staged) {
        client->work = TF_WORK_COMMIT;
    } else {
        begin_action(client);
    }
}

static void commit(tf_client *client) {
    /* The engine has the staged blob loaded already, and its place doesn't change. */
    if (tf_weights_commit(&client->weights) != TF_OK) {
        decline(client, TF_REASON_FLASH_FAILURE);
    } else {
        begin_action(client);
    }
}

static void release(tf_client *client) {
    const bool is_new =
        !is_digest(tf_weights_current_sha256(&client->weights), client->task.weights);
    if (tf_weights_release(&client->weights, client->task.weights) != TF_OK) {
        decline(client, TF_REASON_FLASH_FAILURE);
        return;
    }
    client->report.wants_announce = client->report.wants_announce || is_new;
    begin_end(client);
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
    client->work = tf_personal_keeps(client) ? TF_WORK_KEEP : TF_WORK_SCORE_AFTER;
}

static void keep(tf_client *client) {
    if (tf_personal_keep(client) != TF_OK) {
        decline(client, TF_REASON_FLASH_FAILURE);
    } else if (tf_personal_judges(client)) {
        begin_end(client);
    } else {
        client->work = TF_WORK_SCORE_AFTER;
    }
}

static void judge(tf_client *client) {
    if (tf_personal_judge_step(client)) {
        return;
    }
    if (tf_personal_choose_best(client) != TF_OK) {
        decline(client, TF_REASON_FLASH_FAILURE);
    } else {
        client->work = TF_WORK_MEASURE;
    }
}

/* --- the whole ------------------------------------------------------------------------------ */

/* Keeps over a reset which tasks are older ones, and keys. The flash may erase for it, so no chunk
 * may come. Until that reset they count, also where the flash fails. */
static void keep_admission(tf_client *client) {
    if (client->journal_failed || tf_admission_is_kept(client) || !tf_fetch_is_quiet(client) ||
        tf_admission_keep(client) == TF_OK) {
        return;
    }
    client->journal_failed = true;
    if (client->has_task) {
        decline(client, TF_REASON_FLASH_FAILURE);
    }
}

/* Nothing of an earlier task is under way any more. */
static bool is_ready_to_begin(tf_client *client) {
    return tf_sending_drop(client) == TF_OK && tf_admission_is_kept(client) &&
           tf_fetch_is_quiet(client);
}

/* Weights can be released without any sample: then nothing is compared. */
static bool lacks_samples(const tf_client *client) {
    switch (client->task.action) {
    case TF_ACTION_RELEASE:
        return false;
    case TF_ACTION_TRAIN:
        return client->train_samples == 0u || client->held_out_samples == 0u;
    default:
        return client->held_out_samples == 0u;
    }
}

static void begin_round(tf_client *client) {
    const tf_model *model = client->config->model;
    const tf_task *task = &client->task;
    tf_scoring_count_samples(client);
    client->new_is_staged = false;
    client->plan = tf_engine_find_plan(model, task->plan);
    const tf_reason personal_problem = tf_personal_take(client);
    const tf_reason refusal = tf_coding_refusal(client);
    if (refusal != TF_REASON_NONE) {
        decline(client, refusal);
    } else if (task->action > TF_ACTION_RELEASE) {
        decline(client, TF_REASON_MALFORMED_TASK);
    } else if (client->plan == NULL) {
        decline(client, TF_REASON_UNKNOWN_PLAN);
    } else if (personal_problem != TF_REASON_NONE) {
        decline(client, personal_problem);
    } else if (tf_engine_pool_bytes(model, client->plan) > client->pool_bytes) {
        decline(client, TF_REASON_NOT_ENOUGH_SRAM);
    } else if (task->weights_bytes != model->weights_bytes) {
        decline(client, TF_REASON_SIZE_MISMATCH);
    } else if (lacks_samples(client)) {
        decline(client, TF_REASON_NO_SAMPLES);
    } else {
        const uint8_t *base = find_weights(client);
        if (base != NULL) {
            begin_with(client, base);
        } else {
            stage(client);
        }
    }
}

static void measure(tf_client *client) {
    if (client->task.action != TF_ACTION_TRAIN && !client->personal.was_judged) {
        client->score = client->before;
    }
    const tf_reason refusal = tf_sending_begin(client, tf_personal_delta_values(client));
    if (refusal != TF_REASON_NONE) {
        decline(client, refusal);
        return;
    }
    client->work = TF_WORK_SEND;
    tf_report_note(client, &client->task, TF_DEVICE_SENDING, TF_REASON_NONE, false);
}

static void send(tf_client *client) {
    switch (tf_sending_step(client)) {
    case TF_SENDING_GOES_ON:
        break;
    case TF_SENDING_REFUSED:
        finish(client, TF_DEVICE_FAILED, TF_REASON_NONE, true);
        break;
    case TF_SENDING_BAD_TOPIC:
        decline(client, TF_REASON_MALFORMED_TASK);
        break;
    }
}

bool tf_round_step(tf_client *client) {
    if (client->has_task && (int32_t)(tf_client_now(client) - client->deadline_at) >= 0) {
        decline(client, TF_REASON_DEADLINE_PASSED);
    }
    keep_admission(client);
    switch (client->work) {
    case TF_WORK_NONE:
        return false;
    case TF_WORK_BEGIN:
        if (!is_ready_to_begin(client)) {
            return false;
        }
        begin_round(client);
        return true;
    case TF_WORK_COPY:
        copy_factory_chunk(client);
        return true;
    case TF_WORK_FETCH:
        fetch(client);
        return client->work != TF_WORK_FETCH;
    case TF_WORK_VERIFY:
    case TF_WORK_DISCARD:
        /* Both take long, and the ring has to hold what comes meanwhile. */
        if (!tf_fetch_is_quiet(client)) {
            return false;
        }
        if (client->work == TF_WORK_VERIFY) {
            verify(client);
        } else {
            discard(client);
        }
        return true;
    case TF_WORK_SCORE_CURRENT:
        if (!tf_scoring_step(client)) {
            client->before = client->score;
            begin_scoring(client, TF_WORK_SCORE_NEW, client->base);
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
    case TF_WORK_KEEP:
        keep(client);
        return true;
    case TF_WORK_JUDGE:
        judge(client);
        return true;
    case TF_WORK_SCORE_AFTER:
        if (!tf_scoring_step(client)) {
            client->work = TF_WORK_MEASURE;
        }
        return true;
    case TF_WORK_RELEASE:
        release(client);
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
