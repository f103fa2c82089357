/* Group after group of chunks. */
#include "fetch.h"

#include <string.h>

#include "clock.h"
#include "tinyfleet/chunk.h"
#include "topics.h"

#define PATIENCE_MS 15000u /* without a chunk: asked again, the broker repeats what is retained */
#define NO_GROUP 0xFFFFu   /* beyond that of chunk 65,535 */

void tf_fetch_init(tf_client *client) {
    client->fetch = (tf_client_fetch){.group = NO_GROUP, .leaving = NO_GROUP};
}

void tf_fetch_begin(tf_client *client, const uint8_t *sha256) {
    tf_client_fetch *fetch = &client->fetch;
    memcpy(fetch->sha256, sha256, TF_DIGEST_BYTES);
    fetch->is_active = true;
    fetch->flash_failed = false;
    fetch->asked = 0;
}

void tf_fetch_stop(tf_client *client) {
    client->fetch.is_active = false;
}

bool tf_fetch_is_quiet(const tf_client *client) {
    const tf_client_fetch *fetch = &client->fetch;
    return !fetch->is_active && fetch->group == NO_GROUP && fetch->leaving == NO_GROUP;
}

static uint32_t group_end(const tf_client *client, uint16_t group) {
    const uint32_t end = (group + 1u) * TF_GROUP_CHUNKS;
    return end < client->weights.chunks ? end : client->weights.chunks;
}

static bool lacks_chunk(const tf_client *client, uint16_t group) {
    for (uint32_t n = group * TF_GROUP_CHUNKS; n < group_end(client, group); n++) {
        if (!tf_weights_has_chunk(&client->weights, n)) {
            return true;
        }
    }
    return false;
}

static uint16_t next_group(const tf_client *client) {
    const uint32_t groups = (client->weights.chunks + TF_GROUP_CHUNKS - 1u) / TF_GROUP_CHUNKS;
    for (uint32_t group = 0; group < groups; group++) {
        if (lacks_chunk(client, (uint16_t)group)) {
            return (uint16_t)group;
        }
    }
    return NO_GROUP;
}

static void ask_for(tf_client *client, uint16_t group) {
    tf_client_fetch *fetch = &client->fetch;
    char filter[TF_TOPIC_BYTES];
    const size_t length = tf_topic_of_group(&client->identity, fetch->sha256, group, filter);
    if (tf_mqtt_subscribe(&client->mqtt, filter, length, 1, &fetch->subscribe_id) == TF_OK) {
        fetch->group = group;
        fetch->came = 0;
        fetch->was_damaged = false;
        fetch->asked = (uint8_t)(fetch->asked < UINT8_MAX ? fetch->asked + 1u : UINT8_MAX);
        fetch->since = tf_client_now(client);
    }
}

static void leave(tf_client *client) {
    tf_client_fetch *fetch = &client->fetch;
    char filter[TF_TOPIC_BYTES];
    const size_t length =
        tf_topic_of_group(&client->identity, fetch->sha256, fetch->leaving, filter);
    (void)tf_mqtt_unsubscribe(&client->mqtt, filter, length, &fetch->unsubscribe_id);
}

/* Whether the group under way is to be asked for once more. A damaged chunk is missed as soon as
 * all have come; but not again and again where the broker has nothing better. */
static bool is_due_again(const tf_client *client) {
    const tf_client_fetch *fetch = &client->fetch;
    const uint32_t size = group_end(client, fetch->group) - fetch->group * TF_GROUP_CHUNKS;
    return (fetch->came >= size && fetch->was_damaged && fetch->asked == 1u) ||
           tf_client_elapsed(client, fetch->since) > PATIENCE_MS;
}

void tf_fetch_keep_subscriptions(tf_client *client) {
    tf_client_fetch *fetch = &client->fetch;
    if (!client->connected || !client->listens || fetch->subscribe_id != 0u) {
        return;
    }
    const bool has_group = fetch->group != NO_GROUP;
    const bool is_wanted = fetch->is_active && has_group && lacks_chunk(client, fetch->group);
    if (has_group && !is_wanted && fetch->leaving == NO_GROUP) {
        fetch->leaving = fetch->group;
        fetch->group = NO_GROUP;
        fetch->asked = 0;
    }
    if (fetch->leaving != NO_GROUP && fetch->unsubscribe_id == 0u) {
        leave(client);
        if (fetch->unsubscribe_id == 0u) {
            return; /* no room just now: what follows has to stay behind it */
        }
    }
    if (is_wanted && is_due_again(client)) {
        ask_for(client, fetch->group);
    } else if (fetch->is_active && fetch->group == NO_GROUP) {
        const uint16_t group = next_group(client);
        if (group != NO_GROUP) {
            ask_for(client, group);
        }
    }
}

tf_fetch_result tf_fetch_step(tf_client *client) {
    if (client->fetch.flash_failed) {
        return TF_FETCH_FLASH_FAILED;
    }
    return client->weights.missing == 0u ? TF_FETCH_DONE : TF_FETCH_GOES_ON;
}

bool tf_fetch_on_message(tf_client *client, const tf_mqtt_message *message) {
    tf_client_fetch *fetch = &client->fetch;
    uint16_t number;
    if (!tf_topic_names_chunk(&client->identity, fetch->sha256, message->topic,
                              message->topic_bytes, &number)) {
        return false;
    }
    if (!fetch->is_active || fetch->flash_failed) {
        return true; /* too late */
    }
    if (number / TF_GROUP_CHUNKS == fetch->group) {
        fetch->came = (uint8_t)(fetch->came < UINT8_MAX ? fetch->came + 1u : UINT8_MAX);
        fetch->since = tf_client_now(client);
    }
    if (tf_weights_has_chunk(&client->weights, number)) {
        return true;
    }
    if (!tf_chunk_is_intact(number, message->payload, message->payload_bytes)) {
        fetch->was_damaged = true;
        return true;
    }
    const tf_status status =
        tf_weights_write_chunk(&client->weights, number, message->payload,
                               message->payload_bytes - (uint32_t)TF_CHUNK_CRC_BYTES);
    if (status == TF_OK) {
        fetch->asked = 1;
    } else {
        fetch->flash_failed = status == TF_FLASH_FAILED;
        fetch->was_damaged = true; /* else its length is wrong */
    }
    return true;
}

void tf_fetch_on_event(tf_client *client, const tf_mqtt_event *event) {
    tf_client_fetch *fetch = &client->fetch;
    if (event->type == TF_MQTT_SUBSCRIBED && event->packet_id == fetch->subscribe_id) {
        fetch->subscribe_id = 0; /* where it was refused, patience runs out and it is tried again */
        fetch->since = tf_client_now(client);
    } else if (event->type == TF_MQTT_UNSUBSCRIBED && event->packet_id == fetch->unsubscribe_id) {
        fetch->unsubscribe_id = 0;
        fetch->leaving = NO_GROUP;
    }
}

void tf_fetch_on_lost(tf_client *client) {
    tf_client_fetch *fetch = &client->fetch;
    fetch->group = fetch->leaving = NO_GROUP;
    fetch->subscribe_id = fetch->unsubscribe_id = 0;
    fetch->asked = 0;
}
