/* What firmware/main.c asks of a board port. Every port that builds firmware supplies this. */
#ifndef TINYFLEET_BOARD_H
#define TINYFLEET_BOARD_H

#include <stdint.h>

#include "tinyfleet/flash_layout.h"
#include "tinyfleet/port.h"

/* Where things lie, as the linker script says. */
typedef struct {
    tf_flash_layout regions;
    void *pool;
    uint32_t pool_bytes;
} tf_board_layout;

/* Sets up clocks and peripherals; once, first of all. */
const tf_port *tf_board_start(void);

tf_board_layout tf_board_get_layout(void);

/* Sleeps until bytes came, were sent, or `milliseconds` have passed; may return sooner. */
void tf_board_idle(uint32_t milliseconds);

/* Starts over as after power on. */
void tf_board_reset(void);

#endif
