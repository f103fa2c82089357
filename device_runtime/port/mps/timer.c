/* Milliseconds, and what ends a sleep each of them. */
#include "mps.h"
#include "registers.h"

#define SYSTICK_WITH_INTERRUPT 7u /* from the core's clock */

void tf_mps_timer_start(void) {
    FPGAIO_PRESCALE = COUNTER_HZ / 1000u - 1u;
    FPGAIO_COUNTER = 0;
    SYST_RVR = TF_CLOCK_HZ / 1000u - 1u;
    SYST_CVR = 0;
    SYST_CSR = SYSTICK_WITH_INTERRUPT;
}

/* Its interrupt alone matters. */
void tf_mps_tick(void) {}

uint32_t tf_mps_milliseconds(void *context) {
    (void)context;
    return FPGAIO_COUNTER;
}
