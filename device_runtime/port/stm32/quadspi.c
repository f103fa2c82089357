/* A NOR flash on the QUADSPI controller of STM32F7: read in place, changed by commands.
 *
 * Sources: RM0385, chapter 14 (QUADSPI); datasheet of the N25Q128A, whose set of commands is that
 * of the MT25Q, too. Commands and data go over one line, since programming takes far longer than
 * its transfer; reads go over four.
 *
 * The Cortex-M7 reads ahead wherever nothing forbids it. A read while commands are sent, or beyond
 * the chip, can stall its bus for good, so the protection unit closes the region but while it is
 * mapped (AN4760, "Quad-SPI memory-mapped mode and Cortex-M7").
 */
#include <stddef.h>

#include "registers.h"
#include "stm32.h"

#if TF_EXTERNAL_FLASH

#define READ_IDENTIFICATION 0x9Fu
#define READ_STATUS 0x70u /* "flag status": ready, and what went wrong */
#define CLEAR_STATUS 0x50u
#define READ_FOUR_LINES 0xEBu
#define READ_DUMMY_CYCLES 10u
#define WRITE_ENABLE 0x06u
#define PROGRAM 0x02u
#define ERASE_SECTOR (TF_EXTERNAL_FLASH_SECTOR_BYTES == 4096u ? 0x20u : 0xD8u)
#define RESET_ENABLE 0x66u
#define RESET 0x99u

#define STATUS_READY (1u << 7)
#define STATUS_ERRORS ((1u << 5) | (1u << 4) | (1u << 1)) /* erase, program, protection */

/* At most 5 ms for a page and 3 s for a sector, says the datasheet. */
#define COMMAND_MS 10u
#define RESET_MS 100u
#define PROGRAM_MS 50u
#define ERASE_MS 6000u

#define LOG2_BYTES ((uint32_t)__builtin_ctz(TF_EXTERNAL_FLASH_BYTES))
#define CHIP_SELECT_HIGH (5u << 8) /* 6 cycles at 84 MHz; the chip asks for 50 ns */

#define MAPPED_BASE 0x90000000u
#define MAPPED_LOG2_BYTES 28u
#define REGION_ALL 0u
#define REGION_CHIP 1u
#define MPU_SIZE(log2) (((log2) - 1u) << 1)
#define MPU_REGION_ON 1u
#define MPU_READ_ONLY (6u << 24)
#define MPU_NEVER_EXECUTE (1u << 28)
#define MPU_NORMAL_UNCACHED (1u << 19)
#define MPU_ON_WITH_DEFAULT_MAP 5u

static uint8_t is_present;

/* The chip's region stays the selected one: nothing else uses the protection unit. */
static void allow_reads(uint32_t on) {
    tf_cortex_m_barrier();
    MPU_RASR = MPU_SIZE(LOG2_BYTES) | MPU_READ_ONLY | MPU_NEVER_EXECUTE | MPU_NORMAL_UNCACHED |
               (on ? MPU_REGION_ON : 0u);
    tf_cortex_m_barrier();
}

static void start_protection(void) {
    MPU_RNR = REGION_ALL;
    MPU_RBAR = MAPPED_BASE;
    MPU_RASR = MPU_SIZE(MAPPED_LOG2_BYTES) | MPU_NEVER_EXECUTE | MPU_REGION_ON;
    MPU_RNR = REGION_CHIP;
    MPU_RBAR = TF_EXTERNAL_FLASH_ADDRESS;
    allow_reads(0u);
    MPU_CTRL = MPU_ON_WITH_DEFAULT_MAP;
    tf_cortex_m_barrier();
}

/* Waits until all of `bits` in the controller's status are `wanted`. */
static tf_status wait_until(uint32_t bits, uint32_t wanted, uint32_t limit_ms) {
    return tf_stm32_wait_long_for(&QUADSPI_SR, bits, wanted, limit_ms) ? TF_OK : TF_FLASH_FAILED;
}

/* Ends whatever the controller does: mapped reads, polling. */
static tf_status stop(void) {
    QUADSPI_CR |= QUADSPI_ABORT;
    const tf_status status = wait_until(QUADSPI_BUSY, 0u, COMMAND_MS);
    QUADSPI_FCR = QUADSPI_FLAGS;
    return status;
}

static tf_status finish(void) {
    const tf_status status = wait_until(QUADSPI_COMPLETE, QUADSPI_COMPLETE, COMMAND_MS);
    QUADSPI_FCR = QUADSPI_FLAGS;
    return status == TF_OK ? wait_until(QUADSPI_BUSY, 0u, COMMAND_MS) : stop();
}

static tf_status command(uint32_t instruction) {
    QUADSPI_CCR = instruction | QUADSPI_INSTRUCTION_1_LINE;
    return finish();
}

/* Lets the controller ask with `instruction` for `bytes` (1 … 4) bytes, over and over, until those
 * under `mask` are `wanted`; `*answer` is the last one, first byte lowest. */
static tf_status poll(uint32_t instruction, uint32_t bytes, uint32_t mask, uint32_t wanted,
                      uint32_t limit_ms, uint32_t *answer) {
    QUADSPI_PSMKR = mask;
    QUADSPI_PSMAR = wanted;
    QUADSPI_DLR = bytes - 1u;
    QUADSPI_CCR =
        instruction | QUADSPI_INSTRUCTION_1_LINE | QUADSPI_DATA_1_LINE | QUADSPI_MODE_POLL;
    const tf_status status = wait_until(QUADSPI_MATCH, QUADSPI_MATCH, limit_ms);
    if (status != TF_OK) {
        (void)stop();
        return status;
    }
    *answer = QUADSPI_DR;
    QUADSPI_FCR = QUADSPI_FLAGS;
    return wait_until(QUADSPI_BUSY, 0u, COMMAND_MS);
}

static void map_chip(void) {
    QUADSPI_CCR = READ_FOUR_LINES | QUADSPI_INSTRUCTION_1_LINE | QUADSPI_ADDRESS_4_LINES |
                  QUADSPI_ADDRESS_24_BITS | (READ_DUMMY_CYCLES << QUADSPI_DUMMY_SHIFT) |
                  QUADSPI_DATA_4_LINES | QUADSPI_MODE_MAPPED;
    allow_reads(1u);
}

/* Resets the chip, whatever it does, and looks whether it is the one that it should be. */
static tf_status reset_chip(void) {
    (void)command(RESET_ENABLE);
    (void)command(RESET);
    const uint32_t id = TF_EXTERNAL_FLASH_ID; /* first byte highest; the controller has it lowest */
    const uint32_t wanted = (id >> 16) | (id & 0xFF00u) | ((id & 0xFFu) << 16);
    uint32_t answer;
    return poll(READ_IDENTIFICATION, 3u, 0xFFFFFFu, wanted, RESET_MS, &answer);
}

static tf_status begin_change(void) {
    allow_reads(0u);
    const tf_status status = stop();
    return status == TF_OK ? command(WRITE_ENABLE) : status;
}

/* Waits for the end of what the chip does after commands that went as `status` says, maps it
 * again, and says whether all went well. */
static tf_status end_change(tf_status status, uint32_t limit_ms) {
    uint32_t flags = 0;
    if (status == TF_OK) {
        status = poll(READ_STATUS, 1u, STATUS_READY, STATUS_READY, limit_ms, &flags);
    }
    if (status != TF_OK && reset_chip() != TF_OK) {
        /* Weights are read in place: nothing goes on without the chip. Starting over looks for it
         * again and again. */
        tf_cortex_m_fail(STM32_FAULT_EXTERNAL_FLASH);
    }
    if ((flags & STATUS_ERRORS) != 0u) {
        (void)command(CLEAR_STATUS);
        status = TF_FLASH_FAILED;
    }
    map_chip();
    return status;
}

static tf_status erase_sector(void *context, uint16_t sector) {
    (void)context;
    if (!is_present || sector >= TF_EXTERNAL_FLASH_BYTES / TF_EXTERNAL_FLASH_SECTOR_BYTES) {
        return TF_FLASH_FAILED;
    }
    tf_status status = begin_change();
    if (status == TF_OK) {
        QUADSPI_CCR = ERASE_SECTOR | QUADSPI_INSTRUCTION_1_LINE | QUADSPI_ADDRESS_1_LINE |
                      QUADSPI_ADDRESS_24_BITS;
        QUADSPI_AR = (uint32_t)sector * TF_EXTERNAL_FLASH_SECTOR_BYTES; /* starts it */
        status = finish();
    }
    status = end_change(status, ERASE_MS);
    if (status == TF_OK) {
        tf_stm32_watchdog_refresh(); /* a slot may have many sectors */
    }
    return status;
}

/* An aligned word never crosses one of the chip's pages of 256 bytes. */
static tf_status program_word(void *context, uint32_t address, uint32_t word) {
    (void)context;
    const uint32_t offset = address - TF_EXTERNAL_FLASH_ADDRESS;
    if (!is_present || address % 4u != 0u || offset >= TF_EXTERNAL_FLASH_BYTES) {
        return TF_FLASH_FAILED;
    }
    tf_status status = begin_change();
    if (status == TF_OK) {
        QUADSPI_DLR = 3u;
        QUADSPI_CCR = PROGRAM | QUADSPI_INSTRUCTION_1_LINE | QUADSPI_ADDRESS_1_LINE |
                      QUADSPI_ADDRESS_24_BITS | QUADSPI_DATA_1_LINE;
        QUADSPI_AR = offset;
        QUADSPI_DR = word; /* starts it */
        status = finish();
    }
    status = end_change(status, PROGRAM_MS);
    if (status != TF_OK || *(const volatile uint32_t *)(uintptr_t)address != word) {
        return TF_FLASH_FAILED;
    }
    return TF_OK;
}

static const uint8_t *map(void *context, uint32_t address, uint32_t bytes) {
    (void)context;
    const uint32_t offset = address - TF_EXTERNAL_FLASH_ADDRESS;
    if (!is_present || offset > TF_EXTERNAL_FLASH_BYTES ||
        bytes > TF_EXTERNAL_FLASH_BYTES - offset) {
        return NULL;
    }
    return (const uint8_t *)(uintptr_t)address;
}

const tf_flash tf_stm32_external_flash = {
    .context = NULL,
    .erase_sector = erase_sector,
    .program_word = program_word,
    .map = map,
};

/* STM32F746G-DISCO: PB2 clock, PB6 chip select, PD11, PD12, PE2, PD13 data lines 0 … 3. */
static void start_pins(void) {
    RCC_AHB1ENR |= (1u << 1) | (1u << 3) | (1u << 4); /* ports B, D, E */
    RCC_AHB3ENR |= 1u << 1;
    tf_cortex_m_barrier();
    /* Alternate functions first, so that no pin is driven by another peripheral in between; two
     * bits of speed and mode, four of function per pin. */
    GPIOB_AFRL = (GPIOB_AFRL & ~0x0F000F00u) | (10u << 24) | (9u << 8);
    GPIOD_AFRH = (GPIOD_AFRH & ~0x00FFF000u) | (9u << 20) | (9u << 16) | (9u << 12);
    GPIOE_AFRL = (GPIOE_AFRL & ~0x00000F00u) | (9u << 8);
    GPIOB_OSPEEDR |= (3u << 12) | (3u << 4);
    GPIOD_OSPEEDR |= (3u << 26) | (3u << 24) | (3u << 22);
    GPIOE_OSPEEDR |= 3u << 4;
    GPIOB_PUPDR = (GPIOB_PUPDR & ~(3u << 12)) | (1u << 12); /* not selected while none drives it */
    GPIOB_MODER = (GPIOB_MODER & ~((3u << 12) | (3u << 4))) | (2u << 12) | (2u << 4);
    GPIOD_MODER = (GPIOD_MODER & ~(0x3Fu << 22)) | (0x2Au << 22);
    GPIOE_MODER = (GPIOE_MODER & ~(3u << 4)) | (2u << 4);
}

void tf_stm32_external_flash_start(void) {
    start_protection();
    start_pins();
    QUADSPI_DCR = ((LOG2_BYTES - 1u) << 16) | CHIP_SELECT_HIGH;
    /* 168 MHz / 2; samples half a cycle late; polling ends with the match. */
    QUADSPI_CR = (1u << 24) | QUADSPI_POLL_ONCE | QUADSPI_LATE_SAMPLE | QUADSPI_ENABLE;
    QUADSPI_FCR = QUADSPI_FLAGS;
    QUADSPI_PIR = 16u; /* clocks between two questions */
    /* A reset of the core alone leaves the chip at what it did. */
    uint32_t flags;
    (void)poll(READ_STATUS, 1u, STATUS_READY, STATUS_READY, ERASE_MS, &flags);
    is_present = reset_chip() == TF_OK;
    if (is_present) {
        map_chip();
    }
}

#endif
