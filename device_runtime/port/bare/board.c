/* A core and its memories, without anything around them: for microcontrollers that have no port yet.
 * The firmware is whole, so that its sizes are what they will be, and the engine in it can be called
 * and counted; but it has no line, no clock, and a flash that can be read only. */
#include "../board.h"

#include <stddef.h>

#include "../cortex_m/cortex_m.h"

static const uint32_t sector_sizes[TF_FLASH_SECTOR_COUNT] = TF_FLASH_SECTOR_SIZES;

static void do_nothing(void *context) {
    (void)context;
}

static bool is_open(void *context) {
    (void)context;
    return false;
}

static size_t read_nothing(void *context, uint8_t *bytes, size_t capacity) {
    (void)context, (void)bytes, (void)capacity;
    return 0;
}

static size_t write_nothing(void *context, const uint8_t *bytes, size_t length) {
    (void)context, (void)bytes, (void)length;
    return 0;
}

static uint32_t milliseconds(void *context) {
    (void)context;
    return 0;
}

static tf_status erase_sector(void *context, uint16_t sector) {
    (void)context, (void)sector;
    return TF_FLASH_FAILED;
}

static tf_status program_word(void *context, uint32_t address, uint32_t word) {
    (void)context, (void)address, (void)word;
    return TF_FLASH_FAILED;
}

static const uint8_t *map(void *context, uint32_t address, uint32_t bytes) {
    (void)context;
    uint32_t total = 0;
    for (uint32_t i = 0; i < TF_FLASH_SECTOR_COUNT; i++) {
        total += sector_sizes[i];
    }
    const uint32_t first = address - TF_FLASH_ADDRESS;
    return first <= total && bytes <= total - first ? (const uint8_t *)(uintptr_t)address : NULL;
}

static uint32_t entropy(void *context) {
    (void)context;
    return 0;
}

static uint8_t battery(void *context) {
    (void)context;
    return TF_BATTERY_UNKNOWN;
}

static const tf_stream stream = {
    .open = do_nothing,
    .close = do_nothing,
    .is_open = is_open,
    .read = read_nothing,
    .write = write_nothing,
    .milliseconds = milliseconds,
};

static const tf_flash flash = {
    .erase_sector = erase_sector,
    .program_word = program_word,
    .map = map,
};

static const tf_port port = {
    .stream = &stream,
    .flash = &flash,
    .entropy = entropy,
    .battery = battery,
};

const tf_port *tf_board_start(void) {
    return &port;
}

tf_board_reset_report tf_board_get_reset_report(void) {
    const tf_board_reset_report report = {.reset_cause = TF_RESET_POWER_ON};
    return report;
}

void tf_board_show_progress(void) {}

void tf_board_idle(uint32_t milliseconds_at_most) {
    (void)milliseconds_at_most;
    __asm volatile("wfi" ::: "memory");
}

/* No interrupt is ever enabled. */
#define FOUR(entry) entry, entry, entry, entry

static const tf_vector vectors[16] __attribute__((section(".vectors"), used)) = {
    (tf_vector)(uintptr_t)__stack_top,
    Reset_Handler,
    tf_cortex_m_fault,
    tf_cortex_m_fault,
    FOUR(tf_cortex_m_fault),
    FOUR(tf_cortex_m_fault),
    FOUR(tf_cortex_m_fault),
};
