/* Announcement and status. Every message costs a battery something: a state that passes soon
 * isn't told. */
#include "report.h"

#include <string.h>

#include "clock.h"
#include "scoring.h"
#include "topics.h"

#define LASTING_STATE_MS 10000u     /* states that pass sooner aren't worth a message */
#define HEARTBEAT_MS (15u * 60000u) /* so that a status has an age */

static uint8_t battery(const tf_client *client) {
    const uint8_t said = client->config->port->battery(client->config->port->context);
    const uint8_t charge = said & (uint8_t)~TF_CHARGING;
    return charge > 100u ? TF_BATTERY_UNKNOWN : said;
}

static tf_status encode(const tf_client *client, const tf_client_condition *condition,
                        uint8_t *payload, size_t capacity, size_t *length) {
    tf_device_status status = {
        .round = condition->round,
        .state = condition->state,
        .reason = condition->reason,
        .battery = battery(client),
    };
    memcpy(status.campaign, condition->campaign, TF_CAMPAIGN_BYTES);
    return tf_encode_status(&status, payload, capacity, length);
}

tf_status tf_report_init(tf_client *client, size_t *will_bytes) {
    tf_client_report *report = &client->report;
    const tf_client_condition offline = {.state = TF_DEVICE_OFFLINE};
    tf_topic_of_device(&client->identity, "dev", "status", report->status_topic);
    report->now.state = TF_DEVICE_IDLE;
    if (client->config->reset_cause == TF_RESET_FAULT) {
        report->now.reason = TF_REASON_RESTARTED_AFTER_FAULT;
    } else if (client->config->reset_cause == TF_RESET_WATCHDOG) {
        report->now.reason = TF_REASON_RESTARTED_BY_WATCHDOG;
    }
    return encode(client, &offline, report->will, sizeof report->will, will_bytes);
}

static tf_client_condition condition_of(const tf_task *task, tf_device_state state,
                                        tf_reason reason) {
    tf_client_condition condition = {
        .round = task->round,
        .state = (uint8_t)state,
        .reason = (uint8_t)reason,
    };
    memcpy(condition.campaign, task->campaign, TF_CAMPAIGN_BYTES);
    return condition;
}

void tf_report_note(tf_client *client, const tf_task *task, tf_device_state state, tf_reason reason,
                    bool urgent) {
    tf_client_report *report = &client->report;
    if (report->now.state != (uint8_t)state) {
        report->since = tf_client_now(client);
    }
    report->now = condition_of(task, state, reason);
    /* What was urgent stays so: the broker may still have the will. */
    report->is_urgent = report->is_urgent || urgent;
}

void tf_report_note_besides(tf_client *client, const tf_task *task, tf_device_state state,
                            tf_reason reason) {
    client->report.notice = condition_of(task, state, reason);
    client->report.has_notice = true;
}

void tf_report_on_connected(tf_client *client) {
    client->report.wants_announce = true;
    client->report.is_urgent = true;
}

static void publish_announce(tf_client *client) {
    char topic[TF_TOPIC_BYTES];
    const size_t topic_bytes = tf_topic_of_device(&client->identity, "dev", "announce", topic);
    tf_scoring_count_samples(client);
    const tf_announce announce = {
        .board = client->config->board,
        .bundle = client->config->model->bundle_id,
        .current = tf_weights_current_sha256(&client->weights),
        .candidate = tf_weights_candidate_sha256(&client->weights),
        .lease = client->lease,
        .free_sram_bytes = client->pool_bytes,
        .link_bits_per_second = client->identity.link_bits_per_second,
        .fault_pc = client->config->fault_pc,
        .keyring = tf_keys_generation(&client->keys),
        .train_samples = client->train_samples,
        .held_out_samples = client->held_out_samples,
        .battery = battery(client),
        .reset_cause = client->config->reset_cause,
        .fault_code = client->config->fault_code,
    };
    uint8_t *payload;
    size_t capacity;
    size_t length;
    uint16_t id;
    if (tf_mqtt_publish_begin(&client->mqtt, topic, topic_bytes, true, 0, &payload, &capacity) ==
            TF_OK &&
        tf_encode_announce(&announce, payload, capacity, &length) == TF_OK &&
        tf_mqtt_publish_commit(&client->mqtt, length, &id) == TF_OK) {
        client->report.wants_announce = false;
    }
}

static bool publish_status(tf_client *client, const tf_client_condition *condition) {
    tf_client_report *report = &client->report;
    uint8_t *payload;
    size_t capacity;
    size_t length;
    uint16_t id;
    if (tf_mqtt_publish_begin(&client->mqtt, report->status_topic, strlen(report->status_topic),
                              true, 0, &payload, &capacity) != TF_OK ||
        encode(client, condition, payload, capacity, &length) != TF_OK ||
        tf_mqtt_publish_commit(&client->mqtt, length, &id) != TF_OK) {
        return false;
    }
    report->published = *condition;
    report->published_at = tf_client_now(client);
    return true;
}

static bool is_published(const tf_client_report *report) {
    return report->now.state == report->published.state &&
           report->now.reason == report->published.reason;
}

void tf_report_step(tf_client *client) {
    tf_client_report *report = &client->report;
    if (!client->connected || !tf_mqtt_can_publish(&client->mqtt)) {
        return;
    }
    if (report->wants_announce) {
        publish_announce(client);
    } else if (report->has_notice) {
        report->has_notice = !publish_status(client, &report->notice);
    } else if (report->is_urgent ||
               (!is_published(report) &&
                tf_client_elapsed(client, report->since) >= LASTING_STATE_MS) ||
               tf_client_elapsed(client, report->published_at) >= HEARTBEAT_MS) {
        report->is_urgent = !publish_status(client, &report->now);
    }
}

bool tf_report_is_told(tf_client *client) {
    client->report.is_urgent = client->report.is_urgent || !is_published(&client->report);
    return !client->report.wants_announce && !client->report.is_urgent &&
           !client->report.has_notice;
}
