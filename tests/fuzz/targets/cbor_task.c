/* Fuzz target: the task decoder. */
#include <stdlib.h>

#include "tinyfleet/messages.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tf_task task;
    if (tf_decode_task(data, size, &task) == TF_OK && size < 88) {
        abort(); /* shortest: array 1, version 1, campaign 9, round 1, digests 34 each, 8 numbers */
    }
    return 0;
}
