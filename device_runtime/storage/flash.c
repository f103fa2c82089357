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

bool tf_flash_is_erased(const tf_flash *flash, const tf_flash_region *region) {
    for (uint32_t offset = 0; offset < region->bytes; offset += 4u) {
        if (tf_flash_word(flash, region->address + offset) != TF_FLASH_ERASED) {
            return false;
        }
    }
    return true;
}

tf_status tf_flash_erase_unless_erased(const tf_flash *flash, const tf_flash_region *region) {
    return tf_flash_is_erased(flash, region) ? TF_OK : tf_flash_erase_region(flash, region);
}

uint32_t tf_flash_word(const tf_flash *flash, uint32_t address) {
    const uint8_t *bytes = flash->map(flash->context, address, 4u);
    if (bytes == NULL) {
        return TF_FLASH_ERASED;
    }
    return tf_flash_word_of(bytes, 4u);
}

uint32_t tf_flash_word_of(const uint8_t *data, uint32_t bytes) {
    uint32_t word = TF_FLASH_ERASED;
    for (uint32_t i = 0; i < 4u && i < bytes; i++) {
        word &= ~(0xFFu << (8u * i));
        word |= (uint32_t)data[i] << (8u * i);
    }
    return word;
}

void tf_flash_put_word(uint8_t *bytes, uint32_t word) {
    for (uint32_t i = 0; i < 4u; i++) {
        bytes[i] = (uint8_t)(word >> (8u * i));
    }
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
