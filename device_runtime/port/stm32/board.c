/* Clocks, clock, battery, entropy, sleep of STM32F407 and F746. */
#include "../board.h"

#include <stddef.h>

#include "registers.h"
#include "stm32.h"

/* Addresses from the linker script; what stands for a number is the address of its symbol. */
extern char __identity_start[], __identity_bytes[], __identity_sector[], __identity_sector_count[];
extern char __journal_start[], __journal_bytes[], __journal_sector[], __journal_sector_count[];
extern char __slot_a_start[], __slot_a_bytes[], __slot_a_sector[], __slot_a_sector_count[];
extern char __slot_b_start[], __slot_b_bytes[], __slot_b_sector[], __slot_b_sector_count[];
extern char __samples_start[], __samples_bytes[], __samples_sector[], __samples_sector_count[];
extern char __samples_units[], __samples_keep[];
extern uint8_t __pool_start[], __pool_end[];

#define NUMBER(symbol) ((uint32_t)(uintptr_t)(symbol))
#define REGION(name)                                                                          \
    {NUMBER(__##name##_start), NUMBER(__##name##_bytes), (uint16_t)NUMBER(__##name##_sector), \
     (uint16_t)NUMBER(__##name##_sector_count)}

#define ENABLE_GPIOA (1u << 0)
#define ENABLE_GPIOB (1u << 1)
#define ENABLE_DMA2 (1u << 22)
#define ENABLE_RNG (1u << 6)
#define ENABLE_TIM2 (1u << 0)
#define ENABLE_USART1 (1u << 4)
#define ENABLE_ADC1 (1u << 8)
#define PLL_ON (1u << 24)
#define PLL_READY (1u << 25)
#define CLOCK_SWITCH_MASK 3u
#define CLOCK_SWITCH_PLL 2u
#define SYSTICK_ON_AND_PENDING 3u /* from AHB / 8 */
#define SYSTICK_LIMIT_MS 500u     /* 24 bits at 21 MHz hold no more than 798 */

/* 168 MHz on both: within reach of the F746 without its over-drive mode. The internal 16 MHz
 * oscillator / 16 · 336 is 336 MHz; / 2 for the core, / 7 = 48 MHz for the random numbers.
 * APB1 is AHB / 8, so that its timers (at twice that, 42 MHz) divide down to 1 kHz in 16 bits;
 * APB2 is AHB / 4, since the converter takes half of it and at most 36 MHz. */
static void start_clocks(void) {
    RCC_PLLCFGR = (RCC_PLLCFGR & ~0x0F437FFFu) | 16u | (336u << 6) | (0u << 16) | (7u << 24);
    RCC_CR |= PLL_ON;
    while ((RCC_CR & PLL_READY) == 0u) {
    }
    RCC_CFGR = (RCC_CFGR & ~0xFCF0u) | (6u << 10) | (5u << 13); /* AHB / 1, APB1 / 8, APB2 / 4 */
#if TF_BOARD_USART_V2
    FLASH_ACR = 5u; /* wait states */
#else
    FLASH_ACR = 5u | (7u << 8); /* with prefetch, instruction and data cache */
#endif
    while ((FLASH_ACR & 0xFu) != 5u) {
    }
    RCC_CFGR = (RCC_CFGR & ~CLOCK_SWITCH_MASK) | CLOCK_SWITCH_PLL;
    while (((RCC_CFGR >> 2) & CLOCK_SWITCH_MASK) != CLOCK_SWITCH_PLL) {
    }
    RCC_AHB1ENR |= ENABLE_GPIOA | ENABLE_GPIOB | ENABLE_DMA2;
    RCC_AHB2ENR |= ENABLE_RNG;
    RCC_APB1ENR |= ENABLE_TIM2;
    RCC_APB2ENR |= ENABLE_USART1 | ENABLE_ADC1;
    tf_stm32_barrier();
#if TF_BOARD_USART_V2
    /* Instruction cache of the Cortex-M7. Its data cache stays off: DMA writes behind it. */
    SCB_ICIALLU = 0;
    tf_stm32_barrier();
    SCB_CCR |= 1u << 17;
    tf_stm32_barrier();
#endif
}

static void start_timer(void) {
    TIM2_PSC = STM32_APB1_TIMER_HZ / 1000u - 1u;
    TIM2_ARR = 0xFFFFFFFFu;
    TIM2_EGR = 1u; /* takes over the prescaler */
    TIM2_CR1 = 1u;
}

uint32_t tf_stm32_milliseconds(void *context) {
    (void)context;
    return TIM2_CNT;
}

/* Channel 0 (PA0, an input after reset) behind a divider that gives full scale at full charge. */
static uint8_t battery_percent(void *context) {
    (void)context;
    ADC1_SR = 0;
    ADC1_CR2 |= 1u << 30;
    while ((ADC1_SR & (1u << 1)) == 0u) {
    }
    return (uint8_t)((ADC1_DR * 100u + 2047u) / 4095u);
}

static uint32_t entropy(void *context) {
    (void)context;
    /* Jitter needs no certified source: after an error in the generator the clock must do. */
    for (uint32_t tries = 0; tries < 1000u; tries++) {
        if ((RNG_SR & 1u) != 0u) {
            return RNG_DR;
        }
    }
    return TIM2_CNT * 2654435761u;
}

static const tf_port port = {
    .stream = &tf_stm32_stream,
#if TF_EXTERNAL_FLASH
    .flash = &tf_stm32_both_flashes,
#else
    .flash = &tf_stm32_internal_flash,
#endif
    .entropy = entropy,
    .battery_percent = battery_percent,
    .context = NULL,
};

const tf_port *tf_board_start(void) {
    start_clocks();
    start_timer();
    RNG_CR = 1u << 2;
    ADC1_SQR3 = 0;
    ADC1_SMPR2 = 7u; /* channel 0: 480 cycles, for a high-ohmic divider */
    ADC1_CR2 = 1u;
    tf_stm32_uart_start();
#if TF_EXTERNAL_FLASH
    tf_stm32_external_flash_start();
#endif
    return &port;
}

tf_board_layout tf_board_get_layout(void) {
    const tf_board_layout layout = {
        .regions =
            {
                .identity = REGION(identity),
                .journal = REGION(journal),
                .slots = {REGION(slot_a), REGION(slot_b)},
                .samples = {REGION(samples), (uint16_t)NUMBER(__samples_units),
                            (uint8_t)NUMBER(__samples_keep)},
            },
        .pool = __pool_start,
        .pool_bytes = NUMBER(__pool_end) - NUMBER(__pool_start),
    };
    return layout;
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

void tf_board_reset(void) {
    tf_stm32_barrier();
    SCB_AIRCR = 0x05FA0004u;
    tf_stm32_barrier();
    for (;;) {
    }
}
