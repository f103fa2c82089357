/* Byte stream over a CMSDK UART to a modem. The UART holds one byte each way, so interrupts fill a
 * ring and empty another while the core trains.
 *
 * These boards have no pins for a modem's lines, so they are told between the bytes, after an
 * escape (docs/specification/boards.md): the modem's carrier and battery stand where they happened
 * among the bytes, and so does DTR. A byte stays in the UART while the ring is full; what is behind
 * it has to hold it back. */
#include <stddef.h>
#include <string.h>

#include "mps.h"
#include "registers.h"
#include "tinyfleet/port.h"

#ifndef TF_UART_BAUD
#define TF_UART_BAUD 115200u
#endif
#define RING_BYTES 4096u
#define TRANSMIT_BYTES 512u
#define ESCAPE 0x10u
#define LAST_WORDS_MS (TRANSMIT_BYTES * 10u * 1000u / TF_UART_BAUD + 2u)
/* Looks at the ring in which no byte has come: some ten characters' time. */
#define QUIET_LOOKS 10000u

/* Whoever emulates the board looks here before it takes the core for asleep. */
volatile bool tf_mps_has_news;

static uint8_t tf_link_uart_ring[RING_BYTES];
static uint8_t tf_link_uart_transmit[TRANSMIT_BYTES];
static volatile uint32_t filled;      /* bytes put into the ring */
static uint32_t emptied;              /* bytes taken out of it */
static uint32_t queued;               /* bytes to be sent */
static volatile uint32_t transmitted; /* of them */
static volatile bool has_carrier;
static volatile uint8_t charge = TF_BATTERY_UNKNOWN;
static enum {
    PLAIN,
    ESCAPED,
    CHARGE_FOLLOWS
} reading;

static enum {
    HUNG_UP,
    HANGING_UP, /* to be dialled as soon as the old carrier is gone */
    DIALLED,    /* DTR is up */
    CARRIED     /* and the carrier was seen */
} line;

static void put(uint8_t byte) {
    tf_link_uart_ring[filled % RING_BYTES] = byte;
    filled++;
}

static void take_byte(uint8_t byte) {
    switch (reading) {
    case PLAIN:
        if (byte == ESCAPE) {
            reading = ESCAPED;
        } else {
            put(byte);
        }
        return;
    case CHARGE_FOLLOWS:
        charge = byte;
        break;
    default:
        if (byte == ESCAPE) {
            put(byte);
        } else if (byte == 'C' || byte == 'c') {
            has_carrier = byte == 'C';
        } else if (byte == 'B') {
            reading = CHARGE_FOLLOWS;
            return;
        }
        break;
    }
    reading = PLAIN;
}

void tf_mps_uart_receive(void) {
    if (filled - emptied == RING_BYTES) {
        NVIC_ICER(UART_RECEIVE_INTERRUPT / 32u) = 1u << (UART_RECEIVE_INTERRUPT % 32u);
        return;
    }
    UART_INTCLEAR = UART_RECEIVE_FLAG;
    if ((UART_STATE & UART_RECEIVE_FULL) != 0u) {
        take_byte((uint8_t)UART_DATA);
        tf_mps_has_news = true;
    }
}

static void send_next(void) {
    if (transmitted != queued && (UART_STATE & UART_TRANSMIT_FULL) == 0u) {
        UART_DATA = tf_link_uart_transmit[transmitted % TRANSMIT_BYTES];
        transmitted++;
    }
}

void tf_mps_uart_transmit(void) {
    UART_INTCLEAR = UART_TRANSMIT_FLAG;
    send_next();
    tf_mps_has_news = true;
}

bool tf_mps_uart_has_news(void) {
    const bool had = tf_mps_has_news;
    tf_mps_has_news = false;
    return had;
}

/* A UART of this kind doesn't tell that its line is idle. */
void tf_mps_uart_gather(void) {
    uint32_t seen = filled;
    for (uint32_t looks = 0; looks < QUIET_LOOKS && filled - emptied < RING_BYTES / 2u; looks++) {
        if (filled != seen) {
            seen = filled;
            looks = 0;
        }
    }
}

uint8_t tf_mps_battery(void *context) {
    (void)context;
    return charge;
}

static void go_on_sending(void) {
    tf_mps_mask_interrupts();
    send_next();
    tf_mps_unmask_interrupts();
}

static void go_on_receiving(void) {
    NVIC_ISER(UART_RECEIVE_INTERRUPT / 32u) = 1u << (UART_RECEIVE_INTERRUPT % 32u);
}

static void queue(uint8_t byte) {
    tf_link_uart_transmit[queued % TRANSMIT_BYTES] = byte;
    queued++;
}

/* What waits to be sent is dropped where it leaves no room: the modem doesn't take it. */
static void tell(uint8_t what) {
    tf_mps_mask_interrupts();
    if (queued - transmitted > TRANSMIT_BYTES - 2u) {
        queued = transmitted;
    }
    queue(ESCAPE);
    queue(what);
    tf_mps_unmask_interrupts();
    go_on_sending();
}

static void drop_received(void) {
    emptied = filled;
    go_on_receiving();
}

void tf_mps_uart_start(void) {
    UART_CTRL = 0;
    UART_BAUDDIV = (TF_CLOCK_HZ + TF_UART_BAUD / 2u) / TF_UART_BAUD;
    UART_INTCLEAR = UART_TRANSMIT_FLAG | UART_RECEIVE_FLAG;
    UART_CTRL = UART_TRANSMITTER_ENABLE | UART_RECEIVER_ENABLE | UART_TRANSMIT_INTERRUPT_ENABLE |
                UART_RECEIVE_INTERRUPT_ENABLE;
    NVIC_ISER(UART_TRANSMIT_INTERRUPT / 32u) = 1u << (UART_TRANSMIT_INTERRUPT % 32u);
    go_on_receiving();
    line = HUNG_UP;
    tell('d');
}

/* Brings `line` up to date with the carrier. */
static void follow_carrier(void) {
    if (line == HANGING_UP && !has_carrier) {
        tell('D');
        line = DIALLED;
    } else if (line == DIALLED && has_carrier) {
        line = CARRIED;
    }
}

static void stream_open(void *context) {
    (void)context;
    const bool is_lost = line == CARRIED && !has_carrier;
    if (line != HUNG_UP && !is_lost) {
        return;
    }
    drop_received();
    if (is_lost) {
        tell('d'); /* the modem dials on the rising edge */
    }
    line = HANGING_UP;
    if (!is_lost) {
        follow_carrier();
    }
}

static void stream_close(void *context) {
    (void)context;
    /* The last words, a DISCONNECT as a rule, take no longer than the buffer: let them out. */
    if (line == CARRIED && has_carrier) {
        const uint32_t since = tf_mps_milliseconds(NULL);
        while (queued != transmitted && tf_mps_milliseconds(NULL) - since < LAST_WORDS_MS) {
        }
    }
    tell('d');
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
    return line == CARRIED && has_carrier;
}

static size_t stream_read(void *context, uint8_t *bytes, size_t capacity) {
    (void)context;
    if (line != CARRIED) {
        return 0;
    }
    size_t count = 0;
    while (count < capacity && emptied != filled) {
        bytes[count++] = tf_link_uart_ring[emptied % RING_BYTES];
        emptied++;
    }
    go_on_receiving();
    return count;
}

static size_t stream_write(void *context, const uint8_t *bytes, size_t length) {
    (void)context;
    if (line != CARRIED || !has_carrier) {
        return 0;
    }
    size_t count = 0;
    while (count < length && TRANSMIT_BYTES - (queued - transmitted) >= 2u) {
        if (bytes[count] == ESCAPE) {
            queue(ESCAPE);
        }
        queue(bytes[count++]);
    }
    go_on_sending();
    return count;
}

const tf_stream tf_mps_stream = {
    .open = stream_open,
    .close = stream_close,
    .is_open = stream_is_open,
    .read = stream_read,
    .write = stream_write,
    .milliseconds = tf_mps_milliseconds,
    .context = NULL,
};
