/* What every file of the MQTT client knows: packet types, states, clock, events. */
#ifndef TF_LINK_MQTT_PACKET_H
#define TF_LINK_MQTT_PACKET_H

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

#define TF_PUBLISH_DUPLICATE 0x08u /* never ours: every connection is a session of its own */
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
    TF_PUBLICATION_SENT,      /* waits for its PUBACK */
    TF_PUBLICATION_CANCELLED  /* the same, but it isn't repeated over the next connection */
};

static inline uint32_t tf_mqtt_now(const tf_mqtt *client) {
    return client->stream->milliseconds(client->stream->context);
}

static inline void tf_mqtt_tell(tf_mqtt *client, tf_mqtt_event_type type, uint16_t packet_id,
                                uint8_t reason) {
    const tf_mqtt_event event = {.type = type, .packet_id = packet_id, .reason = reason};
    client->callbacks.on_event(client->callbacks.context, &event);
}

#endif
