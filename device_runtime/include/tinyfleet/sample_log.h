/* Log of labelled samples in flash, of which the newest stay, or a fair choice.
 *
 * docs/specification/flash.md has the format. The region is divided into units; when all are full,
 * one is erased to make room. Samples belong to the model that they were recorded for: those of
 * another one are as if erased. Damaged records are skipped, a torn append costs at most that
 * record, a power cut while a unit is erased no more than its samples.
 */
#ifndef TINYFLEET_SAMPLE_LOG_H
#define TINYFLEET_SAMPLE_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "tinyfleet/flash.h"

/* Of a record; the length has 20 bits. */
#define TF_RECORD_MAX_BYTES 0xFFFFFu

/* What stays when there is no room for more. */
typedef enum {
    TF_KEEP_NEWEST = 0,   /* the oldest unit goes */
    TF_KEEP_RESERVOIR = 1 /* every sample ever seen stays with the same probability */
} tf_sample_keep;

typedef struct {
    tf_flash_region region;
    uint16_t units; /* that it is divided into, all of one size; a single one fills and that's it */
    uint8_t keep;   /* tf_sample_keep */
} tf_sample_region;

/* All fields are the log's own. */
typedef struct {
    const tf_flash *flash;
    tf_sample_region place;
    uint32_t unit_bytes;
    uint32_t place_bytes; /* what offsets of records are multiples of */
    uint32_t digest;      /* of what samples mean */
    uint32_t random;      /* key and counter of the reservoir's draws */
    uint32_t drawn;
    uint32_t sequence; /* of the unit that is written, 0: there is none yet */
    uint32_t end;      /* offset in the region of the next record */
    uint32_t ordinal;  /* of the next sample */
    uint32_t rate;     /* of 2^32 samples, how many are stored */
    uint16_t unit;     /* that is written */
} tf_sample_log;

typedef struct {
    const uint8_t *payload; /* in flash */
    uint32_t payload_bytes;
    uint16_t place; /* what tf_sample_log_at takes */
    uint16_t label;
    bool held_out;
} tf_record;

/* Finds the samples that mean something to this model (`digest`: the manifest's
 * model.sample_digest, bytes 0 … 3). `seed` is for a reservoir's draws, another one after each reset.
 * TF_BAD_INPUT: the region isn't divided into units of whole sectors; TF_FLASH_FAILED: it is
 * outside the flash. */
tf_status tf_sample_log_open(tf_sample_log *log, const tf_flash *flash,
                             const tf_sample_region *region, uint32_t digest, uint32_t seed);

/* The next intact sample, unit by unit in the order in which they were begun. `*cursor` is 0 to
 * begin with; it stays good while samples are added, and skips what had to go for them.
 * TF_NOT_FOUND: there are no more. */
tf_status tf_sample_log_next(const tf_sample_log *log, uint32_t *cursor, tf_record *record);

/* The intact sample at that place. TF_NOT_FOUND: there is none (any more). */
tf_status tf_sample_log_at(const tf_sample_log *log, uint16_t place, tf_record *record);

/* Intact samples of `payload_bytes` bytes with a label below `labels`, held out or not. */
uint32_t tf_sample_log_count(const tf_sample_log *log, bool held_out, uint32_t payload_bytes,
                             uint32_t labels);

/* Adds a sample, or lets it go where a reservoir wasn't drawn to store it; every third one that is
 * stored is held out. Erases a unit now and then, which takes as long as its sectors need.
 * TF_NO_MEMORY: it is longer than a unit, or the log has one unit and that is full;
 * TF_FLASH_FAILED: the flash failed; TF_BAD_INPUT: more than TF_RECORD_MAX_BYTES. */
tf_status tf_sample_log_append(tf_sample_log *log, uint16_t label, const uint8_t *payload,
                               uint32_t payload_bytes);

/* Erases all samples, also those of other models. TF_FLASH_FAILED: the flash failed. */
tf_status tf_sample_log_erase(tf_sample_log *log);

#endif
