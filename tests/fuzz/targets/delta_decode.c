/* Fuzz target: the delta decoder, and the encoder on what it takes.
 *
 * Input: number of values (2 bytes, little endian), then the coded bytes. Coding is canonical, so
 * whatever decodes must encode to the same bytes. */
#include <stdlib.h>
#include <string.h>

#include "tinyfleet/delta_code.h"

typedef struct {
    const int32_t *values;
    uint32_t left;
} source;

static int32_t next_value(void *context) {
    source *s = context;
    if (s->left-- == 0) {
        abort();
    }
    return *s->values++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) {
        return 0;
    }
    uint32_t count = (uint32_t)data[0] | (uint32_t)data[1] << 8;
    int32_t *values = malloc(count * sizeof *values + 1);
    if (tf_delta_decode(data + 2, size - 2, values, count) == TF_OK) {
        uint8_t *again = malloc(size + 1);
        source from = {values, count};
        tf_delta_encoder encoder;
        tf_delta_encoder_begin(&encoder, next_value, &from, count);
        size_t length = tf_delta_encoder_read(&encoder, again, size + 1);
        if (length != size - 2 || memcmp(again, data + 2, length) != 0 || from.left != 0) {
            abort();
        }
        free(again);
    }
    free(values);
    return 0;
}
