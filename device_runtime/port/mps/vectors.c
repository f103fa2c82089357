/* The vector table: the tick and two interrupts of the UART, everything else is a fault. */
#include "mps.h"
#include "registers.h"

#define FOUR(entry) entry, entry, entry, entry
#define SIXTEEN(entry) FOUR(entry), FOUR(entry), FOUR(entry), FOUR(entry)

/* The watchdog's first end. It is taken back, as it might outlive the reset that follows. */
static void __attribute__((naked)) watchdog_ends(void) {
    __asm volatile("ldr r0, =%c0\n\t"
                   "movs r1, #1\n\t"
                   "str r1, [r0]\n\t"
                   "ldr r0, =tf_cortex_m_fault\n\t"
                   "bx r0\n\t"
                   ".ltorg"
                   :
                   : "i"(WATCHDOG + WDOG_INTCLR_OFFSET));
}

/* The table is as long as the port uses it: no other line is ever enabled. */
static const tf_vector vectors[16 + UART_TRANSMIT_INTERRUPT + 1]
    __attribute__((section(".vectors"), used)) = {
        (tf_vector)(uintptr_t)__stack_top,
        Reset_Handler,
        watchdog_ends,
        tf_cortex_m_fault,
        FOUR(tf_cortex_m_fault),
        FOUR(tf_cortex_m_fault),
        tf_cortex_m_fault,
        tf_cortex_m_fault,
        tf_cortex_m_fault,
        tf_mps_tick,
#if UART_RECEIVE_INTERRUPT >= 32
        SIXTEEN(tf_cortex_m_fault),
        SIXTEEN(tf_cortex_m_fault),
#endif
#if UART_RECEIVE_INTERRUPT == 33
        tf_cortex_m_fault,
#endif
        tf_mps_uart_receive,
        tf_mps_uart_transmit,
};
