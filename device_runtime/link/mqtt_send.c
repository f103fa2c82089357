/* Packets to the broker. */
#include <string.h>

#include "mqtt_internal.h"

#define PUBLISH_PREFIX_BYTES 4u /* first byte and at most 3 bytes of remaining length */

typedef struct {
    uint8_t *bytes;
    size_t capacity;
    size_t length;
    bool failed;
} writer;

static void put_bytes(writer *w, const void *bytes, size_t length) {
    if (w->failed || length > w->capacity - w->length) {
        w->failed = true;
        return;
    }
    if (length > 0) {
        memcpy(w->bytes + w->length, bytes, length);
    }
    w->length += length;
}

static void put_number(writer *w, uint32_t value, unsigned length) {
    uint8_t bytes[4];
    for (unsigned i = 0; i < length; i++) {
        bytes[i] = (uint8_t)(value >> (8u * (length - 1u - i)));
    }
    put_bytes(w, bytes, length);
}

static void put_binary(writer *w, const void *bytes, size_t length) {
    if (length > UINT16_MAX) {
        w->failed = true;
        return;
    }
    put_number(w, (uint32_t)length, 2);
    put_bytes(w, bytes, length);
}

/* Variable byte integer for less than 2^21; returns its length. */
static unsigned make_variable(uint8_t bytes[3], size_t value) {
    unsigned length = 0;
    do {
        uint8_t more = value > 0x7F ? 0x80 : 0;
        bytes[length++] = (uint8_t)((value & 0x7Fu) | more);
        value >>= 7;
    } while (value > 0);
    return length;
}

size_t tf_mqtt_compose_connect(const tf_mqtt_config *config, uint8_t *bytes, size_t capacity) {
    /* The body is written behind the longest possible prefix and moved back afterwards. */
    writer w = {bytes, capacity, 0, false};
    const uint8_t no_prefix[PUBLISH_PREFIX_BYTES] = {0};
    uint8_t flags = 0;
    flags |= config->user != NULL ? 0x80u : 0u;
    flags |= config->password != NULL ? 0x40u : 0u;
    flags |= config->will_topic != NULL ? 0x2Cu : 0u; /* retain, QoS 1, will */
    put_bytes(&w, no_prefix, sizeof no_prefix);
    put_binary(&w, "MQTT", 4);
    put_number(&w, 5, 1);
    put_number(&w, flags, 1);
    put_number(&w, config->keep_alive_seconds, 2);
    put_number(&w, 15, 1); /* length of the properties */
    put_number(&w, 0x11, 1);
    put_number(&w, config->session_expiry_seconds, 4);
    put_number(&w, 0x21, 1);
    put_number(&w, config->receive_maximum, 2);
    put_number(&w, 0x27, 1);
    put_number(&w, TF_MQTT_MINIMUM_RECEIVE_BYTES, 4);
    put_number(&w, 0x1700, 2); /* no reason strings, please */
    put_binary(&w, config->client_id, strlen(config->client_id));
    if (config->will_topic != NULL) {
        put_number(&w, 0, 1); /* no will properties */
        put_binary(&w, config->will_topic, strlen(config->will_topic));
        put_binary(&w, config->will_payload, config->will_payload_bytes);
    }
    if (config->user != NULL) {
        put_binary(&w, config->user, strlen(config->user));
    }
    if (config->password != NULL) {
        put_binary(&w, config->password, strlen(config->password));
    }
    if (w.failed) {
        return 0;
    }
    uint8_t remaining[3];
    size_t body = w.length - PUBLISH_PREFIX_BYTES;
    unsigned length = make_variable(remaining, body);
    bytes[0] = TF_PACKET_CONNECT;
    memcpy(bytes + 1, remaining, length);
    memmove(bytes + 1 + length, bytes + PUBLISH_PREFIX_BYTES, body);
    return 1 + length + body;
}

bool tf_mqtt_control_has_room(const tf_mqtt *client, size_t bytes) {
    size_t used = (size_t)(client->control_bytes - client->control_sent) + client->control_reserved;
    return used + bytes <= TF_MQTT_CONTROL_BYTES;
}

/* Room for `length` bytes at the end of the queue, or NULL. */
static uint8_t *extend_control(tf_mqtt *client, size_t length) {
    if (!tf_mqtt_control_has_room(client, length)) {
        return NULL;
    }
    if (client->control_sent > 0) {
        client->control_bytes = (uint16_t)(client->control_bytes - client->control_sent);
        memmove(client->control, client->control + client->control_sent, client->control_bytes);
        /* The packet whose front is out stays in front, so nothing gets between. */
        client->control_sent = 0;
    }
    uint8_t *end = client->control + client->control_bytes;
    client->control_bytes = (uint16_t)(client->control_bytes + length);
    return end;
}

bool tf_mqtt_queue_control(tf_mqtt *client, uint8_t first, const uint8_t *body, size_t body_bytes) {
    uint8_t *bytes = extend_control(client, 2 + body_bytes);
    if (bytes == NULL) {
        return false;
    }
    bytes[0] = first;
    bytes[1] = (uint8_t)body_bytes;
    if (body_bytes > 0) {
        memcpy(bytes + 2, body, body_bytes);
    }
    return true;
}

static uint16_t next_packet_id(tf_mqtt *client) {
    do {
        client->last_id++;
    } while (client->last_id == 0 || client->last_id == client->subscribe_id ||
             client->last_id == client->unsubscribe_id ||
             (client->publication_state != TF_PUBLICATION_NONE &&
              client->last_id == client->publication_id));
    return client->last_id;
}

tf_status tf_mqtt_publish_begin(tf_mqtt *client, const char *topic, size_t topic_bytes, bool retain,
                                uint32_t expiry_seconds, uint8_t **payload,
                                size_t *payload_capacity) {
    if (client->publication_state > TF_PUBLICATION_COMPOSING) {
        return TF_AGAIN;
    }
    if (topic_bytes == 0 || topic_bytes > TF_MQTT_TOPIC_LIMIT) {
        return TF_BAD_INPUT;
    }
    for (size_t i = 0; i < topic_bytes; i++) {
        if (topic[i] == '+' || topic[i] == '#' || topic[i] == '\0') {
            return TF_BAD_INPUT;
        }
    }
    writer w = {client->transmit, client->transmit_capacity, PUBLISH_PREFIX_BYTES, false};
    put_binary(&w, topic, topic_bytes);
    put_number(&w, 0, 2); /* packet identifier: commit fills it in */
    put_number(&w, expiry_seconds > 0 ? 5 : 0, 1);
    if (expiry_seconds > 0) {
        put_number(&w, 2, 1);
        put_number(&w, expiry_seconds, 4);
    }
    client->publication_header = (uint16_t)w.length;
    client->publication_flags =
        (uint8_t)(TF_PACKET_PUBLISH | TF_PUBLISH_QOS1 | (retain ? TF_PUBLISH_RETAIN : 0u));
    client->publication_state = TF_PUBLICATION_COMPOSING;
    *payload = client->transmit + w.length;
    *payload_capacity = w.capacity - w.length;
    return TF_OK;
}

tf_status tf_mqtt_publish_commit(tf_mqtt *client, size_t payload_bytes, uint16_t *packet_id) {
    if (client->publication_state != TF_PUBLICATION_COMPOSING) {
        return TF_BAD_INPUT;
    }
    if (payload_bytes > (size_t)(client->transmit_capacity - client->publication_header)) {
        return TF_NO_MEMORY;
    }
    uint8_t *bytes = client->transmit;
    size_t end = client->publication_header + payload_bytes;
    uint8_t remaining[3];
    unsigned length = make_variable(remaining, end - PUBLISH_PREFIX_BYTES);
    unsigned start = PUBLISH_PREFIX_BYTES - 1u - length;
    bytes[start] = client->publication_flags;
    memcpy(bytes + start + 1, remaining, length);
    client->publication_id = next_packet_id(client);
    size_t topic_bytes =
        (size_t)bytes[PUBLISH_PREFIX_BYTES] << 8 | bytes[PUBLISH_PREFIX_BYTES + 1u];
    uint8_t *identifier = bytes + PUBLISH_PREFIX_BYTES + 2u + topic_bytes;
    identifier[0] = (uint8_t)(client->publication_id >> 8);
    identifier[1] = (uint8_t)client->publication_id;
    client->publication_start = (uint16_t)start;
    client->publication_end = (uint16_t)end;
    client->publication_sent = 0;
    client->publication_state = TF_PUBLICATION_READY;
    client->publication_since = tf_mqtt_now(client);
    *packet_id = client->publication_id;
    return TF_OK;
}

bool tf_mqtt_can_publish(const tf_mqtt *client) {
    return client->publication_state <= TF_PUBLICATION_COMPOSING;
}

static tf_status request(tf_mqtt *client, uint8_t first, const char *filter, size_t filter_bytes,
                         uint16_t *pending, uint32_t *since, uint16_t *packet_id) {
    const bool subscribing = first == TF_PACKET_SUBSCRIBE;
    if (client->state != TF_MQTT_ONLINE) {
        return TF_LINK_LOST;
    }
    if (filter_bytes == 0 || filter_bytes > TF_MQTT_TOPIC_LIMIT) {
        return TF_BAD_INPUT;
    }
    /* identifier, no properties, filter, and for SUBSCRIBE its options */
    size_t body = 2 + 1 + 2 + filter_bytes + (subscribing ? 1 : 0);
    size_t whole = body + (body > 0x7F ? 3 : 2);
    if (whole > client->server_packet_limit) {
        return TF_NO_MEMORY;
    }
    uint8_t *bytes = *pending != 0 ? NULL : extend_control(client, whole);
    if (bytes == NULL) {
        return TF_AGAIN;
    }
    uint8_t remaining[3];
    unsigned length = make_variable(remaining, body);
    uint16_t identifier = next_packet_id(client);
    writer w = {bytes, whole, 0, false};
    put_number(&w, first, 1);
    put_bytes(&w, remaining, length);
    put_number(&w, identifier, 2);
    put_number(&w, 0, 1);
    put_binary(&w, filter, filter_bytes);
    if (subscribing) {
        put_number(&w, 1, 1); /* QoS 1, retained messages at every subscription */
    }
    *pending = identifier;
    *since = tf_mqtt_now(client);
    *packet_id = identifier;
    return TF_OK;
}

tf_status tf_mqtt_subscribe(tf_mqtt *client, const char *filter, size_t filter_bytes,
                            uint16_t *packet_id) {
    return request(client, TF_PACKET_SUBSCRIBE, filter, filter_bytes, &client->subscribe_id,
                   &client->subscribe_since, packet_id);
}

tf_status tf_mqtt_unsubscribe(tf_mqtt *client, const char *filter, size_t filter_bytes,
                              uint16_t *packet_id) {
    return request(client, TF_PACKET_UNSUBSCRIBE, filter, filter_bytes, &client->unsubscribe_id,
                   &client->unsubscribe_since, packet_id);
}

/* Writes from *sent on; true when `end` is reached. */
static bool write_some(tf_mqtt *client, const uint8_t *bytes, uint16_t *sent, uint16_t end) {
    while (*sent < end) {
        size_t taken =
            client->stream->write(client->stream->context, bytes + *sent, (size_t)(end - *sent));
        if (taken == 0) {
            return false;
        }
        *sent = (uint16_t)(*sent + taken);
        client->last_sent = tf_mqtt_now(client);
    }
    return true;
}

/* 0, or why this broker will never take the publication that is ready. */
static uint8_t refused_by_limits(const tf_mqtt *client) {
    size_t length = (size_t)(client->publication_end - client->publication_start);
    if (client->server_qos_limit == 0) {
        return TF_MQTT_QOS_NOT_SUPPORTED;
    }
    if (!client->server_retain && (client->publication_flags & TF_PUBLISH_RETAIN)) {
        return TF_MQTT_RETAIN_NOT_SUPPORTED;
    }
    return length > client->server_packet_limit ? TF_MQTT_PACKET_TOO_LARGE : 0;
}

bool tf_mqtt_flush(tf_mqtt *client, bool publication_too) {
    for (;;) {
        bool ready = client->publication_state == TF_PUBLICATION_READY;
        /* publication_sent counts from the start of the buffer once writing has begun */
        bool halfway = ready && client->publication_sent > 0;
        if (!halfway && client->control_sent < client->control_bytes) {
            if (!write_some(client, client->control, &client->control_sent,
                            client->control_bytes)) {
                return false;
            }
            client->control_sent = client->control_bytes = 0;
        } else if (halfway || (ready && publication_too)) {
            if (!halfway) {
                uint8_t reason = refused_by_limits(client);
                if (reason != 0) {
                    client->publication_state = TF_PUBLICATION_NONE;
                    tf_mqtt_tell(client, TF_MQTT_PUBLISHED, client->publication_id, reason);
                    return true; /* whatever the callback began has its turn at the next poll */
                }
            }
            uint16_t position = halfway ? client->publication_sent : client->publication_start;
            bool done = write_some(client, client->transmit, &position, client->publication_end);
            if (position > client->publication_start) {
                client->publication_sent = position;
            }
            if (!done) {
                return false;
            }
            client->publication_state = TF_PUBLICATION_SENT;
            client->publication_since = tf_mqtt_now(client);
        } else {
            return true;
        }
    }
}
