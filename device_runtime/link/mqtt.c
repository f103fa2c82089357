/* The client's state machine: dialling, connecting, timers, framing. */
#include "tinyfleet/mqtt.h"

#include <string.h>

#include "mqtt_control.h"
#include "mqtt_packet.h"
#include "mqtt_publish.h"
#include "mqtt_receive.h"

#define DEFAULT_DIAL_TIMEOUT_MS 5000u
#define DEFAULT_ANSWER_TIMEOUT_MS 20000u
#define DEFAULT_BACKOFF_FIRST_MS 1000u
#define DEFAULT_BACKOFF_LIMIT_MS 60000u
#define LONGEST_WAIT_MS 500u /* between looks at is_open, which announces nothing */
#define BLOCKED_WAIT_MS 5u   /* between tries to write into a full stream */

static uint32_t since(const tf_mqtt *client, uint32_t start) {
    return tf_mqtt_now(client) - start; /* right over the wrap of the clock too */
}

static uint32_t answer_timeout(const tf_mqtt *client) {
    uint32_t timeout = client->config->answer_timeout_ms;
    return timeout != 0 ? timeout : DEFAULT_ANSWER_TIMEOUT_MS;
}

static uint32_t dial_timeout(const tf_mqtt *client) {
    uint32_t timeout = client->config->dial_timeout_ms;
    return timeout != 0 ? timeout : DEFAULT_DIAL_TIMEOUT_MS;
}

tf_status tf_mqtt_init(tf_mqtt *client, const tf_mqtt_config *config, const tf_stream *stream,
                       const tf_mqtt_callbacks *callbacks, uint8_t *receive, size_t receive_bytes,
                       uint8_t *transmit, size_t transmit_bytes) {
    if (receive_bytes < TF_MQTT_MINIMUM_RECEIVE_BYTES || receive_bytes > UINT16_MAX ||
        transmit_bytes < TF_MQTT_MINIMUM_TRANSMIT_BYTES || transmit_bytes > UINT16_MAX) {
        return TF_NO_MEMORY;
    }
    if (config->client_id == NULL || config->client_id[0] == '\0' ||
        strlen(config->client_id) > TF_MQTT_CLIENT_ID_LIMIT || config->receive_maximum == 0 ||
        config->random == NULL || callbacks->on_message == NULL || callbacks->on_event == NULL ||
        tf_mqtt_compose_connect(config, receive, receive_bytes) == 0) {
        return TF_BAD_INPUT;
    }
    memset(client, 0, sizeof *client);
    client->config = config;
    client->stream = stream;
    client->callbacks = *callbacks;
    client->receive = receive;
    client->transmit = transmit;
    client->receive_capacity = (uint16_t)receive_bytes;
    client->transmit_capacity = (uint16_t)transmit_bytes;
    client->server_packet_limit = UINT32_MAX;
    return TF_OK;
}

static void enter(tf_mqtt *client, tf_mqtt_state state) {
    client->state = state;
    client->state_since = tf_mqtt_now(client);
}

void tf_mqtt_start(tf_mqtt *client) {
    if (client->state == TF_MQTT_IDLE) {
        client->failures = 0;
        client->wait_ms = 0;
        enter(client, TF_MQTT_WAITING);
    }
}

/* Closes the stream and forgets everything that belongs to this connection only. */
static void hang_up(tf_mqtt *client) {
    client->stream->close(client->stream->context);
    client->received = client->packet_bytes = 0;
    client->message_waits = client->ping_pending = client->disconnect_queued = false;
    client->control_bytes = client->control_sent = 0;
    client->subscribe_id = client->unsubscribe_id = 0;
    tf_mqtt_rewind_publication(client);
}

void tf_mqtt_stop(tf_mqtt *client, bool with_will) {
    if (client->state == TF_MQTT_IDLE || client->state == TF_MQTT_STOPPING) {
        return;
    }
    if (client->state != TF_MQTT_ONLINE) {
        hang_up(client);
    }
    client->stop_with_will = with_will;
    enter(client, TF_MQTT_STOPPING);
}

/* Half to all of first · 2^failures, at most of the limit, so that a fleet doesn't come back
 * in step. */
static uint32_t draw_backoff(tf_mqtt *client) {
    const tf_mqtt_config *config = client->config;
    uint32_t most = config->backoff_first_ms ? config->backoff_first_ms : DEFAULT_BACKOFF_FIRST_MS;
    uint32_t limit = config->backoff_limit_ms ? config->backoff_limit_ms : DEFAULT_BACKOFF_LIMIT_MS;
    for (unsigned i = 0; i < client->failures && most < limit; i++) {
        most = most > UINT32_MAX / 2u ? UINT32_MAX : most * 2u;
    }
    if (most > limit) {
        most = limit;
    }
    return most - config->random(config->random_context) % (most / 2u + 1u);
}

static void lose(tf_mqtt *client, tf_mqtt_cause cause, uint8_t reason) {
    /* A broker that lets us in and throws us out again counts as failing too. */
    uint32_t first = client->config->backoff_first_ms;
    uint32_t steady_ms = 8u * (first ? first : DEFAULT_BACKOFF_FIRST_MS);
    if (client->state == TF_MQTT_ONLINE && since(client, client->state_since) >= steady_ms) {
        client->failures = 0;
    }
    hang_up(client);
    client->wait_ms = draw_backoff(client);
    if (client->failures < UINT8_MAX) {
        client->failures++;
    }
    enter(client, TF_MQTT_WAITING);
    tf_mqtt_event event = {.type = TF_MQTT_LOST, .cause = cause, .reason = reason};
    client->callbacks.on_event(client->callbacks.context, &event);
}

/* Ends the connection, with a word to the broker where no packet is half written. */
static void lose_with_farewell(tf_mqtt *client, tf_mqtt_cause cause, uint8_t reason,
                               uint8_t farewell) {
    bool halfway = client->control_sent > 0 || (client->publication_state == TF_PUBLICATION_READY &&
                                                client->publication_sent > 0);
    if (farewell != 0 && client->state == TF_MQTT_ONLINE && !halfway) {
        const uint8_t packet[3] = {TF_PACKET_DISCONNECT, 1, farewell};
        (void)client->stream->write(client->stream->context, packet, sizeof packet);
    }
    lose(client, cause, reason);
}

typedef enum {
    PACKET_NONE,
    PACKET_WHOLE,
    PACKET_BROKEN
} framing;

/* Length of the packet whose first bytes have come: 0 not known yet, UINT32_MAX malformed. */
static uint32_t packet_length(const tf_mqtt *client) {
    uint32_t remaining = 0;
    for (unsigned i = 1; i < client->received; i++) {
        uint8_t byte = client->receive[i];
        if (i > 4 || (i > 1 && byte == 0)) {
            return UINT32_MAX; /* longer than 4 bytes or than needed */
        }
        remaining |= (uint32_t)(byte & 0x7Fu) << (7u * (i - 1u));
        if (byte < 0x80) {
            return 1u + i + remaining;
        }
    }
    return client->received > 4 ? UINT32_MAX : 0;
}

/* Reads on until a packet is whole or nothing is there, never beyond the packet's end. */
static framing read_packet(tf_mqtt *client, uint8_t *reason) {
    const tf_stream *stream = client->stream;
    for (;;) {
        size_t wanted = 1;
        if (client->packet_bytes > 0) {
            wanted = (size_t)(client->packet_bytes - client->received);
        }
        if (wanted == 0) {
            return PACKET_WHOLE;
        }
        size_t got = stream->read(stream->context, client->receive + client->received, wanted);
        if (got == 0) {
            return PACKET_NONE;
        }
        client->received = (uint16_t)(client->received + got);
        if (client->packet_bytes == 0) {
            uint32_t length = packet_length(client);
            if (length > TF_MQTT_MINIMUM_RECEIVE_BYTES) {
                *reason = length == UINT32_MAX ? TF_REASON_MALFORMED : TF_REASON_TOO_LARGE;
                return PACKET_BROKEN;
            }
            client->packet_bytes = (uint16_t)length;
        }
    }
}

/* Handles the whole packet in the buffer. */
static void handle_packet(tf_mqtt *client) {
    tf_mqtt_event event = {.type = TF_MQTT_LOST};
    uint8_t farewell = 0;
    tf_status status = tf_mqtt_handle_packet(client, &event, &farewell);
    client->message_waits = status == TF_AGAIN;
    if (status == TF_LINK_LOST) {
        lose_with_farewell(client, event.cause, event.reason, farewell);
    } else if (status == TF_OK) {
        client->received = client->packet_bytes = 0;
    }
}

static bool overdue(const tf_mqtt *client, bool pending, uint32_t start) {
    return pending && since(client, start) >= answer_timeout(client);
}

static uint32_t ping_interval_ms(const tf_mqtt *client) {
    return client->server_keep_alive_seconds * 500u; /* half the keep alive time */
}

/* Called only when no byte is waiting: whatever came during a long computation has been seen. */
static void check_answers(tf_mqtt *client) {
    bool late = client->state == TF_MQTT_CONNECTING
                    ? overdue(client, true, client->state_since)
                    : overdue(client, client->ping_pending, client->ping_since) ||
                          overdue(client, client->subscribe_id != 0, client->subscribe_since) ||
                          overdue(client, client->unsubscribe_id != 0, client->unsubscribe_since) ||
                          overdue(client, client->publication_state >= TF_PUBLICATION_READY,
                                  client->publication_since);
    if (late) {
        lose(client, TF_MQTT_NO_ANSWER, 0);
    }
}

static void keep_alive(tf_mqtt *client) {
    if (client->server_keep_alive_seconds > 0 && !client->ping_pending &&
        since(client, client->last_sent) >= ping_interval_ms(client) &&
        tf_mqtt_queue_control(client, TF_PACKET_PINGREQ, NULL, 0)) {
        client->ping_pending = true;
        client->ping_since = tf_mqtt_now(client);
    }
}

static bool poll_connected(tf_mqtt *client) {
    const tf_stream *stream = client->stream;
    bool open = stream->is_open(stream->context); /* first: read what came before the end */
    if (client->connect_sent < client->connect_bytes) {
        size_t sent = stream->write(stream->context, client->receive + client->connect_sent,
                                    (size_t)(client->connect_bytes - client->connect_sent));
        client->connect_sent = (uint16_t)(client->connect_sent + sent);
        client->last_sent = tf_mqtt_now(client);
        if (client->connect_sent < client->connect_bytes) {
            if (!open) {
                lose(client, TF_MQTT_STREAM_CLOSED, 0);
            } else {
                check_answers(client);
            }
            return false;
        }
    }
    uint8_t reason = 0;
    bool handled = false;
    if (client->message_waits && !open) {
        lose(client, TF_MQTT_STREAM_CLOSED, 0); /* not acknowledged, so it comes again */
        return false;
    }
    switch (read_packet(client, &reason)) {
    case PACKET_BROKEN:
        lose_with_farewell(client, TF_MQTT_PROTOCOL_ERROR, reason, reason);
        return false;
    case PACKET_WHOLE:
        handle_packet(client);
        handled = !client->message_waits;
        break;
    case PACKET_NONE:
        if (!open) {
            lose(client, TF_MQTT_STREAM_CLOSED, 0);
            return false;
        }
        break;
    }
    if (client->state == TF_MQTT_ONLINE) {
        keep_alive(client);
        (void)tf_mqtt_flush(client, true);
    }
    if (!handled && !client->message_waits) {
        check_answers(client);
    }
    return handled;
}

static void poll_stopping(tf_mqtt *client) {
    const tf_stream *stream = client->stream;
    bool open = stream->is_open(stream->context);
    /* What still comes is dropped: the broker repeats what was not acknowledged. */
    (void)stream->read(stream->context, client->receive, client->receive_capacity);
    if (open && tf_mqtt_flush(client, false) && !client->disconnect_queued) {
        const uint8_t reason = TF_REASON_WITH_WILL;
        client->disconnect_queued = tf_mqtt_queue_control(client, TF_PACKET_DISCONNECT, &reason,
                                                          client->stop_with_will ? 1 : 0);
        (void)tf_mqtt_flush(client, false);
    }
    /* The broker hangs up on DISCONNECT; closing earlier could cut off its last bytes. */
    if (!open || since(client, client->state_since) >= answer_timeout(client)) {
        hang_up(client);
        enter(client, TF_MQTT_IDLE);
        tf_mqtt_tell(client, TF_MQTT_STOPPED, 0, 0);
    }
}

bool tf_mqtt_poll(tf_mqtt *client) {
    const tf_stream *stream = client->stream;
    switch (client->state) {
    case TF_MQTT_IDLE:
        return false;
    case TF_MQTT_WAITING:
        if (since(client, client->state_since) >= client->wait_ms) {
            stream->open(stream->context);
            enter(client, TF_MQTT_DIALLING);
        }
        return false;
    case TF_MQTT_DIALLING:
        if (stream->is_open(stream->context)) {
            client->connect_bytes = (uint16_t)tf_mqtt_compose_connect(
                client->config, client->receive, client->receive_capacity);
            client->connect_sent = 0;
            enter(client, TF_MQTT_CONNECTING);
            return true;
        }
        if (since(client, client->state_since) >= dial_timeout(client)) {
            lose(client, TF_MQTT_NO_ANSWER, 0);
        }
        return false;
    case TF_MQTT_CONNECTING:
    case TF_MQTT_ONLINE:
        return poll_connected(client);
    case TF_MQTT_STOPPING:
        poll_stopping(client);
        return false;
    }
    return false;
}

/* The smaller of `so_far` and what is left of `period` since `start`. */
static uint32_t sooner(const tf_mqtt *client, uint32_t so_far, uint32_t start, uint32_t period) {
    uint32_t passed = since(client, start);
    uint32_t left = passed < period ? period - passed : 0;
    return left < so_far ? left : so_far;
}

uint32_t tf_mqtt_next_poll_ms(const tf_mqtt *client) {
    uint32_t timeout = answer_timeout(client);
    switch (client->state) {
    case TF_MQTT_IDLE:
        return UINT32_MAX;
    case TF_MQTT_WAITING:
        return sooner(client, UINT32_MAX, client->state_since, client->wait_ms);
    case TF_MQTT_DIALLING:
        return sooner(client, BLOCKED_WAIT_MS * 4u, client->state_since, dial_timeout(client));
    default:
        break;
    }
    if (client->connect_sent < client->connect_bytes ||
        client->control_sent < client->control_bytes ||
        client->publication_state == TF_PUBLICATION_READY || client->message_waits) {
        return BLOCKED_WAIT_MS;
    }
    uint32_t wait = sooner(client, LONGEST_WAIT_MS, client->state_since,
                           client->state == TF_MQTT_ONLINE ? UINT32_MAX : timeout);
    if (client->state == TF_MQTT_ONLINE && client->server_keep_alive_seconds > 0 &&
        !client->ping_pending) {
        wait = sooner(client, wait, client->last_sent, ping_interval_ms(client));
    }
    return wait;
}

tf_mqtt_state tf_mqtt_current_state(const tf_mqtt *client) {
    return client->state;
}
