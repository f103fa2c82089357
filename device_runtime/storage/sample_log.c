/* Append-only sample log. The header is programmed before the payload, so that what a torn
 * append leaves is skipped by its length, or, with a torn header, word by word. */
#include "tinyfleet/sample_log.h"

#include <stddef.h>

#include "tinyfleet/crc32.h"

#define RECORD_MAGIC 0x4C53u
#define HEADER_BYTES 16u
#define HEADER_CRC_AT 12u
#define HELD_OUT_FLAG 1u
#define LENGTH_SHIFT 4u /* of the flags: bits 16 ... 19 of the length */
#define PLACES 65536u   /* that a record can start at */
#define HELD_OUT_EVERY 3u

static const uint8_t *log_bytes(const tf_sample_log *log, uint32_t offset, uint32_t bytes) {
    return log->flash->map(log->flash->context, log->region.address + offset, bytes);
}

static uint32_t log_word(const tf_sample_log *log, uint32_t offset) {
    return tf_flash_word(log->flash, log->region.address + offset);
}

/* Bytes that a record takes in flash, up to the next place where one can start. */
static uint32_t record_bytes(const tf_sample_log *log, uint32_t payload_bytes) {
    return (HEADER_BYTES + payload_bytes + log->unit - 1u) & ~(log->unit - 1u);
}

/* Reads the header at `offset`; false where it is damaged, not one, or leads out of the log. */
static bool read_header(const tf_sample_log *log, uint32_t offset, tf_record *record) {
    if (offset > log->region.bytes || log->region.bytes - offset < HEADER_BYTES) {
        return false;
    }
    const uint8_t *header = log_bytes(log, offset, HEADER_BYTES);
    if (header == NULL) {
        return false;
    }
    const uint32_t first = log_word(log, offset);
    const uint32_t second = log_word(log, offset + 4u);
    if ((first & 0xFFFFu) != RECORD_MAGIC ||
        log_word(log, offset + HEADER_CRC_AT) != tf_crc32(0, header, HEADER_CRC_AT)) {
        return false;
    }
    record->offset = offset;
    record->type = (uint8_t)(first >> 16);
    record->held_out = ((first >> 24) & HELD_OUT_FLAG) != 0u;
    record->payload_bytes = (second & 0xFFFFu) | ((first >> (24u + LENGTH_SHIFT)) << 16);
    record->label = (uint16_t)(second >> 16);
    if (log->region.bytes - offset < record_bytes(log, record->payload_bytes)) {
        return false;
    }
    record->payload = log_bytes(log, offset + HEADER_BYTES, record->payload_bytes);
    return record->payload != NULL;
}

static bool payload_is_intact(const tf_sample_log *log, const tf_record *record) {
    return log_word(log, record->offset + 8u) ==
           tf_crc32(0, record->payload, record->payload_bytes);
}

tf_status tf_sample_log_open(tf_sample_log *log, const tf_flash *flash,
                             const tf_flash_region *region) {
    log->flash = flash;
    log->region = *region;
    log->unit = 4u;
    while (log->region.bytes / log->unit > PLACES) {
        log->unit *= 2u;
    }
    log->region.bytes &= ~(log->unit - 1u);
    log->end = 0;
    log->samples = 0;
    if (log_bytes(log, 0, log->region.bytes) == NULL) {
        return TF_FLASH_FAILED;
    }
    uint32_t used = log->region.bytes;
    while (used > 0u && log_word(log, used - 4u) == TF_FLASH_ERASED) {
        used -= 4u;
    }
    uint32_t offset = 0;
    /* A payload may end in erased-looking bytes: then the last record goes on behind `used`. */
    while (offset < used) {
        tf_record record;
        if (read_header(log, offset, &record)) {
            offset += record_bytes(log, record.payload_bytes);
            log->samples += record.type == TF_RECORD_SAMPLE;
        } else {
            offset += log->unit;
        }
    }
    log->end = offset;
    return TF_OK;
}

tf_status tf_sample_log_at(const tf_sample_log *log, uint32_t offset, tf_record *record) {
    return read_header(log, offset, record) && payload_is_intact(log, record) ? TF_OK
                                                                              : TF_NOT_FOUND;
}

tf_status tf_sample_log_next(const tf_sample_log *log, uint32_t *cursor, tf_record *record) {
    while (*cursor < log->end) {
        if (!read_header(log, *cursor, record)) {
            *cursor += log->unit;
            continue;
        }
        *cursor += record_bytes(log, record->payload_bytes);
        if (payload_is_intact(log, record)) {
            return TF_OK;
        }
    }
    return TF_NOT_FOUND;
}

tf_status tf_sample_log_identity(const tf_sample_log *log, tf_record *record) {
    uint32_t cursor = 0;
    tf_record candidate;
    tf_status status = TF_NOT_FOUND;
    while (tf_sample_log_next(log, &cursor, &candidate) == TF_OK) {
        if (candidate.type == TF_RECORD_IDENTITY) {
            *record = candidate;
            status = TF_OK;
        }
    }
    return status;
}

uint32_t tf_sample_log_count(const tf_sample_log *log, bool held_out, uint32_t payload_bytes,
                             uint32_t classes) {
    uint32_t cursor = 0;
    uint32_t count = 0;
    tf_record record;
    while (tf_sample_log_next(log, &cursor, &record) == TF_OK) {
        count += record.type == TF_RECORD_SAMPLE && record.held_out == held_out &&
                 record.payload_bytes == payload_bytes && record.label < classes;
    }
    return count;
}

tf_status tf_sample_log_append(tf_sample_log *log, uint8_t type, uint16_t label,
                               const uint8_t *payload, uint32_t payload_bytes) {
    if ((type != TF_RECORD_IDENTITY && type != TF_RECORD_SAMPLE) ||
        payload_bytes > TF_RECORD_MAX_BYTES) {
        return TF_BAD_INPUT;
    }
    if (log->region.bytes - log->end < record_bytes(log, payload_bytes)) {
        return TF_NO_MEMORY;
    }
    const bool held_out =
        type == TF_RECORD_SAMPLE && log->samples % HELD_OUT_EVERY == HELD_OUT_EVERY - 1u;
    const uint32_t words[3] = {
        RECORD_MAGIC | ((uint32_t)type << 16) | (held_out ? HELD_OUT_FLAG << 24 : 0u) |
            ((payload_bytes >> 16) << (24u + LENGTH_SHIFT)),
        (payload_bytes & 0xFFFFu) | ((uint32_t)label << 16),
        tf_crc32(0, payload, payload_bytes),
    };
    uint8_t header[HEADER_CRC_AT];
    for (uint32_t i = 0; i < HEADER_CRC_AT; i++) {
        header[i] = (uint8_t)(words[i / 4u] >> (8u * (i % 4u)));
    }
    const uint32_t address = log->region.address + log->end;
    const uint32_t start = log->end;
    tf_status status = TF_OK;
    for (uint32_t i = 0; i < 3u && status == TF_OK; i++) {
        status = tf_flash_complete_word(log->flash, address + 4u * i, words[i]);
    }
    if (status == TF_OK) {
        status = tf_flash_complete_word(log->flash, address + HEADER_CRC_AT,
                                        tf_crc32(0, header, HEADER_CRC_AT));
    }
    /* From here on the record is there, with an intact payload or without. */
    log->end = start + record_bytes(log, payload_bytes);
    if (status != TF_OK) {
        return TF_FLASH_FAILED;
    }
    log->samples += type == TF_RECORD_SAMPLE;
    for (uint32_t i = 0; i < payload_bytes; i += 4u) {
        uint32_t word = TF_FLASH_ERASED;
        for (uint32_t byte = 0; byte < 4u && i + byte < payload_bytes; byte++) {
            word &= ~(0xFFu << (8u * byte));
            word |= (uint32_t)payload[i + byte] << (8u * byte);
        }
        if (tf_flash_complete_word(log->flash, address + HEADER_BYTES + i, word) != TF_OK) {
            return TF_FLASH_FAILED;
        }
    }
    return TF_OK;
}

tf_status tf_sample_log_erase(tf_sample_log *log) {
    log->end = 0;
    log->samples = 0;
    return tf_flash_erase_region(log->flash, &log->region);
}
