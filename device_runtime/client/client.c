/* The client as a whole: session, what comes in, check-ins, one step after the other. */
#include "tinyfleet/client.h"

#include <stddef.h>
#include <string.h>

#include "admission.h"
#include "clock.h"
#include "fetch.h"
#include "personal.h"
#include "report.h"
#include "round.h"
#include "sending.h"
#include "tinyfleet/identity_store.h"
#include "topics.h"

#define KEEP_ALIVE_SECONDS 60u
#define RECEIVE_MAXIMUM 6u           /* messages that the receive ring has room for */
#define SUBSCRIBE_PATIENCE_MS 15000u /* before a refused subscription is tried again */

static uint32_t entropy(void *context) {
    const tf_client *client = context;
    return client->config->port->entropy(client->config->port->context);
}

/* One filter brings everything that is meant for this device. */
static void keep_listening(tf_client *client) {
    char filter[TF_TOPIC_BYTES];
    if (!client->connected || client->listens || client->subscription_id != 0u ||
        (client->subscribe_since != 0u &&
         tf_client_elapsed(client, client->subscribe_since) <= SUBSCRIBE_PATIENCE_MS)) {
        return;
    }
    const size_t length = tf_topic_of_device(&client->identity, "to", "+", filter);
    if (tf_mqtt_subscribe(&client->mqtt, filter, length, 1, &client->subscription_id) == TF_OK) {
        client->subscribe_since = tf_client_now(client) | 1u;
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
    if (client->check_in_seconds == 0u || client->has_task || !client->connected ||
        !tf_fetch_is_quiet(client) || !tf_report_is_told(client) ||
        !tf_mqtt_can_publish(&client->mqtt)) {
        return;
    }
    const uint32_t seconds = client->check_in_seconds;
    client->check_in_seconds = 0;
    client->resting = true;
    client->rest_since = tf_client_now(client);
    /* Up to an eighth more, so that a cohort doesn't come back as one. */
    client->rest_ms = seconds * 1000u + entropy(client) % (seconds * 125u + 1u);
    tf_mqtt_stop(&client->mqtt, false);
}

static bool is_for_device(const tf_client *client, const char *end,
                          const tf_mqtt_message *message) {
    char topic[TF_TOPIC_BYTES];
    const size_t length = tf_topic_of_device(&client->identity, "to", end, topic);
    return message->topic_bytes == length && memcmp(message->topic, topic, length) == 0;
}

static tf_status on_message(void *context, const tf_mqtt_message *message) {
    tf_client *client = context;
    if (is_for_device(client, "task", message)) {
        return tf_round_on_task(client, message);
    }
    if (is_for_device(client, "receipt", message)) {
        return tf_round_on_receipt(client, message);
    }
    (void)tf_fetch_on_message(client, message);
    return TF_OK; /* also what a later gateway has to say */
}

static void on_lost(tf_client *client) {
    client->connected = false;
    client->listens = false;
    client->subscription_id = 0;
    client->subscribe_since = 0;
    (void)tf_mqtt_publish_cancel(&client->mqtt); /* what still counts is said anew */
    tf_fetch_on_lost(client);
    tf_sending_on_lost(client);
}

static void on_event(void *context, const tf_mqtt_event *event) {
    tf_client *client = context;
    switch (event->type) {
    case TF_MQTT_CONNECTED:
        client->connected = true;
        tf_report_on_connected(client);
        break;
    case TF_MQTT_LOST:
    case TF_MQTT_STOPPED:
        on_lost(client);
        break;
    case TF_MQTT_PUBLISHED:
        tf_sending_on_answer(client, event);
        break;
    case TF_MQTT_SUBSCRIBED:
        if (event->packet_id == client->subscription_id) {
            client->subscription_id = 0;
            client->listens = event->reason < TF_MQTT_REASON_UNSPECIFIED;
        } else {
            tf_fetch_on_event(client, event);
        }
        break;
    case TF_MQTT_UNSUBSCRIBED:
        tf_fetch_on_event(client, event);
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

/* Everything that outlives a reset. */
static tf_status open_flash(tf_client *client) {
    const tf_client_config *config = client->config;
    const tf_model *model = config->model;
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
    if (status == TF_OK) {
        status = tf_personal_init(client);
    }
    return status;
}

static tf_status open_link(tf_client *client) {
    const tf_client_config *config = client->config;
    const tf_mqtt_callbacks callbacks = {on_message, on_event, client};
    size_t will_bytes = 0;
    tf_status status = tf_report_init(client, &will_bytes);
    if (status != TF_OK) {
        return status;
    }
    client->mqtt_config = (tf_mqtt_config){
        .client_id = client->identity.device,
        .user = client->identity.device,
        .password = client->identity.password,
        .will_topic = client->report.status_topic,
        .will_payload = client->report.will,
        .will_payload_bytes = (uint16_t)will_bytes,
        .keep_alive_seconds = KEEP_ALIVE_SECONDS,
        .receive_maximum = RECEIVE_MAXIMUM,
        .random = entropy,
        .random_context = client,
    };
    return tf_mqtt_init(&client->mqtt, &client->mqtt_config, config->port->stream, &callbacks,
                        config->receive, config->receive_bytes, config->transmit,
                        config->transmit_bytes);
}

tf_status tf_client_init(tf_client *client, const tf_client_config *config) {
    memset(client, 0, sizeof *client);
    client->config = config;
    tf_fetch_init(client);
    tf_status status = open_flash(client);
    if (status == TF_OK) {
        tf_admission_open(client);
        status = open_link(client);
    }
    if (status == TF_OK) {
        tf_mqtt_start(&client->mqtt);
    }
    return status;
}

bool tf_client_poll(tf_client *client) {
    const bool more_bytes = tf_mqtt_poll(&client->mqtt);
    keep_listening(client);
    tf_fetch_keep_subscriptions(client);
    tf_report_step(client);
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
    const bool has_timers = client->has_task || client->connected;
    return has_timers && wait > 1000u ? 1000u : wait;
}

tf_device_state tf_client_state(const tf_client *client) {
    return !client->connected && !client->has_task ? TF_DEVICE_OFFLINE
                                                   : (tf_device_state)client->report.now.state;
}

tf_sample_log *tf_client_sample_log(tf_client *client) {
    return &client->log;
}
