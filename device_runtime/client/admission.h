/* Which tasks a device takes (masking.md, "Signed tasks"; wire.md, "Leases"). */
#ifndef TINYFLEET_ADMISSION_H
#define TINYFLEET_ADMISSION_H

#include "tinyfleet/client.h"

/* Finds in flash what the device goes by. */
void tf_admission_open(tf_client *client);

/* Takes over a task's keyring where it is newer; then whether the task may be told to this device:
 * the reason why not, or TF_REASON_NONE. `task` and `parts` are the message's. */
tf_reason tf_admission_check(tf_client *client, const tf_mqtt_message *message, const tf_task *task,
                             const tf_task_parts *parts);

/* A task is taken: older ones aren't any more. */
void tf_admission_note(tf_client *client, const tf_task *task);

/* Writes to flash what must outlive a reset before the task is begun; may erase, so no chunk may
 * come. TF_FLASH_FAILED: it can't, and what is in flash counts. */
tf_status tf_admission_keep(tf_client *client);

/* Whether it is in flash. */
bool tf_admission_is_kept(const tf_client *client);

#endif
