/* Two-slot weights store. The order of flash operations is what makes it safe:
 *
 *   stage:   erase the slot, program the header, its CRC last of all
 *   chunk:   program the payload words, then the chunk's mark
 *   verify:  check the digest, then program the payload's CRC
 *   commit:  program the commit word
 *   release: program the released word
 *
 * A slot counts as staged with an intact header, as committed with intact header, payload and
 * commit word, as released with the released word as well; so whatever an interrupted operation
 * left behind, the other slot keeps its part until the very last word is in.
 */
#include "tinyfleet/weights_store.h"

#include <stddef.h>

#include "tinyfleet/crc32.h"
#include "tinyfleet/sha256.h"

#define SLOT_MAGIC 0x33574654u
#define SLOT_COMMITTED 0x54494D43u
#define SLOT_RELEASED 0x534C4552u
#define MARKED 0u
#define HEADER_UNIT 4096u

enum {
    AT_MAGIC = 0,
    AT_SEQUENCE = 4,
    AT_WEIGHTS_BYTES = 8,
    AT_CHUNK_BYTES = 12,
    AT_MODEL_DIGEST = 16,
    AT_SHA256 = 20,
    AT_HEADER_CRC = 52,
    AT_PAYLOAD_CRC = 56,
    AT_COMMIT = 60,
    AT_RELEASED = 64,
    AT_MARKS = 128
};

#define HEADER_WORDS ((uint32_t)AT_HEADER_CRC / 4u)

static uint32_t slot_word(const tf_weights_store *store, int slot, uint32_t offset) {
    return tf_flash_word(store->flash, store->slots[slot].address + offset);
}

static const uint8_t *slot_bytes(const tf_weights_store *store, int slot, uint32_t offset,
                                 uint32_t bytes) {
    return store->flash->map(store->flash->context, store->slots[slot].address + offset, bytes);
}

uint32_t tf_weights_payload_offset(uint32_t weights_bytes) {
    const uint32_t chunks =
        weights_bytes / TF_WEIGHTS_CHUNK_BYTES + (weights_bytes % TF_WEIGHTS_CHUNK_BYTES != 0u);
    const uint32_t last = HEADER_UNIT - 1u;
    return ((uint32_t)AT_MARKS + 4u * chunks + last) & ~last;
}

static const uint8_t *slot_payload(const tf_weights_store *store, int slot) {
    return slot_bytes(store, slot, tf_weights_payload_offset(store->weights_bytes),
                      store->weights_bytes);
}

static tf_status write_slot_word(const tf_weights_store *store, int slot, uint32_t offset,
                                 uint32_t word) {
    const uint32_t address = store->slots[slot].address + offset;
    /* Bits of something else at that place can't be told from a broken word here. */
    return tf_flash_complete_word(store->flash, address, word) == TF_OK ? TF_OK : TF_FLASH_FAILED;
}

/* Whether `word` can still be programmed there: bits that faded to zero only erasing brings back. */
static bool is_open_for(const tf_weights_store *store, int slot, uint32_t offset, uint32_t word) {
    const uint32_t present = slot_word(store, slot, offset);
    return present != word && (present & word) == word;
}

static bool same_digest(const uint8_t *left, const uint8_t *right) {
    for (uint32_t i = 0; i < TF_WEIGHTS_DIGEST_BYTES; i++) {
        if (left[i] != right[i]) {
            return false;
        }
    }
    return true;
}

/* Whether weights of this model were staged there. */
static bool has_header(const tf_weights_store *store, int slot) {
    const uint8_t *header = slot_bytes(store, slot, 0, AT_HEADER_CRC);
    return header != NULL && slot_word(store, slot, AT_MAGIC) == SLOT_MAGIC &&
           slot_word(store, slot, AT_HEADER_CRC) == tf_crc32(0, header, AT_HEADER_CRC) &&
           slot_word(store, slot, AT_MODEL_DIGEST) == store->model_digest &&
           slot_word(store, slot, AT_WEIGHTS_BYTES) == store->weights_bytes;
}

static bool is_committed(const tf_weights_store *store, int slot) {
    const uint8_t *payload = slot_payload(store, slot);
    return payload != NULL && has_header(store, slot) &&
           slot_word(store, slot, AT_COMMIT) == SLOT_COMMITTED &&
           slot_word(store, slot, AT_PAYLOAD_CRC) == tf_crc32(0, payload, store->weights_bytes);
}

static uint32_t sequence_of(const tf_weights_store *store, int slot) {
    return slot_word(store, slot, AT_SEQUENCE);
}

/* Whether `slot` comes after `other`, a slot or -1. */
static bool is_above(const tf_weights_store *store, int slot, int other) {
    return other < 0 || sequence_of(store, slot) > sequence_of(store, other);
}

static void find_versions(tf_weights_store *store) {
    bool committed[2];
    for (int slot = 0; slot < 2; slot++) {
        committed[slot] = is_committed(store, slot);
        if (committed[slot] && slot_word(store, slot, AT_RELEASED) == SLOT_RELEASED &&
            is_above(store, slot, store->current)) {
            store->current = (int8_t)slot;
        }
    }
    for (int slot = 0; slot < 2; slot++) {
        if (committed[slot] && is_open_for(store, slot, AT_RELEASED, SLOT_RELEASED) &&
            is_above(store, slot, store->current) && is_above(store, slot, store->candidate)) {
            store->candidate = (int8_t)slot;
        }
    }
}

/* Above every sequence in flash, so that what is staged wins once it is committed. */
static uint32_t next_sequence(const tf_weights_store *store) {
    uint32_t newest = 0;
    for (int slot = 0; slot < 2; slot++) {
        if (has_header(store, slot) && sequence_of(store, slot) > newest) {
            newest = sequence_of(store, slot);
        }
    }
    return newest + 1u;
}

tf_status tf_weights_open(tf_weights_store *store, const tf_flash *flash,
                          const tf_flash_region slots[2], const uint8_t *factory,
                          const uint8_t *factory_sha256, uint32_t model_digest,
                          uint32_t weights_bytes) {
    store->flash = flash;
    store->slots[0] = slots[0];
    store->slots[1] = slots[1];
    store->factory = factory;
    store->factory_sha256 = factory_sha256;
    store->model_digest = model_digest;
    store->weights_bytes = weights_bytes;
    store->current = -1;
    store->candidate = -1;
    store->staging = -1;
    store->chunk_bytes = 0;
    store->chunks = 0;
    store->missing = 0;
    store->resumed = false;
    store->verified = false;
    const uint32_t payload_offset = tf_weights_payload_offset(weights_bytes);
    for (int slot = 0; slot < 2; slot++) {
        if (slots[slot].bytes < payload_offset ||
            slots[slot].bytes - payload_offset < weights_bytes) {
            return TF_NO_MEMORY;
        }
        if (slot_payload(store, slot) == NULL || slot_bytes(store, slot, 0, AT_MARKS) == NULL) {
            return TF_FLASH_FAILED;
        }
    }
    find_versions(store);
    return TF_OK;
}

static const uint8_t *digest_of(const tf_weights_store *store, int slot) {
    return slot_bytes(store, slot, AT_SHA256, TF_WEIGHTS_DIGEST_BYTES);
}

/* Whether a version that was found still has its name: bits may have turned over since. */
static bool is_named(const tf_weights_store *store, int slot) {
    return slot >= 0 && has_header(store, slot);
}

const uint8_t *tf_weights_current(const tf_weights_store *store) {
    return is_named(store, store->current) ? slot_payload(store, store->current) : store->factory;
}

const uint8_t *tf_weights_current_sha256(const tf_weights_store *store) {
    return is_named(store, store->current) ? digest_of(store, store->current)
                                           : store->factory_sha256;
}

const uint8_t *tf_weights_candidate(const tf_weights_store *store) {
    return is_named(store, store->candidate) ? slot_payload(store, store->candidate) : NULL;
}

const uint8_t *tf_weights_candidate_sha256(const tf_weights_store *store) {
    return is_named(store, store->candidate) ? digest_of(store, store->candidate) : NULL;
}

static uint32_t mark_offset(uint32_t index) {
    return (uint32_t)AT_MARKS + 4u * index;
}

/* The version that staging leaves alone: current, or where that is the factory's the candidate;
 * -1: both slots are free. */
static int kept(const tf_weights_store *store) {
    return store->current >= 0 ? store->current : store->candidate;
}

static bool is_resumable(const tf_weights_store *store, int slot, const uint8_t *sha256,
                         uint32_t chunk_bytes) {
    /* One that is not above what is kept would be no candidate once it is committed. */
    return has_header(store, slot) && is_open_for(store, slot, AT_COMMIT, SLOT_COMMITTED) &&
           slot_word(store, slot, AT_CHUNK_BYTES) == chunk_bytes &&
           is_above(store, slot, kept(store)) && same_digest(digest_of(store, slot), sha256);
}

static tf_status write_header(const tf_weights_store *store, int slot, const uint8_t *sha256,
                              uint32_t chunk_bytes, uint32_t sequence) {
    uint32_t words[HEADER_WORDS];
    uint8_t bytes[AT_HEADER_CRC];
    words[AT_MAGIC / 4] = SLOT_MAGIC;
    words[AT_SEQUENCE / 4] = sequence;
    words[AT_WEIGHTS_BYTES / 4] = store->weights_bytes;
    words[AT_CHUNK_BYTES / 4] = chunk_bytes;
    words[AT_MODEL_DIGEST / 4] = store->model_digest;
    for (uint32_t i = 0; i < TF_WEIGHTS_DIGEST_BYTES / 4u; i++) {
        words[AT_SHA256 / 4 + i] = tf_flash_word_of(sha256 + 4u * i, 4u);
    }
    for (uint32_t i = 0; i < HEADER_WORDS; i++) {
        tf_flash_put_word(bytes + 4u * i, words[i]);
        if (write_slot_word(store, slot, 4u * i, words[i]) != TF_OK) {
            return TF_FLASH_FAILED;
        }
    }
    return write_slot_word(store, slot, AT_HEADER_CRC, tf_crc32(0, bytes, AT_HEADER_CRC));
}

tf_status tf_weights_stage(tf_weights_store *store, const uint8_t sha256[TF_WEIGHTS_DIGEST_BYTES],
                           uint32_t weights_bytes, uint32_t chunk_bytes) {
    store->staging = -1;
    store->verified = false;
    store->resumed = false;
    if (weights_bytes != store->weights_bytes || chunk_bytes == 0u || chunk_bytes % 4u != 0u) {
        return TF_BAD_INPUT;
    }
    const uint32_t chunks = weights_bytes / chunk_bytes + (weights_bytes % chunk_bytes != 0u);
    if (chunks > (tf_weights_payload_offset(weights_bytes) - AT_MARKS) / 4u) {
        return TF_BAD_INPUT;
    }
    int staging = kept(store) == 0 ? 1 : 0;
    /* With both slots free either may hold the download of before a reset. */
    if (kept(store) < 0 && !is_resumable(store, staging, sha256, chunk_bytes) &&
        is_resumable(store, 1 - staging, sha256, chunk_bytes)) {
        staging = 1 - staging;
    }
    if (!is_resumable(store, staging, sha256, chunk_bytes)) {
        const uint32_t sequence = next_sequence(store);
        if (staging == store->candidate) {
            store->candidate = -1;
        }
        if (tf_flash_erase_unless_erased(store->flash, &store->slots[staging]) != TF_OK ||
            write_header(store, staging, sha256, chunk_bytes, sequence) != TF_OK) {
            return TF_FLASH_FAILED;
        }
    }
    store->staging = (int8_t)staging;
    store->chunk_bytes = chunk_bytes;
    store->chunks = chunks;
    store->missing = 0;
    for (uint32_t i = 0; i < chunks; i++) {
        if (tf_weights_has_chunk(store, i)) {
            store->resumed = true;
        } else {
            store->missing++;
        }
    }
    return TF_OK;
}

bool tf_weights_has_chunk(const tf_weights_store *store, uint32_t index) {
    return store->staging >= 0 && index < store->chunks &&
           slot_word(store, store->staging, mark_offset(index)) == MARKED;
}

tf_status tf_weights_write_chunk(tf_weights_store *store, uint32_t index, const uint8_t *data,
                                 uint32_t bytes) {
    if (store->staging < 0) {
        return TF_NOT_FOUND;
    }
    if (index >= store->chunks) {
        return TF_BAD_INPUT;
    }
    const uint32_t start = index * store->chunk_bytes;
    const uint32_t left = store->weights_bytes - start;
    if (bytes != (left < store->chunk_bytes ? left : store->chunk_bytes)) {
        return TF_BAD_INPUT;
    }
    if (tf_weights_has_chunk(store, index)) {
        return TF_OK;
    }
    const uint32_t offset = tf_weights_payload_offset(store->weights_bytes) + start;
    for (uint32_t i = 0; i < bytes; i += 4u) {
        if (write_slot_word(store, store->staging, offset + i,
                            tf_flash_word_of(data + i, bytes - i)) != TF_OK) {
            return TF_FLASH_FAILED;
        }
    }
    if (write_slot_word(store, store->staging, mark_offset(index), MARKED) != TF_OK) {
        return TF_FLASH_FAILED;
    }
    store->missing--;
    return TF_OK;
}

tf_status tf_weights_verify(tf_weights_store *store) {
    if (store->staging < 0) {
        return TF_NOT_FOUND;
    }
    if (store->missing != 0u) {
        return TF_AGAIN;
    }
    const uint8_t *payload = slot_payload(store, store->staging);
    const uint8_t *wanted = digest_of(store, store->staging);
    uint8_t digest[TF_SHA256_BYTES];
    tf_sha256 hash;
    if (payload == NULL || wanted == NULL) {
        return TF_FLASH_FAILED;
    }
    tf_sha256_begin(&hash);
    tf_sha256_add(&hash, payload, store->weights_bytes);
    tf_sha256_finish(&hash, digest);
    if (!same_digest(digest, wanted)) {
        return TF_BAD_INPUT;
    }
    if (write_slot_word(store, store->staging, AT_PAYLOAD_CRC,
                        tf_crc32(0, payload, store->weights_bytes)) != TF_OK) {
        return TF_FLASH_FAILED;
    }
    store->verified = true;
    return TF_OK;
}

const uint8_t *tf_weights_staged(const tf_weights_store *store) {
    return store->staging >= 0 && store->verified ? slot_payload(store, store->staging) : NULL;
}

tf_status tf_weights_commit(tf_weights_store *store) {
    if (store->staging < 0 || !store->verified) {
        return TF_NOT_FOUND;
    }
    if (write_slot_word(store, store->staging, AT_COMMIT, SLOT_COMMITTED) != TF_OK) {
        return TF_FLASH_FAILED;
    }
    store->candidate = store->staging;
    store->staging = -1;
    store->verified = false;
    return TF_OK;
}

tf_status tf_weights_release(tf_weights_store *store,
                             const uint8_t sha256[TF_WEIGHTS_DIGEST_BYTES]) {
    if (same_digest(tf_weights_current_sha256(store), sha256)) {
        return TF_OK;
    }
    const uint8_t *candidate = tf_weights_candidate_sha256(store);
    if (candidate == NULL || !same_digest(candidate, sha256)) {
        return TF_NOT_FOUND;
    }
    if (write_slot_word(store, store->candidate, AT_RELEASED, SLOT_RELEASED) != TF_OK) {
        return TF_FLASH_FAILED;
    }
    store->current = store->candidate;
    store->candidate = -1;
    return TF_OK;
}

tf_status tf_weights_discard(tf_weights_store *store) {
    if (store->staging < 0) {
        return TF_OK;
    }
    const int slot = store->staging;
    store->staging = -1;
    store->verified = false;
    return tf_flash_erase_region(store->flash, &store->slots[slot]);
}
