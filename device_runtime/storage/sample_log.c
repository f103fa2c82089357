/* The sample log. A record's header is programmed before its payload, so that what a torn append
 * leaves is skipped by its length, or, with a torn header, place by place. A unit is retired before
 * it is erased, so that what a torn erase leaves never counts, whatever it looks like. */
#include "tinyfleet/sample_log.h"

#include <stddef.h>
#include <string.h>

#include "tinyfleet/crc32.h"
#include "tinyfleet/random.h"

#define UNIT_MAGIC 0x31534654u
#define UNIT_HEADER_BYTES 32u
#define DRAWS 0x73616D70u      /* stream of random numbers */
#define EVERYTHING 0xFFFFFFFFu /* the rate at which all samples are stored */

enum {
    AT_DIGEST = 4,
    AT_UNIT_BYTES = 8,
    AT_SEQUENCE = 12,
    AT_ORDINAL = 16,
    AT_RATE = 20,
    AT_UNIT_CRC = 24,
    AT_RETIRED = 28
};

#define RECORD_MAGIC 0x4C53u
#define RECORD_SAMPLE 2u
#define HEADER_BYTES 16u
#define HEADER_CRC_AT 12u
#define HELD_OUT_FLAG 1u
#define LENGTH_SHIFT 4u /* of the flags: bits 16 ... 19 of the length */
#define PLACES 65536u   /* that a record can start at */
#define HELD_OUT_EVERY 3u

static const uint8_t *log_bytes(const tf_sample_log *log, uint32_t offset, uint32_t bytes) {
    return log->flash->map(log->flash->context, log->place.region.address + offset, bytes);
}

static uint32_t log_word(const tf_sample_log *log, uint32_t offset) {
    return tf_flash_word(log->flash, log->place.region.address + offset);
}

/* --- units ----------------------------------------------------------------------------------- */

static uint32_t unit_start(const tf_sample_log *log, uint32_t unit) {
    return unit * log->unit_bytes;
}

/* Where the first record of a unit can start. */
static uint32_t first_record(const tf_sample_log *log, uint32_t unit) {
    return unit_start(log, unit) +
           ((UNIT_HEADER_BYTES + log->place_bytes - 1u) & ~(log->place_bytes - 1u));
}

/* Where records have to end. The last place stays free, so that a cursor never leaves its unit. */
static uint32_t unit_end(const tf_sample_log *log, uint32_t unit) {
    return unit_start(log, unit) + log->unit_bytes - log->place_bytes;
}

/* The sequence of a unit with samples of this model; 0: it has none. */
static uint32_t sequence_of(const tf_sample_log *log, uint32_t unit) {
    const uint32_t start = unit_start(log, unit);
    const uint8_t *header = log_bytes(log, start, UNIT_HEADER_BYTES);
    const bool counts = header != NULL && log_word(log, start) == UNIT_MAGIC &&
                        log_word(log, start + AT_DIGEST) == log->digest &&
                        log_word(log, start + AT_UNIT_BYTES) == log->unit_bytes &&
                        log_word(log, start + AT_UNIT_CRC) == tf_crc32(0, header, AT_UNIT_CRC) &&
                        log_word(log, start + AT_RETIRED) == TF_FLASH_ERASED;
    return counts ? log_word(log, start + AT_SEQUENCE) : 0u;
}

/* The unit with the lowest sequence above `sequence`; false: there is none. */
static bool find_after(const tf_sample_log *log, uint32_t sequence, uint32_t *unit) {
    uint32_t lowest = 0;
    for (uint32_t i = 0; i < log->place.units; i++) {
        const uint32_t found = sequence_of(log, i);
        if (found > sequence && (lowest == 0u || found < lowest)) {
            lowest = found;
            *unit = i;
        }
    }
    return lowest != 0u;
}

/* --- records --------------------------------------------------------------------------------- */

/* Bytes that a record takes in flash, up to the next place where one can start. */
static uint32_t record_bytes(const tf_sample_log *log, uint32_t payload_bytes) {
    return (HEADER_BYTES + payload_bytes + log->place_bytes - 1u) & ~(log->place_bytes - 1u);
}

/* Reads the header at `offset` of a unit whose records end at `end`; false where it is damaged, not one,
 * or leads out of the unit. */
static bool read_header(const tf_sample_log *log, uint32_t offset, uint32_t end,
                        tf_record *record) {
    if (offset > end || end - offset < HEADER_BYTES) {
        return false;
    }
    const uint8_t *header = log_bytes(log, offset, HEADER_BYTES);
    if (header == NULL) {
        return false;
    }
    const uint32_t first = log_word(log, offset);
    const uint32_t second = log_word(log, offset + 4u);
    if ((first & 0xFFFFFFu) != (RECORD_MAGIC | (RECORD_SAMPLE << 16)) ||
        log_word(log, offset + HEADER_CRC_AT) != tf_crc32(0, header, HEADER_CRC_AT)) {
        return false;
    }
    record->place = (uint16_t)(offset / log->place_bytes);
    record->held_out = ((first >> 24) & HELD_OUT_FLAG) != 0u;
    record->payload_bytes = (second & 0xFFFFu) | ((first >> (24u + LENGTH_SHIFT)) << 16);
    record->label = (uint16_t)(second >> 16);
    if (end - offset < record_bytes(log, record->payload_bytes)) {
        return false;
    }
    record->payload = log_bytes(log, offset + HEADER_BYTES, record->payload_bytes);
    return record->payload != NULL;
}

static bool payload_is_intact(const tf_sample_log *log, const tf_record *record) {
    return log_word(log, record->place * log->place_bytes + 8u) ==
           tf_crc32(0, record->payload, record->payload_bytes);
}

/* Goes on behind the last record of the unit that is written. */
static void find_end(tf_sample_log *log) {
    const uint32_t end = unit_end(log, log->unit);
    uint32_t offset = first_record(log, log->unit);
    uint32_t used = end;
    while (used > offset && log_word(log, used - 4u) == TF_FLASH_ERASED) {
        used -= 4u;
    }
    /* A payload may end in erased-looking bytes: then the last record goes on behind `used`. */
    while (offset < used) {
        tf_record record;
        if (read_header(log, offset, end, &record)) {
            offset += record_bytes(log, record.payload_bytes);
            log->ordinal++;
        } else {
            offset += log->place_bytes;
        }
    }
    log->end = offset;
}

tf_status tf_sample_log_open(tf_sample_log *log, const tf_flash *flash,
                             const tf_sample_region *region, uint32_t digest, uint32_t seed) {
    memset(log, 0, sizeof *log);
    log->flash = flash;
    log->place = *region;
    log->digest = digest;
    log->random = seed;
    log->rate = EVERYTHING;
    log->place_bytes = 4u;
    while (region->region.bytes / log->place_bytes > PLACES) {
        log->place_bytes *= 2u;
    }
    if (region->units == 0u || region->region.sector_count % region->units != 0u ||
        region->region.bytes % (region->units * log->place_bytes) != 0u) {
        return TF_BAD_INPUT;
    }
    log->unit_bytes = region->region.bytes / region->units;
    if (log_bytes(log, 0, region->region.bytes) == NULL) {
        return TF_FLASH_FAILED;
    }
    for (uint32_t unit = 0; unit < region->units; unit++) {
        const uint32_t sequence = sequence_of(log, unit);
        if (sequence > log->sequence) {
            log->sequence = sequence;
            log->unit = (uint16_t)unit;
        }
    }
    if (log->sequence != 0u) {
        log->ordinal = log_word(log, unit_start(log, log->unit) + AT_ORDINAL);
        log->rate = log_word(log, unit_start(log, log->unit) + AT_RATE);
        find_end(log);
    }
    return TF_OK;
}

/* --- reading --------------------------------------------------------------------------------- */

tf_status tf_sample_log_at(const tf_sample_log *log, uint16_t place, tf_record *record) {
    const uint32_t offset = place * log->place_bytes;
    const uint32_t unit = offset / log->unit_bytes;
    return unit < log->place.units && sequence_of(log, unit) != 0u &&
                   read_header(log, offset, unit_end(log, unit), record) &&
                   payload_is_intact(log, record)
               ? TF_OK
               : TF_NOT_FOUND;
}

/* A cursor is the next place with, above it, the lower half of its unit's sequence. No record
 * starts at place 0, so that 0 can mean the beginning. */
static uint32_t cursor_at(const tf_sample_log *log, uint32_t sequence, uint32_t offset) {
    return (sequence << 16) | (offset / log->place_bytes);
}

tf_status tf_sample_log_next(const tf_sample_log *log, uint32_t *cursor, tf_record *record) {
    uint32_t offset = (*cursor & 0xFFFFu) * log->place_bytes;
    uint32_t unit = offset / log->unit_bytes;
    uint32_t sequence = log->sequence - ((log->sequence - (*cursor >> 16)) & 0xFFFFu);
    if (log->sequence == 0u) {
        return TF_NOT_FOUND;
    }
    bool is_within = *cursor != 0u && sequence_of(log, unit) == sequence;
    if (*cursor == 0u) {
        sequence = 0;
    }
    for (;;) {
        if (!is_within) {
            if (!find_after(log, sequence, &unit)) {
                return TF_NOT_FOUND;
            }
            sequence = sequence_of(log, unit);
            offset = first_record(log, unit);
        }
        const uint32_t end = unit_end(log, unit);
        const uint32_t used = sequence == log->sequence ? log->end : end;
        while (offset < used) {
            if (!read_header(log, offset, end, record)) {
                offset += log->place_bytes;
                continue;
            }
            offset += record_bytes(log, record->payload_bytes);
            *cursor = cursor_at(log, sequence, offset);
            if (payload_is_intact(log, record)) {
                return TF_OK;
            }
        }
        is_within = false;
    }
}

uint32_t tf_sample_log_count(const tf_sample_log *log, bool held_out, uint32_t payload_bytes,
                             uint32_t labels) {
    uint32_t cursor = 0;
    uint32_t count = 0;
    tf_record record;
    while (tf_sample_log_next(log, &cursor, &record) == TF_OK) {
        count += record.held_out == held_out && record.payload_bytes == payload_bytes &&
                 record.label < labels;
    }
    return count;
}

/* --- writing --------------------------------------------------------------------------------- */

static uint32_t draw(tf_sample_log *log) {
    return tf_random(log->random, DRAWS, log->drawn++);
}

static tf_status write_words(const tf_sample_log *log, uint32_t offset, const uint32_t *words,
                             uint32_t count) {
    uint8_t bytes[AT_UNIT_CRC];
    const uint32_t address = log->place.region.address + offset;
    for (uint32_t i = 0; i < count; i++) {
        tf_flash_put_word(bytes + 4u * i, words[i]);
        if (tf_flash_complete_word(log->flash, address + 4u * i, words[i]) != TF_OK) {
            return TF_FLASH_FAILED;
        }
    }
    const uint32_t crc = tf_crc32(0, bytes, 4u * count);
    return tf_flash_complete_word(log->flash, address + 4u * count, crc) == TF_OK ? TF_OK
                                                                                  : TF_FLASH_FAILED;
}

/* The n-th unit (from 0) that counts, or doesn't, in the order in which they are written; false:
 * there are fewer. */
static bool find_nth(const tf_sample_log *log, bool counts, uint32_t n, uint32_t *unit) {
    const uint32_t first = log->sequence == 0u ? 0u : log->unit + 1u;
    for (uint32_t i = 0; i < log->place.units; i++) {
        *unit = (first + i) % log->place.units;
        if ((sequence_of(log, *unit) != 0u) == counts && n-- == 0u) {
            return true;
        }
    }
    return false;
}

static tf_status start_unit(tf_sample_log *log, uint32_t unit, uint32_t rate) {
    const uint16_t sectors = (uint16_t)(log->place.region.sector_count / log->place.units);
    const tf_flash_region place = {
        .address = log->place.region.address + unit_start(log, unit),
        .bytes = log->unit_bytes,
        .first_sector = (uint16_t)(log->place.region.first_sector + unit * sectors),
        .sector_count = sectors,
    };
    const uint32_t header[AT_UNIT_CRC / 4] = {UNIT_MAGIC,         log->digest,  log->unit_bytes,
                                              log->sequence + 1u, log->ordinal, rate};
    if (tf_flash_erase_unless_erased(log->flash, &place) != TF_OK ||
        write_words(log, unit_start(log, unit), header, AT_UNIT_CRC / 4) != TF_OK) {
        return TF_FLASH_FAILED;
    }
    log->sequence++;
    log->unit = (uint16_t)unit;
    log->rate = rate;
    log->end = first_record(log, unit);
    return TF_OK;
}

/* Begins a unit that is free, or else one that has to go. A sector that is worn out stays free for
 * good: then it is the next one's turn. */
static tf_status begin_unit(tf_sample_log *log) {
    const uint32_t units = log->place.units;
    const bool is_fair = log->place.keep == TF_KEEP_RESERVOIR;
    uint32_t unit = 0;
    uint32_t full = 0;
    while (find_nth(log, true, full, &unit)) {
        full++;
    }
    /* That a unit is free doesn't mean that none had to go: the power may have gone with it. */
    const uint32_t rate =
        is_fair && log->sequence >= units ? log->rate - log->rate / units : EVERYTHING;
    for (uint32_t n = 0; find_nth(log, false, n, &unit); n++) {
        if (start_unit(log, unit, rate) == TF_OK) {
            return TF_OK;
        }
    }
    /* The only unit that is left doesn't go: it has all that there is. */
    if (full <= 1u) {
        return units == full ? TF_NO_MEMORY : TF_FLASH_FAILED;
    }
    if (is_fair) {
        (void)find_nth(log, true, draw(log) % full, &unit);
    } else {
        (void)find_after(log, 0, &unit);
    }
    const uint32_t retired = log->place.region.address + unit_start(log, unit) + AT_RETIRED;
    if (tf_flash_complete_word(log->flash, retired, 0) != TF_OK) {
        return TF_FLASH_FAILED;
    }
    return start_unit(log, unit, is_fair ? log->rate - log->rate / full : EVERYTHING);
}

static bool has_room(const tf_sample_log *log, uint32_t payload_bytes) {
    return log->sequence != 0u &&
           log->end + record_bytes(log, payload_bytes) <= unit_end(log, log->unit);
}

tf_status tf_sample_log_append(tf_sample_log *log, uint16_t label, const uint8_t *payload,
                               uint32_t payload_bytes) {
    if (payload_bytes > TF_RECORD_MAX_BYTES) {
        return TF_BAD_INPUT;
    }
    if (first_record(log, 0) + record_bytes(log, payload_bytes) > unit_end(log, 0)) {
        return TF_NO_MEMORY;
    }
    if (!has_room(log, payload_bytes)) {
        const tf_status status = begin_unit(log);
        if (status != TF_OK) {
            return status;
        }
    }
    if (log->rate != EVERYTHING && draw(log) >= log->rate) {
        return TF_OK;
    }
    const bool held_out = log->ordinal % HELD_OUT_EVERY == HELD_OUT_EVERY - 1u;
    const uint32_t header[HEADER_CRC_AT / 4u] = {
        RECORD_MAGIC | (RECORD_SAMPLE << 16) | (held_out ? HELD_OUT_FLAG << 24 : 0u) |
            ((payload_bytes >> 16) << (24u + LENGTH_SHIFT)),
        (payload_bytes & 0xFFFFu) | ((uint32_t)label << 16),
        tf_crc32(0, payload, payload_bytes),
    };
    const uint32_t start = log->end;
    /* Whatever happens now, the next record goes behind this one. */
    log->end = start + record_bytes(log, payload_bytes);
    if (write_words(log, start, header, HEADER_CRC_AT / 4u) != TF_OK) {
        return TF_FLASH_FAILED;
    }
    log->ordinal++;
    const uint32_t address = log->place.region.address + start + HEADER_BYTES;
    for (uint32_t i = 0; i < payload_bytes; i += 4u) {
        if (tf_flash_complete_word(log->flash, address + i,
                                   tf_flash_word_of(payload + i, payload_bytes - i)) != TF_OK) {
            return TF_FLASH_FAILED;
        }
    }
    return TF_OK;
}

tf_status tf_sample_log_erase(tf_sample_log *log) {
    log->sequence = 0;
    log->ordinal = 0;
    log->rate = EVERYTHING;
    return tf_flash_erase_region(log->flash, &log->place.region);
}
