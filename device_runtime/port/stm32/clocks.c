/* Clocks of STM32F207, F407 and F746. */
#include "registers.h"
#include "stm32.h"

#if TF_BOARD_STM32F2
#define CORE_MHZ 120u
#define WAIT_STATES 3u
#else
#define CORE_MHZ 168u
#define WAIT_STATES 5u
#endif
#if TF_CLOCK_HZ != CORE_MHZ * 1000000u
#error "the board's description must say \"clock_hz\": 168000000, or 120000000 for an F2"
#endif

#define ENABLE_GPIOA (1u << 0)
#define ENABLE_GPIOB (1u << 1)
#define ENABLE_DMA2 (1u << 22)
#define ENABLE_RNG (1u << 6)
#define ENABLE_TIM2 (1u << 0)
#define ENABLE_PWR (1u << 28)
#define ENABLE_USART1 (1u << 4)
#define ENABLE_ADC1 (1u << 8)
#define HSI_ON (1u << 0)
#define HSI_READY (1u << 1)
#define PLL_ON (1u << 24)
#define PLL_READY (1u << 25)
#define CLOCK_SWITCH_MASK 3u
#define CLOCK_SWITCH_PLL 2u
#define CLOCK_SWITCH_STATUS_SHIFT 2u
#define TIMERS_FROM_CORE (1u << 24)
#define USART1_CLOCK_MASK 3u /* 0: that of its bus */
#define RANDOM_CLOCK_OTHER (1u << 27)
#define VOLTAGE_SCALE_1 (3u << 14) /* the F405/407 has the lower bit only */

static void need(bool is_ready) {
    if (!is_ready) {
        tf_cortex_m_fail(STM32_FAULT_CLOCK);
    }
}

/* 168 MHz on F4 and F7: within reach of the F746 without its over-drive mode. The internal 16 MHz
 * oscillator / 16 · 336 is 336 MHz; / 2 for the core, / 7 = 48 MHz for the random numbers. The F2
 * goes up to 120 MHz: · 240 is 240 MHz, / 5 = 48 MHz; its voltage has no scale.
 * APB1 is AHB / 8, so that its timers (at twice that, 42 MHz) divide down to 1 kHz in 16 bits;
 * APB2 is AHB / 4, since the converter takes half of it and at most 36 MHz. */
void tf_stm32_clocks_start(void) {
    /* From the internal oscillator, whatever ran before: the PLL is set while it is off. */
    RCC_CR |= HSI_ON;
    need(tf_stm32_wait_for(&RCC_CR, HSI_READY, HSI_READY));
    RCC_CFGR &= ~CLOCK_SWITCH_MASK;
    need(tf_stm32_wait_for(&RCC_CFGR, CLOCK_SWITCH_MASK << CLOCK_SWITCH_STATUS_SHIFT, 0u));
    RCC_CR &= ~PLL_ON;
    need(tf_stm32_wait_for(&RCC_CR, PLL_READY, 0u));
    RCC_APB1ENR |= ENABLE_PWR;
    tf_cortex_m_barrier();
#if !TF_BOARD_STM32F2
    PWR_CR |= VOLTAGE_SCALE_1;
#endif
    RCC_PLLCFGR = (RCC_PLLCFGR & ~0x0F437FFFu) | 16u | (2u * CORE_MHZ << 6) | (0u << 16) |
                  (2u * CORE_MHZ / 48u << 24);
    RCC_CR |= PLL_ON;
    need(tf_stm32_wait_for(&RCC_CR, PLL_READY, PLL_READY));
    RCC_CFGR = (RCC_CFGR & ~0xFCF0u) | (6u << 10) | (5u << 13); /* AHB / 1, APB1 / 8, APB2 / 4 */
#if TF_BOARD_USART_V2
    FLASH_ACR = WAIT_STATES;
#else
    FLASH_ACR = WAIT_STATES | (7u << 8); /* with prefetch, instruction and data cache */
#endif
    need(tf_stm32_wait_for(&FLASH_ACR, 0xFu, WAIT_STATES));
    RCC_CFGR = (RCC_CFGR & ~CLOCK_SWITCH_MASK) | CLOCK_SWITCH_PLL;
    need(tf_stm32_wait_for(&RCC_CFGR, CLOCK_SWITCH_MASK << CLOCK_SWITCH_STATUS_SHIFT,
                           CLOCK_SWITCH_PLL << CLOCK_SWITCH_STATUS_SHIFT));
#if TF_BOARD_USART_V2
    RCC_DCKCFGR1 &= ~TIMERS_FROM_CORE;
    RCC_DCKCFGR2 &= ~(USART1_CLOCK_MASK | RANDOM_CLOCK_OTHER);
#endif
    RCC_AHB1ENR |= ENABLE_GPIOA | ENABLE_GPIOB | ENABLE_DMA2;
    RCC_AHB2ENR |= ENABLE_RNG;
    RCC_APB1ENR |= ENABLE_TIM2;
    RCC_APB2ENR |= ENABLE_USART1 | ENABLE_ADC1;
    tf_cortex_m_barrier();
#if TF_BOARD_USART_V2
    /* Instruction cache of the Cortex-M7. Its data cache stays off: DMA writes behind it. */
    SCB_ICIALLU = 0;
    tf_cortex_m_barrier();
    SCB_CCR |= 1u << 17;
    tf_cortex_m_barrier();
#endif
    tf_stm32_timer_start();
}
