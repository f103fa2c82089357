/* Fields of MQTT packets (MQTT 5, sections 1.5 and 2.2.2), bounds and form checked. */
#ifndef TF_LINK_MQTT_READER_H
#define TF_LINK_MQTT_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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

#endif
