/* The seam to a flash memory: erase a sector, program a word, read in place.
 *
 * What is asked of a port, and no more:
 *   - an erased word reads 0xFFFFFFFF;
 *   - programming can only turn ones into zeros, one aligned 32-bit word per call;
 *   - a power cut during a call leaves that one word (or sector) with any content, and
 *     nothing else changed.
 */
#ifndef TINYFLEET_FLASH_H
#define TINYFLEET_FLASH_H

#include <stdbool.h>
#include <stdint.h>

#include "tinyfleet/status.h"

#define TF_FLASH_ERASED 0xFFFFFFFFu

/* A run of whole sectors. */
typedef struct {
    uint32_t address;      /* of its first byte */
    uint32_t bytes;        /* multiple of 4 */
    uint16_t first_sector; /* index that erase_sector takes */
    uint16_t sector_count;
} tf_flash_region;

typedef struct {
    void *context; /* handed back to each function */

    /* Erases sector `sector`; blocks until done (seconds on large sectors).
     * TF_FLASH_FAILED: the controller reported an error, or the sector is write protected. */
    tf_status (*erase_sector)(void *context, uint16_t sector);

    /* Programs the word at `address` (multiple of 4) and reads it back.
     * TF_FLASH_FAILED: the controller reported an error, or the word reads differently. */
    tf_status (*program_word)(void *context, uint32_t address, uint32_t word);

    /* Where `bytes` bytes at `address` can be read for as long as nothing erases or programs
     * them; NULL where they are outside the flash. */
    const uint8_t *(*map)(void *context, uint32_t address, uint32_t bytes);
} tf_flash;

/* Erases every sector of `region`, first sector first. Stops at the first failure. */
tf_status tf_flash_erase_region(const tf_flash *flash, const tf_flash_region *region);

/* Whether every word of `region` is erased. */
bool tf_flash_is_erased(const tf_flash *flash, const tf_flash_region *region);

/* Erases `region` unless it is erased: sectors wear out. Status as tf_flash_erase_region. */
tf_status tf_flash_erase_unless_erased(const tf_flash *flash, const tf_flash_region *region);

/* Makes the word at `address` read `word`: nothing is done where it does already, and a word
 * that a power cut left half programmed is completed.
 * TF_BAD_INPUT: the word holds zeros where `word` has ones; only erasing helps.
 * TF_FLASH_FAILED: as program_word, or the address is outside the flash. */
tf_status tf_flash_complete_word(const tf_flash *flash, uint32_t address, uint32_t word);

/* Little-endian word at `address`; TF_FLASH_ERASED where it is outside the flash. */
uint32_t tf_flash_word(const tf_flash *flash, uint32_t address);

/* Little-endian word from the first `bytes` bytes of `data`; where they are fewer than four, the
 * rest of it stays erased. */
uint32_t tf_flash_word_of(const uint8_t *data, uint32_t bytes);

/* The four bytes of `word`, the lowest first. */
void tf_flash_put_word(uint8_t *bytes, uint32_t word);

#endif
