/* Signature, lease and round of a task: kept in RAM when it comes, in flash before it is begun. */
#include "admission.h"

static uint64_t pair(uint32_t lease, uint32_t round) {
    return (uint64_t)lease << 32 | round;
}

void tf_admission_open(tf_client *client) {
    tf_keys_open(&client->keys, &client->identity, client->config->port,
                 &client->config->regions.identity, &client->journal);
    const uint64_t signed_task = tf_journal_highest(&client->journal, TF_JOURNAL_TASK);
    const uint64_t lease = tf_journal_highest(&client->journal, TF_JOURNAL_LEASE);
    const uint64_t highest = signed_task > lease << 32 ? signed_task : lease << 32;
    client->lease = (uint32_t)(highest >> 32);
    client->round = (uint32_t)highest;
}

tf_reason tf_admission_check(tf_client *client, const tf_mqtt_message *message, const tf_task *task,
                             const tf_task_parts *parts) {
    if (!tf_keys_has_authority(&client->keys)) {
        return task->lease < client->lease ? TF_REASON_OLDER_LEASE : TF_REASON_NONE;
    }
    if (tf_keys_take(&client->keys, parts->keyring, parts->keyring_bytes)) {
        client->report.wants_announce = true;
        client->journal_failed = false;
    }
    if (!tf_keys_signed(&client->keys, message->response_topic, message->response_topic_bytes,
                        message->payload, parts)) {
        return TF_REASON_NOT_SIGNED;
    }
    return pair(task->lease, task->round) < pair(client->lease, client->round)
               ? TF_REASON_OLDER_LEASE
               : TF_REASON_NONE;
}

void tf_admission_note(tf_client *client, const tf_task *task) {
    client->lease = task->lease;
    client->round = tf_keys_has_authority(&client->keys) ? task->round : 0u;
}

bool tf_admission_is_kept(const tf_client *client) {
    const uint64_t highest = pair(client->lease, client->round);
    return client->keys.is_kept &&
           (tf_keys_has_authority(&client->keys)
                ? highest <= tf_journal_highest(&client->journal, TF_JOURNAL_TASK)
                : client->lease <= tf_journal_highest(&client->journal, TF_JOURNAL_LEASE));
}

tf_status tf_admission_keep(tf_client *client) {
    const tf_status status = tf_keys_keep(&client->keys, &client->journal);
    if (status != TF_OK) {
        return status;
    }
    if (tf_keys_has_authority(&client->keys)) {
        return tf_journal_raise(&client->journal, TF_JOURNAL_TASK,
                                pair(client->lease, client->round));
    }
    return tf_journal_raise(&client->journal, TF_JOURNAL_LEASE, client->lease);
}
