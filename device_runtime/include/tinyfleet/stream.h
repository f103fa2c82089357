/* Byte stream to the gateway's broker: UART with a modem, serial server or socket.
 *
 * A port fills in one tf_stream. Nothing here blocks. The stream is reliable while it is
 * open: bytes arrive in order and unchanged, or it closes.
 */
#ifndef TINYFLEET_STREAM_H
#define TINYFLEET_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    /* Starts dialling and returns at once; is_open tells when it succeeded. Does nothing
     * while dialling or open. After this call read never yields bytes of an earlier
     * connection. */
    void (*open)(void *context);
    /* Hangs up, or stops dialling; bytes not yet sent may be lost, unread ones are dropped.
     * Does nothing on a closed stream. */
    void (*close)(void *context);
    /* true from the moment the peer answered until either side hangs up. Once false, what
     * the peer sent before it hung up may still be read until the next open or close. */
    bool (*is_open)(void *context);
    /* Takes up to `capacity` (at least 1) received bytes into `bytes`; returns how many,
     * 0 where nothing is there now. Never an error: a broken stream shows in is_open. */
    size_t (*read)(void *context, uint8_t *bytes, size_t capacity);
    /* Takes the first bytes of `bytes` for sending; returns how many of the `length` (at
     * least 1) were taken, 0 where there is no room now. The caller may reuse its buffer
     * at once. On a closed stream: 0. */
    size_t (*write)(void *context, const uint8_t *bytes, size_t length);
    /* Milliseconds from any origin, counting up and wrapping at 2^32. */
    uint32_t (*milliseconds)(void *context);
    void *context; /* handed to every function above */
} tf_stream;

#endif
