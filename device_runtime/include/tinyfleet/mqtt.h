/* MQTT 5 client for one device: QoS 1 both ways, one publication under way, no allocation.
 *
 * Polled: tf_mqtt_poll moves bytes, keeps the timers and calls back; nothing blocks. All
 * memory belongs to the caller and lives as long as the client: the struct, the receive
 * buffer (holds one whole incoming packet; also the CONNECT packet while connecting), and the
 * transmit buffer (holds the publication under way until it is acknowledged, over
 * reconnections too; of a streamed one its head, and its other bytes piece by piece).
 *
 * From tf_mqtt_start on the client connects by itself and connects again after every loss,
 * waiting a jittered, exponentially growing time. Every connection is a session of its own: the
 * broker keeps neither subscriptions nor messages for later. Any packet that breaks the MQTT 5 standard
 * or the limits below closes the stream (cause TF_MQTT_PROTOCOL_ERROR).
 */
#ifndef TINYFLEET_MQTT_H
#define TINYFLEET_MQTT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tinyfleet/status.h"
#include "tinyfleet/stream.h"

#define TF_MQTT_MINIMUM_RECEIVE_BYTES 768u /* also the maximum packet size of wire.md */
#define TF_MQTT_MINIMUM_TRANSMIT_BYTES 768u
#define TF_MQTT_CLIENT_ID_LIMIT 64u
#define TF_MQTT_TOPIC_LIMIT 128u   /* longest topic or filter that may be sent */
#define TF_MQTT_CONTROL_BYTES 192u /* room for SUBSCRIBE, UNSUBSCRIBE and some PUBACKs */

/* Reason codes of MQTT 5 (section 2.4) that callers tell apart; others pass through. */
#define TF_MQTT_SUCCESS 0x00u
#define TF_MQTT_NO_MATCHING_SUBSCRIBERS 0x10u
#define TF_MQTT_REASON_UNSPECIFIED 0x80u
#define TF_MQTT_BAD_CREDENTIALS 0x86u
#define TF_MQTT_NOT_AUTHORIZED 0x87u
#define TF_MQTT_SERVER_UNAVAILABLE 0x88u
#define TF_MQTT_BANNED 0x8Au
#define TF_MQTT_SESSION_TAKEN_OVER 0x8Eu
#define TF_MQTT_PACKET_TOO_LARGE 0x95u
#define TF_MQTT_RETAIN_NOT_SUPPORTED 0x9Au
#define TF_MQTT_QOS_NOT_SUPPORTED 0x9Bu

/* An incoming publication. Pointers lead into the receive buffer and hold during the callback
 * only. Text is UTF-8 without a terminator; topics hold no NUL and no wildcard. */
typedef struct {
    const char *topic;
    const uint8_t *payload;          /* NULL where payload_bytes is 0 */
    const char *response_topic;      /* NULL where there is none */
    const uint8_t *correlation_data; /* NULL where there is none */
    uint32_t expiry_seconds;         /* remaining lifetime; UINT32_MAX: none given */
    uint16_t topic_bytes;
    uint16_t payload_bytes;
    uint16_t response_topic_bytes;
    uint16_t correlation_data_bytes;
    uint8_t qos; /* 0 or 1 */
    bool retained;
    bool duplicate;
} tf_mqtt_message;

typedef enum {
    TF_MQTT_CONNECTED,    /* subscribe and publish now */
    TF_MQTT_LOST,         /* cause and reason are valid; the client dials again by itself */
    TF_MQTT_PUBLISHED,    /* packet_id and reason: acknowledged; reason >= 0x80: the broker
                             (or, with PACKET_TOO_LARGE, RETAIN_ and QOS_NOT_SUPPORTED, this
                             client because of the broker's limits) refused it for good */
    TF_MQTT_SUBSCRIBED,   /* packet_id and reason; >= 0x80: refused */
    TF_MQTT_UNSUBSCRIBED, /* packet_id and reason */
    TF_MQTT_STOPPED       /* after tf_mqtt_stop: DISCONNECT was sent and the stream closed */
} tf_mqtt_event_type;

typedef enum {
    TF_MQTT_STREAM_CLOSED,  /* peer hung up */
    TF_MQTT_NO_ANSWER,      /* dialling or an acknowledgement or PINGRESP took too long */
    TF_MQTT_PROTOCOL_ERROR, /* a packet broke the standard or our limits */
    TF_MQTT_REFUSED,        /* CONNACK with `reason`, such as TF_MQTT_BAD_CREDENTIALS */
    TF_MQTT_DISCONNECTED    /* the broker sent DISCONNECT with `reason` */
} tf_mqtt_cause;

typedef struct {
    tf_mqtt_event_type type;
    tf_mqtt_cause cause; /* TF_MQTT_LOST only */
    uint16_t packet_id;  /* as given by publish, subscribe, unsubscribe; 0 otherwise */
    uint8_t reason;      /* MQTT 5 reason code */
} tf_mqtt_event;

typedef struct {
    /* An incoming publication. TF_OK: taken, it is acknowledged now. TF_AGAIN: not yet, it
     * is handed over again at the next poll and nothing after it is read until then (so
     * don't wait here for an acknowledgement of your own). TF_BAD_INPUT or any other status:
     * acknowledged as refused (reason 0x99 or 0x83), never handed over again. May call
     * tf_mqtt_publish_* and tf_mqtt_(un)subscribe, but not poll, start, stop. */
    tf_status (*on_message)(void *context, const tf_mqtt_message *message);
    /* Something happened. The same calls are allowed as in on_message. */
    void (*on_event)(void *context, const tf_mqtt_event *event);
    void *context;
} tf_mqtt_callbacks;

/* Read for as long as the client is used. Texts are NUL-terminated UTF-8. */
typedef struct {
    const char *client_id;  /* 1 … TF_MQTT_CLIENT_ID_LIMIT bytes */
    const char *user;       /* NULL: none */
    const char *password;   /* NULL: none */
    const char *will_topic; /* NULL: no will. Else published by the broker, QoS 1, retained */
    const uint8_t *will_payload;
    uint16_t will_payload_bytes;
    uint16_t keep_alive_seconds;       /* 0: none */
    uint16_t receive_maximum;          /* QoS 1 messages under way to us, at least 1 */
    uint32_t dial_timeout_ms;          /* for the peer to pick up; 0: 5,000 */
    uint32_t answer_timeout_ms;        /* for each acknowledgement; 0: 20,000 */
    uint32_t backoff_first_ms;         /* 0: 1,000 */
    uint32_t backoff_limit_ms;         /* 0: 60,000; a wait is drawn from half to all of it */
    uint32_t (*random)(void *context); /* 32 random bits, for jitter only */
    void *random_context;
} tf_mqtt_config;

typedef enum {
    TF_MQTT_IDLE,       /* not started, or stopped */
    TF_MQTT_WAITING,    /* for the end of the back-off */
    TF_MQTT_DIALLING,   /* for the stream to open */
    TF_MQTT_CONNECTING, /* for CONNECT to go out and CONNACK to come in */
    TF_MQTT_ONLINE,
    TF_MQTT_STOPPING /* writing DISCONNECT */
} tf_mqtt_state;

/* Where the bytes of a streamed publication come from. */
typedef struct {
    /* The next `read` begins with the first byte. Called before the first one too. */
    void (*restart)(void *context);
    /* Gives the next `count` bytes, exactly. */
    void (*read)(void *context, uint8_t *bytes, size_t count);
    void *context;
} tf_mqtt_source;

/* Fields are private to device_runtime/link; use the functions below. */
typedef struct {
    const tf_mqtt_config *config;
    const tf_stream *stream;
    tf_mqtt_callbacks callbacks;
    uint8_t *receive;
    uint8_t *transmit;
    uint16_t receive_capacity;
    uint16_t transmit_capacity;
    tf_mqtt_state state;

    /* receive side */
    uint16_t received;      /* bytes of the packet that is being read */
    uint16_t packet_bytes;  /* whole packet, 0 until the length is known */
    uint16_t connect_bytes; /* CONNECT packet in the receive buffer */
    uint16_t connect_sent;
    bool message_waits; /* on_message said TF_AGAIN */

    /* publication in the transmit buffer */
    uint16_t publication_start;    /* offset of the packet's first byte */
    uint16_t publication_head_end; /* of what stays in the buffer */
    uint16_t publication_end;      /* of what is in the buffer now */
    uint16_t publication_sent;
    uint16_t publication_id;     /* 0: none */
    uint16_t publication_header; /* where the payload starts, while it is being composed */
    uint8_t publication_flags;
    uint8_t publication_state;
    tf_mqtt_source publication_source;
    uint32_t publication_stream_bytes; /* that come from it */
    uint32_t publication_left;         /* of those, not drawn yet */

    /* control packets: acknowledgements, SUBSCRIBE, PINGREQ, DISCONNECT */
    uint8_t control[TF_MQTT_CONTROL_BYTES];
    uint16_t control_bytes;
    uint16_t control_sent;
    uint16_t subscribe_id;
    uint16_t unsubscribe_id;
    uint8_t subscribe_qos; /* asked for by the SUBSCRIBE under way */
    uint16_t last_id;
    uint8_t control_reserved; /* kept free for the PUBACK of the message being handed over */
    bool ping_pending;
    bool disconnect_queued;

    /* what the broker allows */
    uint32_t server_packet_limit;
    uint16_t server_keep_alive_seconds;
    uint8_t server_qos_limit;
    bool server_retain;
    bool stop_with_will;

    /* timers, milliseconds of the stream's clock */
    uint32_t state_since;
    uint32_t wait_ms;
    uint32_t last_sent;
    uint32_t ping_since;
    uint32_t publication_since;
    uint32_t subscribe_since;
    uint32_t unsubscribe_since;
    uint8_t failures; /* connections in a row that brought no CONNACK with success */
} tf_mqtt;

/* Prepares a client; nothing is sent before tf_mqtt_start.
 * TF_NO_MEMORY: a buffer is smaller than its minimum above (or larger than 65,535).
 * TF_BAD_INPUT: client_id, receive_maximum, random or a callback is missing, or the CONNECT
 * packet of this configuration doesn't fit in the receive buffer. */
tf_status tf_mqtt_init(tf_mqtt *client, const tf_mqtt_config *config, const tf_stream *stream,
                       const tf_mqtt_callbacks *callbacks, uint8_t *receive, size_t receive_bytes,
                       uint8_t *transmit, size_t transmit_bytes);

/* Starts dialling at the next poll. Does nothing unless the state is TF_MQTT_IDLE. */
void tf_mqtt_start(tf_mqtt *client);

/* Sends DISCONNECT once the packets already begun have gone out, waits for the broker to hang up
 * (at most answer_timeout_ms), closes, and stays TF_MQTT_IDLE until the next start. A publication
 * not acknowledged by then is kept. `with_will` asks the broker to publish the
 * will all the same. TF_MQTT_STOPPED follows from a later poll in every case. */
void tf_mqtt_stop(tf_mqtt *client, bool with_will);

/* Reads, writes, keeps timers, calls back. Call whenever bytes came, and at least every
 * quarter of the keep alive time. Handles at most one incoming packet per call: returns true
 * while more may be waiting, so call again before sleeping. */
bool tf_mqtt_poll(tf_mqtt *client);

/* Milliseconds until a timer needs tf_mqtt_poll (at most; sooner when bytes come). */
uint32_t tf_mqtt_next_poll_ms(const tf_mqtt *client);

tf_mqtt_state tf_mqtt_current_state(const tf_mqtt *client);

/* true when a publication can be begun. */
bool tf_mqtt_can_publish(const tf_mqtt *client);

/* Publishes with QoS 1: begin, write at most *payload_capacity bytes to *payload, commit. Works
 * offline too: it goes out after the next CONNACK. `expiry_seconds` 0: no expiry. Sent
 * again after reconnections until the event TF_MQTT_PUBLISHED with the packet_id that commit gave.
 * begin: TF_AGAIN: another one is under way. TF_BAD_INPUT: topic empty, longer than
 * TF_MQTT_TOPIC_LIMIT or with a wildcard. A publication begun and not committed is dropped by the
 * next begin.
 * commit: TF_BAD_INPUT: nothing was begun. TF_NO_MEMORY: payload_bytes is above the capacity. */
tf_status tf_mqtt_publish_begin(tf_mqtt *client, const char *topic, size_t topic_bytes, bool retain,
                                uint32_t expiry_seconds, uint8_t **payload,
                                size_t *payload_capacity);
tf_status tf_mqtt_publish_commit(tf_mqtt *client, size_t payload_bytes, uint16_t *packet_id);

/* As commit, for a payload that never lies in memory as a whole: `head_bytes` were written to
 * *payload, `stream_bytes` more are drawn from `source` while there is room to send them, and
 * again from its first byte when the publication has to be sent again. So the source has to last
 * until the event TF_MQTT_PUBLISHED or a cancellation.
 * TF_NO_MEMORY: head_bytes leave no room, or there are more than a million stream_bytes. */
tf_status tf_mqtt_publish_commit_stream(tf_mqtt *client, size_t head_bytes,
                                        const tf_mqtt_source *source, uint32_t stream_bytes,
                                        uint16_t *packet_id);

/* Forgets the publication under way, if there is one: its source isn't called any more and no
 * event follows. TF_AGAIN: it is half written, and the stream would be of no use without the rest.
 * (Where it is out already, the next one waits for its acknowledgement.) */
tf_status tf_mqtt_publish_cancel(tf_mqtt *client);

/* Subscribes to a filter with QoS 0 or 1; one SUBSCRIBE at a time. The event TF_MQTT_SUBSCRIBED
 * tells the outcome. TF_AGAIN: one is under way or there is no room just now. TF_LINK_LOST: not
 * TF_MQTT_ONLINE (subscribe again after TF_MQTT_CONNECTED: requests don't outlive a connection).
 * TF_BAD_INPUT: filter empty or longer than TF_MQTT_TOPIC_LIMIT. TF_NO_MEMORY: the packet would be
 * larger than the broker allows. */
tf_status tf_mqtt_subscribe(tf_mqtt *client, const char *filter, size_t filter_bytes, uint8_t qos,
                            uint16_t *packet_id);
/* As tf_mqtt_subscribe; the event is TF_MQTT_UNSUBSCRIBED. */
tf_status tf_mqtt_unsubscribe(tf_mqtt *client, const char *filter, size_t filter_bytes,
                              uint16_t *packet_id);

#endif
