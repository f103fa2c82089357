/* The work of a round, one bounded piece per step (wire.md, Round on the device). */
#ifndef TINYFLEET_ROUND_H
#define TINYFLEET_ROUND_H

#include "tinyfleet/client.h"

/* A message on the task topic. */
tf_status tf_round_on_task(tf_client *client, const tf_mqtt_message *message);
/* A message on the receipt topic. */
tf_status tf_round_on_receipt(tf_client *client, const tf_mqtt_message *message);
/* The next piece of work; true: there is more to do at once. */
bool tf_round_step(tf_client *client);

#endif
