/* Fuzz target: bytes from a broker, in arbitrary splits, into an MQTT client.
 *
 * Input: a list of commands, each one byte: 0xxxxxxx: the next x + 1 bytes of the input arrive;
 * 1000xxxx: x polls; 1001xxxx: x * 8 s pass; 1010xxxx: the callback's next answers; 1011xxxx:
 * subscribe, unsubscribe, publish; 1100xxxx: the stream closes; 1101xxxx: room for writing;
 * 1110xxxx: publishes x * 1,500 bytes from a source, or with 0 cancels what is under way. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tinyfleet/mqtt.h"

typedef struct {
    const uint8_t *data;
    size_t left;
    size_t arrived; /* of `data`, still to be read */
    bool open;
    size_t room;
    uint32_t clock;
    tf_status answer;
    tf_mqtt *client;
    bool lasts;      /* the source of a streamed publication may be drawn from */
    uint32_t stream; /* its bytes that are left */
    uint32_t stream_bytes;
    uint32_t checksum; /* of everything the callback may look at */
} world;

static void stream_open(void *context) {
    ((world *)context)->open = true;
}

static void stream_close(void *context) {
    world *w = context;
    w->open = false;
    w->data += w->arrived;
    w->left -= w->arrived;
    w->arrived = 0;
}

static bool stream_is_open(void *context) {
    return ((world *)context)->open;
}

static size_t stream_read(void *context, uint8_t *bytes, size_t capacity) {
    world *w = context;
    size_t count = w->arrived < capacity ? w->arrived : capacity;
    if (capacity == 0) {
        abort(); /* the contract of tf_stream */
    }
    memcpy(bytes, w->data, count);
    w->data += count;
    w->left -= count;
    w->arrived -= count;
    return count;
}

static size_t stream_write(void *context, const uint8_t *bytes, size_t length) {
    world *w = context;
    size_t count = length < w->room ? length : w->room;
    if (length == 0) {
        abort();
    }
    for (size_t i = 0; i < count; i++) {
        w->checksum += bytes[i];
    }
    w->room -= count;
    return w->open ? count : 0;
}

static uint32_t stream_milliseconds(void *context) {
    return ((world *)context)->clock;
}

static uint32_t random_bits(void *context) {
    return ((world *)context)->clock * 2654435761u;
}

static void look_at(world *w, const void *bytes, size_t length) {
    for (size_t i = 0; i < length; i++) {
        w->checksum += ((const uint8_t *)bytes)[i];
    }
}

static void publish(world *w) {
    uint8_t *payload;
    size_t capacity;
    uint16_t id;
    if (tf_mqtt_publish_begin(w->client, "fleet/x/gw/y/z/delta", 20, w->clock & 1, w->clock & 600,
                              &payload, &capacity) == TF_OK) {
        memset(payload, 0x55, capacity);
        if (tf_mqtt_publish_commit(w->client, w->checksum % (capacity + 1), &id) != TF_OK ||
            id == 0) {
            abort();
        }
    }
}

static void source_restart(void *context) {
    world *w = context;
    w->stream = w->stream_bytes;
}

static void source_read(void *context, uint8_t *bytes, size_t count) {
    world *w = context;
    if (!w->lasts || count == 0 || count > w->stream) {
        abort();
    }
    memset(bytes, 0xA5, count);
    w->stream -= (uint32_t)count;
}

static void stream_or_cancel(world *w, unsigned value) {
    const tf_mqtt_source source = {source_restart, source_read, w};
    uint8_t *payload;
    size_t capacity;
    uint16_t id;
    if (value == 0) {
        w->lasts = tf_mqtt_publish_cancel(w->client) == TF_AGAIN;
        return;
    }
    if (tf_mqtt_publish_begin(w->client, "fleet/x/gw/y/z/delta", 20, false, 60, &payload,
                              &capacity) == TF_OK) {
        memset(payload, 0x55, 100);
        w->stream_bytes = w->stream = value * 1500u;
        w->lasts = true;
        if (tf_mqtt_publish_commit_stream(w->client, 100, &source, w->stream_bytes, &id) != TF_OK) {
            abort();
        }
    }
}

static tf_status on_message(void *context, const tf_mqtt_message *message) {
    world *w = context;
    if (message->topic_bytes == 0 || message->qos > 1) {
        abort();
    }
    look_at(w, message->topic, message->topic_bytes);
    look_at(w, message->payload, message->payload_bytes);
    look_at(w, message->response_topic, message->response_topic_bytes);
    look_at(w, message->correlation_data, message->correlation_data_bytes);
    if (w->answer == TF_OK) {
        publish(w);
    }
    return w->answer;
}

static void on_event(void *context, const tf_mqtt_event *event) {
    world *w = context;
    uint16_t id;
    if (event->type == TF_MQTT_CONNECTED) {
        (void)tf_mqtt_subscribe(w->client, "fleet/x/to/z/+", 14, 1, &id);
        publish(w);
    }
}

static void one_command(world *w, uint8_t command) {
    uint16_t id;
    unsigned value = command & 15u;
    if (command < 0x80) {
        size_t more = command + 1u;
        w->arrived += more;
        w->arrived = w->arrived < w->left ? w->arrived : w->left;
        /* What has been announced must be read before the next command can be. */
        for (unsigned i = 0; i < 70 && w->arrived > 0; i++) {
            tf_mqtt_poll(w->client);
            w->clock += 50;
        }
        w->data += w->arrived;
        w->left -= w->arrived;
        w->arrived = 0;
        return;
    }
    switch (command >> 4) {
    case 8:
        for (unsigned i = 0; i < value; i++) {
            tf_mqtt_poll(w->client);
        }
        break;
    case 9:
        w->clock += value * 8000u;
        break;
    case 10:
        w->answer = (tf_status)(value % 7u);
        break;
    case 11:
        if (value & 1u) {
            (void)tf_mqtt_subscribe(w->client, "fleet/x/blob/y/0/+", 18, 0, &id);
        }
        if (value & 2u) {
            (void)tf_mqtt_unsubscribe(w->client, "fleet/x/blob/y/0/+", 18, &id);
        }
        if (value & 4u) {
            publish(w);
        }
        if (value & 8u) {
            tf_mqtt_stop(w->client, value & 1u);
        }
        break;
    case 12:
        w->open = false;
        tf_mqtt_start(w->client);
        break;
    case 14:
        stream_or_cancel(w, value);
        break;
    default:
        w->room = value == 15 ? 1000000 : value * 3u;
        break;
    }
    (void)tf_mqtt_next_poll_ms(w->client);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    /* Buffers from the heap, so that the sanitizer sees one byte too many. */
    uint8_t *receive = malloc(TF_MQTT_MINIMUM_RECEIVE_BYTES);
    uint8_t *transmit = malloc(TF_MQTT_MINIMUM_TRANSMIT_BYTES);
    tf_mqtt *client = malloc(sizeof *client);
    world w = {.data = data, .left = size, .room = 1000000, .client = client};
    const tf_stream stream = {stream_open, stream_close, stream_is_open,
                              stream_read, stream_write, stream_milliseconds,
                              &w};
    const tf_mqtt_config config = {.client_id = "z",
                                   .user = "z",
                                   .password = "p",
                                   .will_topic = "w",
                                   .keep_alive_seconds = 60,
                                   .receive_maximum = 2,
                                   .random = random_bits,
                                   .random_context = &w};
    const tf_mqtt_callbacks callbacks = {on_message, on_event, &w};
    if (tf_mqtt_init(client, &config, &stream, &callbacks, receive, TF_MQTT_MINIMUM_RECEIVE_BYTES,
                     transmit, TF_MQTT_MINIMUM_TRANSMIT_BYTES) != TF_OK) {
        abort();
    }
    tf_mqtt_start(client);
    for (unsigned i = 0; i < 3; i++) {
        tf_mqtt_poll(client);
    }
    while (w.left > 0) {
        uint8_t command = *w.data++;
        w.left--;
        one_command(&w, command);
    }
    free(client);
    free(transmit);
    free(receive);
    return 0;
}
