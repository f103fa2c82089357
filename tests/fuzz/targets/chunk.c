/* Fuzz target: topic and payload of a chunk of the weights.
 *
 * Input: length of the topic (1 byte), the topic, the payload. */
#include <stdlib.h>
#include <string.h>

#include "../../../device_runtime/client/topics.h"
#include "tinyfleet/chunk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const tf_identity identity = {.device = "d", .fleet = "f"};
    static const uint8_t sha256[TF_DIGEST_BYTES] = {0xab, 0xcd};
    char filter[TF_TOPIC_BYTES];
    uint16_t number;
    if (size == 0 || (size_t)data[0] + 1u > size) {
        return 0;
    }
    /* Both in memory of their own, so that the sanitizer sees one byte too many. */
    const size_t topic_bytes = data[0];
    const size_t payload_bytes = size - 1u - topic_bytes;
    char *topic = malloc(topic_bytes > 0u ? topic_bytes : 1u);
    uint8_t *payload = malloc(payload_bytes > 0u ? payload_bytes : 1u);
    memcpy(topic, data + 1, topic_bytes);
    memcpy(payload, data + 1u + topic_bytes, payload_bytes);
    if (tf_topic_names_chunk(&identity, sha256, topic, topic_bytes, &number)) {
        /* What is taken lies under the filter of its group. */
        const size_t length =
            tf_topic_of_group(&identity, sha256, (uint16_t)(number / TF_GROUP_CHUNKS), filter);
        if (memcmp(filter, topic, length - 1u) != 0 || topic_bytes - (length - 1u) > 5u) {
            abort();
        }
        (void)tf_chunk_is_intact(number, payload, payload_bytes);
    }
    free(topic);
    free(payload);
    return 0;
}
