/* SHA-256 (FIPS 180-4) over bytes that come in pieces. */
#ifndef TINYFLEET_SHA256_H
#define TINYFLEET_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define TF_SHA256_BYTES 32u

typedef struct {
    uint32_t state[8];
    uint64_t total_bytes;
    uint8_t block[64];
} tf_sha256;

void tf_sha256_begin(tf_sha256 *hash);
/* `bytes` may be NULL where `length` is 0. */
void tf_sha256_add(tf_sha256 *hash, const void *bytes, size_t length);
/* Writes the digest. The hash must be begun anew before it is used again. */
void tf_sha256_finish(tf_sha256 *hash, uint8_t digest[TF_SHA256_BYTES]);

#endif
