/* Firmware of a port alone: it keeps what it receives, and does on command what a device may
 * do between two looks at its line. */
#include <stddef.h>

#include "../../../device_runtime/port/board.h"

/* What `command` may be: done once, by the main loop. */
enum {
    NOTHING,
    WORK,
    ERASE,
    SEND,
    UNDEFINED,
    READ_NOWHERE,
    JUMP_NOWHERE,
    OVERFLOW,
    SPIN,
    RETURN,
    RESET,
    ERASE_OFTEN
};

volatile uint32_t command, argument;
uint8_t received[24000];
volatile uint32_t received_bytes, last_result;

static const tf_port *port;
static uint8_t sent[256];

uint32_t reset_cause(void) {
    return tf_board_get_reset_report().reset_cause;
}

uint32_t fault_code(void) {
    return tf_board_get_reset_report().fault_code;
}

uint32_t fault_pc(void) {
    return tf_board_get_reset_report().fault_pc;
}

uint32_t battery(void) {
    return port->battery(port->context);
}

uint32_t milliseconds(void) {
    return port->stream->milliseconds(port->stream->context);
}

uint32_t erase(uint32_t sector) {
    return port->flash->erase_sector(port->flash->context, (uint16_t)sector);
}

uint32_t program(uint32_t address, uint32_t word) {
    return port->flash->program_word(port->flash->context, address, word);
}

uint32_t peek(uint32_t address) {
    return *(volatile uint32_t *)(uintptr_t)address;
}

uint32_t poke(uint32_t address, uint32_t value) {
    *(volatile uint32_t *)(uintptr_t)address = value;
    return value;
}

uint32_t entropy(void) {
    return port->entropy(port->context);
}

uint32_t send(uint32_t bytes) {
    return (uint32_t)port->stream->write(port->stream->context, sent, bytes);
}

uint32_t hang_up(void) {
    port->stream->close(port->stream->context);
    return 0;
}

static __attribute__((noinline)) uint32_t overflow(uint32_t depth) {
    volatile uint32_t local[64];
    local[0] = depth;
    return depth == 0u ? 0u : overflow(depth - 1u) + local[0];
}

static __attribute__((noinline)) void work(uint32_t rounds) {
    for (volatile uint32_t round = 0; round < rounds; round++) {
    }
}

/* Returns whether main is to return. */
static bool obey(void) {
    const uint32_t wanted = command;
    command = NOTHING;
    switch (wanted) {
    case WORK:
        work(argument);
        break;
    case ERASE:
        last_result = erase(argument);
        break;
    case ERASE_OFTEN:
        last_result = TF_OK;
        for (uint32_t i = 0; i < argument && last_result == TF_OK; i++) {
            last_result = erase(TF_FLASH_SECTOR_COUNT - 1u);
        }
        break;
    case SEND:
        last_result = send(argument);
        break;
    case UNDEFINED:
        __asm volatile("udf #0");
        break;
    case READ_NOWHERE:
        last_result = peek(0x30000000u);
        break;
    case JUMP_NOWHERE:
        ((void (*)(void))(uintptr_t)0x30000001u)();
        break;
    case OVERFLOW:
        last_result = overflow(100u);
        break;
    case SPIN:
        for (;;) {
            __asm volatile("");
        }
    case RETURN:
        return true;
    case RESET:
        tf_board_reset();
    default:
        break;
    }
    return false;
}

uint32_t (*volatile calls[])() = {reset_cause, fault_code, fault_pc, battery, milliseconds, erase,
                                  program,     peek,       poke,     hang_up, entropy,      send};

int main(void) {
    port = tf_board_start();
    const tf_stream *stream = port->stream;
    stream->open(stream->context);
    for (;;) {
        (void)stream->is_open(stream->context);
        size_t room = sizeof received - received_bytes;
        const size_t count =
            room == 0u ? 0u : stream->read(stream->context, received + received_bytes, room);
        received_bytes += (uint32_t)count;
        if (obey()) {
            return 0;
        }
        tf_board_show_progress();
        if (count == 0u) {
            tf_board_idle(calls[0] != 0 ? 500u : 0u);
        }
    }
}
