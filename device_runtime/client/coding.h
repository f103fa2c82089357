/* The delta's values as coded bytes: by entropy coding, or masked. */
#ifndef TINYFLEET_CODING_H
#define TINYFLEET_CODING_H

#include "tinyfleet/client.h"

/* Why the device can't code as the task says; TF_REASON_NONE: it can. */
tf_reason tf_coding_refusal(const tf_client *client);

/* Counts the coded bytes of `values` values of the engine's state and takes their CRC-32; the first
 * pass over them is begun then. A reason to decline, or TF_REASON_NONE. */
tf_reason tf_coding_measure(tf_client *client, uint32_t values);

/* Begins a pass over the coded bytes: the same ones each time. */
void tf_coding_begin(tf_client *client);

/* The next `count` bytes of the pass, which has them. */
void tf_coding_read(tf_client *client, uint8_t *bytes, size_t count);

#endif
