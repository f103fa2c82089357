/* Starting over: why the core does it, what it remembers of it, and the watchdog that makes it. */
#include <stddef.h>

#include "../board.h"
#include "registers.h"
#include "stm32.h"
#include "tinyfleet/crc32.h"

extern uint32_t __stack_bottom[], __stack_top[];

#define RECORD_MAGIC 0x54464C54u
#define FRAME_WORDS 8u
#define FRAME_LR 5u
#define FRAME_PC 6u
#define CALL_BYTES 5u /* an instruction of 4 bytes, and the bit that says Thumb */

/* Of the configurable fault status register: one byte for memory, one for the bus, two for usage. */
#define MEMORY_FAULTS 0xFFu
#define BUS_FAULTS 0xFF00u
#define USAGE_FAULTS 0xFFFF0000u
#define STACKING_FAULTS ((1u << 4) | (1u << 12))
#define MEMORY_FAULT 4u
#define BUS_FAULT 5u
#define USAGE_FAULT 6u
#define ACTIVE_EXCEPTION 0x1FFu

/* Reset flags of RCC_CSR; the pin's is set by every reset. */
#define FLAG_BROWN_OUT (1u << 25)
#define FLAG_PIN (1u << 26)
#define FLAG_POWER_ON (1u << 27)
#define FLAG_SOFTWARE (1u << 28)
#define FLAG_WATCHDOGS ((1u << 29) | (1u << 30))
#define REMOVE_FLAGS (1u << 24)

/* 32 kHz / 256 is 125 Hz: 26 s, which are 17 s where the oscillator runs at its fastest, 47 kHz.
 * That outlasts every piece of work: a sector's erase takes 4 s at most, a step of training one or
 * two. */
#define WATCHDOG_START 0xCCCCu
#define WATCHDOG_UNLOCK 0x5555u
#define WATCHDOG_REFRESH 0xAAAAu
#define WATCHDOG_DIVIDE_BY_256 6u
#define WATCHDOG_RELOAD (26u * 125u - 1u)
#define WATCHDOG_UPDATING 3u

typedef struct {
    uint32_t magic;
    uint32_t fault_code;
    uint32_t pc;
    uint32_t lr;
    uint32_t status; /* CFSR */
    uint32_t crc32;  /* of all before */
} fault_record;

/* A reset leaves SRAM as it is, and the startup code leaves this section alone. */
static fault_record last_fault __attribute__((section(".noinit")));

static tf_board_reset_report report;

static uint32_t record_crc32(void) {
    return tf_crc32(0, (const uint8_t *)&last_fault, offsetof(fault_record, crc32));
}

void tf_board_reset(void) {
    tf_stm32_barrier();
    SCB_AIRCR = 0x05FA0004u;
    tf_stm32_barrier();
    for (;;) {
    }
}

static void __attribute__((noreturn)) remember_and_reset(uint32_t fault_code, uint32_t pc,
                                                         uint32_t lr, uint32_t status) {
    last_fault.magic = RECORD_MAGIC;
    last_fault.fault_code = fault_code;
    last_fault.pc = pc;
    last_fault.lr = lr;
    last_fault.status = status;
    last_fault.crc32 = record_crc32();
    tf_board_reset();
}

void tf_stm32_fail(uint32_t fault_code) {
    const uintptr_t caller = (uintptr_t)__builtin_return_address(0);
    remember_and_reset(fault_code, (uint32_t)caller - CALL_BYTES, 0u, 0u);
}

/* With interrupts masked every fault arrives as a hard fault; its status tells what it was. */
void tf_stm32_take_fault(const uint32_t *frame) {
    const uint32_t status = SCB_CFSR;
    uint32_t fault_code = SCB_ICSR & ACTIVE_EXCEPTION;
    if ((status & USAGE_FAULTS) != 0u) {
        fault_code = USAGE_FAULT;
    } else if ((status & BUS_FAULTS) != 0u) {
        fault_code = BUS_FAULT;
    } else if ((status & MEMORY_FAULTS) != 0u) {
        fault_code = MEMORY_FAULT;
    }
    const uintptr_t place = (uintptr_t)frame;
    const bool is_stacked = (status & STACKING_FAULTS) == 0u && place % 4u == 0u &&
                            place >= (uintptr_t)__stack_bottom &&
                            place <= (uintptr_t)__stack_top - FRAME_WORDS * sizeof(uint32_t);
    remember_and_reset(fault_code, is_stacked ? frame[FRAME_PC] : 0u,
                       is_stacked ? frame[FRAME_LR] : 0u, status);
}

void tf_stm32_read_reset_cause(void) {
    const uint32_t flags = RCC_CSR;
    RCC_CSR |= REMOVE_FLAGS;
    const bool has_record = last_fault.magic == RECORD_MAGIC && last_fault.crc32 == record_crc32();
    report = (tf_board_reset_report){.reset_cause = TF_RESET_UNKNOWN};
    if ((flags & FLAG_POWER_ON) != 0u) {
        report.reset_cause = TF_RESET_POWER_ON;
    } else if ((flags & FLAG_BROWN_OUT) != 0u) {
        report.reset_cause = TF_RESET_BROWN_OUT;
    } else if ((flags & FLAG_WATCHDOGS) != 0u) {
        report.reset_cause = TF_RESET_WATCHDOG;
    } else if ((flags & FLAG_SOFTWARE) != 0u) {
        report.reset_cause = has_record ? TF_RESET_FAULT : TF_RESET_SOFTWARE;
    } else if ((flags & FLAG_PIN) != 0u) {
        report.reset_cause = TF_RESET_PIN;
    }
    if (report.reset_cause == TF_RESET_FAULT) {
        report.fault_code = (uint8_t)last_fault.fault_code;
        report.fault_pc = last_fault.pc;
    }
    last_fault.magic = 0;
}

tf_board_reset_report tf_board_get_reset_report(void) {
    return report;
}

void tf_stm32_watchdog_start(void) {
    IWDG_KR = WATCHDOG_START; /* starts its oscillator, too */
    IWDG_KR = WATCHDOG_UNLOCK;
    IWDG_PR = WATCHDOG_DIVIDE_BY_256;
    IWDG_RLR = WATCHDOG_RELOAD;
    /* Where the values never arrive it runs with those after a reset: half a second, which ends in
     * a reset and another try. */
    (void)tf_stm32_wait_for(&IWDG_SR, WATCHDOG_UPDATING, 0u);
    tf_stm32_watchdog_refresh();
}

void tf_stm32_watchdog_refresh(void) {
    IWDG_KR = WATCHDOG_REFRESH;
}
