/* Append-only log of labelled samples and of the device's identity, in flash.
 *
 * docs/specification/flash.md has the format. Damaged records are skipped, a torn append
 * costs at most that record.
 */
#ifndef TINYFLEET_SAMPLE_LOG_H
#define TINYFLEET_SAMPLE_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "tinyfleet/flash.h"

#define TF_RECORD_IDENTITY 1u
#define TF_RECORD_SAMPLE 2u

/* Of a record; the length has 20 bits. */
#define TF_RECORD_MAX_BYTES 0xFFFFFu

/* All fields are the log's own. */
typedef struct {
    const tf_flash *flash;
    tf_flash_region region;
    uint32_t unit;    /* what offsets of records are multiples of: offset / unit fits 16 bits */
    uint32_t end;     /* offset of the first unit after which everything is erased */
    uint32_t samples; /* records of type sample with a valid header */
} tf_sample_log;

typedef struct {
    uint32_t offset; /* of the header, multiple of the log's unit, from the start of the region */
    uint8_t type;
    bool held_out;
    uint16_t label;
    uint32_t payload_bytes;
    const uint8_t *payload; /* in flash */
} tf_record;

/* Finds the end of the log. TF_FLASH_FAILED: the region is outside the flash. */
tf_status tf_sample_log_open(tf_sample_log *log, const tf_flash *flash,
                             const tf_flash_region *region);

/* The first intact record at or after `*cursor` (0 to begin with), which moves behind it.
 * TF_NOT_FOUND: there are no more. */
tf_status tf_sample_log_next(const tf_sample_log *log, uint32_t *cursor, tf_record *record);

/* The intact record whose header is at `offset`. TF_NOT_FOUND: there is none. */
tf_status tf_sample_log_at(const tf_sample_log *log, uint32_t offset, tf_record *record);

/* The newest intact identity. TF_NOT_FOUND: there is none. */
tf_status tf_sample_log_identity(const tf_sample_log *log, tf_record *record);

/* Intact samples of `payload_bytes` bytes with a label below `classes`, held out or not. */
uint32_t tf_sample_log_count(const tf_sample_log *log, bool held_out, uint32_t payload_bytes,
                             uint32_t classes);

/* Adds a record behind the last one; every third sample is held out.
 * TF_NO_MEMORY: the log is full; TF_FLASH_FAILED: the flash failed;
 * TF_BAD_INPUT: no such type, or more than TF_RECORD_MAX_BYTES. */
tf_status tf_sample_log_append(tf_sample_log *log, uint8_t type, uint16_t label,
                               const uint8_t *payload, uint32_t payload_bytes);

/* Erases all records, the identity too. TF_FLASH_FAILED: the flash failed. */
tf_status tf_sample_log_erase(tf_sample_log *log);

#endif
