/* Whatever identity, journal and a task say of keys: nothing is read that isn't there, a keyring never
 * goes back, and a delta that can be masked is masked as it was measured. */
#include "tinyfleet/keys.h"
#include "tinyfleet/crc32.h"
#include "tinyfleet/mask.h"

#define FLASH_BYTES (5u * SECTOR) /* one for the identity, two for each unit of the journal */
#include "ram_flash.h"

#define VALUES 70u

static bool secret(void *context, uint8_t *bytes, size_t count) {
    (void)context;
    memset(bytes, 0x5A, count);
    return true;
}

static const tf_port port = {.flash = &flash, .secret = secret};
static const tf_flash_region identity_region = {0, SECTOR, 0, 1};
static const tf_flash_region journal_region = {SECTOR, 4u * SECTOR, 1, 4};
static const tf_identity identity = {.fleet = "f", .device = "dev1"};
static int32_t next;

static void rewind(void *context) {
    (void)context;
    next = 0;
}

static int32_t next_value(void *context) {
    (void)context;
    return (next++ % 7 - 3) * 1000;
}

static void mask(tf_keys *keys, const tf_task *task) {
    static const uint8_t nonce[TF_NONCE_BYTES] = {1};
    static tf_mask_encoder encoder;
    static uint8_t coded[TF_NONCE_BYTES + TF_UNMASKERS_LIMIT * TF_SEAL_BYTES + 4u * (VALUES + 1u)];
    const tf_mask_source source = {rewind, next_value, NULL, VALUES};
    uint32_t bytes;
    uint32_t crc32;
    if (!tf_mask_is_sound(task) || !tf_keys_can_mask(keys, task->unmaskers) ||
        !tf_keys_make_seal_keys(keys)) {
        return;
    }
    tf_mask_open(&encoder, &source, task, keys, nonce);
    tf_mask_measure(&encoder, task, &bytes, &crc32);
    must(bytes <= sizeof coded);
    tf_mask_encoder_begin(&encoder);
    must(tf_mask_encoder_read(&encoder, coded, sizeof coded) == bytes);
    must(tf_crc32(0, coded, bytes) == crc32);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const size_t stored = size < FLASH_BYTES ? size : FLASH_BYTES;
    tf_journal journal;
    tf_keys keys;
    tf_task task;
    tf_task_parts parts;
    memset(content, 0xFF, sizeof content);
    memcpy(content, data, stored);
    must(tf_journal_open(&journal, &flash, &journal_region) == TF_OK);
    tf_keys_open(&keys, &identity, &port, &identity_region, &journal);
    must(tf_keys_has_authority(&keys) || tf_keys_generation(&keys) == 0u);
    const uint8_t *message = data + stored;
    const size_t length = size - stored;
    if (tf_decode_task(message, length, &task, &parts) != TF_OK) {
        return 0;
    }
    const uint32_t before = tf_keys_generation(&keys);
    const bool is_newer = tf_keys_take(&keys, parts.keyring, parts.keyring_bytes);
    must(is_newer ? tf_keys_generation(&keys) > before : tf_keys_generation(&keys) == before);
    (void)tf_keys_signed(&keys, (const char *)message, length, message, &parts);
    mask(&keys, &task);
    if (tf_keys_keep(&keys, &journal) == TF_OK) {
        const uint32_t kept = tf_keys_generation(&keys);
        must(tf_journal_open(&journal, &flash, &journal_region) == TF_OK);
        tf_keys_open(&keys, &identity, &port, &identity_region, &journal);
        must(tf_keys_generation(&keys) == kept);
    }
    return 0;
}
