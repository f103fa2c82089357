/* The few registers of Arm's MPS2 and MPS3 boards that the port uses.
 *
 * What such a board is depends on the image of its FPGA; TF_BOARD_AN is the number of the
 * application note that describes it. Sources: DAI0383, DAI0385, DAI0386, DAI0400 (AN500), DAI0505, DAI0547; Cortex-M
 * System Design Kit Technical Reference Manual (DDI0479). With TrustZone everything is used by its
 * secure address.
 */
#ifndef TINYFLEET_MPS_REGISTERS_H
#define TINYFLEET_MPS_REGISTERS_H

#include "../cortex_m/cortex_m.h"

#if TF_BOARD_AN == 383 || TF_BOARD_AN == 385 || TF_BOARD_AN == 386 || TF_BOARD_AN == 500
#define UART 0x40004000u
#define UART_RECEIVE_INTERRUPT 0u
#define FPGAIO 0x40028000u
#define COUNTER_HZ TF_CLOCK_HZ
#define WATCHDOG 0x40008000u
#define WATCHDOG_HZ TF_CLOCK_HZ
#elif TF_BOARD_AN == 505
#define UART 0x50200000u
#define UART_RECEIVE_INTERRUPT 32u
#define FPGAIO 0x50302000u
#define COUNTER_HZ TF_CLOCK_HZ
#define WATCHDOG 0x5002E000u
#define WATCHDOG_HZ 32000u
#elif TF_BOARD_AN == 547
#define UART 0x59303000u
#define UART_RECEIVE_INTERRUPT 33u
#define FPGAIO 0x59302000u
#define COUNTER_HZ 20000000u
#define WATCHDOG 0x5802E000u
#define WATCHDOG_HZ 32000u
#else
#error "the port mps knows TF_BOARD_AN 383, 385, 386, 500, 505 and 547"
#endif
#define UART_TRANSMIT_INTERRUPT (UART_RECEIVE_INTERRUPT + 1u)

/* CMSDK UART: one byte each way, 8N1 */
#define UART_DATA REGISTER(UART + 0x00u)
#define UART_STATE REGISTER(UART + 0x04u)
#define UART_CTRL REGISTER(UART + 0x08u)
#define UART_INTCLEAR REGISTER(UART + 0x0Cu)
#define UART_BAUDDIV REGISTER(UART + 0x10u)
#define UART_TRANSMIT_FULL (1u << 0)
#define UART_RECEIVE_FULL (1u << 1)
#define UART_TRANSMITTER_ENABLE (1u << 0)
#define UART_RECEIVER_ENABLE (1u << 1)
#define UART_TRANSMIT_INTERRUPT_ENABLE (1u << 2)
#define UART_RECEIVE_INTERRUPT_ENABLE (1u << 3)
#define UART_TRANSMIT_FLAG (1u << 0)
#define UART_RECEIVE_FLAG (1u << 1)

/* A counter of 32 bits that goes up once in PRESCALE + 1 clocks */
#define FPGAIO_PRESCALE REGISTER(FPGAIO + 0x1Cu)
#define FPGAIO_COUNTER REGISTER(FPGAIO + 0x18u)

/* CMSDK watchdog: at its first end an NMI, at the second a reset */
#define WDOG_LOAD REGISTER(WATCHDOG + 0x00u)
#define WDOG_CONTROL REGISTER(WATCHDOG + 0x08u)
#define WDOG_INTCLR_OFFSET 0x0Cu
#define WDOG_INTCLR REGISTER(WATCHDOG + WDOG_INTCLR_OFFSET)
#define WDOG_LOCK REGISTER(WATCHDOG + 0xC00u)
#define WDOG_UNLOCK 0x1ACCE551u
#define WDOG_INTERRUPT_AND_RESET 3u

#endif
