/* Digests with a domain: what is signed for one thing is good for no other. */
#include "digest.h"

#include <string.h>

#include "tinyfleet/keys.h"

void tf_digest_begin(tf_digest *digest, const char *domain) {
    crypto_blake2b_init(digest, TF_KEY_BYTES);
    tf_digest_add(digest, domain, strlen(domain) + 1u);
}

void tf_digest_add(tf_digest *digest, const void *bytes, size_t length) {
    crypto_blake2b_update(digest, bytes, length);
}

void tf_digest_add_name(tf_digest *digest, const char *name) {
    const size_t length = strlen(name);
    tf_digest_add_number(digest, (uint32_t)length, 1u);
    tf_digest_add(digest, name, length);
}

void tf_digest_add_number(tf_digest *digest, uint32_t number, uint32_t bytes) {
    const uint8_t all[4] = {(uint8_t)number, (uint8_t)(number >> 8), (uint8_t)(number >> 16),
                            (uint8_t)(number >> 24)};
    tf_digest_add(digest, all, bytes);
}

void tf_digest_end(tf_digest *digest, uint8_t result[32]) {
    crypto_blake2b_final(digest, result);
}
