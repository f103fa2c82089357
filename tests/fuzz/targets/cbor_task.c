/* Fuzz target: the task decoder. */
#include <stdlib.h>

#include "tinyfleet/messages.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tf_task task;
    tf_task_parts parts;
    if (tf_decode_task(data, size, &task, &parts) != TF_OK) {
        return 0;
    }
    /* head 2, version 1, campaign 9, digests 34 each, unmaskers 9, chunk sizes 1 and 2, 20 numbers,
     * keyring and signature */
    if (size < 114 || task.chunk_bytes % 4u != 0u || task.chunk_bytes > TF_WEIGHTS_CHUNK_LIMIT ||
        task.uplink_chunk_bytes > TF_UPLINK_CHUNK_LIMIT) {
        abort();
    }
    /* Keyring and signature lie behind what is signed, the signature at the end. */
    if (parts.keyring_bytes > 256u || parts.signature_bytes > 64u ||
        parts.keyring <= data + parts.signed_bytes ||
        parts.signature <= parts.keyring + parts.keyring_bytes ||
        parts.signature + parts.signature_bytes != data + size) {
        abort();
    }
    return 0;
}
