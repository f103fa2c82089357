/* Why the core has started, and the watchdog that makes it start over. */
#include "registers.h"
#include "stm32.h"

/* Reset flags of RCC_CSR; the pin's is set by every reset. */
#define FLAG_BROWN_OUT (1u << 25)
#define FLAG_PIN (1u << 26)
#define FLAG_POWER_ON (1u << 27)
#define FLAG_SOFTWARE (1u << 28)
#define FLAG_WATCHDOGS ((1u << 29) | (1u << 30))
#define REMOVE_FLAGS (1u << 24)

/* 32 kHz / 256 is 125 Hz: 26 s, which are 17 s where the oscillator runs at its fastest, 47 kHz.
 * That outlasts every piece of work: a sector's erase takes 4 s at most, a step of training one or
 * two. */
#define WATCHDOG_START 0xCCCCu
#define WATCHDOG_UNLOCK 0x5555u
#define WATCHDOG_REFRESH 0xAAAAu
#define WATCHDOG_DIVIDE_BY_256 6u
#define WATCHDOG_RELOAD (26u * 125u - 1u)
#define WATCHDOG_UPDATING 3u

static tf_board_reset_report report;

void tf_stm32_read_reset_cause(void) {
    const uint32_t flags = RCC_CSR;
    RCC_CSR |= REMOVE_FLAGS;
    tf_board_reset_report by_itself = {.reset_cause = TF_RESET_SOFTWARE};
    (void)tf_cortex_m_take_record(&by_itself);
    report = (tf_board_reset_report){.reset_cause = TF_RESET_UNKNOWN};
    if ((flags & FLAG_POWER_ON) != 0u) {
        report.reset_cause = TF_RESET_POWER_ON;
    } else if ((flags & FLAG_BROWN_OUT) != 0u) {
        report.reset_cause = TF_RESET_BROWN_OUT;
    } else if ((flags & FLAG_WATCHDOGS) != 0u) {
        report.reset_cause = TF_RESET_WATCHDOG;
    } else if ((flags & FLAG_SOFTWARE) != 0u) {
        report = by_itself;
    } else if ((flags & FLAG_PIN) != 0u) {
        report.reset_cause = TF_RESET_PIN;
    }
}

tf_board_reset_report tf_board_get_reset_report(void) {
    return report;
}

void tf_stm32_watchdog_start(void) {
    IWDG_KR = WATCHDOG_START; /* starts its oscillator, too */
    IWDG_KR = WATCHDOG_UNLOCK;
    IWDG_PR = WATCHDOG_DIVIDE_BY_256;
    IWDG_RLR = WATCHDOG_RELOAD;
    /* Where the values never arrive it runs with those after a reset: half a second, which ends in
     * a reset and another try. */
    (void)tf_stm32_wait_for(&IWDG_SR, WATCHDOG_UPDATING, 0u);
    tf_stm32_watchdog_refresh();
}

void tf_stm32_watchdog_refresh(void) {
    IWDG_KR = WATCHDOG_REFRESH;
}
