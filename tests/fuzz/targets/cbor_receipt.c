/* Fuzz target: the receipt decoder. */
#include <stdlib.h>

#include "tinyfleet/messages.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tf_receipt *receipt = malloc(sizeof *receipt);
    /* array 1, version 1, campaign 9, and 1 to 5, 5, 2 and 5 for the numbers */
    if (tf_decode_receipt(data, size, receipt) == TF_OK && (size < 15 || size > 28)) {
        abort();
    }
    free(receipt);
    return 0;
}
