/* The CRC of a record is programmed last: without it there is none, whatever a power cut left. */
#include "record_run.h"

#include <stddef.h>

#include "tinyfleet/crc32.h"

#define RECORD_MAGIC 0x4Au
#define HEADER_BYTES 8u
#define CRC_AT 4u
#define GRAIN 8u

static const uint8_t *run_bytes(const tf_run *run, uint32_t offset, uint32_t bytes) {
    return run->flash->map(run->flash->context, run->address + offset, bytes);
}

static uint32_t run_word(const tf_run *run, uint32_t offset) {
    return tf_flash_word(run->flash, run->address + offset);
}

uint32_t tf_run_record_bytes(uint32_t payload_bytes) {
    return (HEADER_BYTES + payload_bytes + GRAIN - 1u) & ~(GRAIN - 1u);
}

static uint32_t crc_of(uint32_t first, const uint8_t *payload, uint32_t bytes) {
    const uint8_t header[CRC_AT] = {(uint8_t)first, (uint8_t)(first >> 8), (uint8_t)(first >> 16),
                                    (uint8_t)(first >> 24)};
    return tf_crc32(tf_crc32(0, header, CRC_AT), payload, bytes);
}

static bool read_record(const tf_run *run, uint32_t offset, tf_run_record *record) {
    const uint32_t first = run_word(run, offset);
    const uint32_t bytes = first >> 16;
    if ((first & 0xFFu) != RECORD_MAGIC || bytes > TF_RUN_MAX_BYTES ||
        run->bytes - offset < tf_run_record_bytes(bytes)) {
        return false;
    }
    record->kind = (uint8_t)(first >> 8);
    record->bytes = (uint16_t)bytes;
    record->payload = run_bytes(run, offset + HEADER_BYTES, bytes);
    return record->payload != NULL &&
           run_word(run, offset + CRC_AT) == crc_of(first, record->payload, bytes);
}

bool tf_run_next(const tf_run *run, uint32_t *cursor, tf_run_record *record) {
    if (*cursor < run->start) {
        *cursor = run->start;
    }
    while (*cursor <= run->bytes && run->bytes - *cursor >= HEADER_BYTES) {
        if (read_record(run, *cursor, record)) {
            *cursor += tf_run_record_bytes(record->bytes);
            return true;
        }
        *cursor += GRAIN;
    }
    return false;
}

bool tf_run_newest(const tf_run *run, uint8_t kind, tf_run_record *record) {
    uint32_t cursor = run->start;
    tf_run_record candidate;
    bool is_found = false;
    while (tf_run_next(run, &cursor, &candidate)) {
        if (candidate.kind == kind) {
            *record = candidate;
            is_found = true;
        }
    }
    return is_found;
}

uint32_t tf_run_end(const tf_run *run) {
    uint32_t used = run->bytes;
    while (used > run->start && run_word(run, used - 4u) == TF_FLASH_ERASED) {
        used -= 4u;
    }
    /* A payload may end in erased-looking bytes: then the last record goes on behind `used`. */
    uint32_t end = run->start;
    while (end < used) {
        tf_run_record record;
        end += read_record(run, end, &record) ? tf_run_record_bytes(record.bytes) : GRAIN;
    }
    return end;
}

tf_status tf_run_append(const tf_run *run, uint32_t *end, uint8_t kind, const uint8_t *payload,
                        uint32_t bytes) {
    const uint32_t start = *end;
    if (bytes > TF_RUN_MAX_BYTES || start > run->bytes ||
        run->bytes - start < tf_run_record_bytes(bytes)) {
        return TF_NO_MEMORY;
    }
    const uint32_t first = RECORD_MAGIC | ((uint32_t)kind << 8) | (bytes << 16);
    /* The CRC first of all: the payload may lie in this very flash. */
    const uint32_t crc = crc_of(first, payload, bytes);
    const uint32_t address = run->address + start;
    *end = start + tf_run_record_bytes(bytes);
    tf_status status = tf_flash_complete_word(run->flash, address, first);
    for (uint32_t i = 0; i < bytes && status == TF_OK; i += 4u) {
        status = tf_flash_complete_word(run->flash, address + HEADER_BYTES + i,
                                        tf_flash_word_of(payload + i, bytes - i));
    }
    if (status == TF_OK) {
        status = tf_flash_complete_word(run->flash, address + CRC_AT, crc);
    }
    return status == TF_OK ? TF_OK : TF_FLASH_FAILED;
}
