/* Firmware that starts the board and idles; the tests call the flash and what is stored in it. */
#include <string.h>

#include "../../../device_runtime/port/board.h"
#include "tinyfleet/identity_store.h"
#include "tinyfleet/journal.h"
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
    return tf_weights_open(&store, port->flash, layout.regions.slots, factory, factory_digest,
                           model_digest, WEIGHTS_BYTES);
}

/* From now until the next reset this is firmware of another model. */
uint32_t become_model(uint32_t digest) {
    model_digest = digest;
    return TF_OK;
}

/* Makes `version` the candidate as a round does, from whatever the flash holds. */
uint32_t stage_and_commit(uint32_t version) {
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

uint32_t release(uint32_t version) {
    make_version(version);
    const tf_status status = open_store();
    return status == TF_OK ? tf_weights_release(&store, digest) : status;
}

/* Whether the current weights are those of `version`; 0 is the factory's. */
uint32_t is_current(uint32_t version) {
    if (open_store() != TF_OK) {
        return 0;
    }
    make_version(version);
    const uint8_t *wanted = version == 0u ? factory : blob;
    return memcmp(tf_weights_current(&store), wanted, WEIGHTS_BYTES) == 0;
}

/* Whether the candidate is `version`; 0: there is none. */
uint32_t is_candidate(uint32_t version) {
    if (open_store() != TF_OK) {
        return 0;
    }
    make_version(version);
    const uint8_t *candidate = tf_weights_candidate(&store);
    return version == 0u ? candidate == 0
                         : candidate != 0 && memcmp(candidate, blob, WEIGHTS_BYTES) == 0;
}

static tf_status open_log(tf_sample_log *log) {
    const tf_board_layout layout = tf_board_get_layout();
    return tf_sample_log_open(log, port->flash, &layout.regions.samples, model_digest, 1u);
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

/* Label of the n-th sample, or -1 where there are fewer. */
uint32_t label_of(uint32_t n) {
    tf_sample_log log;
    tf_record found;
    uint32_t cursor = 0;
    tf_status status = open_log(&log);
    for (uint32_t i = 0; i <= n && status == TF_OK; i++) {
        status = tf_sample_log_next(&log, &cursor, &found);
    }
    return status == TF_OK ? found.label : 0xFFFFFFFFu;
}

/* `count` samples with that label. */
uint32_t record(uint32_t label, uint32_t count) {
    tf_sample_log log;
    tf_status status = open_log(&log);
    for (uint32_t i = 0; i < count && status == TF_OK; i++) {
        status = tf_sample_log_append(&log, (uint16_t)label, blob, SAMPLE_BYTES);
    }
    return status;
}

uint32_t erase_log(void) {
    tf_sample_log log;
    const tf_status status = open_log(&log);
    return status != TF_OK ? status : tf_sample_log_erase(&log);
}

static tf_status open_journal(tf_journal *journal) {
    const tf_board_layout layout = tf_board_get_layout();
    return tf_journal_open(journal, port->flash, &layout.regions.journal);
}

uint32_t lease(void) {
    tf_journal journal;
    return open_journal(&journal) == TF_OK
               ? (uint32_t)tf_journal_highest(&journal, TF_JOURNAL_LEASE)
               : 0xFFFFFFFFu;
}

uint32_t raise_lease(uint32_t to) {
    tf_journal journal;
    const tf_status status = open_journal(&journal);
    return status != TF_OK ? status : tf_journal_raise(&journal, TF_JOURNAL_LEASE, to);
}

/* A record of 1,024 bytes that are made of `version`. */
uint32_t note(uint32_t kind, uint32_t version) {
    static uint8_t text[TF_JOURNAL_MAX_BYTES];
    tf_journal journal;
    memset(text, (int)version, sizeof text);
    const tf_status status = open_journal(&journal);
    return status != TF_OK ? status : tf_journal_write(&journal, (uint8_t)kind, text, sizeof text);
}

/* What the newest record of that kind is made of, or -1. */
uint32_t noted(uint32_t kind) {
    tf_journal journal;
    const uint8_t *text;
    uint32_t bytes;
    return open_journal(&journal) == TF_OK &&
                   tf_journal_read(&journal, (uint8_t)kind, &text, &bytes) == TF_OK
               ? text[bytes / 2u]
               : 0xFFFFFFFFu;
}

/* The first byte of the identity, or -1. */
uint32_t identity(void) {
    const tf_board_layout layout = tf_board_get_layout();
    const uint8_t *payload;
    uint32_t bytes;
    return tf_identity_read(port->flash, &layout.regions.identity, TF_IDENTITY_DEVICE, &payload,
                            &bytes) == TF_OK
               ? payload[0]
               : 0xFFFFFFFFu;
}

uint32_t (*volatile calls[])() = {
    erase,       program,      place_of, peek,     poke,        stage_and_commit, release,
    is_current,  is_candidate, samples,  label_of, record,      erase_log,        lease,
    raise_lease, note,         noted,    identity, become_model};

int main(void) {
    port = tf_board_start();
    for (;;) {
        tf_board_idle(calls[0] != 0 ? 100u : 0u);
    }
}
