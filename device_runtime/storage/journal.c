/* The journal. A rotation programs the CRC of the new unit's header when everything else is in it:
 * until then the old unit counts, and it isn't erased before the next rotation. */
#include "tinyfleet/journal.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "record_run.h"
#include "tinyfleet/crc32.h"

#define UNIT_MAGIC 0x314A4654u
#define AT_SEQUENCE 4u
#define AT_CRC 8u
#define HEADER_BYTES 16u
#define KINDS 256u

static tf_run run_of(const tf_journal *journal, int unit) {
    const tf_run run = {journal->flash, journal->units[unit].address, HEADER_BYTES,
                        journal->units[unit].bytes};
    return run;
}

static uint32_t unit_word(const tf_journal *journal, int unit, uint32_t offset) {
    return tf_flash_word(journal->flash, journal->units[unit].address + offset);
}

static uint32_t header_crc(uint32_t sequence) {
    uint8_t header[AT_CRC];
    tf_flash_put_word(header, UNIT_MAGIC);
    tf_flash_put_word(header + AT_SEQUENCE, sequence);
    return tf_crc32(0, header, AT_CRC);
}

static bool is_valid(const tf_journal *journal, int unit) {
    return unit_word(journal, unit, 0) == UNIT_MAGIC &&
           unit_word(journal, unit, AT_CRC) == header_crc(unit_word(journal, unit, AT_SEQUENCE));
}

/* Kind and bytes of each number. */
static const struct {
    uint8_t kind, bytes;
} numbers[TF_JOURNAL_NUMBERS] = {{TF_JOURNAL_LEASE, 4}, {TF_JOURNAL_TASK, 8}, {TF_JOURNAL_MASK, 4}};

/* TF_JOURNAL_NUMBERS where the kind is none of them. */
static uint32_t number_of(uint8_t kind) {
    uint32_t number = 0;
    while (number < TF_JOURNAL_NUMBERS && numbers[number].kind != kind) {
        number++;
    }
    return number;
}

static void note_number(tf_journal *journal, const tf_run_record *record) {
    const uint32_t number = number_of(record->kind);
    if (number == TF_JOURNAL_NUMBERS || record->bytes != numbers[number].bytes) {
        return;
    }
    uint64_t value = tf_flash_word_of(record->payload, 4u);
    if (record->bytes == 8u) {
        value = value << 32 | tf_flash_word_of(record->payload + 4, 4u);
    }
    if (value > journal->highest[number]) {
        journal->highest[number] = value;
    }
}

/* The unit that isn't in use has nothing newer, but what a flash forgot in the other one. */
static void find_highest(tf_journal *journal) {
    for (int unit = 0; unit < 2; unit++) {
        const tf_run run = run_of(journal, unit);
        uint32_t cursor = 0;
        tf_run_record record;
        while (is_valid(journal, unit) && tf_run_next(&run, &cursor, &record)) {
            note_number(journal, &record);
        }
    }
}

tf_status tf_journal_open(tf_journal *journal, const tf_flash *flash,
                          const tf_flash_region *region) {
    const uint32_t unit_bytes = region->bytes / 2u;
    const uint16_t sectors = region->sector_count / 2u;
    memset(journal, 0, sizeof *journal);
    journal->flash = flash;
    journal->active = -1;
    if (region->sector_count % 2u != 0u || sectors == 0u || unit_bytes % 8u != 0u ||
        unit_bytes < HEADER_BYTES) {
        return TF_BAD_INPUT;
    }
    if (flash->map(flash->context, region->address, region->bytes) == NULL) {
        return TF_FLASH_FAILED;
    }
    for (int unit = 0; unit < 2; unit++) {
        journal->units[unit] = (tf_flash_region){
            .address = region->address + (uint32_t)unit * unit_bytes,
            .bytes = unit_bytes,
            .first_sector = (uint16_t)(region->first_sector + unit * sectors),
            .sector_count = sectors,
        };
    }
    for (int unit = 0; unit < 2; unit++) {
        const uint32_t sequence = unit_word(journal, unit, AT_SEQUENCE);
        if (is_valid(journal, unit) && (journal->active < 0 || sequence > journal->sequence)) {
            journal->active = (int8_t)unit;
            journal->sequence = sequence;
        }
    }
    if (journal->active >= 0) {
        const tf_run run = run_of(journal, journal->active);
        journal->end = tf_run_end(&run);
    }
    find_highest(journal);
    return TF_OK;
}

static bool newest_in_use(const tf_journal *journal, uint8_t kind, tf_run_record *record) {
    if (journal->active < 0) {
        return false;
    }
    const tf_run run = run_of(journal, journal->active);
    return tf_run_newest(&run, kind, record);
}

/* In the unit in use, else what the other one still has of it. */
static bool newest(const tf_journal *journal, uint8_t kind, tf_run_record *record) {
    if (journal->active < 0 || newest_in_use(journal, kind, record)) {
        return journal->active >= 0;
    }
    const int other = 1 - journal->active;
    const tf_run old = run_of(journal, other);
    return is_valid(journal, other) && tf_run_newest(&old, kind, record);
}

tf_status tf_journal_read(const tf_journal *journal, uint8_t kind, const uint8_t **payload,
                          uint32_t *bytes) {
    tf_run_record record;
    if (!newest(journal, kind, &record)) {
        return TF_NOT_FOUND;
    }
    *payload = record.payload;
    *bytes = record.bytes;
    return TF_OK;
}

static uint32_t encode_number(uint32_t number, uint64_t value, uint8_t payload[8]) {
    const uint32_t bytes = numbers[number].bytes;
    tf_flash_put_word(payload, (uint32_t)(bytes == 8u ? value >> 32 : value));
    tf_flash_put_word(payload + 4, (uint32_t)value);
    return bytes;
}

static void note_kind(uint8_t kinds[KINDS / 8u], uint8_t kind) {
    kinds[kind / 8u] |= (uint8_t)(1u << (kind % 8u));
}

/* Those that the unit in use has, and numbers that only the other one may have still. */
static void note_kinds(const tf_journal *journal, const tf_run *run, uint8_t kinds[KINDS / 8u]) {
    uint32_t cursor = 0;
    tf_run_record record;
    while (tf_run_next(run, &cursor, &record)) {
        note_kind(kinds, record.kind);
    }
    for (uint32_t number = 0; number < TF_JOURNAL_NUMBERS; number++) {
        if (journal->highest[number] > 0u) {
            note_kind(kinds, numbers[number].kind);
        }
    }
}

/* What a rotation takes along: the newest record, of a number the highest value in `payload`. */
static bool find_carried(const tf_journal *journal, const tf_run *run, uint8_t kind,
                         uint8_t payload[8], tf_run_record *record) {
    const uint32_t number = number_of(kind);
    if (number == TF_JOURNAL_NUMBERS || journal->highest[number] == 0u) {
        return tf_run_newest(run, kind, record);
    }
    record->kind = kind;
    record->bytes = (uint16_t)encode_number(number, journal->highest[number], payload);
    record->payload = payload;
    return true;
}

/* Moves to the other unit, which has room for `bytes` more afterwards, or nothing is changed. */
static tf_status rotate(tf_journal *journal, uint32_t bytes) {
    const int from = journal->active == 0 ? 0 : 1;
    const int to = 1 - from;
    const tf_run source = run_of(journal, from);
    const tf_run target = run_of(journal, to);
    const uint32_t sequence = journal->sequence + 1u;
    uint8_t kinds[KINDS / 8u] = {0};
    uint8_t payload[8];
    tf_run_record record;
    if (journal->active >= 0) {
        note_kinds(journal, &source, kinds);
    }
    uint32_t needed = HEADER_BYTES + tf_run_record_bytes(bytes);
    for (uint32_t kind = 0; kind < KINDS; kind++) {
        if ((kinds[kind / 8u] >> (kind % 8u)) & 1u) {
            (void)find_carried(journal, &source, (uint8_t)kind, payload, &record);
            needed += tf_run_record_bytes(record.bytes);
        }
    }
    if (needed > target.bytes) {
        return TF_NO_MEMORY;
    }
    if (tf_flash_erase_unless_erased(journal->flash, &journal->units[to]) != TF_OK ||
        tf_flash_complete_word(journal->flash, target.address, UNIT_MAGIC) != TF_OK ||
        tf_flash_complete_word(journal->flash, target.address + AT_SEQUENCE, sequence) != TF_OK) {
        return TF_FLASH_FAILED;
    }
    uint32_t end = HEADER_BYTES;
    for (uint32_t kind = 0; kind < KINDS; kind++) {
        if (((kinds[kind / 8u] >> (kind % 8u)) & 1u) &&
            (!find_carried(journal, &source, (uint8_t)kind, payload, &record) ||
             tf_run_append(&target, &end, record.kind, record.payload, record.bytes) != TF_OK)) {
            return TF_FLASH_FAILED;
        }
    }
    if (tf_flash_complete_word(journal->flash, target.address + AT_CRC, header_crc(sequence)) !=
        TF_OK) {
        return TF_FLASH_FAILED;
    }
    journal->active = (int8_t)to;
    journal->sequence = sequence;
    journal->end = end;
    return TF_OK;
}

tf_status tf_journal_write(tf_journal *journal, uint8_t kind, const void *payload, uint32_t bytes) {
    if (bytes > TF_JOURNAL_MAX_BYTES) {
        return TF_BAD_INPUT;
    }
    tf_run_record record;
    if (newest_in_use(journal, kind, &record) && record.bytes == bytes &&
        memcmp(record.payload, payload, bytes) == 0) {
        return TF_OK;
    }
    if (journal->active < 0 ||
        journal->units[0].bytes - journal->end < tf_run_record_bytes(bytes)) {
        const tf_status status = rotate(journal, bytes);
        if (status != TF_OK) {
            return status;
        }
    }
    const tf_run run = run_of(journal, journal->active);
    return tf_run_append(&run, &journal->end, kind, payload, bytes);
}

uint64_t tf_journal_highest(const tf_journal *journal, uint8_t kind) {
    const uint32_t number = number_of(kind);
    return number < TF_JOURNAL_NUMBERS ? journal->highest[number] : 0u;
}

tf_status tf_journal_raise(tf_journal *journal, uint8_t kind, uint64_t value) {
    const uint32_t number = number_of(kind);
    if (number == TF_JOURNAL_NUMBERS) {
        return TF_BAD_INPUT;
    }
    if (value <= journal->highest[number]) {
        return TF_OK;
    }
    uint8_t payload[8];
    const uint32_t bytes = encode_number(number, value, payload);
    const tf_status status = tf_journal_write(journal, kind, payload, bytes);
    if (status == TF_OK) {
        journal->highest[number] = value;
    }
    return status;
}
