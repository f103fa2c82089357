/* Small things that a device must not forget: counters that never go back, keys, its last fault.
 *
 * docs/specification/flash.md has the format. Records are appended to one of two units; when that
 * is full, the newest of each kind move to the other one. The power may go at any operation: the
 * newest record that was written in full still counts.
 */
#ifndef TINYFLEET_JOURNAL_H
#define TINYFLEET_JOURNAL_H

#include <stdint.h>

#include "tinyfleet/flash.h"

/* Kinds of records. The marked ones are numbers that never go back. */
#define TF_JOURNAL_LEASE 1u /* number */
#define TF_JOURNAL_FAULT 2u
#define TF_JOURNAL_TASK 3u /* number: lease of a signed task, times 2^32, and its round */
#define TF_JOURNAL_MASK 4u /* number */
#define TF_JOURNAL_KEYRING 5u

#define TF_JOURNAL_NUMBERS 3u

#define TF_JOURNAL_MAX_BYTES 1024u /* of a record */

/* All fields are the journal's own. */
typedef struct {
    const tf_flash *flash;
    tf_flash_region units[2];
    uint32_t sequence; /* of the unit in use */
    uint32_t end;      /* offset in it of the next record */
    uint64_t highest[TF_JOURNAL_NUMBERS];
    int8_t active; /* unit in use, -1: none yet */
} tf_journal;

/* Finds the unit in use. `region` is two units of one size, each whole sectors.
 * TF_BAD_INPUT: it isn't; TF_FLASH_FAILED: it is outside the flash. */
tf_status tf_journal_open(tf_journal *journal, const tf_flash *flash,
                          const tf_flash_region *region);

/* The newest record of that kind: `*payload` in flash until the next write, `*bytes` long.
 * TF_NOT_FOUND: there is none. */
tf_status tf_journal_read(const tf_journal *journal, uint8_t kind, const uint8_t **payload,
                          uint32_t *bytes);

/* Adds a record; nothing is written where the newest of its kind in the unit in use says the same.
 * Erases a unit now and then, which takes as long as its sectors need.
 * TF_BAD_INPUT: more than TF_JOURNAL_MAX_BYTES; TF_NO_MEMORY: no room for it beside the newest
 * ones of all other kinds; TF_FLASH_FAILED: the flash failed, and the record before still counts. */
tf_status tf_journal_write(tf_journal *journal, uint8_t kind, const void *payload, uint32_t bytes);

/* The highest value that a number of this kind was ever raised to; 0: none. */
uint64_t tf_journal_highest(const tf_journal *journal, uint8_t kind);

/* Notes `value` where it is higher than the one before; never lowers it. Status as
 * tf_journal_write: the new value counts only with TF_OK. TF_BAD_INPUT: it is no number's kind. */
tf_status tf_journal_raise(tf_journal *journal, uint8_t kind, uint64_t value);

#endif
