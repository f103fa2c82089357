/* The device's keys, its fleet's authority, and the keyring that it follows (masking.md, "Keys").
 *
 * The authority's public key is in the identity region. A device that has one follows the rightly
 * signed keyring with the highest generation that it has seen, and does nothing that the keyring's
 * task key didn't sign.
 */
#ifndef TINYFLEET_KEYS_H
#define TINYFLEET_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tinyfleet/flash.h"
#include "tinyfleet/journal.h"
#include "tinyfleet/messages.h"
#include "tinyfleet/port.h"
#include "tinyfleet/status.h"

#define TF_KEY_BYTES 32u
#define TF_SIGNATURE_BYTES 64u
#define TF_UNMASKERS_LIMIT 3u
#define TF_KEYRING_LIMIT (5u + TF_KEY_BYTES * (1u + TF_UNMASKERS_LIMIT) + TF_SIGNATURE_BYTES)

/* All fields are private to device_runtime/privacy. */
typedef struct {
    const tf_identity *identity;
    const uint8_t *device;    /* in flash: exchange key, signing key; NULL: none */
    const uint8_t *authority; /* in flash; NULL: none */
    bool has_authority;       /* also where its key is lost */
    uint16_t keyring_bytes;   /* 0: none */
    bool is_kept;             /* the keyring is in flash */
    bool has_seal_keys;       /* of the unmaskers of this keyring */
    uint8_t keyring[TF_KEYRING_LIMIT];
    uint8_t seal_keys[TF_UNMASKERS_LIMIT][TF_KEY_BYTES];
} tf_keys;

/* Finds the keys of a device. One with an authority and without keys of its own makes them where
 * the port has secrets. `identity` is read for as long as the keys are used. */
void tf_keys_open(tf_keys *keys, const tf_identity *identity, const tf_port *port,
                  const tf_flash_region *region, const tf_journal *journal);

/* Whether tasks have to be signed. So they do where the authority's key is missing or damaged and
 * anything else in flash shows that the device was given one; then no signature is right. */
bool tf_keys_has_authority(const tf_keys *keys);

/* Of the keyring that is followed; 0: none. */
uint32_t tf_keys_generation(const tf_keys *keys);

/* Follows a keyring from now on, if it is newer and signed by the authority; anything else is left
 * alone. true: it does, and tf_keys_keep is due. */
bool tf_keys_take(tf_keys *keys, const uint8_t *keyring, size_t length);

/* Writes the keyring to flash, unless it is there. Status as tf_journal_write. */
tf_status tf_keys_keep(tf_keys *keys, tf_journal *journal);

/* Whether the keyring's task key signed the task for this device, to be answered at that topic (may
 * be NULL without bytes); `bytes` are those of the whole message, whose parts `parts` names. */
bool tf_keys_signed(const tf_keys *keys, const char *response_topic, size_t topic_bytes,
                    const uint8_t *bytes, const tf_task_parts *parts);

/* Whether the device can mask for the unmaskers with this prefix of their digest: they are those of
 * its keyring, at least one, and it has keys of its own. */
bool tf_keys_can_mask(const tf_keys *keys, const uint8_t unmaskers[TF_PREFIX_BYTES]);

/* How many unmaskers the keyring has, and the public key of one. */
uint32_t tf_keys_unmaskers(const tf_keys *keys);
const uint8_t *tf_keys_unmasker(const tf_keys *keys, uint32_t unmasker);

/* The keys between the device and its keyring's unmaskers, computed once for each keyring and boot:
 * that takes as long as a key exchange for each. false: an unmasker's public key is none. */
bool tf_keys_make_seal_keys(tf_keys *keys);

#endif
