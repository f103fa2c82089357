/* H(domain, parts…) of masking.md: BLAKE2b with 32 bytes, part by part. */
#ifndef TINYFLEET_PRIVACY_DIGEST_H
#define TINYFLEET_PRIVACY_DIGEST_H

#include <stddef.h>
#include <stdint.h>

#include "monocypher.h"

typedef crypto_blake2b_ctx tf_digest;

/* Begins with the domain's text and the zero byte behind it. */
void tf_digest_begin(tf_digest *digest, const char *domain);
void tf_digest_add(tf_digest *digest, const void *bytes, size_t length);
/* A name behind one byte with its length. */
void tf_digest_add_name(tf_digest *digest, const char *name);
/* The lowest `bytes` bytes of a number, the lowest first. */
void tf_digest_add_number(tf_digest *digest, uint32_t number, uint32_t bytes);
void tf_digest_end(tf_digest *digest, uint8_t result[32]);

#endif
