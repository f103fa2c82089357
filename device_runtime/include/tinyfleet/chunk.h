/* Chunks of the weights as the broker has them (docs/specification/wire.md). */
#ifndef TINYFLEET_CHUNK_H
#define TINYFLEET_CHUNK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TF_GROUP_CHUNKS 32u /* that are asked for at a time */
#define TF_CHUNK_CRC_BYTES 4u

/* Whether the payload of chunk `number` arrived as it was published: its data, which are all
 * but the last TF_CHUNK_CRC_BYTES, and their CRC-32. */
bool tf_chunk_is_intact(uint32_t number, const uint8_t *payload, size_t bytes);

#endif
