/* Runs of small records that identity and journal consist of (flash.md, "Records"). */
#ifndef TINYFLEET_RECORD_RUN_H
#define TINYFLEET_RECORD_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include "tinyfleet/flash.h"

#define TF_RUN_MAX_BYTES 1024u /* of a record's payload */

/* A part of a region. `start` is a multiple of 8 from the region's beginning. */
typedef struct {
    const tf_flash *flash;
    uint32_t address; /* of the region */
    uint32_t start;   /* offset of the first record */
    uint32_t bytes;   /* of the region */
} tf_run;

typedef struct {
    const uint8_t *payload; /* in flash */
    uint16_t bytes;
    uint8_t kind;
} tf_run_record;

/* Bytes that a record with such a payload takes. */
uint32_t tf_run_record_bytes(uint32_t payload_bytes);

/* The first intact record at or after `*cursor`, which moves behind it; false: there are no more. */
bool tf_run_next(const tf_run *run, uint32_t *cursor, tf_run_record *record);

/* The last intact record of that kind; false: there is none. */
bool tf_run_newest(const tf_run *run, uint8_t kind, tf_run_record *record);

/* Offset behind everything that isn't erased. */
uint32_t tf_run_end(const tf_run *run);

/* Programs a record at `*end`, which moves behind it. TF_NO_MEMORY: it doesn't fit;
 * TF_FLASH_FAILED: the flash failed, and `*end` is behind what was programmed. */
tf_status tf_run_append(const tf_run *run, uint32_t *end, uint8_t kind, const uint8_t *payload,
                        uint32_t bytes);

#endif
