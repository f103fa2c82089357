/* What a board gives to the client, besides its flash (flash.h) and its byte stream (stream.h).
 *
 * PORTING.md is the checklist. All functions return at once.
 */
#ifndef TINYFLEET_PORT_H
#define TINYFLEET_PORT_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    void *context; /* handed back to each function */

    /* Milliseconds since some moment; wraps around at 2^32. */
    uint32_t (*milliseconds)(void *context);

    /* 32 random bits, for jitter and packet identifiers only. */
    uint32_t (*entropy)(void *context);

    /* Charge left, 0 … 100. A board on mains says 100. */
    uint8_t (*battery_percent)(void *context);

    /* Asks the modem to open the byte stream (true) or to hang up (false). */
    void (*dial)(void *context, bool up);

    /* Whether the byte stream is open. */
    bool (*carrier)(void *context);
} tf_port;

#endif
