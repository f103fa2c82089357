/* Tells whole chunks from damaged ones. */
#include "tinyfleet/chunk.h"

#include "tinyfleet/crc32.h"

static void put_little_endian(uint8_t bytes[4], uint32_t value) {
    for (unsigned i = 0; i < 4u; i++) {
        bytes[i] = (uint8_t)(value >> (8u * i));
    }
}

bool tf_chunk_is_intact(uint32_t number, const uint8_t *payload, size_t bytes) {
    uint8_t expected[4];
    if (bytes <= TF_CHUNK_CRC_BYTES) {
        return false;
    }
    const size_t data = bytes - TF_CHUNK_CRC_BYTES;
    put_little_endian(expected, number);
    put_little_endian(expected, tf_crc32(tf_crc32(0, expected, 4), payload, data));
    for (unsigned i = 0; i < TF_CHUNK_CRC_BYTES; i++) {
        if (payload[data + i] != expected[i]) {
            return false;
        }
    }
    return true;
}
