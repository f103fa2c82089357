/* What the files of the stm32 port know of each other. */
#ifndef TINYFLEET_STM32_H
#define TINYFLEET_STM32_H

#include "tinyfleet/flash.h"
#include "tinyfleet/stream.h"

extern const tf_stream tf_stm32_stream;
extern const tf_flash tf_stm32_internal_flash;
#if TF_EXTERNAL_FLASH
extern const tf_flash tf_stm32_external_flash; /* its sectors counted from 0 */
extern const tf_flash tf_stm32_both_flashes;
/* Pins, controller and chip; without an answer of the chip, all of its functions fail. */
void tf_stm32_external_flash_start(void);
#endif

/* Pins, USART1 and both DMA streams. */
void tf_stm32_uart_start(void);
/* Clears what woke the core up. */
void tf_stm32_uart_clear_pending(void);
/* Milliseconds since start. */
uint32_t tf_stm32_milliseconds(void *context);
/* Ends a run of programming: flash can't be changed by a stray store afterwards. */
void tf_stm32_flash_lock(void);

/* Makes all stores so far take effect before the next instruction. */
static inline void tf_stm32_barrier(void) {
    __asm volatile("dsb\n\tisb" ::: "memory");
}

#endif
