/* Time, and waiting for a peripheral without waiting for ever. */
#include <stddef.h>

#include "registers.h"
#include "stm32.h"

/* A look at a register takes at least 8 clocks of the core. */
#define SHORT_WAIT_LOOKS 50000u
#define LOOKS_PER_MS (STM32_AHB_HZ / 8000u)
/* A core that was held up, by a debugger or an emulator's host, has looked too seldom to give up. */
#define LEAST_LOOKS 1000u

void tf_stm32_timer_start(void) {
    TIM2_CR1 = 0;
    TIM2_SMCR = 0; /* counts the internal clock */
    TIM2_DIER = 0;
    TIM2_PSC = STM32_APB1_TIMER_HZ / 1000u - 1u;
    TIM2_ARR = 0xFFFFFFFFu;
    TIM2_EGR = 1u; /* takes over the prescaler */
    TIM2_CR1 = 1u;
}

uint32_t tf_stm32_milliseconds(void *context) {
    (void)context;
    return TIM2_CNT;
}

bool tf_stm32_wait_for(volatile uint32_t *status, uint32_t bits, uint32_t wanted) {
    for (uint32_t looks = 0; looks < SHORT_WAIT_LOOKS; looks++) {
        if ((*status & bits) == wanted) {
            return true;
        }
    }
    return false;
}

bool tf_stm32_wait_long_for(volatile uint32_t *status, uint32_t bits, uint32_t wanted,
                            uint32_t limit_ms) {
    if ((*status & bits) == wanted) {
        return true; /* mostly */
    }
    const uint32_t since = tf_stm32_milliseconds(NULL);
    for (uint32_t looks = 0; looks / LOOKS_PER_MS <= limit_ms; looks++) {
        if ((*status & bits) == wanted) {
            return true;
        }
        if (looks >= LEAST_LOOKS && tf_stm32_milliseconds(NULL) - since > limit_ms) {
            return false;
        }
    }
    return false;
}
