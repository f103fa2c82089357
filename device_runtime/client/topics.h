/* Topics of docs/specification/wire.md, as far as a device has to do with them. */
#ifndef TINYFLEET_TOPICS_H
#define TINYFLEET_TOPICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tinyfleet/messages.h"

#define TF_TOPIC_BYTES 88u /* fleet/<fleet>/dev/<device>/announce, NUL included */

/* Writes fleet/<fleet>/<branch>/<device>/<end>; returns its length. */
size_t tf_topic_of_device(const tf_identity *identity, const char *branch, const char *end,
                          char topic[TF_TOPIC_BYTES]);

/* Writes the filter fleet/<fleet>/blob/<prefix>/<group>/+ for the weights with this SHA-256. */
size_t tf_topic_of_group(const tf_identity *identity, const uint8_t *sha256, uint16_t group,
                         char topic[TF_TOPIC_BYTES]);

/* Whether the `bytes` of `topic` are that of a chunk of these weights, and of which one. */
bool tf_topic_names_chunk(const tf_identity *identity, const uint8_t *sha256, const char *topic,
                          size_t bytes, uint16_t *number);

#endif
