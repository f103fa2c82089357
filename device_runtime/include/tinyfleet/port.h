/* What a board gives to the client, besides its flash (flash.h) and its byte stream with the
 * clock (stream.h).
 *
 * PORTING.md is the checklist. All functions return at once.
 */
#ifndef TINYFLEET_PORT_H
#define TINYFLEET_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tinyfleet/flash.h"
#include "tinyfleet/stream.h"

#define TF_BATTERY_UNKNOWN 255u
#define TF_CHARGING 0x80u /* beside a charge: it is fed from outside */

/* wire.md: why a device has started */
typedef enum {
    TF_RESET_POWER_ON = 0,
    TF_RESET_PIN = 1,
    TF_RESET_SOFTWARE = 2,
    TF_RESET_WATCHDOG = 3,
    TF_RESET_FAULT = 4,
    TF_RESET_BROWN_OUT = 5,
    TF_RESET_UNKNOWN = 255
} tf_reset_cause;

typedef struct {
    const tf_stream *stream;
    const tf_flash *flash;

    /* 32 random bits, for jitter, packet identifiers, and where there are no secrets for nonces. */
    uint32_t (*entropy)(void *context);

    /* Random bytes that nobody can guess, for keys and nonces; false: the source failed. NULL: the
     * board has none, and the device gets its keys from whoever provisions it. */
    bool (*secret)(void *context, uint8_t *bytes, size_t count);

    /* Charge left, 0 … 100, with TF_CHARGING while a charger or mains feed the board;
     * TF_BATTERY_UNKNOWN where what measures it doesn't answer. A board on mains says
     * 100 | TF_CHARGING. */
    uint8_t (*battery)(void *context);

    void *context; /* handed to these functions */
} tf_port;

#endif
