/* Battery, entropy, sleep of Arm's MPS2 and MPS3 boards. */
#include "../board.h"

#include <stddef.h>

#include "mps.h"
#include "registers.h"
#include "tinyfleet/crc32.h"

static uint32_t entropy_state;

/* The boards have no source of noise. Jitter needs none: devices are told apart by their identity,
 * and one's starts by when it asks. */
static uint32_t entropy(void *context) {
    (void)context;
    const uint32_t now = FPGAIO_COUNTER;
    entropy_state = tf_crc32(entropy_state, (const uint8_t *)&now, sizeof now);
    return entropy_state;
}

static const tf_port port = {
    .stream = &tf_mps_stream,
    .flash = &tf_mps_flash,
    .entropy = entropy,
    .battery = tf_mps_battery,
    .context = NULL,
};

const tf_port *tf_board_start(void) {
    tf_mps_read_reset_cause();
    tf_mps_timer_start();
    tf_mps_watchdog_start();
    const tf_flash_region identity = tf_board_get_layout().regions.identity;
    entropy_state = tf_crc32(0, (const uint8_t *)(uintptr_t)identity.address, identity.bytes);
    tf_mps_uart_start();
    tf_mps_unmask_interrupts();
    return &port;
}

void tf_board_idle(uint32_t milliseconds) {
    const uint32_t since = FPGAIO_COUNTER;
    /* Masked, so that nothing comes between the look and the sleep: what is pending ends it. */
    tf_mps_mask_interrupts();
    while (FPGAIO_COUNTER - since < milliseconds && !tf_mps_uart_has_news()) {
        __asm volatile("dsb\n\twfi" ::: "memory");
        tf_mps_unmask_interrupts();
        tf_mps_mask_interrupts();
    }
    tf_mps_unmask_interrupts();
    if (milliseconds != 0u) {
        tf_mps_uart_gather();
    }
}

void tf_board_show_progress(void) {
    static uint32_t shown_at;
    const uint32_t now = FPGAIO_COUNTER;
    if (now != shown_at) {
        shown_at = now;
        tf_mps_watchdog_refresh();
    }
}
