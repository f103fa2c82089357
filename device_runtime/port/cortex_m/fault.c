/* Starting over, and what the core remembers of why it did. */
#include <stddef.h>

#include "cortex_m.h"
#include "tinyfleet/crc32.h"

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

static uint32_t record_crc32(void) {
    return tf_crc32(0, (const uint8_t *)&last_fault, offsetof(fault_record, crc32));
}

static void __attribute__((noreturn)) remember_and_reset(uint32_t fault_code, uint32_t pc,
                                                         uint32_t lr, uint32_t status) {
    last_fault.magic = RECORD_MAGIC;
    last_fault.fault_code = fault_code;
    last_fault.pc = pc;
    last_fault.lr = lr;
    last_fault.status = status;
    last_fault.crc32 = record_crc32();
    tf_cortex_m_barrier();
    SCB_AIRCR = 0x05FA0004u;
    tf_cortex_m_barrier();
    for (;;) {
    }
}

void tf_board_reset(void) {
    remember_and_reset(TF_FAULT_NONE, 0u, 0u, 0u);
}

void tf_cortex_m_fail(uint32_t fault_code) {
    const uintptr_t caller = (uintptr_t)__builtin_return_address(0);
    remember_and_reset(fault_code, (uint32_t)caller - CALL_BYTES, 0u, 0u);
}

/* Faults that aren't enabled by themselves arrive as hard faults; the status tells what it was. */
void tf_cortex_m_take_fault(const uint32_t *frame) {
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

bool tf_cortex_m_take_record(tf_board_reset_report *report) {
    const bool has_record = last_fault.magic == RECORD_MAGIC && last_fault.crc32 == record_crc32();
    last_fault.magic = 0;
    if (!has_record) {
        return false;
    }
    const bool is_fault = last_fault.fault_code != TF_FAULT_NONE;
    *report = (tf_board_reset_report){
        .reset_cause = is_fault ? TF_RESET_FAULT : TF_RESET_SOFTWARE,
        .fault_code = (uint8_t)last_fault.fault_code,
        .fault_pc = last_fault.pc,
    };
    return true;
}
