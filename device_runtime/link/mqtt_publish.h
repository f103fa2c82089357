/* Publications to the broker, and writing what is ready. */
#ifndef TF_LINK_MQTT_PUBLISH_H
#define TF_LINK_MQTT_PUBLISH_H

#include "tinyfleet/mqtt.h"

/* Writes what can be written now; `publication_too`: also begin one that is ready. true: nothing is
 * left to be written. */
bool tf_mqtt_flush(tf_mqtt *client, bool publication_too);

/* After a connection was lost: what was under way starts again with the next one. */
void tf_mqtt_rewind_publication(tf_mqtt *client);

#endif
