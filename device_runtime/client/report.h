/* What the device says about itself: announcement and status. */
#ifndef TINYFLEET_REPORT_H
#define TINYFLEET_REPORT_H

#include "tinyfleet/client.h"

/* Composes topic and will. */
tf_status tf_report_init(tf_client *client, size_t *will_bytes);

/* Notes what became of `task`. Urgent: published at once, else when it lasts. */
void tf_report_note(tf_client *client, const tf_task *task, tf_device_state state, tf_reason reason,
                    bool urgent);

/* Notes what is to be said once about a task that the device doesn't work on. */
void tf_report_note_besides(tf_client *client, const tf_task *task, tf_device_state state,
                            tf_reason reason);

/* Everything is to be said again: to the broker nothing of it may be known. */
void tf_report_on_connected(tf_client *client);

/* Publishes what is due. */
void tf_report_step(tf_client *client);

/* Whether the broker has the state that lasts; where it hasn't, it is published now. */
bool tf_report_is_told(tf_client *client);

#endif
