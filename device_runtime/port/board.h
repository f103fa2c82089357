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

typedef struct {
    uint8_t reset_cause; /* a tf_reset_cause */
    uint8_t fault_code;  /* of a fault: the core's exception, from 0x80 on the port's own; else 0 */
    uint32_t fault_pc;   /* where it was; 0 where that isn't known */
} tf_board_reset_report;

/* Sets up clocks, peripherals and the watchdog; once, first of all. */
const tf_port *tf_board_start(void);

/* Why the board has started this time. */
tf_board_reset_report tf_board_get_reset_report(void);

/* Something got done: the watchdog waits anew. Does nothing while the clock stands still, since
 * without it no timer ends. */
void tf_board_show_progress(void);

tf_board_layout tf_board_get_layout(void);

/* Sleeps until bytes came, were sent, or `milliseconds` have passed; may return sooner. */
void tf_board_idle(uint32_t milliseconds);

/* Starts over as after power on. */
void tf_board_reset(void) __attribute__((noreturn));

#endif
