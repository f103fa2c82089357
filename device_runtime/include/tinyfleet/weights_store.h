/* Two-slot store of model weights that survives a power cut at any flash operation.
 *
 * docs/specification/flash.md has the format. What the application infers with is *current*: the
 * released slot, or the weights that are built into the firmware. The other slot is staged chunk by
 * chunk and becomes the *candidate*, the base of training rounds, with one programmed word, and
 * current with another one. Nothing but a release ever replaces current. Slots outlast the firmware
 * that wrote them: those of another model are as if erased.
 */
#ifndef TINYFLEET_WEIGHTS_STORE_H
#define TINYFLEET_WEIGHTS_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "tinyfleet/flash.h"

#define TF_WEIGHTS_CHUNK_BYTES 512u /* of the largest chunks: marks are reserved for those */
#define TF_WEIGHTS_DIGEST_BYTES 32u

/* All fields are the store's own; the caller keeps the struct. */
typedef struct {
    const tf_flash *flash;
    tf_flash_region slots[2];
    const uint8_t *factory;
    const uint8_t *factory_sha256;
    uint32_t model_digest;  /* slots with another one don't count */
    uint32_t weights_bytes; /* of the model; slots that hold another size don't count */
    uint32_t chunk_bytes;   /* of what is staged */
    uint32_t chunks;        /* of what is staged */
    uint32_t missing;       /* chunks without a mark */
    int8_t current;         /* slot, -1: factory */
    int8_t candidate;       /* slot, -1: none */
    int8_t staging;         /* slot, -1: nothing is staged */
    bool resumed;           /* the staged slot has chunks from before a reset */
    bool verified;          /* the staged slot has passed the digest check */
} tf_weights_store;

/* Bytes of a slot before the weights: its header, and a mark for each chunk. */
uint32_t tf_weights_payload_offset(uint32_t weights_bytes);

/* Looks for current and candidate. `slots` are two regions of flash, each large enough for
 * tf_weights_payload_offset(weights_bytes) + weights_bytes; `factory` and `factory_sha256` stay
 * valid and readable. `model_digest` tells weights of this model from those of any other.
 * TF_NO_MEMORY: a slot is too small. TF_FLASH_FAILED: a slot is outside the flash. */
tf_status tf_weights_open(tf_weights_store *store, const tf_flash *flash,
                          const tf_flash_region slots[2], const uint8_t *factory,
                          const uint8_t *factory_sha256, uint32_t model_digest,
                          uint32_t weights_bytes);

/* What the application infers with (in flash, 4-byte aligned), and its SHA-256. A slot whose header
 * is no longer what was written has lost its name and counts no more, for the candidate neither:
 * then these are the factory's. */
const uint8_t *tf_weights_current(const tf_weights_store *store);
const uint8_t *tf_weights_current_sha256(const tf_weights_store *store);

/* The same of the version that is committed and not released; NULL where there is none. */
const uint8_t *tf_weights_candidate(const tf_weights_store *store);
const uint8_t *tf_weights_candidate_sha256(const tf_weights_store *store);

/* Prepares a slot that is not current for the version `sha256`, or resumes it where it holds
 * chunks of that version already. Erases the candidate unless the other slot is free as well.
 * TF_BAD_INPUT: `weights_bytes` is not the model's, or `chunk_bytes` is 0, no multiple of 4,
 * or makes more chunks than there are marks. TF_FLASH_FAILED: the flash failed. */
tf_status tf_weights_stage(tf_weights_store *store, const uint8_t sha256[TF_WEIGHTS_DIGEST_BYTES],
                           uint32_t weights_bytes, uint32_t chunk_bytes);

/* Whether chunk `index` is in flash. */
bool tf_weights_has_chunk(const tf_weights_store *store, uint32_t index);

/* Writes chunk `index` (any order; one that is there already is left alone).
 * TF_BAD_INPUT: no such chunk, or not `bytes` long; TF_NOT_FOUND: nothing is staged;
 * TF_FLASH_FAILED: the flash failed, or holds bits of something else at that place
 * (tf_weights_discard and staging again helps in the second case). */
tf_status tf_weights_write_chunk(tf_weights_store *store, uint32_t index, const uint8_t *data,
                                 uint32_t bytes);

/* Checks the SHA-256 of the staged blob once no chunk is missing, and notes its CRC-32.
 * TF_AGAIN: chunks are missing; TF_BAD_INPUT: the digest differs; TF_NOT_FOUND: nothing is
 * staged; TF_FLASH_FAILED: the flash failed. */
tf_status tf_weights_verify(tf_weights_store *store);

/* The staged blob after tf_weights_verify, else NULL. */
const uint8_t *tf_weights_staged(const tf_weights_store *store);

/* Makes the verified staged version the candidate: a single word decides.
 * TF_NOT_FOUND: nothing is verified; TF_FLASH_FAILED: the flash failed, and the candidate is what
 * it was. */
tf_status tf_weights_commit(tf_weights_store *store);

/* Makes the version `sha256` current: a single word decides. Nothing is done where it is current
 * already.
 * TF_NOT_FOUND: it is neither candidate nor current; TF_FLASH_FAILED: the flash failed, and the
 * version that was current still is. */
tf_status tf_weights_release(tf_weights_store *store,
                             const uint8_t sha256[TF_WEIGHTS_DIGEST_BYTES]);

/* Erases what is staged. TF_FLASH_FAILED: the flash failed. */
tf_status tf_weights_discard(tf_weights_store *store);

#endif
