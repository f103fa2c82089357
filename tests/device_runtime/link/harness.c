/* Drives the MQTT client by commands on standard input, so that tests in Python can script it.
 *
 * Without arguments about a broker the stream is a pair of buffers and the clock stands still
 * until told otherwise; with "tcp PORT" both are real. Every answer ends with a line ".". */
#define _POSIX_C_SOURCE 200809L
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "tinyfleet/mqtt.h"

typedef struct {
    bool tcp;
    int port;
    int socket;
    bool dialling;
    bool open;
    uint8_t in[65536];
    size_t in_start, in_end;
    uint8_t out[65536];
    size_t out_length;
    size_t read_limit;  /* bytes per read */
    size_t write_limit; /* bytes per write */
    size_t room;        /* bytes that writes still take */
    uint32_t clock;
    tf_status answer;
    uint32_t random_state;
    uint32_t drawn; /* bytes of the streamed publication */
} world;

static world the_world = {
    .socket = -1, .read_limit = 65536, .write_limit = 65536, .room = SIZE_MAX, .random_state = 1};
static unsigned event_count;

static void stream_close(void *context) {
    world *w = context;
    if (w->socket >= 0) {
        close(w->socket);
    }
    w->socket = -1;
    w->open = w->dialling = false;
    w->in_start = w->in_end = 0;
}

static void stream_open(void *context) {
    world *w = context;
    if (!w->tcp) {
        w->dialling = true;
        printf("dial\n");
        return;
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)w->port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    w->socket = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(w->socket, (struct sockaddr *)&address, sizeof address) != 0) {
        stream_close(w);
        return;
    }
    fcntl(w->socket, F_SETFL, O_NONBLOCK);
    w->open = true;
}

static bool stream_is_open(void *context) {
    return ((world *)context)->open;
}

static size_t stream_read(void *context, uint8_t *bytes, size_t capacity) {
    world *w = context;
    size_t most = capacity < w->read_limit ? capacity : w->read_limit;
    if (w->tcp) {
        ssize_t got = w->socket < 0 ? 0 : recv(w->socket, bytes, most, 0);
        if (w->socket >= 0 && (got == 0 || (got < 0 && errno != EAGAIN))) {
            w->open = false;
        }
        return got > 0 ? (size_t)got : 0;
    }
    size_t there = w->in_end - w->in_start;
    size_t count = there < most ? there : most;
    memcpy(bytes, w->in + w->in_start, count);
    w->in_start += count;
    return count;
}

static size_t stream_write(void *context, const uint8_t *bytes, size_t length) {
    world *w = context;
    size_t most = length < w->write_limit ? length : w->write_limit;
    if (!w->open) {
        return 0;
    }
    if (w->tcp) {
        ssize_t sent = send(w->socket, bytes, most, MSG_NOSIGNAL);
        return sent > 0 ? (size_t)sent : 0;
    }
    most = most < w->room ? most : w->room;
    if (w->out_length + most > sizeof w->out) {
        abort();
    }
    memcpy(w->out + w->out_length, bytes, most);
    w->out_length += most;
    w->room -= most;
    return most;
}

static uint32_t stream_milliseconds(void *context) {
    world *w = context;
    if (w->tcp) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint32_t)((uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u);
    }
    return w->clock;
}

static uint32_t random_bits(void *context) {
    world *w = context;
    w->random_state = w->random_state * 1664525u + 1013904223u;
    return w->random_state;
}

static void print_hex(const void *bytes, size_t length) {
    for (size_t i = 0; i < length; i++) {
        printf("%02x", ((const uint8_t *)bytes)[i]);
    }
}

static tf_status on_message(void *context, const tf_mqtt_message *message) {
    world *w = context;
    event_count++;
    printf("message topic=%.*s qos=%d retained=%d duplicate=%d expiry=%lld response=%.*s"
           " correlation=",
           message->topic_bytes, message->topic, message->qos, message->retained,
           message->duplicate,
           message->expiry_seconds == UINT32_MAX ? -1LL : (long long)message->expiry_seconds,
           message->response_topic_bytes, message->response_topic);
    print_hex(message->correlation_data, message->correlation_data_bytes);
    printf(" payload=");
    print_hex(message->payload, message->payload_bytes);
    printf("\n");
    return w->answer;
}

static void on_event(void *context, const tf_mqtt_event *event) {
    static const char *const types[] = {"connected",  "lost",         "published",
                                        "subscribed", "unsubscribed", "stopped"};
    static const char *const causes[] = {"stream-closed", "no-answer", "protocol-error", "refused",
                                         "disconnected"};
    (void)context;
    event_count++;
    printf("%s", types[event->type]);
    if (event->type == TF_MQTT_LOST) {
        printf(" cause=%s reason=%02x", causes[event->cause], event->reason);
    } else if (event->type != TF_MQTT_STOPPED && event->type != TF_MQTT_CONNECTED) {
        printf(" id=%u reason=%02x", event->packet_id, event->reason);
    }
    printf("\n");
}

/* A streamed publication's bytes: each other than its neighbours, without an end. */
static void source_restart(void *context) {
    ((world *)context)->drawn = 0;
    printf("restart\n");
}

static void source_read(void *context, uint8_t *bytes, size_t count) {
    world *w = context;
    for (size_t i = 0; i < count; i++) {
        bytes[i] = (uint8_t)(w->drawn * 7u + (w->drawn >> 8));
        w->drawn++;
    }
}

static size_t parse_hex(const char *text, uint8_t *bytes) {
    size_t length = 0;
    unsigned value;
    while (text != NULL && sscanf(text + 2 * length, "%2x", &value) == 1) {
        bytes[length++] = (uint8_t)value;
    }
    return length;
}

int main(int argc, char **argv) {
    static char line[140000];
    static uint8_t bytes[70000];
    static tf_mqtt client;
    static const char *const states[] = {"idle",       "waiting", "dialling",
                                         "connecting", "online",  "stopping"};
    uint8_t *receive = malloc(TF_MQTT_MINIMUM_RECEIVE_BYTES);
    uint8_t *transmit = malloc(TF_MQTT_MINIMUM_TRANSMIT_BYTES);
    world *w = &the_world;
    tf_mqtt_config config = {.client_id = "meter-1",
                             .keep_alive_seconds = 60,
                             .receive_maximum = 2,
                             .random = random_bits,
                             .random_context = w};
    const tf_stream stream = {stream_open,
                              stream_close,
                              stream_is_open,
                              stream_read,
                              stream_write,
                              stream_milliseconds,
                              w};
    const tf_mqtt_callbacks callbacks = {on_message, on_event, w};
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *value = argv[i + 1];
        if (!strcmp(argv[i], "tcp")) {
            w->tcp = true;
            w->port = atoi(value);
        } else if (!strcmp(argv[i], "id")) {
            config.client_id = value;
        } else if (!strcmp(argv[i], "user")) {
            config.user = value;
        } else if (!strcmp(argv[i], "password")) {
            config.password = value;
        } else if (!strcmp(argv[i], "will")) {
            config.will_topic = value;
            config.will_payload = (const uint8_t *)"gone";
            config.will_payload_bytes = 4;
        } else if (!strcmp(argv[i], "backoff")) {
            config.backoff_first_ms = (uint32_t)atoi(value);
        } else if (!strcmp(argv[i], "backoff-limit")) {
            config.backoff_limit_ms = (uint32_t)atoi(value);
        } else if (!strcmp(argv[i], "dial")) {
            config.dial_timeout_ms = (uint32_t)atoi(value);
        } else if (!strcmp(argv[i], "keepalive")) {
            config.keep_alive_seconds = (uint16_t)atoi(value);
        } else if (!strcmp(argv[i], "seed")) {
            w->random_state = (uint32_t)atoi(value);
        }
    }
    tf_status made =
        tf_mqtt_init(&client, &config, &stream, &callbacks, receive, TF_MQTT_MINIMUM_RECEIVE_BYTES,
                     transmit, TF_MQTT_MINIMUM_TRANSMIT_BYTES);
    if (made != TF_OK) {
        printf("init %d\n", made);
        free(receive);
        free(transmit);
        return 2;
    }
    while (fgets(line, sizeof line, stdin) != NULL) {
        char *command = strtok(line, " \n");
        char *first = strtok(NULL, " \n");
        char *second = strtok(NULL, " \n");
        char *third = strtok(NULL, " \n");
        char *fourth = strtok(NULL, " \n");
        unsigned long number = first != NULL ? strtoul(first, NULL, 0) : 0;
        uint16_t id = 0;
        if (command == NULL) {
            continue;
        } else if (!strcmp(command, "start")) {
            tf_mqtt_start(&client);
        } else if (!strcmp(command, "stop")) {
            tf_mqtt_stop(&client, number != 0);
        } else if (!strcmp(command, "accept")) {
            w->open = w->dialling;
        } else if (!strcmp(command, "hangup")) {
            w->open = false;
        } else if (!strcmp(command, "feed")) {
            size_t length = parse_hex(first, bytes);
            if (w->in_end + length > sizeof w->in) {
                abort();
            }
            memcpy(w->in + w->in_end, bytes, length);
            w->in_end += length;
        } else if (!strcmp(command, "read-limit")) {
            w->read_limit = number;
        } else if (!strcmp(command, "write-limit")) {
            w->write_limit = number;
        } else if (!strcmp(command, "room")) {
            w->room = first != NULL ? number : SIZE_MAX;
        } else if (!strcmp(command, "clock")) {
            w->clock += (uint32_t)number;
        } else if (!strcmp(command, "answer")) {
            w->answer = (tf_status)number;
        } else if (!strcmp(command, "poll")) {
            for (unsigned long i = 0; i < number; i++) {
                tf_mqtt_poll(&client);
            }
        } else if (!strcmp(command, "run")) { /* TCP: until an event, or so many milliseconds */
            uint32_t start = stream_milliseconds(w);
            unsigned before = event_count;
            while (stream_milliseconds(w) - start < number && event_count == before) {
                if (!tf_mqtt_poll(&client)) {
                    struct pollfd waiting = {w->socket, POLLIN, 0};
                    uint32_t wait = tf_mqtt_next_poll_ms(&client);
                    poll(&waiting, w->socket >= 0, wait < 20 ? (int)wait : 20);
                }
            }
        } else if (!strcmp(command, "out")) {
            printf("out ");
            print_hex(w->out, w->out_length);
            printf("\n");
            w->out_length = 0;
        } else if (!strcmp(command, "unread")) {
            printf("unread %zu\n", w->in_end - w->in_start);
        } else if (!strcmp(command, "state")) {
            printf("state %s\n", states[tf_mqtt_current_state(&client)]);
        } else if (!strcmp(command, "next")) {
            printf("next %u\n", tf_mqtt_next_poll_ms(&client));
        } else if (!strcmp(command, "publish")) { /* TOPIC RETAIN EXPIRY [HEX] */
            uint8_t *payload = NULL;
            size_t capacity = 0;
            size_t length = parse_hex(fourth, bytes);
            tf_status status =
                tf_mqtt_publish_begin(&client, first, strlen(first), atoi(second) != 0,
                                      (uint32_t)atoi(third), &payload, &capacity);
            if (status == TF_OK) {
                memcpy(payload, bytes, length < capacity ? length : capacity);
                status = tf_mqtt_publish_commit(&client, length, &id);
            }
            printf("publish %d id=%u\n", status, id);
        } else if (!strcmp(command, "stream")) { /* TOPIC HEAD BYTES */
            const tf_mqtt_source source = {source_restart, source_read, w};
            uint8_t *payload = NULL;
            size_t capacity = 0;
            size_t length = parse_hex(second, bytes);
            tf_status status =
                tf_mqtt_publish_begin(&client, first, strlen(first), false, 0, &payload, &capacity);
            if (status == TF_OK) {
                memcpy(payload, bytes, length < capacity ? length : capacity);
                status = tf_mqtt_publish_commit_stream(&client, length, &source,
                                                       (uint32_t)atol(third), &id);
            }
            printf("publish %d id=%u\n", status, id);
        } else if (!strcmp(command, "cancel")) {
            printf("cancel %d\n", tf_mqtt_publish_cancel(&client));
        } else if (!strcmp(command, "subscribe")) { /* FILTER [QOS] */
            uint8_t qos = second != NULL ? (uint8_t)atoi(second) : 1;
            tf_status status = tf_mqtt_subscribe(&client, first, strlen(first), qos, &id);
            printf("subscribe %d id=%u\n", status, id);
        } else if (!strcmp(command, "unsubscribe")) {
            tf_status status = tf_mqtt_unsubscribe(&client, first, strlen(first), &id);
            printf("unsubscribe %d id=%u\n", status, id);
        } else {
            printf("unknown command %s\n", command);
            return 2;
        }
        printf(".\n");
        fflush(stdout);
    }
    free(receive);
    free(transmit);
    return 0;
}
