/* The client as a host library: any number of devices in one process.
 *
 * Everything that a device has lies in one struct, its flash and its pool, all owned by the
 * caller; there are no globals. Bytes, clock, battery and carrier go in and out through the
 * functions below (as through the serial line of an emulated board), so that whoever drives
 * thousands of devices decides about time and network: live with tf_host_device_run, which works as
 * fast as it can, or in virtual time with tf_host_device_work, where a piece of work takes as long
 * as on the board. The model is the one that is linked into the library (tf_the_model).
 */
#ifndef TINYFLEET_HOST_DEVICE_H
#define TINYFLEET_HOST_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "tinyfleet/client.h"

#define TF_HOST_TRANSMIT_BYTES 2048u

typedef struct {
    uint8_t *content;             /* survives what the device doesn't */
    const uint32_t *sector_bytes; /* size of each sector, in order */
    uint32_t address;             /* of its first byte, as in the board's data */
    uint32_t bytes;
    uint32_t sector_count;
    uint32_t *erases; /* of each sector so far, counted here */
} tf_host_flash;

/* Read for as long as the device is used. */
typedef struct {
    const char *board;        /* name in the announcement */
    tf_host_flash flashes[2]; /* internal; external, of 0 bytes where there is none. The sectors of
                               * the second are numbered behind those of the first. */
    tf_flash_layout regions;
    void *pool; /* 8-byte aligned */
    uint32_t pool_bytes;
    uint32_t seed; /* of its entropy and of torn flash operations */
    uint32_t fault_pc;
    uint8_t reset_cause; /* tf_reset_cause of the next start */
    uint8_t fault_code;
    bool (*secret)(void *context, uint8_t *bytes, size_t count); /* tf_port; NULL: there are none */
} tf_host_setup;

/* What a device has done; the caller's, so that it outlives the device's power. */
typedef struct {
    uint64_t forward_passes; /* to score a sample */
    uint64_t train_steps;
    uint64_t forward_nanoseconds; /* that these took, by tf_host_costs */
    uint64_t train_nanoseconds;
    uint64_t flash_words;
    uint64_t flash_erases;
    uint64_t flash_bytes_erased;
} tf_host_done;

/* How long pieces of work take on the board, in nanoseconds. */
typedef struct {
    const uint64_t *forward; /* by plan: scoring a sample */
    const uint64_t *step;    /* by plan: training on one */
    uint64_t poll;           /* whatever else a call of the client does */
    uint64_t flash_word;
    uint64_t flash_erase; /* of a sector, and for each of its bytes */
    uint64_t flash_erase_byte;
} tf_host_costs;

typedef struct tf_host_device tf_host_device;

/* Bytes of a tf_host_device, 16-byte aligned and zero before its first start. */
uint32_t tf_host_device_bytes(void);

/* Powers a device on (also again, after a reset or a power cut). Status as tf_client_init. What is
 * due to cut the power stays due, and flash operations are counted on. */
tf_status tf_host_device_start(tf_host_device *device, const tf_host_setup *setup,
                               uint32_t milliseconds);

/* Polls the client up to `steps` times at that time; true: it has more to do at once. A device
 * without power does nothing. */
bool tf_host_device_run(tf_host_device *device, uint32_t milliseconds, uint32_t steps);

/* How a device stands after a stretch of work: the functions of these names in one. */
typedef struct {
    uint64_t now; /* the last piece of work may carry it beyond its end */
    uint32_t next_run_ms;
    uint32_t taken; /* bytes for the line */
    bool is_busy;   /* there is more to do at once */
    bool dials;
    bool has_power;
    uint8_t bytes[TF_HOST_TRANSMIT_BYTES];
} tf_host_standing;

/* Polls the client from `now` on, in the device's nanoseconds, until there is nothing to do, `until`
 * is reached, or it has bytes for the line, which are taken; adds to `done`. */
void tf_host_device_work(tf_host_device *device, const tf_host_costs *costs, tf_host_done *done,
                         uint64_t now, uint64_t until, tf_host_standing *standing);

/* Milliseconds until the clock alone gives it something to do (at most). */
uint32_t tf_host_device_next_run_ms(const tf_host_device *device);

/* Serial line: bytes to the device (returns how many fit its ring of 4,096), and from it. */
uint32_t tf_host_device_receive(tf_host_device *device, const uint8_t *bytes, uint32_t length);
uint32_t tf_host_device_take(tf_host_device *device, uint8_t *bytes, uint32_t capacity);

/* DTR: the device wants a connection (true) or hangs up. DCD: the connection is there. */
bool tf_host_device_dials(const tf_host_device *device);
void tf_host_device_set_carrier(tf_host_device *device, bool carrier);

void tf_host_device_set_battery(tf_host_device *device, uint8_t battery);

/* What the application does with a sample of its sensor; status as tf_sample_log_append. */
tf_status tf_host_device_record(tf_host_device *device, uint16_t label, const uint8_t *payload,
                                uint32_t payload_bytes);

/* Cuts the power during the n-th flash operation from now (1: the next), which is torn; 0: never. */
void tf_host_device_cut_power(tf_host_device *device, uint32_t flash_operation);
bool tf_host_device_has_power(const tf_host_device *device);
uint32_t tf_host_device_flash_operations(const tf_host_device *device);

/* wire.md: device state; and the digests of what the application infers with and of the candidate
 * (32 bytes; zeros where there is none). */
int32_t tf_host_device_state(const tf_host_device *device);
void tf_host_device_current_weights(const tf_host_device *device, uint8_t *sha256);
void tf_host_device_candidate_weights(const tf_host_device *device, uint8_t *sha256);

/* What the application does with a sample of its sensor between two calls of the above, in a pool of
 * its own (16-byte aligned): the class that it infers, negative where that can't be. */
int32_t tf_host_device_infer(const tf_host_device *device, const int8_t *sample, void *pool,
                             uint32_t pool_bytes);

/* Of the model that is linked in. */
const tf_model *tf_host_model(void);

#endif
