/* Composes topics and takes those of chunks apart. */
#include "topics.h"

#include <string.h>

#include "tinyfleet/chunk.h"

#define LONGEST_NUMBER 5u /* digits */

/* Appends `text`; the names' limits make sure that it fits. */
static size_t append(char *topic, size_t length, const char *text) {
    const size_t bytes = strlen(text);
    memcpy(topic + length, text, bytes + 1u);
    return length + bytes;
}

static size_t append_number(char *topic, size_t length, uint16_t number) {
    char digits[LONGEST_NUMBER + 1u];
    size_t first = LONGEST_NUMBER;
    digits[LONGEST_NUMBER] = '\0';
    do {
        digits[--first] = (char)('0' + number % 10u);
        number = (uint16_t)(number / 10u);
    } while (number > 0u);
    return append(topic, length, digits + first);
}

size_t tf_topic_of_device(const tf_identity *identity, const char *branch, const char *end,
                          char topic[TF_TOPIC_BYTES]) {
    size_t length = append(topic, 0, "fleet/");
    length = append(topic, length, identity->fleet);
    length = append(topic, length, "/");
    length = append(topic, length, branch);
    length = append(topic, length, "/");
    length = append(topic, length, identity->device);
    length = append(topic, length, "/");
    return append(topic, length, end);
}

/* fleet/<fleet>/blob/<prefix>/ */
static size_t begin_chunk(const tf_identity *identity, const uint8_t *sha256,
                          char topic[TF_TOPIC_BYTES]) {
    static const char hex[] = "0123456789abcdef";
    size_t length = append(topic, 0, "fleet/");
    length = append(topic, length, identity->fleet);
    length = append(topic, length, "/blob/");
    for (uint32_t i = 0; i < TF_PREFIX_BYTES; i++) {
        topic[length++] = hex[sha256[i] >> 4];
        topic[length++] = hex[sha256[i] & 15u];
    }
    return append(topic, length, "/");
}

size_t tf_topic_of_group(const tf_identity *identity, const uint8_t *sha256, uint16_t group,
                         char topic[TF_TOPIC_BYTES]) {
    size_t length = begin_chunk(identity, sha256, topic);
    length = append_number(topic, length, group);
    return append(topic, length, "/+");
}

bool tf_topic_names_chunk(const tf_identity *identity, const uint8_t *sha256, const char *topic,
                          size_t bytes, uint16_t *number) {
    char expected[TF_TOPIC_BYTES];
    const char *digits = topic + bytes;
    uint32_t value = 0;
    uint32_t place = 1;
    while (digits > topic && digits[-1] >= '0' && digits[-1] <= '9' && value <= UINT16_MAX) {
        value += place * (uint32_t)(*--digits - '0');
        place *= 10u;
        if (topic + bytes - digits > (ptrdiff_t)LONGEST_NUMBER) {
            return false;
        }
    }
    if (value > UINT16_MAX) {
        return false;
    }
    /* One topic per chunk: written anew it must be the same. */
    size_t length = begin_chunk(identity, sha256, expected);
    length = append_number(expected, length, (uint16_t)(value / TF_GROUP_CHUNKS));
    length = append(expected, length, "/");
    length = append_number(expected, length, (uint16_t)value);
    *number = (uint16_t)value;
    return length == bytes && memcmp(expected, topic, bytes) == 0;
}
