/* Shared by the files of the MQTT client only. */
#ifndef TF_LINK_MQTT_INTERNAL_H
#define TF_LINK_MQTT_INTERNAL_H

#include "tinyfleet/mqtt.h"

/* Packet types, MQTT 5 section 2.1.2, as the first byte with its fixed flags. */
#define TF_PACKET_CONNECT 0x10u
#define TF_PACKET_CONNACK 0x20u
#define TF_PACKET_PUBLISH 0x30u
#define TF_PACKET_PUBACK 0x40u
#define TF_PACKET_SUBSCRIBE 0x82u
#define TF_PACKET_SUBACK 0x90u
#define TF_PACKET_UNSUBSCRIBE 0xA2u
#define TF_PACKET_UNSUBACK 0xB0u
#define TF_PACKET_PINGREQ 0xC0u
#define TF_PACKET_PINGRESP 0xD0u
#define TF_PACKET_DISCONNECT 0xE0u

#define TF_PUBLISH_DUPLICATE 0x08u
#define TF_PUBLISH_QOS1 0x02u
#define TF_PUBLISH_RETAIN 0x01u

/* Reason codes of our own DISCONNECT and PUBACK. */
#define TF_REASON_WITH_WILL 0x04u
#define TF_REASON_MALFORMED 0x81u
#define TF_REASON_PROTOCOL 0x82u
#define TF_REASON_REFUSED_HERE 0x83u
#define TF_REASON_TOO_LARGE 0x95u
#define TF_REASON_PAYLOAD_INVALID 0x99u
#define TF_REASON_QOS2 0x9Bu

/* tf_mqtt.publication_state */
enum {
    TF_PUBLICATION_NONE,
    TF_PUBLICATION_COMPOSING, /* between begin and commit */
    TF_PUBLICATION_READY,     /* to be written, from publication_sent on */
    TF_PUBLICATION_SENT       /* waits for its PUBACK */
};

/* Takes bytes from the front of a packet; once it asked for more than is left, `failed`
 * stays true and everything taken is zero or empty. */
typedef struct {
    const uint8_t *next;
    size_t left;
    bool failed;
} tf_mqtt_reader;

const uint8_t *tf_mqtt_take_bytes(tf_mqtt_reader *reader, size_t length);
uint8_t tf_mqtt_take_u8(tf_mqtt_reader *reader);
uint16_t tf_mqtt_take_u16(tf_mqtt_reader *reader);
uint32_t tf_mqtt_take_u32(tf_mqtt_reader *reader);
/* Variable byte integer; fails on more than 4 bytes and on a form longer than needed. */
uint32_t tf_mqtt_take_variable(tf_mqtt_reader *reader);
/* 2-byte length and bytes. */
const uint8_t *tf_mqtt_take_binary(tf_mqtt_reader *reader, uint16_t *length);
/* The same; fails unless the bytes are well-formed UTF-8 without NUL. */
const char *tf_mqtt_take_text(tf_mqtt_reader *reader, uint16_t *length);

/* What the client wants to know from any packet's properties; the rest is checked and skipped. */
typedef struct {
    const char *response_topic;
    const uint8_t *correlation_data;
    uint32_t expiry_seconds; /* UINT32_MAX where absent */
    uint32_t packet_limit;   /* UINT32_MAX where absent */
    uint16_t response_topic_bytes;
    uint16_t correlation_data_bytes;
    uint16_t keep_alive_seconds; /* valid with has_keep_alive */
    uint8_t qos_limit;           /* 2 where absent */
    bool retain_available;       /* true where absent */
    bool has_keep_alive;
} tf_mqtt_properties;

/* Packets that carry properties, as bits. */
#define TF_IN_CONNACK 1u
#define TF_IN_PUBLISH 2u
#define TF_IN_ACK 4u /* PUBACK, SUBACK, UNSUBACK */
#define TF_IN_DISCONNECT 8u

/* Reads the property length and the properties. Fails the reader on a property that is unknown, not
 * allowed in this packet, given twice, out of range, or that runs over the end. */
void tf_mqtt_take_properties(tf_mqtt_reader *reader, unsigned packet,
                             tf_mqtt_properties *properties);

/* Handles the whole packet in the receive buffer. TF_OK: done. TF_AGAIN: a publication that was
 * not taken yet. TF_LINK_LOST: *event tells why the connection has to end, *farewell which
 * reason to send in a DISCONNECT (0: send none). */
tf_status tf_mqtt_handle_packet(tf_mqtt *client, tf_mqtt_event *event, uint8_t *farewell);

/* Composes CONNECT in the receive buffer; its length, or 0 where it doesn't fit. */
size_t tf_mqtt_compose_connect(const tf_mqtt_config *config, uint8_t *bytes, size_t capacity);

/* Queues a control packet of 2 + body_bytes bytes (body_bytes < 128); false without room. */
bool tf_mqtt_queue_control(tf_mqtt *client, uint8_t first, const uint8_t *body, size_t body_bytes);
bool tf_mqtt_control_has_room(const tf_mqtt *client, size_t bytes);

/* Writes what can be written now; `publication_too`: also begin one that is ready. true: nothing is
 * left to be written. */
bool tf_mqtt_flush(tf_mqtt *client, bool publication_too);

uint32_t tf_mqtt_now(const tf_mqtt *client);
uint32_t tf_mqtt_answer_timeout(const tf_mqtt *client);
void tf_mqtt_tell(tf_mqtt *client, tf_mqtt_event_type type, uint16_t packet_id, uint8_t reason);

#endif
