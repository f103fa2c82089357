/* What ports to boards with a Cortex-M share: startup, the record of a fault, the core's registers.
 *
 * Source of the registers: Armv6-M, Armv7-M and Armv8-M Architecture Reference Manuals.
 */
#ifndef TINYFLEET_CORTEX_M_H
#define TINYFLEET_CORTEX_M_H

#include <stdbool.h>
#include <stdint.h>

#include "../board.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))

#define SYST_CSR REGISTER(0xE000E010u)
#define SYST_RVR REGISTER(0xE000E014u)
#define SYST_CVR REGISTER(0xE000E018u)
#define NVIC_ISER(word) REGISTER(0xE000E100u + 4u * (word))
#define NVIC_ICER(word) REGISTER(0xE000E180u + 4u * (word))
#define NVIC_ICPR(word) REGISTER(0xE000E280u + 4u * (word))
#define SCB_ICSR REGISTER(0xE000ED04u)
#define SCB_VTOR REGISTER(0xE000ED08u)
#define SCB_AIRCR REGISTER(0xE000ED0Cu)
#define SCB_CCR REGISTER(0xE000ED14u)
#define SCB_CCR_UNALIGNED_TRAP (1u << 3) /* Armv6-M: always set */
#define SCB_CFSR REGISTER(0xE000ED28u)
#define SCB_CPACR REGISTER(0xE000ED88u)

/* Fault codes that no core has: what a port found wrong itself. Its own begin at 0x81. */
#define TF_FAULT_MAIN_RETURNED 0x80u

/* Code of a reset that the firmware asked for, in a record. */
#define TF_FAULT_NONE 0u

/* An entry of the vector table that the port puts into the section .vectors. */
typedef void (*tf_vector)(void);

extern uint32_t __stack_bottom[], __stack_top[];

void Reset_Handler(void);
/* Takes every exception that is a fault: remembers it and starts over. */
void tf_cortex_m_fault(void);
/* The same with what the core stacked when it took the exception. */
void tf_cortex_m_take_fault(const uint32_t *frame) __attribute__((noreturn));

/* Remembers what went wrong in SRAM that a reset leaves alone, and starts over. */
void tf_cortex_m_fail(uint32_t fault_code) __attribute__((noreturn));

/* Why the firmware started over by itself: the record is put into `report` and forgotten, its
 * cause is TF_RESET_SOFTWARE or TF_RESET_FAULT. false: there is none, and `report` stays. */
bool tf_cortex_m_take_record(tf_board_reset_report *report);

/* Makes all stores so far take effect before the next instruction. */
static inline void tf_cortex_m_barrier(void) {
    __asm volatile("dsb\n\tisb" ::: "memory");
}

#endif
