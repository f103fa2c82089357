/* The client's link: topics, session, announcement, status, check-in. */
#include "tinyfleet/client.h"

#include <stddef.h>
#include <string.h>

#include "client_parts.h"
#include "tinyfleet/identity_store.h"

#define KEEP_ALIVE_SECONDS 60u
#define SESSION_EXPIRY_SECONDS 3600u
#define RECEIVE_MAXIMUM 2u
#define LASTING_STATE_MS 2000u       /* states that pass sooner aren't worth a message */
#define SUBSCRIBE_PATIENCE_MS 15000u /* before a refused subscription is tried again */
#define LONGEST_REST_SECONDS 1000000u

uint32_t tf_client_now(const tf_client *client) {
    const tf_stream *stream = client->config->port->stream;
    return stream->milliseconds(stream->context);
}

uint32_t tf_client_elapsed(const tf_client *client, uint32_t since) {
    return tf_client_now(client) - since;
}

uint32_t tf_client_seconds_left(const tf_client *client) {
    const uint32_t left = client->deadline_at - tf_client_now(client);
    return left / 1000u + 1u; /* 0 would mean no expiry */
}

static uint32_t entropy(void *context) {
    const tf_client *client = context;
    return client->config->port->entropy(client->config->port->context);
}

/* Appends `text` to the `length` bytes in `buffer`; the callers' sizes make sure it fits. */
static size_t append(char *buffer, size_t length, const char *text) {
    const size_t bytes = strlen(text);
    memcpy(buffer + length, text, bytes + 1u);
    return length + bytes;
}

static size_t device_topic(const tf_client *client, char *buffer, const char *suffix) {
    return append(buffer, append(buffer, 0, client->device_topic), suffix);
}

void tf_client_note(tf_client *client, tf_device_state state, tf_reason reason, bool urgent) {
    if (client->state == state && client->reason == reason && !urgent) {
        return;
    }
    client->state = (uint8_t)state;
    client->reason = (uint8_t)reason;
    /* What was urgent stays so: the broker may still hold the will. */
    client->status_is_urgent = urgent || (client->wants_status && client->status_is_urgent);
    client->wants_status = true;
    client->status_since = tf_client_now(client);
}

static void write_blob_filter(tf_client *client) {
    static const char hex[] = "0123456789abcdef";
    size_t length = append(client->blob_filter, 0, "fleet/");
    length = append(client->blob_filter, length, client->identity.fleet);
    length = append(client->blob_filter, length, "/blob/");
    for (uint32_t i = 0; i < TF_DIGEST_BYTES; i++) {
        client->blob_filter[length++] = hex[client->task.weights[i] >> 4];
        client->blob_filter[length++] = hex[client->task.weights[i] & 15u];
    }
    append(client->blob_filter, length, "/+");
}

void tf_client_want_blob(tf_client *client, bool wanted) {
    if (!wanted && (client->has_blob || client->blob_answer_due)) {
        client->leaves_blob = true; /* before anything else is subscribed */
    }
    client->wants_blob = wanted;
}

/* Brings the broker's subscriptions in line with what is wanted; one request at a time. */
static void keep_subscriptions(tf_client *client) {
    if (!client->connected) {
        return;
    }
    char topic[TF_CLIENT_STATUS_TOPIC_BYTES];
    if (client->wants_task_topic && client->task_subscription_id == 0u &&
        (client->subscribe_since == 0u ||
         tf_client_elapsed(client, client->subscribe_since) > SUBSCRIBE_PATIENCE_MS)) {
        const size_t length = device_topic(client, topic, "task");
        if (tf_mqtt_subscribe(&client->mqtt, topic, length, &client->task_subscription_id) ==
            TF_OK) {
            client->subscribe_since = tf_client_now(client) | 1u;
        }
    }
    if (client->blob_answer_due || client->wants_task_topic) {
        return;
    }
    if (client->leaves_blob) {
        client->leaves_blob = client->has_blob;
        client->blob_answer_due =
            client->has_blob &&
            tf_mqtt_unsubscribe(&client->mqtt, client->blob_filter, strlen(client->blob_filter),
                                &client->blob_subscription_id) == TF_OK;
    } else if (client->wants_blob && !client->has_blob) {
        write_blob_filter(client);
        client->blob_answer_due =
            tf_mqtt_subscribe(&client->mqtt, client->blob_filter, strlen(client->blob_filter),
                              &client->blob_subscription_id) == TF_OK;
    }
}

static uint8_t battery_percent(const tf_client *client) {
    const uint8_t percent = client->config->port->battery_percent(client->config->port->context);
    return percent > 100u ? 100u : percent;
}

static void publish_announce(tf_client *client) {
    char topic[TF_CLIENT_STATUS_TOPIC_BYTES];
    const size_t topic_bytes = device_topic(client, topic, "announce");
    tf_scoring_count_samples(client);
    const tf_announce announce = {
        .device = client->identity.device,
        .board = client->config->board,
        .bundle = client->config->model->bundle_id,
        .weights = tf_round_base_sha256(client),
        .free_sram_bytes = client->pool_bytes,
        .link_bits_per_second = client->identity.link_bits_per_second,
        .train_samples = client->train_samples,
        .held_out_samples = client->held_out_samples,
        .battery_percent = battery_percent(client),
    };
    uint8_t *payload;
    size_t capacity;
    size_t length;
    uint16_t id;
    if (tf_mqtt_publish_begin(&client->mqtt, topic, topic_bytes, true, 0, &payload, &capacity) ==
            TF_OK &&
        tf_encode_announce(&announce, payload, capacity, &length) == TF_OK &&
        tf_mqtt_publish_commit(&client->mqtt, length, &id) == TF_OK) {
        client->wants_announce = false;
    }
}

static tf_status encode_status(const tf_client *client, uint8_t state, uint8_t reason,
                               uint8_t *payload, size_t capacity, size_t *length) {
    tf_device_status status = {
        .device = client->identity.device,
        .round = client->task.round,
        .state = state,
        .reason = reason,
        .battery_percent = battery_percent(client),
    };
    memcpy(status.campaign, client->task.campaign, TF_CAMPAIGN_BYTES);
    return tf_encode_status(&status, payload, capacity, length);
}

static void publish_status(tf_client *client) {
    uint8_t *payload;
    size_t capacity;
    size_t length;
    if (tf_mqtt_publish_begin(&client->mqtt, client->status_topic, strlen(client->status_topic),
                              true, 0, &payload, &capacity) == TF_OK &&
        encode_status(client, client->state, client->reason, payload, capacity, &length) == TF_OK &&
        tf_mqtt_publish_commit(&client->mqtt, length, &client->status_publication_id) == TF_OK) {
        client->wants_status = false;
    }
}

static void publish_pending(tf_client *client) {
    if (!client->connected || !tf_mqtt_can_publish(&client->mqtt)) {
        return;
    }
    if (client->wants_announce) {
        publish_announce(client);
    } else if (client->wants_status &&
               (client->status_is_urgent ||
                tf_client_elapsed(client, client->status_since) >= LASTING_STATE_MS)) {
        publish_status(client);
    }
}

/* Hangs up once the round is over and its status is out, until the next check-in. */
static void keep_check_in(tf_client *client) {
    if (client->resting) {
        if (tf_mqtt_current_state(&client->mqtt) == TF_MQTT_IDLE &&
            tf_client_elapsed(client, client->rest_since) >= client->rest_ms) {
            client->resting = false;
            tf_mqtt_start(&client->mqtt);
        }
        return;
    }
    if (client->check_in_seconds == 0u || client->has_task || client->wants_status ||
        client->wants_announce || client->blob_answer_due || !client->connected ||
        !tf_mqtt_can_publish(&client->mqtt)) {
        return;
    }
    uint32_t seconds = client->check_in_seconds;
    if (seconds > LONGEST_REST_SECONDS) {
        seconds = LONGEST_REST_SECONDS;
    }
    client->check_in_seconds = 0;
    client->resting = true;
    client->rest_since = tf_client_now(client);
    /* Up to an eighth more, so that a cohort doesn't come back as one. */
    client->rest_ms = seconds * 1000u + entropy(client) % (seconds * 125u + 1u);
    tf_mqtt_stop(&client->mqtt, false);
}

static bool starts_with(const tf_mqtt_message *message, const char *prefix, size_t bytes) {
    return message->topic_bytes >= bytes && memcmp(message->topic, prefix, bytes) == 0;
}

static tf_status on_message(void *context, const tf_mqtt_message *message) {
    tf_client *client = context;
    char topic[TF_CLIENT_STATUS_TOPIC_BYTES];
    size_t length = device_topic(client, topic, "task");
    if (message->topic_bytes == length && memcmp(message->topic, topic, length) == 0) {
        return tf_round_on_task(client, message);
    }
    length = append(topic, 0, "fleet/");
    length = append(topic, length, client->identity.fleet);
    length = append(topic, length, "/blob/");
    if (starts_with(message, topic, length)) {
        return tf_round_on_blob(client, message->topic + length,
                                (uint32_t)(message->topic_bytes - length), message);
    }
    return TF_OK; /* a subscription that another firmware left behind */
}

static void on_connected(tf_client *client) {
    client->connected = true;
    client->wants_task_topic = true;
    client->wants_announce = true;
    client->wants_status = true;
    client->status_is_urgent = true;
    client->has_blob = false; /* subscribed anew: the broker repeats what is retained */
    client->leaves_blob = false;
    client->blob_answer_due = false;
    client->blob_subscription_id = 0;
    client->task_subscription_id = 0;
    client->subscribe_since = 0;
    client->fetch_since = tf_client_now(client);
}

static void on_event(void *context, const tf_mqtt_event *event) {
    tf_client *client = context;
    const bool is_refused = event->reason >= TF_MQTT_REASON_UNSPECIFIED;
    switch (event->type) {
    case TF_MQTT_CONNECTED:
        on_connected(client);
        break;
    case TF_MQTT_LOST:
    case TF_MQTT_STOPPED:
        client->connected = false;
        break;
    case TF_MQTT_PUBLISHED:
        if (event->packet_id == client->delta_publication_id) {
            tf_round_on_delta_answer(client, event->reason);
        }
        break;
    case TF_MQTT_SUBSCRIBED:
        if (event->packet_id == client->task_subscription_id) {
            client->task_subscription_id = 0;
            client->wants_task_topic = is_refused;
        } else if (event->packet_id == client->blob_subscription_id) {
            client->blob_answer_due = false;
            client->has_blob = true; /* where it was refused, patience runs out and it retries */
            client->fetch_since = tf_client_now(client);
        }
        break;
    case TF_MQTT_UNSUBSCRIBED:
        if (event->packet_id == client->blob_subscription_id) {
            client->blob_answer_due = false;
            client->has_blob = false;
            client->leaves_blob = false;
        }
        break;
    }
}

static tf_status read_identity(tf_client *client) {
    const uint8_t *identity;
    uint32_t bytes;
    if (tf_identity_read(client->config->port->flash, &client->config->regions.identity,
                         TF_IDENTITY_DEVICE, &identity, &bytes) != TF_OK) {
        return TF_NOT_FOUND;
    }
    if (tf_decode_identity(identity, bytes, &client->identity) != TF_OK) {
        return TF_BAD_INPUT;
    }
    const uint32_t reserved = client->identity.reserved_sram_bytes;
    const uint32_t pool = client->config->pool_bytes;
    client->pool_bytes = reserved < pool ? pool - reserved : 0u;
    return TF_OK;
}

tf_status tf_client_init(tf_client *client, const tf_client_config *config) {
    const tf_model *model = config->model;
    memset(client, 0, sizeof *client);
    client->config = config;
    client->state = TF_DEVICE_IDLE;
    const tf_flash *flash = config->port->flash;
    tf_status status = read_identity(client);
    if (status == TF_OK) {
        status = tf_journal_open(&client->journal, flash, &config->regions.journal);
    }
    if (status == TF_OK) {
        status = tf_sample_log_open(&client->log, flash, &config->regions.samples,
                                    model->sample_digest, entropy(client));
    }
    if (status == TF_OK) {
        status =
            tf_weights_open(&client->weights, flash, config->regions.slots, model->factory_weights,
                            model->weights_sha256, model->model_digest, model->weights_bytes);
    }
    if (status != TF_OK) {
        return status;
    }
    size_t length = append(client->device_topic, 0, "fleet/");
    length = append(client->device_topic, length, client->identity.fleet);
    length = append(client->device_topic, length, "/dev/");
    length = append(client->device_topic, length, client->identity.device);
    append(client->device_topic, length, "/");
    device_topic(client, client->status_topic, "status");
    size_t will_bytes = 0;
    status = encode_status(client, TF_DEVICE_OFFLINE, TF_REASON_NONE, client->will,
                           sizeof client->will, &will_bytes);
    if (status != TF_OK) {
        return status;
    }
    client->mqtt_config = (tf_mqtt_config){
        .client_id = client->identity.device,
        .user = client->identity.device,
        .password = client->identity.password,
        .will_topic = client->status_topic,
        .will_payload = client->will,
        .will_payload_bytes = (uint16_t)will_bytes,
        .keep_alive_seconds = KEEP_ALIVE_SECONDS,
        .receive_maximum = RECEIVE_MAXIMUM,
        .session_expiry_seconds = SESSION_EXPIRY_SECONDS,
        .random = entropy,
        .random_context = client,
    };
    const tf_mqtt_callbacks callbacks = {on_message, on_event, client};
    status = tf_mqtt_init(&client->mqtt, &client->mqtt_config, config->port->stream, &callbacks,
                          config->receive, config->receive_bytes, config->transmit,
                          config->transmit_bytes);
    if (status == TF_OK) {
        tf_mqtt_start(&client->mqtt);
    }
    return status;
}

bool tf_client_poll(tf_client *client) {
    const bool more_bytes = tf_mqtt_poll(&client->mqtt);
    keep_subscriptions(client);
    publish_pending(client);
    const bool more_work = tf_round_step(client);
    keep_check_in(client);
    return more_bytes || more_work;
}

uint32_t tf_client_next_poll_ms(const tf_client *client) {
    uint32_t wait = tf_mqtt_next_poll_ms(&client->mqtt);
    if (client->resting) {
        const uint32_t rested = tf_client_elapsed(client, client->rest_since);
        wait = rested < client->rest_ms ? client->rest_ms - rested : 0u;
    }
    /* Timers of the client itself are coarse: a look each second keeps them all. */
    const bool has_timers = client->has_task || client->wants_status || client->wants_task_topic;
    return has_timers && wait > 1000u ? 1000u : wait;
}

tf_device_state tf_client_state(const tf_client *client) {
    return !client->connected && !client->has_task ? TF_DEVICE_OFFLINE
                                                   : (tf_device_state)client->state;
}

tf_sample_log *tf_client_sample_log(tf_client *client) {
    return &client->log;
}
