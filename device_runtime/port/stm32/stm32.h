/* What the files of the stm32 port know of each other. */
#ifndef TINYFLEET_STM32_H
#define TINYFLEET_STM32_H

#include <stdbool.h>
#include <stdint.h>

#include "tinyfleet/flash.h"
#include "tinyfleet/stream.h"

/* What board.h calls a fault code, where this port found it and not the core. */
#define STM32_FAULT_CLOCK 0x81u
#define STM32_FAULT_EXTERNAL_FLASH 0x82u
#define STM32_FAULT_DMA 0x83u

extern const tf_stream tf_stm32_stream;
extern const tf_flash tf_stm32_internal_flash;
#if TF_EXTERNAL_FLASH
extern const tf_flash tf_stm32_external_flash; /* its sectors counted from 0 */
extern const tf_flash tf_stm32_both_flashes;
/* Pins, controller and chip; without an answer of the chip, all of its functions fail. */
void tf_stm32_external_flash_start(void);
#endif

/* Clocks of the core, the buses and the peripherals; a board whose clocks don't start starts over. */
void tf_stm32_clocks_start(void);
/* Begins to count milliseconds, at the clocks as they are then. */
void tf_stm32_timer_start(void);
/* Waits until all of `bits` in a register are `wanted`, for as long as a reader of registers can
 * count to. false: they never were. For what is over within a millisecond. */
bool tf_stm32_wait_for(volatile uint32_t *status, uint32_t bits, uint32_t wanted);
/* The same for at least `limit_ms`, and not for ever where the clock stands still. */
bool tf_stm32_wait_long_for(volatile uint32_t *status, uint32_t bits, uint32_t wanted,
                            uint32_t limit_ms);

/* Reads why the core started, once, before anything else may fail. */
void tf_stm32_read_reset_cause(void);

/* The core starts over when nobody has shown progress for longer than any piece of work takes. */
void tf_stm32_watchdog_start(void);
void tf_stm32_watchdog_refresh(void);

/* Pins, USART1 and both DMA streams. */
void tf_stm32_uart_start(void);
/* Clears what woke the core up. */
void tf_stm32_uart_clear_pending(void);
/* Milliseconds since start. */
uint32_t tf_stm32_milliseconds(void *context);
/* Ends a run of programming: flash can't be changed by a stray store afterwards. */
void tf_stm32_flash_lock(void);

#endif
