/* Byte stream over USART1 to a modem: DMA fills a ring and empties a buffer, so that bytes keep
 * moving while the core trains. PB6 or PA9 TX, PB7 RX, DTR and DCD pins of port B. */
#include <stddef.h>
#include <string.h>

#include "registers.h"
#include "stm32.h"

#ifndef TF_UART_BAUD
#define TF_UART_BAUD 115200u
#endif
#define RING_BYTES 2048u
#define TRANSMIT_BYTES 256u
#define LAST_WORDS_MS (TRANSMIT_BYTES * 10u * 1000u / TF_UART_BAUD + 2u)
#define RECEIVE_STREAM 2u
#define TRANSMIT_STREAM 7u
#ifndef TF_BOARD_DTR_PIN
#define TF_BOARD_DTR_PIN 0u
#define TF_BOARD_DCD_PIN 1u
#endif
#define DTR (1u << TF_BOARD_DTR_PIN)
#define DCD (1u << TF_BOARD_DCD_PIN)
/* Two bits of port B's mode and pull registers. */
#define PIN_FIELD(pin, value) ((uint32_t)(value) << (2u * (pin)))
#define USART1_INTERRUPT 37u
#define TRANSMIT_INTERRUPT 70u /* DMA2 stream 7 */

/* Written by DMA behind the compiler's back. */
static volatile uint8_t tf_link_uart_ring[RING_BYTES] __attribute__((aligned(4)));
static uint8_t tf_link_uart_transmit[TRANSMIT_BYTES] __attribute__((aligned(4)));
static uint32_t ring_taken; /* position of the next byte to be read */

static enum {
    HUNG_UP,
    HANGING_UP, /* to be dialled as soon as the old carrier is gone */
    DIALLED,    /* DTR is up */
    CARRIED     /* and the carrier was seen */
} line;

static uint32_t ring_filled(void) {
    return (RING_BYTES - DMA2_NDTR(RECEIVE_STREAM)) % RING_BYTES;
}

static uint8_t has_carrier(void) {
    return (GPIOB_IDR & DCD) != 0u;
}

void tf_stm32_uart_start(void) {
    /* DTR output, DCD input with pull-down: an unplugged modem is no carrier. */
    GPIOB_BSRR = DTR << 16;
    GPIOB_MODER = (GPIOB_MODER & ~(PIN_FIELD(TF_BOARD_DTR_PIN, 3) | PIN_FIELD(TF_BOARD_DCD_PIN, 3) |
                                   PIN_FIELD(7u, 3))) |
                  PIN_FIELD(TF_BOARD_DTR_PIN, 1) | PIN_FIELD(7u, 2);
    GPIOB_PUPDR = (GPIOB_PUPDR & ~PIN_FIELD(TF_BOARD_DCD_PIN, 3)) | PIN_FIELD(TF_BOARD_DCD_PIN, 2);
    /* Alternate function 7: PB7, and PA9 or PB6. */
    GPIOB_AFRL = (GPIOB_AFRL & ~0xF0000000u) | (7u << 28);
#if TF_BOARD_USART_TX_PA9
    GPIOA_AFRH = (GPIOA_AFRH & ~0xF0u) | (7u << 4);
    GPIOA_MODER = (GPIOA_MODER & ~(3u << 18)) | (2u << 18);
#else
    GPIOB_AFRL = (GPIOB_AFRL & ~0x0F000000u) | (7u << 24);
    GPIOB_MODER = (GPIOB_MODER & ~PIN_FIELD(6u, 3)) | PIN_FIELD(6u, 2);
#endif

    USART1_BRR = (STM32_APB2_HZ + TF_UART_BAUD / 2u) / TF_UART_BAUD;
    USART1_CR3 = USART_DMA_RECEIVER | USART_DMA_TRANSMITTER;
    USART1_CR1 =
        USART_ENABLE | USART_RECEIVER_ENABLE | USART_TRANSMITTER_ENABLE | USART_IDLE_INTERRUPT;

    DMA2_CR(RECEIVE_STREAM) = 0;
    while ((DMA2_CR(RECEIVE_STREAM) & DMA_ENABLE) != 0u) {
    }
    DMA2_LIFCR = DMA_STREAM_2_FLAGS;
    DMA2_PAR(RECEIVE_STREAM) = USART1_RECEIVE_ADDRESS;
    DMA2_M0AR(RECEIVE_STREAM) = (uint32_t)(uintptr_t)tf_link_uart_ring;
    DMA2_NDTR(RECEIVE_STREAM) = RING_BYTES;
    DMA2_FCR(RECEIVE_STREAM) = 0; /* direct mode: no FIFO holds bytes back */
    DMA2_CR(RECEIVE_STREAM) = DMA_CHANNEL_4 | DMA_INCREMENT_MEMORY | DMA_CIRCULAR | DMA_ENABLE;

    DMA2_CR(TRANSMIT_STREAM) = 0;
    DMA2_PAR(TRANSMIT_STREAM) = USART1_TRANSMIT_ADDRESS;
    DMA2_FCR(TRANSMIT_STREAM) = 0;

    NVIC_ISER(USART1_INTERRUPT / 32u) = 1u << (USART1_INTERRUPT % 32u);
    NVIC_ISER(TRANSMIT_INTERRUPT / 32u) = 1u << (TRANSMIT_INTERRUPT % 32u);
    ring_taken = ring_filled();
    line = HUNG_UP;
}

void tf_stm32_uart_clear_pending(void) {
#if TF_BOARD_USART_V2
    USART1_ICR = USART_IDLE | USART_ERRORS;
#else
    /* Version 1 clears by reading the status and then the data register. A byte that arrives
     * in between is not lost: its DMA request is latched and reads the same register. */
    if ((USART1_SR & (USART_IDLE | USART_ERRORS)) != 0u) {
        (void)USART1_DR;
    }
#endif
    if ((DMA2_CR(TRANSMIT_STREAM) & DMA_ENABLE) == 0u) {
        DMA2_HIFCR = DMA_STREAM_7_FLAGS;
    }
    NVIC_ICPR(USART1_INTERRUPT / 32u) = 1u << (USART1_INTERRUPT % 32u);
    NVIC_ICPR(TRANSMIT_INTERRUPT / 32u) = 1u << (TRANSMIT_INTERRUPT % 32u);
}

/* Brings `line` up to date with the carrier. */
static void follow_carrier(void) {
    if (line == HANGING_UP && !has_carrier()) {
        GPIOB_BSRR = DTR;
        line = DIALLED;
    } else if (line == DIALLED && has_carrier()) {
        line = CARRIED;
    }
}

static void stream_open(void *context) {
    (void)context;
    const uint8_t is_lost = line == CARRIED && !has_carrier();
    if (line != HUNG_UP && !is_lost) {
        return;
    }
    ring_taken = ring_filled();
    if (is_lost) {
        GPIOB_BSRR = DTR << 16; /* the modem dials on the rising edge */
    }
    line = HANGING_UP;
    if (!is_lost) {
        follow_carrier();
    }
}

static void stream_close(void *context) {
    (void)context;
    /* The last words, a DISCONNECT as a rule, take no longer than the buffer: let them out. */
    const uint32_t since = TIM2_CNT;
    while (line == CARRIED && has_carrier() && (DMA2_CR(TRANSMIT_STREAM) & DMA_ENABLE) != 0u &&
           TIM2_CNT - since < LAST_WORDS_MS) {
    }
    DMA2_CR(TRANSMIT_STREAM) &= ~DMA_ENABLE;
    GPIOB_BSRR = DTR << 16;
    line = HUNG_UP;
    ring_taken = ring_filled();
}

static bool stream_is_open(void *context) {
    (void)context;
    if (line == HANGING_UP) {
        /* Bytes of the old connection may have come until its carrier went. */
        ring_taken = ring_filled();
    }
    follow_carrier();
    return line == CARRIED && has_carrier();
}

static size_t stream_read(void *context, uint8_t *bytes, size_t capacity) {
    (void)context;
    if (line != CARRIED) {
        return 0;
    }
    const uint32_t filled = ring_filled();
    size_t count = 0;
    while (count < capacity && ring_taken != filled) {
        bytes[count++] = tf_link_uart_ring[ring_taken];
        ring_taken = (ring_taken + 1u) % RING_BYTES;
    }
    return count;
}

static size_t stream_write(void *context, const uint8_t *bytes, size_t length) {
    (void)context;
    if (line != CARRIED || !has_carrier() || (DMA2_CR(TRANSMIT_STREAM) & DMA_ENABLE) != 0u) {
        return 0;
    }
    const size_t count = length < TRANSMIT_BYTES ? length : TRANSMIT_BYTES;
    memcpy(tf_link_uart_transmit, bytes, count);
    DMA2_HIFCR = DMA_STREAM_7_FLAGS;
    DMA2_M0AR(TRANSMIT_STREAM) = (uint32_t)(uintptr_t)tf_link_uart_transmit;
    DMA2_NDTR(TRANSMIT_STREAM) = (uint32_t)count;
    tf_stm32_barrier(); /* the buffer is in memory before DMA looks at it */
    DMA2_CR(TRANSMIT_STREAM) = DMA_CHANNEL_4 | DMA_INCREMENT_MEMORY | DMA_FROM_MEMORY |
                               DMA_COMPLETE_INTERRUPT | DMA_ENABLE;
    return count;
}

const tf_stream tf_stm32_stream = {
    .open = stream_open,
    .close = stream_close,
    .is_open = stream_is_open,
    .read = stream_read,
    .write = stream_write,
    .milliseconds = tf_stm32_milliseconds,
    .context = NULL,
};
