/* CONNECT, acknowledgements, subscriptions, pings: what fits the control queue. */
#include "mqtt_control.h"

#include <string.h>

#include "mqtt_packet.h"
#include "mqtt_writer.h"

size_t tf_mqtt_compose_connect(const tf_mqtt_config *config, uint8_t *bytes, size_t capacity) {
    /* The body is written behind the longest possible prefix and moved back afterwards. */
    tf_mqtt_writer w = {bytes, capacity, 0, false};
    const uint8_t no_prefix[TF_MQTT_PREFIX_BYTES] = {0};
    uint8_t flags = 0x02; /* clean start: the broker keeps nothing of us */
    flags |= config->user != NULL ? 0x80u : 0u;
    flags |= config->password != NULL ? 0x40u : 0u;
    flags |= config->will_topic != NULL ? 0x2Cu : 0u; /* retain, QoS 1, will */
    tf_mqtt_put_bytes(&w, no_prefix, sizeof no_prefix);
    tf_mqtt_put_binary(&w, "MQTT", 4);
    tf_mqtt_put_number(&w, 5, 1);
    tf_mqtt_put_number(&w, flags, 1);
    tf_mqtt_put_number(&w, config->keep_alive_seconds, 2);
    tf_mqtt_put_number(&w, 10, 1); /* length of the properties; no session expiry means 0 */
    tf_mqtt_put_number(&w, 0x21, 1);
    tf_mqtt_put_number(&w, config->receive_maximum, 2);
    tf_mqtt_put_number(&w, 0x27, 1);
    tf_mqtt_put_number(&w, TF_MQTT_MINIMUM_RECEIVE_BYTES, 4);
    tf_mqtt_put_number(&w, 0x1700, 2); /* no reason strings, please */
    tf_mqtt_put_binary(&w, config->client_id, strlen(config->client_id));
    if (config->will_topic != NULL) {
        tf_mqtt_put_number(&w, 0, 1); /* no will properties */
        tf_mqtt_put_binary(&w, config->will_topic, strlen(config->will_topic));
        tf_mqtt_put_binary(&w, config->will_payload, config->will_payload_bytes);
    }
    if (config->user != NULL) {
        tf_mqtt_put_binary(&w, config->user, strlen(config->user));
    }
    if (config->password != NULL) {
        tf_mqtt_put_binary(&w, config->password, strlen(config->password));
    }
    if (w.failed) {
        return 0;
    }
    uint8_t remaining[3];
    size_t body = w.length - TF_MQTT_PREFIX_BYTES;
    unsigned length = tf_mqtt_make_variable(remaining, body);
    bytes[0] = TF_PACKET_CONNECT;
    memcpy(bytes + 1, remaining, length);
    memmove(bytes + 1 + length, bytes + TF_MQTT_PREFIX_BYTES, body);
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

uint16_t tf_mqtt_next_packet_id(tf_mqtt *client) {
    do {
        client->last_id++;
    } while (client->last_id == 0 || client->last_id == client->subscribe_id ||
             client->last_id == client->unsubscribe_id ||
             (client->publication_state != TF_PUBLICATION_NONE &&
              client->last_id == client->publication_id));
    return client->last_id;
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
    unsigned length = tf_mqtt_make_variable(remaining, body);
    uint16_t identifier = tf_mqtt_next_packet_id(client);
    tf_mqtt_writer w = {bytes, whole, 0, false};
    tf_mqtt_put_number(&w, first, 1);
    tf_mqtt_put_bytes(&w, remaining, length);
    tf_mqtt_put_number(&w, identifier, 2);
    tf_mqtt_put_number(&w, 0, 1);
    tf_mqtt_put_binary(&w, filter, filter_bytes);
    if (subscribing) {
        /* The largest QoS, and retained messages at every subscription. */
        tf_mqtt_put_number(&w, client->subscribe_qos, 1);
    }
    *pending = identifier;
    *since = tf_mqtt_now(client);
    *packet_id = identifier;
    return TF_OK;
}

tf_status tf_mqtt_subscribe(tf_mqtt *client, const char *filter, size_t filter_bytes, uint8_t qos,
                            uint16_t *packet_id) {
    if (qos > 1u) {
        return TF_BAD_INPUT;
    }
    if (client->subscribe_id == 0u) {
        client->subscribe_qos = qos;
    }
    return request(client, TF_PACKET_SUBSCRIBE, filter, filter_bytes, &client->subscribe_id,
                   &client->subscribe_since, packet_id);
}

tf_status tf_mqtt_unsubscribe(tf_mqtt *client, const char *filter, size_t filter_bytes,
                              uint16_t *packet_id) {
    return request(client, TF_PACKET_UNSUBSCRIBE, filter, filter_bytes, &client->unsubscribe_id,
                   &client->unsubscribe_since, packet_id);
}
