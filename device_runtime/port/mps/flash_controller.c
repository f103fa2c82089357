/* A region of the board's RAM used as flash: what a debugger, or an emulator's file, keeps while the
 * board has no power. Sectors are erased to ones, words programmed by clearing bits. */
#include <stddef.h>

#include "mps.h"

static const uint32_t sector_sizes[TF_FLASH_SECTOR_COUNT] = TF_FLASH_SECTOR_SIZES;

/* Words programmed and sectors erased since the start, for whoever looks at the board from outside:
 * they wear a flash out. */
uint32_t tf_mps_flash_operations;

void __attribute__((noinline)) tf_mps_flash_program(volatile uint32_t *place, uint32_t word) {
    tf_mps_flash_operations++;
    *place &= word;
}

void __attribute__((noinline)) tf_mps_flash_erase(volatile uint32_t *place, uint32_t bytes) {
    tf_mps_flash_operations++;
    for (uint32_t i = 0; i < bytes / sizeof *place; i++) {
        place[i] = TF_FLASH_ERASED;
    }
}

static const uint8_t *map(void *context, uint32_t address, uint32_t bytes) {
    (void)context;
    uint32_t total = 0;
    for (uint32_t i = 0; i < TF_FLASH_SECTOR_COUNT; i++) {
        total += sector_sizes[i];
    }
    if (address < TF_FLASH_ADDRESS || address - TF_FLASH_ADDRESS > total ||
        bytes > total - (address - TF_FLASH_ADDRESS)) {
        return NULL;
    }
    return (const uint8_t *)(uintptr_t)address;
}

static tf_status erase_sector(void *context, uint16_t sector) {
    (void)context;
    if (sector >= TF_FLASH_SECTOR_COUNT) {
        return TF_FLASH_FAILED;
    }
    uint32_t address = TF_FLASH_ADDRESS;
    for (uint32_t i = 0; i < sector; i++) {
        address += sector_sizes[i];
    }
    tf_mps_flash_erase((volatile uint32_t *)(uintptr_t)address, sector_sizes[sector]);
    tf_mps_watchdog_refresh(); /* a slot may have many sectors */
    return TF_OK;
}

static tf_status program_word(void *context, uint32_t address, uint32_t word) {
    if (address % 4u != 0u || map(context, address, 4u) == NULL) {
        return TF_FLASH_FAILED;
    }
    volatile uint32_t *place = (volatile uint32_t *)(uintptr_t)address;
    tf_mps_flash_program(place, word);
    return *place == word ? TF_OK : TF_FLASH_FAILED;
}

const tf_flash tf_mps_flash = {
    .context = NULL,
    .erase_sector = erase_sector,
    .program_word = program_word,
    .map = map,
};
