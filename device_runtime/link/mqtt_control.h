/* Packets to the broker but publications. */
#ifndef TF_LINK_MQTT_CONTROL_H
#define TF_LINK_MQTT_CONTROL_H

#include "tinyfleet/mqtt.h"

/* Composes CONNECT in the receive buffer; its length, or 0 where it doesn't fit. */
size_t tf_mqtt_compose_connect(const tf_mqtt_config *config, uint8_t *bytes, size_t capacity);

/* Queues a control packet of 2 + body_bytes bytes (body_bytes < 128); false without room. */
bool tf_mqtt_queue_control(tf_mqtt *client, uint8_t first, const uint8_t *body, size_t body_bytes);
bool tf_mqtt_control_has_room(const tf_mqtt *client, size_t bytes);

/* A packet identifier that nothing under way has. */
uint16_t tf_mqtt_next_packet_id(tf_mqtt *client);

#endif
