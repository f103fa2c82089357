/* Why the core has started, and the watchdog that makes it start over. */
#include "mps.h"
#include "registers.h"

#define NMI 2u
#define RUNNING 0x52554E21u

/* 26 s and as long again, as the first end only raises an NMI: that outlasts every piece of work. */
#define WATCHDOG_SECONDS 26u

/* The board tells nothing of a reset's cause. SRAM that still holds this word has kept its power. */
static uint32_t state __attribute__((section(".noinit")));

static tf_board_reset_report report;

void tf_mps_read_reset_cause(void) {
    report = (tf_board_reset_report){
        .reset_cause = state == RUNNING ? TF_RESET_PIN : TF_RESET_POWER_ON,
    };
    if (tf_cortex_m_take_record(&report) && report.fault_code == NMI) {
        report.reset_cause = TF_RESET_WATCHDOG;
        report.fault_code = 0;
    }
    state = RUNNING;
}

tf_board_reset_report tf_board_get_reset_report(void) {
    return report;
}

void tf_mps_watchdog_start(void) {
    WDOG_LOCK = WDOG_UNLOCK;
    WDOG_LOAD = WATCHDOG_SECONDS * WATCHDOG_HZ;
    WDOG_INTCLR = 1u; /* an end before the reset is over */
    WDOG_CONTROL = WDOG_INTERRUPT_AND_RESET;
}

void tf_mps_watchdog_refresh(void) {
    WDOG_INTCLR = 1u;
}
