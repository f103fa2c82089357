/* Fetches the chunks of staged weights, a group at a time (wire.md, Session, Window). */
#ifndef TINYFLEET_FETCH_H
#define TINYFLEET_FETCH_H

#include "tinyfleet/client.h"

typedef enum {
    TF_FETCH_GOES_ON,
    TF_FETCH_DONE,
    TF_FETCH_FLASH_FAILED
} tf_fetch_result;

/* Before anything else. */
void tf_fetch_init(tf_client *client);
/* Begins with what the store lacks of the weights `sha256`. Needs tf_fetch_is_quiet. */
void tf_fetch_begin(tf_client *client, const uint8_t *sha256);
/* Wants no more chunks; those that are asked for are unsubscribed. */
void tf_fetch_stop(tf_client *client);
/* No chunk can come: the ring stays free however long the core is away. */
bool tf_fetch_is_quiet(const tf_client *client);
/* Subscribes and unsubscribes what is due. */
void tf_fetch_keep_subscriptions(tf_client *client);
tf_fetch_result tf_fetch_step(tf_client *client);

/* A message whose topic isn't one for the device; false: nor one of a chunk. */
bool tf_fetch_on_message(tf_client *client, const tf_mqtt_message *message);
void tf_fetch_on_event(tf_client *client, const tf_mqtt_event *event);
/* The next connection knows of no subscription. */
void tf_fetch_on_lost(tf_client *client);

#endif
