/* Byte stream over USART1 to a modem: DMA fills a ring and empties a buffer, so that bytes keep
 * moving while the core trains. PB6 or PA9 TX, PB7 RX, DTR and DCD pins of port B.
 *
 * Reception by DMA raises no interrupt of the USART's but that of a line which falls idle, and a
 * broker sends thousands of bytes without a pause: the stream's own interrupts at the half and the
 * end of the ring wake the core as well. */
#include <stddef.h>
#include <string.h>

#include "registers.h"
#include "stm32.h"

#ifndef TF_UART_BAUD
#define TF_UART_BAUD 115200u
#endif
#define RING_BYTES 4096u
#define TRANSMIT_BYTES 256u
#if TF_BOARD_USART_FLOW_CONTROL
#define RECEIVE_MODE 0u
#else
#define RECEIVE_MODE DMA_CIRCULAR
#endif
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
#define RECEIVE_INTERRUPT 58u  /* DMA2 stream 2 */
#define TRANSMIT_INTERRUPT 70u /* DMA2 stream 7 */

/* Written by DMA behind the compiler's back. */
static volatile uint8_t tf_link_uart_ring[RING_BYTES] __attribute__((aligned(4)));
static uint8_t tf_link_uart_transmit[TRANSMIT_BYTES] __attribute__((aligned(4)));
static uint32_t ring_taken; /* position of the next byte to be read */
static uint32_t ring_end;   /* position behind the last byte that DMA may fill */

static enum {
    HUNG_UP,
    HANGING_UP, /* to be dialled as soon as the old carrier is gone */
    DIALLED,    /* DTR is up */
    CARRIED     /* and the carrier was seen */
} line;

static uint32_t ring_filled(void) {
    return (ring_end - DMA2_NDTR(RECEIVE_STREAM)) % RING_BYTES;
}

/* Lets DMA fill the ring: without flow control round and round, else what is free up to the ring's
 * end. Behind that the receiver keeps a byte, and RTS stops the other side until there is room
 * again, however long the core works. One byte stays free, as a full ring would look empty. */
static void go_on_receiving(void) {
    if ((DMA2_CR(RECEIVE_STREAM) & DMA_ENABLE) != 0u) {
        return;
    }
#if TF_BOARD_USART_FLOW_CONTROL
    const uint32_t filled = ring_filled();
    const uint32_t unused = (ring_taken + RING_BYTES - 1u - filled) % RING_BYTES;
    const uint32_t to_end = RING_BYTES - filled;
    const uint32_t room = unused < to_end ? unused : to_end;
    if (room == 0u) {
        return;
    }
#else
    const uint32_t filled = 0;
    const uint32_t room = RING_BYTES;
#endif
    ring_end = filled + room;
    DMA2_LIFCR = DMA_STREAM_2_FLAGS;
    DMA2_M0AR(RECEIVE_STREAM) = (uint32_t)(uintptr_t)(tf_link_uart_ring + filled);
    DMA2_NDTR(RECEIVE_STREAM) = room;
    DMA2_CR(RECEIVE_STREAM) = DMA_CHANNEL_4 | DMA_INCREMENT_MEMORY | RECEIVE_MODE |
                              DMA_HALF_INTERRUPT | DMA_COMPLETE_INTERRUPT | DMA_ENABLE;
}

static void drop_received(void) {
    ring_taken = ring_filled();
    go_on_receiving();
}

static void stop_stream(uint32_t stream) {
    DMA2_CR(stream) = 0;
    if (!tf_stm32_wait_for(&DMA2_CR(stream), DMA_ENABLE, 0u)) {
        tf_cortex_m_fail(STM32_FAULT_DMA);
    }
}

static void enable_interrupt(uint32_t line) {
    NVIC_ISER(line / 32u) = 1u << (line % 32u);
}

static void clear_interrupt(uint32_t line) {
    NVIC_ICPR(line / 32u) = 1u << (line % 32u);
}

static uint8_t has_carrier(void) {
    return (GPIOB_IDR & DCD) != 0u;
}

void tf_stm32_uart_start(void) {
    /* DTR output, DCD input with pull-down: an unplugged modem is no carrier. */
    GPIOB_BSRR = DTR << 16;
    GPIOB_OTYPER &= ~(DTR | (1u << 6)); /* push and pull */
    GPIOA_OTYPER &= ~((1u << 9) | (1u << 12));
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

#if TF_BOARD_USART_FLOW_CONTROL
    /* PA11 CTS, PA12 RTS. */
    GPIOA_AFRH = (GPIOA_AFRH & ~0xFF000u) | (7u << 16) | (7u << 12);
    GPIOA_MODER = (GPIOA_MODER & ~(0xFu << 22)) | (0xAu << 22);
#endif

    USART1_CR1 = 0;
    USART1_CR2 = 0; /* one stop bit */
    USART1_BRR = (STM32_APB2_HZ + TF_UART_BAUD / 2u) / TF_UART_BAUD;
#if TF_BOARD_USART_FLOW_CONTROL
    USART1_CR3 = USART_DMA_RECEIVER | USART_DMA_TRANSMITTER | USART_FLOW_CONTROL;
#else
    USART1_CR3 = USART_DMA_RECEIVER | USART_DMA_TRANSMITTER;
#endif
    USART1_CR1 =
        USART_ENABLE | USART_RECEIVER_ENABLE | USART_TRANSMITTER_ENABLE | USART_IDLE_INTERRUPT;

    stop_stream(RECEIVE_STREAM);
    DMA2_PAR(RECEIVE_STREAM) = USART1_RECEIVE_ADDRESS;
    DMA2_FCR(RECEIVE_STREAM) = 0; /* direct mode: no FIFO holds bytes back */
    DMA2_NDTR(RECEIVE_STREAM) = 0;
    ring_end = ring_taken = 0;
    go_on_receiving();

    stop_stream(TRANSMIT_STREAM);
    DMA2_HIFCR = DMA_STREAM_7_FLAGS;
    DMA2_PAR(TRANSMIT_STREAM) = USART1_TRANSMIT_ADDRESS;
    DMA2_FCR(TRANSMIT_STREAM) = 0;

    enable_interrupt(USART1_INTERRUPT);
    enable_interrupt(RECEIVE_INTERRUPT);
    enable_interrupt(TRANSMIT_INTERRUPT);
    line = HUNG_UP;
}

/* First the flags, then what they left pending: a flag that rises in between stays pending, and the
 * rings are looked at after both. */
void tf_stm32_uart_clear_pending(void) {
#if TF_BOARD_USART_V2
    USART1_ICR = USART_IDLE | USART_ERRORS;
#else
    /* Version 1 clears by reading the status and then the data register, so not while a byte is in
     * it that DMA hasn't taken: then the interrupt stays pending until there is room for the byte. */
    const uint32_t status = USART1_SR;
    if ((status & (USART_IDLE | USART_ERRORS)) != 0u && (status & USART_RECEIVED) == 0u) {
        (void)USART1_DR;
    }
#endif
    DMA2_LIFCR = DMA_STREAM_2_FLAGS;
    if ((DMA2_CR(TRANSMIT_STREAM) & DMA_ENABLE) == 0u) {
        DMA2_HIFCR = DMA_STREAM_7_FLAGS;
    }
    tf_cortex_m_barrier();
    clear_interrupt(USART1_INTERRUPT);
    clear_interrupt(RECEIVE_INTERRUPT);
    clear_interrupt(TRANSMIT_INTERRUPT);
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
    drop_received();
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
    if (line == CARRIED && has_carrier()) {
        (void)tf_stm32_wait_long_for(&DMA2_CR(TRANSMIT_STREAM), DMA_ENABLE, 0u, LAST_WORDS_MS);
    }
    stop_stream(TRANSMIT_STREAM);
    GPIOB_BSRR = DTR << 16;
    line = HUNG_UP;
    drop_received();
}

static bool stream_is_open(void *context) {
    (void)context;
    if (line == HANGING_UP) {
        /* Bytes of the old connection may have come until its carrier went. */
        drop_received();
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
    go_on_receiving();
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
    tf_cortex_m_barrier(); /* the buffer is in memory before DMA looks at it */
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
