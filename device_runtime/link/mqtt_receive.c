/* What to do with a packet from the broker. */
#include "mqtt_receive.h"

#include "mqtt_control.h"
#include "mqtt_packet.h"
#include "mqtt_reader.h"

typedef struct {
    tf_mqtt *client;
    tf_mqtt_reader reader;
    tf_mqtt_properties properties;
    tf_mqtt_event *event;
    uint8_t *farewell;
} packet;

static tf_status end_connection(packet *p, tf_mqtt_cause cause, uint8_t reason, uint8_t farewell) {
    p->event->cause = cause;
    p->event->reason = reason;
    *p->farewell = farewell;
    return TF_LINK_LOST;
}

static tf_status malformed(packet *p) {
    return end_connection(p, TF_MQTT_PROTOCOL_ERROR, TF_REASON_MALFORMED, TF_REASON_MALFORMED);
}

static tf_status protocol_error(packet *p) {
    return end_connection(p, TF_MQTT_PROTOCOL_ERROR, TF_REASON_PROTOCOL, TF_REASON_PROTOCOL);
}

static tf_status handle_connack(packet *p) {
    tf_mqtt *client = p->client;
    uint8_t flags = tf_mqtt_take_u8(&p->reader);
    uint8_t reason = tf_mqtt_take_u8(&p->reader);
    tf_mqtt_take_properties(&p->reader, TF_IN_CONNACK, &p->properties);
    if (p->reader.failed || p->reader.left > 0 || flags > 1) {
        return malformed(p);
    }
    if (flags != 0) {
        return protocol_error(p); /* a session that we asked the broker to forget */
    }
    if (reason >= 0x80) {
        return end_connection(p, TF_MQTT_REFUSED, reason, 0);
    }
    if (reason != TF_MQTT_SUCCESS) {
        return protocol_error(p);
    }
    client->server_packet_limit = p->properties.packet_limit;
    client->server_qos_limit = p->properties.qos_limit;
    client->server_retain = p->properties.retain_available;
    client->server_keep_alive_seconds = p->properties.has_keep_alive
                                            ? p->properties.keep_alive_seconds
                                            : client->config->keep_alive_seconds;
    client->state = TF_MQTT_ONLINE;
    client->state_since = tf_mqtt_now(client);
    client->publication_since = client->state_since;
    tf_mqtt_tell(client, TF_MQTT_CONNECTED, 0, TF_MQTT_SUCCESS);
    return TF_OK;
}

static bool plain_topic(const char *topic, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if (topic[i] == '+' || topic[i] == '#') {
            return false;
        }
    }
    return length > 0;
}

static tf_status handle_publish(packet *p, uint8_t first) {
    tf_mqtt *client = p->client;
    tf_mqtt_message message = {0};
    uint16_t packet_id = 0;
    message.qos = (uint8_t)(first >> 1 & 3u);
    message.retained = (first & TF_PUBLISH_RETAIN) != 0;
    message.duplicate = (first & TF_PUBLISH_DUPLICATE) != 0;
    if (message.qos == 2) {
        return end_connection(p, TF_MQTT_PROTOCOL_ERROR, TF_REASON_QOS2, TF_REASON_QOS2);
    }
    message.topic = tf_mqtt_take_text(&p->reader, &message.topic_bytes);
    if (message.qos == 1) {
        packet_id = tf_mqtt_take_u16(&p->reader);
    }
    tf_mqtt_take_properties(&p->reader, TF_IN_PUBLISH, &p->properties);
    if (p->reader.failed || message.qos == 3 || (message.duplicate && message.qos == 0)) {
        return malformed(p);
    }
    if ((message.qos == 1 && packet_id == 0) || !plain_topic(message.topic, message.topic_bytes) ||
        (p->properties.response_topic != NULL &&
         !plain_topic(p->properties.response_topic, p->properties.response_topic_bytes))) {
        return protocol_error(p);
    }
    message.payload = p->reader.left > 0 ? p->reader.next : NULL;
    message.payload_bytes = (uint16_t)p->reader.left;
    message.response_topic = p->properties.response_topic;
    message.response_topic_bytes = p->properties.response_topic_bytes;
    message.correlation_data = p->properties.correlation_data;
    message.correlation_data_bytes = p->properties.correlation_data_bytes;
    message.expiry_seconds = p->properties.expiry_seconds;

    /* PUBACK with a reason takes 5 bytes; without room for it the message has to wait. */
    if (message.qos == 1 && !tf_mqtt_control_has_room(client, 5)) {
        return TF_AGAIN;
    }
    /* Hidden from the callback, so that what it queues leaves room for the PUBACK. */
    client->control_reserved = message.qos == 1 ? 5 : 0;
    tf_status status = client->callbacks.on_message(client->callbacks.context, &message);
    client->control_reserved = 0;
    if (status == TF_AGAIN || message.qos == 0) {
        return status == TF_AGAIN ? TF_AGAIN : TF_OK;
    }
    uint8_t body[3] = {(uint8_t)(packet_id >> 8), (uint8_t)packet_id, 0};
    if (status != TF_OK) {
        body[2] = status == TF_BAD_INPUT ? TF_REASON_PAYLOAD_INVALID : TF_REASON_REFUSED_HERE;
    }
    (void)tf_mqtt_queue_control(client, TF_PACKET_PUBACK, body, status == TF_OK ? 2 : 3);
    return TF_OK;
}

static tf_status handle_puback(packet *p) {
    tf_mqtt *client = p->client;
    uint16_t packet_id = tf_mqtt_take_u16(&p->reader);
    /* Success may be left out, and no properties too (section 3.4.2). */
    uint8_t reason = p->reader.left > 0 ? tf_mqtt_take_u8(&p->reader) : TF_MQTT_SUCCESS;
    if (p->reader.left > 0) {
        tf_mqtt_take_properties(&p->reader, TF_IN_ACK, &p->properties);
    }
    if (p->reader.failed || p->reader.left > 0) {
        return malformed(p);
    }
    if (client->publication_state < TF_PUBLICATION_SENT || packet_id != client->publication_id) {
        return protocol_error(p);
    }
    const bool is_wanted = client->publication_state == TF_PUBLICATION_SENT;
    client->publication_state = TF_PUBLICATION_NONE;
    if (is_wanted) {
        tf_mqtt_tell(client, TF_MQTT_PUBLISHED, packet_id, reason);
    }
    return TF_OK;
}

/* SUBACK and UNSUBACK: the identifier of the request, properties, one reason. */
static tf_status handle_subscription_ack(packet *p, uint16_t *expected, tf_mqtt_event_type type) {
    uint16_t packet_id = tf_mqtt_take_u16(&p->reader);
    tf_mqtt_take_properties(&p->reader, TF_IN_ACK, &p->properties);
    uint8_t reason = tf_mqtt_take_u8(&p->reader);
    if (p->reader.failed || p->reader.left > 0) {
        return malformed(p);
    }
    if (packet_id == 0 || packet_id != *expected) {
        return protocol_error(p);
    }
    if (type == TF_MQTT_SUBSCRIBED && reason > p->client->subscribe_qos && reason < 0x80) {
        return protocol_error(p); /* granted more than was asked for */
    }
    *expected = 0;
    tf_mqtt_tell(p->client, type, packet_id, reason);
    return TF_OK;
}

static tf_status handle_disconnect(packet *p) {
    uint8_t reason = p->reader.left > 0 ? tf_mqtt_take_u8(&p->reader) : TF_MQTT_SUCCESS;
    if (p->reader.left > 0) {
        tf_mqtt_take_properties(&p->reader, TF_IN_DISCONNECT, &p->properties);
    }
    if (p->reader.failed || p->reader.left > 0) {
        return malformed(p);
    }
    return end_connection(p, TF_MQTT_DISCONNECTED, reason, 0);
}

tf_status tf_mqtt_handle_packet(tf_mqtt *client, tf_mqtt_event *event, uint8_t *farewell) {
    packet p = {.client = client,
                .reader = {client->receive + 1, client->packet_bytes - 1u, false},
                .event = event,
                .farewell = farewell};
    uint8_t first = client->receive[0];
    (void)tf_mqtt_take_variable(&p.reader); /* remaining length, checked while reading */
    if (client->state == TF_MQTT_CONNECTING) {
        return first == TF_PACKET_CONNACK ? handle_connack(&p) : protocol_error(&p);
    }
    if ((first & 0xF0u) == TF_PACKET_PUBLISH) {
        return handle_publish(&p, first);
    }
    switch (first) { /* flags of all others are fixed, so the whole byte counts */
    case TF_PACKET_PUBACK:
        return handle_puback(&p);
    case TF_PACKET_SUBACK:
        return handle_subscription_ack(&p, &client->subscribe_id, TF_MQTT_SUBSCRIBED);
    case TF_PACKET_UNSUBACK:
        return handle_subscription_ack(&p, &client->unsubscribe_id, TF_MQTT_UNSUBSCRIBED);
    case TF_PACKET_PINGRESP:
        if (p.reader.left > 0) {
            return malformed(&p);
        }
        if (!client->ping_pending) {
            return protocol_error(&p);
        }
        client->ping_pending = false;
        return TF_OK;
    case TF_PACKET_DISCONNECT:
        return handle_disconnect(&p);
    default: /* a second CONNACK, QoS 2 handshakes, AUTH, client's packets, wrong flags */
        return protocol_error(&p);
    }
}
