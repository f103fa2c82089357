/* What to do with a packet from the broker. */
#ifndef TF_LINK_MQTT_RECEIVE_H
#define TF_LINK_MQTT_RECEIVE_H

#include "tinyfleet/mqtt.h"

/* Handles the whole packet in the receive buffer. TF_OK: done. TF_AGAIN: a publication that was
 * not taken yet. TF_LINK_LOST: *event tells why the connection has to end, *farewell which
 * reason to send in a DISCONNECT (0: send none). */
tf_status tf_mqtt_handle_packet(tf_mqtt *client, tf_mqtt_event *event, uint8_t *farewell);

#endif
