/* CRC-32 (IEEE 802.3, reflected, as zlib's crc32). */
#ifndef TINYFLEET_CRC32_H
#define TINYFLEET_CRC32_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32 of what `crc` already covers followed by `bytes`; begin with 0. `bytes` may be NULL
 * where `length` is 0. */
uint32_t tf_crc32(uint32_t crc, const void *bytes, size_t length);

#endif
