/* Puts the fields of packets one behind the other. */
#ifndef TF_LINK_MQTT_WRITER_H
#define TF_LINK_MQTT_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TF_MQTT_PREFIX_BYTES 4u /* first byte and at most 3 bytes of remaining length */

typedef struct {
    uint8_t *bytes;
    size_t capacity;
    size_t length;
    bool failed;
} tf_mqtt_writer;

static inline void tf_mqtt_put_bytes(tf_mqtt_writer *w, const void *bytes, size_t length) {
    if (w->failed || length > w->capacity - w->length) {
        w->failed = true;
        return;
    }
    if (length > 0) {
        memcpy(w->bytes + w->length, bytes, length);
    }
    w->length += length;
}

static inline void tf_mqtt_put_number(tf_mqtt_writer *w, uint32_t value, unsigned length) {
    uint8_t bytes[4];
    for (unsigned i = 0; i < length; i++) {
        bytes[i] = (uint8_t)(value >> (8u * (length - 1u - i)));
    }
    tf_mqtt_put_bytes(w, bytes, length);
}

static inline void tf_mqtt_put_binary(tf_mqtt_writer *w, const void *bytes, size_t length) {
    if (length > UINT16_MAX) {
        w->failed = true;
        return;
    }
    tf_mqtt_put_number(w, (uint32_t)length, 2);
    tf_mqtt_put_bytes(w, bytes, length);
}

/* Variable byte integer for less than 2^21; returns its length. */
static inline unsigned tf_mqtt_make_variable(uint8_t bytes[3], size_t value) {
    unsigned length = 0;
    do {
        uint8_t more = value > 0x7F ? 0x80 : 0;
        bytes[length++] = (uint8_t)((value & 0x7Fu) | more);
        value >>= 7;
    } while (value > 0);
    return length;
}

#endif
