/* Lets Python give the encoder an array and read it in pieces of a chosen size. */
#include <stdlib.h>
#include <string.h>

#include "tinyfleet/delta_code.h"

typedef struct {
    const int32_t *values;
    uint32_t next;
    uint32_t count;
} array_source;

static int32_t next_value(void *context) {
    array_source *source = context;
    if (source->next == source->count) {
        abort(); /* more values were asked for than there are */
    }
    return source->values[source->next++];
}

/* Returns the number of coded bytes; *drawn is how many values were asked for. */
size_t code_array(const int32_t *values, uint32_t count, size_t piece, uint8_t *out,
                  size_t capacity, uint32_t *drawn) {
    array_source source = {values, 0, count};
    tf_delta_encoder encoder;
    size_t total = 0, length;
    memset(&encoder, 0xA5, sizeof encoder);
    tf_delta_encoder_begin(&encoder, next_value, &source, count);
    do {
        if (total + piece > capacity) {
            abort();
        }
        length = tf_delta_encoder_read(&encoder, out + total, piece);
        total += length;
    } while (length == piece);
    if (tf_delta_encoder_read(&encoder, out + total, piece) != 0) {
        abort();
    }
    *drawn = source.next;
    return total;
}

void measure_array(const int32_t *values, uint32_t count, uint32_t *bytes, uint32_t *crc) {
    array_source source = {values, 0, count};
    tf_delta_encoder encoder;
    tf_delta_measure(&encoder, next_value, &source, count, bytes, crc);
}
