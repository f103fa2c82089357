/* What the files of the mps port know of each other. */
#ifndef TINYFLEET_MPS_H
#define TINYFLEET_MPS_H

#include <stdbool.h>
#include <stdint.h>

#include "tinyfleet/flash.h"
#include "tinyfleet/stream.h"

extern const tf_stream tf_mps_stream;
extern const tf_flash tf_mps_flash;

/* Reads why the core started, once, before anything else may fail. */
void tf_mps_read_reset_cause(void);

/* The core starts over when nobody has shown progress for longer than any piece of work takes. */
void tf_mps_watchdog_start(void);
void tf_mps_watchdog_refresh(void);

/* The line to the modem; its interrupts fill and empty its rings from now on. */
void tf_mps_uart_start(void);
/* The interrupts, from the vector table. */
void tf_mps_uart_receive(void);
void tf_mps_uart_transmit(void);
/* Whether bytes came or went since the last call. */
bool tf_mps_uart_has_news(void);
/* Looks at the line until it has fallen idle, or the ring is half full. */
void tf_mps_uart_gather(void);
/* Charge as the modem has told last, or TF_BATTERY_UNKNOWN. */
uint8_t tf_mps_battery(void *context);
/* Begins to count milliseconds, with an interrupt each. */
void tf_mps_timer_start(void);
/* The SysTick's exception. */
void tf_mps_tick(void);
/* Milliseconds since start. */
uint32_t tf_mps_milliseconds(void *context);

/* What the flash does at once in one operation. Functions of their own, so that a debugger can stop
 * the core right before it, as a power cut does. */
void tf_mps_flash_program(volatile uint32_t *place, uint32_t word);
void tf_mps_flash_erase(volatile uint32_t *place, uint32_t bytes);

static inline void tf_mps_mask_interrupts(void) {
    __asm volatile("cpsid i" ::: "memory");
}

static inline void tf_mps_unmask_interrupts(void) {
    __asm volatile("cpsie i" ::: "memory");
}

#endif
