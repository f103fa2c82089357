/* Clock, battery, entropy, sleep of STM32F407 and F746. */
#include "../board.h"

#include <stddef.h>

#include "registers.h"
#include "stm32.h"

#define CONVERTER_ON (1u << 0)
#define START_CONVERSION (1u << 30)
#define CONVERSION_DONE (1u << 1)
#define RNG_READY (1u << 0)
#define RNG_FAULTS (3u << 1 | 3u << 5) /* of seed and clock, now and since */
#define SYSTICK_ON_AND_PENDING 3u      /* from AHB / 8 */
#define SYSTICK_LIMIT_MS 500u          /* 24 bits at 21 MHz hold no more than 798 */

/* Channel 0 behind a divider that gives full scale at full charge. */
static void start_converter(void) {
    GPIOA_MODER |= 3u; /* PA0, analog */
    GPIOA_PUPDR &= ~3u;
    ADC_CCR = 0; /* half of APB2 */
    ADC1_CR1 = 0;
    ADC1_SQR1 = 0;   /* one conversion, */
    ADC1_SQR3 = 0;   /* of channel 0, */
    ADC1_SMPR2 = 7u; /* which takes 480 cycles, for a high-ohmic divider */
    ADC1_CR2 = CONVERTER_ON;
}

static uint8_t battery(void *context) {
    (void)context;
    ADC1_SR = 0;
    ADC1_CR2 = CONVERTER_ON | START_CONVERSION;
    if (!tf_stm32_wait_for(&ADC1_SR, CONVERSION_DONE, CONVERSION_DONE)) {
        return TF_BATTERY_UNKNOWN;
    }
    return (uint8_t)(((ADC1_DR & 0xFFFu) * 100u + 2047u) / 4095u);
}

static uint32_t entropy(void *context) {
    (void)context;
    /* Jitter needs no certified source: after an error in the generator the clock must do. */
    for (uint32_t tries = 0; tries < 1000u; tries++) {
        if ((RNG_SR & RNG_READY) != 0u) {
            return RNG_DR;
        }
    }
    return TIM2_CNT * 2654435761u;
}

/* A number of the generator that it found no fault with, and that isn't the one before. */
static bool draw(uint32_t *number) {
    const uint32_t before = *number;
    for (uint32_t tries = 0; tries < 1000u; tries++) {
        const uint32_t status = RNG_SR;
        if ((status & RNG_FAULTS) != 0u) {
            return false;
        }
        if ((status & RNG_READY) != 0u) {
            *number = RNG_DR;
            return *number != before;
        }
    }
    return false;
}

static bool secret(void *context, uint8_t *bytes, size_t count) {
    (void)context;
    uint32_t number = 0;
    /* The reference manual wants the first one thrown away. */
    bool is_sound = draw(&number);
    for (size_t i = 0; i < count && is_sound; i++) {
        is_sound = i % sizeof number != 0u || draw(&number);
        bytes[i] = (uint8_t)(number >> (8u * (i % sizeof number)));
    }
    return is_sound;
}

static const tf_port port = {
    .stream = &tf_stm32_stream,
#if TF_EXTERNAL_FLASH
    .flash = &tf_stm32_both_flashes,
#else
    .flash = &tf_stm32_internal_flash,
#endif
    .entropy = entropy,
    .secret = secret,
    .battery = battery,
    .context = NULL,
};

const tf_port *tf_board_start(void) {
    tf_stm32_read_reset_cause();
    tf_stm32_clocks_start();
    tf_stm32_watchdog_start();
    RNG_CR = 1u << 2;
    start_converter();
    tf_stm32_uart_start();
#if TF_EXTERNAL_FLASH
    tf_stm32_external_flash_start();
#endif
    return &port;
}

void tf_board_idle(uint32_t milliseconds) {
    tf_stm32_flash_lock();
    if (milliseconds == 0u) {
        return;
    }
    const uint32_t wait = milliseconds < SYSTICK_LIMIT_MS ? milliseconds : SYSTICK_LIMIT_MS;
    SYST_RVR = wait * (STM32_AHB_HZ / 8000u) - 1u;
    SYST_CVR = 0;
    SYST_CSR = SYSTICK_ON_AND_PENDING;
    __asm volatile("dsb\n\twfi" ::: "memory");
    SYST_CSR = 0;
    /* Cleared before the rings are looked at: what comes from now on ends the next sleep. */
    SCB_ICSR = 1u << 25;
    tf_stm32_uart_clear_pending();
}

void tf_board_show_progress(void) {
    static uint32_t shown_at;
    const uint32_t now = TIM2_CNT;
    if (now != shown_at) {
        shown_at = now;
        tf_stm32_watchdog_refresh();
    }
}
