/* Flash of STM32F4/F7: sectors are erased, words of 32 bits programmed (2.7 … 3.6 V). */
#include <stddef.h>

#include "registers.h"
#include "stm32.h"

#define KEY_1 0x45670123u
#define KEY_2 0xCDEF89ABu
#define CR_PROGRAM (1u << 0)
#define CR_SECTOR_ERASE (1u << 1)
#define CR_SECTOR_SHIFT 3u
#define CR_WORDS (2u << 8)
#define CR_START (1u << 16)
#define CR_LOCK (1u << 31)
#define SR_BUSY (1u << 16)
#define LONGEST_MS 6000u
#define SR_ERRORS 0xF2u /* sequence, parallelism, alignment, write protection, operation */
#define ACR_DATA_CACHE (1u << 10)
#define ACR_DATA_CACHE_RESET (1u << 12)

static const uint32_t sector_sizes[TF_FLASH_SECTOR_COUNT] = TF_FLASH_SECTOR_SIZES;

/* Programming is on, so that a run of words needs no more than the words. */
static uint8_t is_programming;

/* A core whose code lies in this flash stands still meanwhile; datasheets allow 4 s for a sector
 * and 100 µs for a word. */
static bool wait_until_done(void) {
    return tf_stm32_wait_long_for(&FLASH_SR, SR_BUSY, 0u, LONGEST_MS);
}

static void unlock(void) {
    if ((FLASH_CR & CR_LOCK) != 0u) {
        FLASH_KEYR = KEY_1;
        FLASH_KEYR = KEY_2;
    }
    FLASH_SR = SR_ERRORS; /* cleared by writing ones */
}

void tf_stm32_flash_lock(void) {
    if (is_programming) {
        FLASH_CR = CR_WORDS | CR_LOCK;
        is_programming = 0;
    }
}

static tf_status erase_sector(void *context, uint16_t sector) {
    (void)context;
    if (sector >= TF_FLASH_SECTOR_COUNT) {
        return TF_FLASH_FAILED;
    }
    tf_stm32_flash_lock();
    if (!wait_until_done()) {
        return TF_FLASH_FAILED;
    }
    unlock();
    const uint32_t control = CR_WORDS | CR_SECTOR_ERASE | ((uint32_t)sector << CR_SECTOR_SHIFT);
    FLASH_CR = control;
    FLASH_CR = control | CR_START;
    tf_cortex_m_barrier();
    if (!wait_until_done()) {
        return TF_FLASH_FAILED;
    }
    const uint32_t errors = FLASH_SR & SR_ERRORS;
    FLASH_CR = CR_WORDS | CR_LOCK;
#if !TF_BOARD_USART_V2
    /* The F4's data cache in front of the flash doesn't see what was erased (RM0090, 3.8.2). */
    FLASH_ACR &= ~ACR_DATA_CACHE;
    FLASH_ACR |= ACR_DATA_CACHE_RESET;
    FLASH_ACR &= ~ACR_DATA_CACHE_RESET;
    FLASH_ACR |= ACR_DATA_CACHE;
#endif
    if (errors != 0u) {
        return TF_FLASH_FAILED;
    }
    tf_stm32_watchdog_refresh(); /* a slot may have many sectors */
    return TF_OK;
}

static tf_status program_word(void *context, uint32_t address, uint32_t word) {
    (void)context;
    if (address % 4u != 0u) {
        return TF_FLASH_FAILED;
    }
    if (!is_programming) {
        if (!wait_until_done()) {
            return TF_FLASH_FAILED;
        }
        unlock();
        FLASH_CR = CR_WORDS | CR_PROGRAM;
        is_programming = 1;
    }
    volatile uint32_t *place = (volatile uint32_t *)(uintptr_t)address;
    *place = word;
    tf_cortex_m_barrier();
    if (!wait_until_done() || (FLASH_SR & SR_ERRORS) != 0u || *place != word) {
        tf_stm32_flash_lock();
        return TF_FLASH_FAILED;
    }
    return TF_OK;
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

const tf_flash tf_stm32_internal_flash = {
    .context = NULL,
    .erase_sector = erase_sector,
    .program_word = program_word,
    .map = map,
};
