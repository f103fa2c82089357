/* Sends the delta until its receipt (wire.md, Receipts). */
#ifndef TINYFLEET_SENDING_H
#define TINYFLEET_SENDING_H

#include "tinyfleet/client.h"

typedef enum {
    TF_SENDING_GOES_ON,
    TF_SENDING_REFUSED,  /* by the broker, for good */
    TF_SENDING_BAD_TOPIC /* it isn't one that can be published to */
} tf_sending_result;

/* Holds the delta of the engine's state: `values` of it (0: only scores). A reason to decline, or
 * TF_REASON_NONE. */
tf_reason tf_sending_begin(tf_client *client, uint32_t values);
/* Sends what is due. */
tf_sending_result tf_sending_step(tf_client *client);
/* Lets go of the delta. TF_AGAIN: its bytes are still drawn from the engine. */
tf_status tf_sending_drop(tf_client *client);

/* The broker's answer to a publication; others than the delta's are passed over. */
void tf_sending_on_answer(tf_client *client, const tf_mqtt_event *event);
/* The connection is gone: the whole delta goes over the next one. */
void tf_sending_on_lost(tf_client *client);

#endif
