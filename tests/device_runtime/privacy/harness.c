/* Keys and masks of a device over emulated flash, for Python. */
#include <stdlib.h>
#include <string.h>

#include "../storage/emulated_flash.h"
#include "tinyfleet/keys.h"
#include "tinyfleet/mask.h"

/* The flash comes first: Python knows its beginning. */
typedef struct {
    emulated_flash flash;
    tf_port port;
    tf_identity identity;
    tf_journal journal;
    tf_keys keys;
    tf_mask_encoder encoder;
    const int32_t *values;
    uint32_t secret; /* counts; 0: the source fails */
} harness;

typedef struct {
    tf_flash_region identity, journal;
} places;

uint32_t harness_bytes(void);
void harness_start(harness *device, const char *fleet, const char *name, uint32_t secret);
tf_status harness_open(harness *device, const places *at);
tf_keys *harness_keys(harness *device);
tf_journal *harness_journal(harness *device);
const uint8_t *harness_seal_keys(harness *device);
int harness_signed(harness *device, const char *topic, size_t topic_bytes, const uint8_t *message,
                   size_t length);
uint32_t harness_mask(harness *device, const uint8_t *message, size_t length, const uint8_t *nonce,
                      const int32_t *values, uint32_t count, uint32_t piece, uint8_t *coded,
                      uint32_t *crc32);
void harness_set_secret(harness *device, uint32_t first);
void harness_noise(const uint8_t *key, uint32_t variance, int32_t *values, uint32_t count);

uint32_t harness_bytes(void) {
    return sizeof(harness);
}

static bool secret(void *context, uint8_t *bytes, size_t count) {
    harness *device = context;
    if (device->secret == 0u) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        device->secret = device->secret * 1664525u + 1013904223u;
        bytes[i] = (uint8_t)(device->secret >> 24);
    }
    return true;
}

void harness_start(harness *device, const char *fleet, const char *name, uint32_t first) {
    memset(device, 0, sizeof *device);
    emulated_flash_start(&device->flash, 1);
    strncpy(device->identity.fleet, fleet, TF_NAME_LIMIT);
    strncpy(device->identity.device, name, TF_NAME_LIMIT);
    device->secret = first;
    device->port.flash = &device->flash.flash;
    device->port.secret = secret;
    device->port.context = device;
}

tf_status harness_open(harness *device, const places *at) {
    const tf_status status = tf_journal_open(&device->journal, &device->flash.flash, &at->journal);
    if (status == TF_OK) {
        tf_keys_open(&device->keys, &device->identity, &device->port, &at->identity,
                     &device->journal);
    }
    return status;
}

void harness_set_secret(harness *device, uint32_t first) {
    device->secret = first;
}

tf_keys *harness_keys(harness *device) {
    return &device->keys;
}

tf_journal *harness_journal(harness *device) {
    return &device->journal;
}

const uint8_t *harness_seal_keys(harness *device) {
    return tf_keys_make_seal_keys(&device->keys) ? device->keys.seal_keys[0] : NULL;
}

int harness_signed(harness *device, const char *topic, size_t topic_bytes, const uint8_t *message,
                   size_t length) {
    tf_task task;
    tf_task_parts parts;
    if (tf_decode_task(message, length, &task, &parts) != TF_OK) {
        return -1;
    }
    return tf_keys_signed(&device->keys, topic, topic_bytes, message, &parts);
}

static const int32_t *next;

static void rewind(void *context) {
    next = ((const harness *)context)->values;
}

static int32_t next_value(void *context) {
    (void)context;
    return *next++;
}

/* Writes the coded bytes, read in pieces of that size after a pass that was given up; returns how
 * many there are, 0 for a task that can't be done. */
uint32_t harness_mask(harness *device, const uint8_t *message, size_t length, const uint8_t *nonce,
                      const int32_t *values, uint32_t count, uint32_t piece, uint8_t *coded,
                      uint32_t *crc32) {
    const tf_mask_source source = {rewind, next_value, device, count};
    tf_task task;
    tf_task_parts parts;
    uint32_t bytes;
    uint32_t given = 0;
    size_t got;
    if (tf_decode_task(message, length, &task, &parts) != TF_OK || !tf_mask_is_sound(&task) ||
        !tf_keys_can_mask(&device->keys, task.unmaskers) ||
        !tf_keys_make_seal_keys(&device->keys)) {
        return 0;
    }
    device->values = values;
    tf_mask_open(&device->encoder, &source, &task, &device->keys, nonce);
    tf_mask_measure(&device->encoder, &task, &bytes, crc32);
    tf_mask_encoder_begin(&device->encoder);
    (void)tf_mask_encoder_read(&device->encoder, coded, bytes / 2u);
    tf_mask_encoder_begin(&device->encoder);
    while ((got = tf_mask_encoder_read(&device->encoder, coded + given, piece)) > 0u) {
        given += (uint32_t)got;
    }
    if (given != bytes) {
        abort();
    }
    return bytes;
}

void harness_noise(const uint8_t *key, uint32_t variance, int32_t *values, uint32_t count) {
    tf_noise noise;
    tf_noise_begin(&noise, key, variance);
    for (uint32_t i = 0; i < count; i++) {
        values[i] = tf_noise_next(&noise);
    }
}
