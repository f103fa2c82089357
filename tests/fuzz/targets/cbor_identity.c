/* Fuzz target: the identity decoder. What it takes has names that topics can carry. */
#include <stdlib.h>
#include <string.h>

#include "tinyfleet/messages.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tf_identity *identity = malloc(sizeof *identity);
    if (tf_decode_identity(data, size, identity) == TF_OK &&
        (strlen(identity->device) - 1u >= TF_NAME_LIMIT ||
         strlen(identity->fleet) - 1u >= TF_NAME_LIMIT ||
         strlen(identity->password) - 1u >= TF_PASSWORD_LIMIT ||
         strpbrk(identity->device, "/+#") != NULL)) {
        abort();
    }
    free(identity);
    return 0;
}
