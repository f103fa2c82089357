/* Firmware that starts the board and idles; the tests call the flash and what is stored in it. */
#include <string.h>

#include "../../../device_runtime/port/board.h"
#include "tinyfleet/sample_log.h"
#include "tinyfleet/sha256.h"
#include "tinyfleet/weights_store.h"

#define WEIGHTS_BYTES 402u
#define CHUNK_BYTES 64u
#define SAMPLE_BYTES 30u

static const tf_port *port;
static tf_weights_store store;
static uint32_t model_digest;
static uint8_t blob[WEIGHTS_BYTES];
static uint8_t digest[TF_SHA256_BYTES];
static uint8_t factory_digest[TF_SHA256_BYTES];
static const uint8_t factory[WEIGHTS_BYTES];

uint32_t erase(uint32_t sector) {
    return port->flash->erase_sector(port->flash->context, (uint16_t)sector);
}

uint32_t program(uint32_t address, uint32_t word) {
    return port->flash->program_word(port->flash->context, address, word);
}

uint32_t place_of(uint32_t address, uint32_t bytes) {
    return (uint32_t)(uintptr_t)port->flash->map(port->flash->context, address, bytes);
}

uint32_t peek(uint32_t address) {
    return *(volatile uint32_t *)(uintptr_t)address;
}

uint32_t poke(uint32_t address, uint32_t value) {
    *(volatile uint32_t *)(uintptr_t)address = value;
    return value;
}

static void make_version(uint32_t version) {
    uint32_t random = version;
    for (uint32_t i = 0; i < WEIGHTS_BYTES; i++) {
        random = random * 1664525u + 1013904223u;
        blob[i] = (uint8_t)(random >> 24);
    }
    tf_sha256 hash;
    tf_sha256_begin(&hash);
    tf_sha256_add(&hash, blob, WEIGHTS_BYTES);
    tf_sha256_finish(&hash, digest);
}

static tf_status open_store(void) {
    const tf_board_layout layout = tf_board_get_layout();
    return tf_weights_open(&store, port->flash, layout.slots, factory, factory_digest, model_digest,
                           WEIGHTS_BYTES);
}

/* From now until the next reset this is firmware of another model. */
uint32_t become_model(uint32_t digest) {
    model_digest = digest;
    return TF_OK;
}

/* Makes `version` the active one as a round does, from whatever the flash holds. */
uint32_t update(uint32_t version) {
    make_version(version);
    tf_status status = open_store();
    if (status == TF_OK) {
        status = tf_weights_stage(&store, digest, WEIGHTS_BYTES, CHUNK_BYTES);
    }
    for (uint32_t i = 0; status == TF_OK && i * CHUNK_BYTES < WEIGHTS_BYTES; i++) {
        const uint32_t left = WEIGHTS_BYTES - i * CHUNK_BYTES;
        status = tf_weights_write_chunk(&store, i, blob + i * CHUNK_BYTES,
                                        left < CHUNK_BYTES ? left : CHUNK_BYTES);
    }
    if (status == TF_OK) {
        status = tf_weights_verify(&store);
    }
    return status == TF_OK ? tf_weights_commit(&store) : status;
}

/* Whether the active weights are those of `version`; 0 is the factory's. */
uint32_t is_active(uint32_t version) {
    if (open_store() != TF_OK) {
        return 0;
    }
    make_version(version);
    const uint8_t *wanted = version == 0u ? factory : blob;
    return memcmp(tf_weights_active(&store), wanted, WEIGHTS_BYTES) == 0;
}

static tf_status open_log(tf_sample_log *log) {
    const tf_board_layout layout = tf_board_get_layout();
    return tf_sample_log_open(log, port->flash, &layout.samples);
}

/* Samples that can be used, or -1 where there is no log. */
uint32_t samples(void) {
    tf_sample_log log;
    if (open_log(&log) != TF_OK) {
        return 0xFFFFFFFFu;
    }
    return tf_sample_log_count(&log, false, SAMPLE_BYTES, 10u) +
           tf_sample_log_count(&log, true, SAMPLE_BYTES, 10u);
}

uint32_t record(uint32_t label) {
    tf_sample_log log;
    const tf_status status = open_log(&log);
    return status != TF_OK
               ? status
               : tf_sample_log_append(&log, TF_RECORD_SAMPLE, (uint16_t)label, blob, SAMPLE_BYTES);
}

uint32_t erase_log(void) {
    tf_sample_log log;
    const tf_status status = open_log(&log);
    return status != TF_OK ? status : tf_sample_log_erase(&log);
}

uint32_t (*volatile calls[])() = {erase,     program, place_of, peek,      poke,        update,
                                  is_active, samples, record,   erase_log, become_model};

int main(void) {
    port = tf_board_start();
    for (;;) {
        tf_board_idle(calls[0] != 0 ? 100u : 0u);
    }
}
