/* The flash of the microcontroller and the one beside it as one memory: addresses tell them apart,
 * and the external one's sectors are numbered behind the internal ones. */
#include "stm32.h"

#if TF_EXTERNAL_FLASH

static const tf_flash *flash_at(uint32_t address) {
    return address - TF_EXTERNAL_FLASH_ADDRESS < TF_EXTERNAL_FLASH_BYTES ? &tf_stm32_external_flash
                                                                         : &tf_stm32_internal_flash;
}

static tf_status erase_sector(void *context, uint16_t sector) {
    if (sector < TF_FLASH_SECTOR_COUNT) {
        return tf_stm32_internal_flash.erase_sector(context, sector);
    }
    return tf_stm32_external_flash.erase_sector(context,
                                                (uint16_t)(sector - TF_FLASH_SECTOR_COUNT));
}

static tf_status program_word(void *context, uint32_t address, uint32_t word) {
    return flash_at(address)->program_word(context, address, word);
}

static const uint8_t *map(void *context, uint32_t address, uint32_t bytes) {
    return flash_at(address)->map(context, address, bytes);
}

const tf_flash tf_stm32_both_flashes = {
    .context = 0,
    .erase_sector = erase_sector,
    .program_word = program_word,
    .map = map,
};

#endif
