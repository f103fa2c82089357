/* A flash of FLASH_BYTES, a multiple of SECTOR, in memory; the target that includes this says how much
 * that is. */
#ifndef RAM_FLASH_H
#define RAM_FLASH_H

#include <stdlib.h>
#include <string.h>

#include "tinyfleet/flash.h"

#define SECTOR 512u

static uint8_t content[FLASH_BYTES];

static tf_status erase_sector(void *context, uint16_t sector) {
    (void)context;
    memset(content + sector * SECTOR, 0xFF, SECTOR);
    return TF_OK;
}

static tf_status program_word(void *context, uint32_t address, uint32_t word) {
    (void)context;
    for (uint32_t i = 0; i < 4u; i++) {
        content[address + i] &= (uint8_t)(word >> (8u * i));
    }
    return TF_OK;
}

static const uint8_t *map(void *context, uint32_t address, uint32_t bytes) {
    (void)context;
    return address <= sizeof content && bytes <= sizeof content - address ? content + address
                                                                          : NULL;
}

static const tf_flash flash = {NULL, erase_sector, program_word, map};

static void must(int holds) {
    if (!holds) {
        abort();
    }
}

#endif
