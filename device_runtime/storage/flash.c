/* Helpers over the flash seam. */
#include "tinyfleet/flash.h"

#include <stddef.h>

tf_status tf_flash_erase_region(const tf_flash *flash, const tf_flash_region *region) {
    for (uint16_t i = 0; i < region->sector_count; i++) {
        const uint16_t sector = (uint16_t)(region->first_sector + i);
        if (flash->erase_sector(flash->context, sector) != TF_OK) {
            return TF_FLASH_FAILED;
        }
    }
    return TF_OK;
}

uint32_t tf_flash_word(const tf_flash *flash, uint32_t address) {
    const uint8_t *bytes = flash->map(flash->context, address, 4u);
    if (bytes == NULL) {
        return TF_FLASH_ERASED;
    }
    return (uint32_t)bytes[0] | ((uint32_t)bytes[1] << 8) | ((uint32_t)bytes[2] << 16) |
           ((uint32_t)bytes[3] << 24);
}

tf_status tf_flash_complete_word(const tf_flash *flash, uint32_t address, uint32_t word) {
    if (flash->map(flash->context, address, 4u) == NULL) {
        return TF_FLASH_FAILED;
    }
    const uint32_t present = tf_flash_word(flash, address);
    if (present == word) {
        return TF_OK;
    }
    if ((present & word) != word) {
        return TF_BAD_INPUT;
    }
    return flash->program_word(flash->context, address, word);
}
