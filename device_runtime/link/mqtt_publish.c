/* One publication at a time: composed in the transmit buffer, or drawn from a source behind it. */
#include "mqtt_publish.h"

#include <string.h>

#include "mqtt_control.h"
#include "mqtt_packet.h"
#include "mqtt_writer.h"

#define STREAM_LIMIT 1000000u /* the remaining length has room for 2^21 - 1 */

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
    tf_mqtt_writer w = {client->transmit, client->transmit_capacity, TF_MQTT_PREFIX_BYTES, false};
    tf_mqtt_put_binary(&w, topic, topic_bytes);
    tf_mqtt_put_number(&w, 0, 2); /* packet identifier: commit fills it in */
    tf_mqtt_put_number(&w, expiry_seconds > 0 ? 5 : 0, 1);
    if (expiry_seconds > 0) {
        tf_mqtt_put_number(&w, 2, 1);
        tf_mqtt_put_number(&w, expiry_seconds, 4);
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
    static const tf_mqtt_source none = {NULL, NULL, NULL};
    return tf_mqtt_publish_commit_stream(client, payload_bytes, &none, 0, packet_id);
}

tf_status tf_mqtt_publish_commit_stream(tf_mqtt *client, size_t head_bytes,
                                        const tf_mqtt_source *source, uint32_t stream_bytes,
                                        uint16_t *packet_id) {
    if (client->publication_state != TF_PUBLICATION_COMPOSING) {
        return TF_BAD_INPUT;
    }
    const size_t room = (size_t)(client->transmit_capacity - client->publication_header);
    /* Something has to be left to draw the source's bytes into. */
    if (head_bytes > room || stream_bytes > STREAM_LIMIT ||
        (stream_bytes > 0u && head_bytes == room)) {
        return TF_NO_MEMORY;
    }
    uint8_t *bytes = client->transmit;
    size_t end = client->publication_header + head_bytes;
    uint8_t remaining[3];
    unsigned length = tf_mqtt_make_variable(remaining, end - TF_MQTT_PREFIX_BYTES + stream_bytes);
    unsigned start = TF_MQTT_PREFIX_BYTES - 1u - length;
    bytes[start] = client->publication_flags;
    memcpy(bytes + start + 1, remaining, length);
    client->publication_id = tf_mqtt_next_packet_id(client);
    size_t topic_bytes =
        (size_t)bytes[TF_MQTT_PREFIX_BYTES] << 8 | bytes[TF_MQTT_PREFIX_BYTES + 1u];
    uint8_t *identifier = bytes + TF_MQTT_PREFIX_BYTES + 2u + topic_bytes;
    identifier[0] = (uint8_t)(client->publication_id >> 8);
    identifier[1] = (uint8_t)client->publication_id;
    client->publication_start = (uint16_t)start;
    client->publication_head_end = (uint16_t)end;
    client->publication_sent = 0;
    client->publication_source = *source;
    client->publication_stream_bytes = stream_bytes;
    client->publication_state = TF_PUBLICATION_READY;
    client->publication_since = tf_mqtt_now(client);
    *packet_id = client->publication_id;
    return TF_OK;
}

bool tf_mqtt_can_publish(const tf_mqtt *client) {
    return client->publication_state <= TF_PUBLICATION_COMPOSING;
}

tf_status tf_mqtt_publish_cancel(tf_mqtt *client) {
    if (client->publication_state == TF_PUBLICATION_READY && client->publication_sent > 0u) {
        return TF_AGAIN;
    }
    /* One that is out is acknowledged all the same. */
    client->publication_state = client->publication_state >= TF_PUBLICATION_SENT
                                    ? TF_PUBLICATION_CANCELLED
                                    : TF_PUBLICATION_NONE;
    return TF_OK;
}

void tf_mqtt_rewind_publication(tf_mqtt *client) {
    client->publication_sent = 0;
    if (client->publication_state == TF_PUBLICATION_CANCELLED) {
        client->publication_state = TF_PUBLICATION_NONE;
    } else if (client->publication_state == TF_PUBLICATION_SENT) {
        client->publication_state = TF_PUBLICATION_READY;
    }
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
    const size_t head = (size_t)(client->publication_head_end - client->publication_start);
    if (client->server_qos_limit == 0) {
        return TF_MQTT_QOS_NOT_SUPPORTED;
    }
    if (!client->server_retain && (client->publication_flags & TF_PUBLISH_RETAIN)) {
        return TF_MQTT_RETAIN_NOT_SUPPORTED;
    }
    return head + client->publication_stream_bytes > client->server_packet_limit
               ? TF_MQTT_PACKET_TOO_LARGE
               : 0;
}

/* From the first byte, also of the source. */
static void begin_writing(tf_mqtt *client) {
    client->publication_end = client->publication_head_end;
    client->publication_left = client->publication_stream_bytes;
    if (client->publication_left > 0u) {
        client->publication_source.restart(client->publication_source.context);
    }
}

/* Draws the source's next bytes over those that are written; false: there are none. */
static bool draw_more(tf_mqtt *client) {
    const uint32_t room = (uint32_t)client->transmit_capacity - client->publication_head_end;
    const uint32_t left = client->publication_left;
    const uint16_t count = (uint16_t)(left < room ? left : room);
    if (count == 0u) {
        return false;
    }
    client->publication_source.read(client->publication_source.context,
                                    client->transmit + client->publication_head_end, count);
    client->publication_left -= count;
    client->publication_sent = client->publication_head_end;
    client->publication_end = (uint16_t)(client->publication_head_end + count);
    return true;
}

/* Writes the publication; true when its last byte is out. */
static bool write_publication(tf_mqtt *client) {
    do {
        const uint16_t before =
            client->publication_sent > 0u ? client->publication_sent : client->publication_start;
        uint16_t position = before;
        const bool done = write_some(client, client->transmit, &position, client->publication_end);
        if (position > before) {
            client->publication_sent = position;
            client->publication_since = tf_mqtt_now(client); /* it goes on, however slowly */
        }
        if (!done) {
            return false;
        }
    } while (draw_more(client));
    return true;
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
                begin_writing(client);
            }
            if (!write_publication(client)) {
                return false;
            }
            client->publication_state = TF_PUBLICATION_SENT;
            client->publication_since = tf_mqtt_now(client);
        } else {
            return true;
        }
    }
}
