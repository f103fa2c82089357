/* Keys: what is in flash, what is newer, and who signed what. */
#include "tinyfleet/keys.h"

#include <string.h>

#include "digest.h"
#include "tinyfleet/identity_store.h"

#define EXCHANGE_KEY 0u /* offsets in the record of the device's keys */
#define SIGNING_KEY 32u /* seed, and public key */
#define DEVICE_BYTES (SIGNING_KEY + 2u * TF_KEY_BYTES)

#define UNMASKERS_AT 4u /* offsets in a keyring */
#define TASK_KEY_AT 5u
#define FIRST_UNMASKER_AT (TASK_KEY_AT + TF_KEY_BYTES)

static const uint8_t *find(const tf_port *port, const tf_flash_region *region, uint8_t kind,
                           uint32_t wanted_bytes) {
    const uint8_t *payload;
    uint32_t bytes;
    if (tf_identity_read(port->flash, region, kind, &payload, &bytes) != TF_OK ||
        bytes != wanted_bytes) {
        return NULL;
    }
    return payload;
}

/* The public half of the signing key of `seed`, as crypto_eddsa_key_pair has it. That takes 2 KB of
 * tables which nothing else here needs; X25519 gives the same point but for its sign, and the equation of a
 * signature, with the secret scalar for S, 1 for the hash and zero for R, holds for the right one only. */
static bool find_public_key(const uint8_t *seed, uint8_t *public_key) {
    static const uint8_t one[TF_KEY_BYTES] = {1};
    uint8_t scalar[2u * TF_KEY_BYTES];
    uint8_t equation[TF_SIGNATURE_BYTES] = {1}; /* R: the point zero */
    crypto_blake2b(scalar, sizeof scalar, seed, TF_KEY_BYTES);
    crypto_eddsa_trim_scalar(scalar, scalar);
    memset(scalar + TF_KEY_BYTES, 0, TF_KEY_BYTES);
    crypto_x25519_public_key(public_key, scalar);
    crypto_x25519_to_eddsa(public_key, public_key);
    crypto_eddsa_reduce(equation + TF_KEY_BYTES, scalar);
    bool is_right = crypto_eddsa_check_equation(equation, public_key, one) == 0;
    if (!is_right) {
        public_key[TF_KEY_BYTES - 1u] ^= 0x80u;
        is_right = crypto_eddsa_check_equation(equation, public_key, one) == 0;
    }
    crypto_wipe(scalar, sizeof scalar);
    crypto_wipe(equation, sizeof equation);
    return is_right;
}

/* The device's keys, from the port's secrets. */
static void make_device_keys(const tf_port *port, const tf_flash_region *region) {
    uint8_t made[DEVICE_BYTES];
    if (port->secret != NULL && port->secret(port->context, made, SIGNING_KEY + TF_KEY_BYTES) &&
        find_public_key(made + SIGNING_KEY, made + SIGNING_KEY + TF_KEY_BYTES)) {
        (void)tf_identity_add(port->flash, region, TF_IDENTITY_KEYS, made, sizeof made);
    }
    crypto_wipe(made, sizeof made);
}

static uint32_t generation_of(const uint8_t *keyring) {
    return tf_flash_word_of(keyring, 4u);
}

/* Whether these bytes are a keyring that the authority signed for this fleet. */
static bool is_right(const tf_keys *keys, const uint8_t *keyring, size_t length) {
    if (length < FIRST_UNMASKER_AT || keyring[UNMASKERS_AT] > TF_UNMASKERS_LIMIT ||
        length != FIRST_UNMASKER_AT + TF_KEY_BYTES * keyring[UNMASKERS_AT] + TF_SIGNATURE_BYTES) {
        return false;
    }
    const size_t body_bytes = length - TF_SIGNATURE_BYTES;
    tf_digest digest;
    uint8_t result[32];
    tf_digest_begin(&digest, "tinyfleet-keyring/1");
    tf_digest_add_name(&digest, keys->identity->fleet);
    tf_digest_add(&digest, keyring, body_bytes);
    tf_digest_end(&digest, result);
    return crypto_eddsa_check(keyring + body_bytes, keys->authority, result, sizeof result) == 0;
}

bool tf_keys_take(tf_keys *keys, const uint8_t *keyring, size_t length) {
    if (keys->authority == NULL || length < FIRST_UNMASKER_AT ||
        generation_of(keyring) <= tf_keys_generation(keys) || !is_right(keys, keyring, length)) {
        return false;
    }
    memcpy(keys->keyring, keyring, length);
    keys->keyring_bytes = (uint16_t)length;
    keys->is_kept = false;
    keys->has_seal_keys = false;
    return true;
}

/* Whether anything in flash shows that the device was given an authority's key. */
static bool had_authority(const tf_port *port, const tf_flash_region *region,
                          const tf_journal *journal) {
    const uint8_t *payload;
    uint32_t bytes;
    return tf_identity_read(port->flash, region, TF_IDENTITY_AUTHORITY, &payload, &bytes) ==
               TF_OK ||
           tf_identity_read(port->flash, region, TF_IDENTITY_KEYRING, &payload, &bytes) == TF_OK ||
           tf_journal_read(journal, TF_JOURNAL_KEYRING, &payload, &bytes) == TF_OK ||
           tf_journal_highest(journal, TF_JOURNAL_TASK) != 0u;
}

void tf_keys_open(tf_keys *keys, const tf_identity *identity, const tf_port *port,
                  const tf_flash_region *region, const tf_journal *journal) {
    const uint8_t *stored[2];
    uint32_t bytes[2];
    memset(keys, 0, sizeof *keys);
    keys->identity = identity;
    keys->is_kept = true;
    keys->authority = find(port, region, TF_IDENTITY_AUTHORITY, TF_KEY_BYTES);
    keys->has_authority = keys->authority != NULL || had_authority(port, region, journal);
    if (keys->authority == NULL) {
        return;
    }
    if (find(port, region, TF_IDENTITY_KEYS, DEVICE_BYTES) == NULL) {
        make_device_keys(port, region);
    }
    keys->device = find(port, region, TF_IDENTITY_KEYS, DEVICE_BYTES);
    /* The journal's is the newer one as a rule: then the other one needn't be checked. Where the
     * device has come to another fleet, it is that fleet's no more. Perhaps only the unit that the
     * next rotation erases still has it: it counts as kept once it was written again. */
    if (tf_journal_read(journal, TF_JOURNAL_KEYRING, &stored[0], &bytes[0]) == TF_OK) {
        (void)tf_keys_take(keys, stored[0], bytes[0]);
    }
    if (tf_identity_read(port->flash, region, TF_IDENTITY_KEYRING, &stored[1], &bytes[1]) ==
            TF_OK &&
        tf_keys_take(keys, stored[1], bytes[1])) {
        keys->is_kept = true;
    }
}

bool tf_keys_has_authority(const tf_keys *keys) {
    return keys->has_authority;
}

uint32_t tf_keys_generation(const tf_keys *keys) {
    return keys->keyring_bytes == 0u ? 0u : generation_of(keys->keyring);
}

tf_status tf_keys_keep(tf_keys *keys, tf_journal *journal) {
    if (keys->is_kept) {
        return TF_OK;
    }
    const tf_status status =
        tf_journal_write(journal, TF_JOURNAL_KEYRING, keys->keyring, keys->keyring_bytes);
    keys->is_kept = status == TF_OK;
    return status;
}

bool tf_keys_signed(const tf_keys *keys, const char *response_topic, size_t topic_bytes,
                    const uint8_t *bytes, const tf_task_parts *parts) {
    static const uint8_t empty[2] = {0x40, 0x40}; /* of keyring and signature */
    if (keys->keyring_bytes == 0u || parts->signature_bytes != TF_SIGNATURE_BYTES ||
        topic_bytes > UINT8_MAX) {
        return false;
    }
    tf_digest digest;
    uint8_t result[32];
    tf_digest_begin(&digest, "tinyfleet-task/1");
    tf_digest_add_name(&digest, keys->identity->fleet);
    tf_digest_add_name(&digest, keys->identity->device);
    tf_digest_add_number(&digest, (uint32_t)topic_bytes, 1u);
    tf_digest_add(&digest, response_topic, topic_bytes);
    tf_digest_add(&digest, bytes, parts->signed_bytes);
    tf_digest_add(&digest, empty, sizeof empty);
    tf_digest_end(&digest, result);
    return crypto_eddsa_check(parts->signature, keys->keyring + TASK_KEY_AT, result,
                              sizeof result) == 0;
}

uint32_t tf_keys_unmaskers(const tf_keys *keys) {
    return keys->keyring_bytes == 0u ? 0u : keys->keyring[UNMASKERS_AT];
}

const uint8_t *tf_keys_unmasker(const tf_keys *keys, uint32_t unmasker) {
    return keys->keyring + FIRST_UNMASKER_AT + TF_KEY_BYTES * unmasker;
}

bool tf_keys_can_mask(const tf_keys *keys, const uint8_t unmaskers[TF_PREFIX_BYTES]) {
    const uint32_t count = tf_keys_unmaskers(keys);
    tf_digest digest;
    uint8_t result[32];
    if (keys->device == NULL || count == 0u) {
        return false;
    }
    tf_digest_begin(&digest, "tinyfleet-unmaskers/1");
    tf_digest_add(&digest, tf_keys_unmasker(keys, 0), TF_KEY_BYTES * count);
    tf_digest_end(&digest, result);
    return memcmp(result, unmaskers, TF_PREFIX_BYTES) == 0;
}

bool tf_keys_make_seal_keys(tf_keys *keys) {
    static const uint8_t none[TF_KEY_BYTES] = {0};
    uint8_t public_key[TF_KEY_BYTES];
    uint8_t shared[TF_KEY_BYTES];
    if (keys->has_seal_keys) {
        return true;
    }
    bool are_keys = true;
    crypto_x25519_public_key(public_key, keys->device + EXCHANGE_KEY);
    for (uint32_t i = 0; i < tf_keys_unmaskers(keys); i++) {
        const uint8_t *unmasker = tf_keys_unmasker(keys, i);
        tf_digest digest;
        crypto_x25519(shared, keys->device + EXCHANGE_KEY, unmasker);
        are_keys = are_keys && crypto_verify32(shared, none) != 0;
        tf_digest_begin(&digest, "tinyfleet-seal/1");
        tf_digest_add(&digest, shared, sizeof shared);
        tf_digest_add(&digest, public_key, sizeof public_key);
        tf_digest_add(&digest, unmasker, TF_KEY_BYTES);
        tf_digest_end(&digest, keys->seal_keys[i]);
    }
    crypto_wipe(shared, sizeof shared);
    keys->has_seal_keys = are_keys;
    return are_keys;
}
