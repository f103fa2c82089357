#include "emulated_flash.h"

#include <stddef.h>
#include <string.h>

static uint32_t draw(emulated_flash *emulated) {
    emulated->random = emulated->random * 1664525u + 1013904223u;
    return emulated->random ^ (emulated->random >> 15);
}

/* Counts an operation; true when the power goes during it. */
static int is_cut(emulated_flash *emulated) {
    emulated->operations++;
    if (emulated->operations_to_cut != 0u && emulated->operations == emulated->operations_to_cut) {
        emulated->dead = 1;
    }
    return emulated->dead;
}

static int is_worn(const emulated_flash *emulated, uint32_t sector) {
    return sector < 32u && ((emulated->worn >> sector) & 1u);
}

static tf_status erase_sector(void *context, uint16_t sector) {
    emulated_flash *emulated = context;
    if (emulated->dead || sector >= EMULATED_SECTORS || is_worn(emulated, sector)) {
        return TF_FLASH_FAILED;
    }
    uint8_t *bytes = emulated->bytes + sector * EMULATED_SECTOR_BYTES;
    if (is_cut(emulated)) {
        /* Torn in one of four ways: nothing happened yet, the end is erased already, almost done,
         * anything between. */
        const uint32_t kind = draw(emulated) % 4u;
        const uint32_t until =
            kind == 1u ? draw(emulated) % EMULATED_SECTOR_BYTES : EMULATED_SECTOR_BYTES;
        memset(bytes + until, 0xFF, EMULATED_SECTOR_BYTES - until);
        for (uint32_t i = 0; kind > 1u && i < EMULATED_SECTOR_BYTES; i++) {
            const uint8_t noise = (uint8_t)draw(emulated);
            bytes[i] = kind == 2u ? (uint8_t)(bytes[i] | noise) : noise;
        }
        return TF_FLASH_FAILED;
    }
    memset(bytes, 0xFF, EMULATED_SECTOR_BYTES);
    return TF_OK;
}

static tf_status program_word(void *context, uint32_t address, uint32_t word) {
    emulated_flash *emulated = context;
    const uint32_t offset = address - EMULATED_ADDRESS;
    if (emulated->dead || address % 4u != 0u || offset >= sizeof emulated->bytes ||
        is_worn(emulated, offset / EMULATED_SECTOR_BYTES)) {
        return TF_FLASH_FAILED;
    }
    uint32_t present;
    memcpy(&present, emulated->bytes + offset, 4);
    emulated->rewrote |= present != TF_FLASH_ERASED;
    const int cut = is_cut(emulated);
    /* Torn: any part of the bits that should become zero did. */
    present &= cut ? (word | draw(emulated)) : word;
    memcpy(emulated->bytes + offset, &present, 4);
    return cut || present != word ? TF_FLASH_FAILED : TF_OK;
}

static const uint8_t *map(void *context, uint32_t address, uint32_t bytes) {
    emulated_flash *emulated = context;
    const uint32_t offset = address - EMULATED_ADDRESS;
    if (address < EMULATED_ADDRESS || offset > sizeof emulated->bytes ||
        bytes > sizeof emulated->bytes - offset) {
        return NULL;
    }
    return emulated->bytes + offset;
}

void emulated_flash_start(emulated_flash *emulated, uint32_t seed) {
    memset(emulated, 0, sizeof *emulated);
    memset(emulated->bytes, 0xFF, sizeof emulated->bytes);
    emulated->random = seed;
    emulated->flash.context = emulated;
    emulated->flash.erase_sector = erase_sector;
    emulated->flash.program_word = program_word;
    emulated->flash.map = map;
}
