/* Entropy coding of a delta (docs/specification/wire.md, "Coding of a delta").
 *
 * The coded bytes never exist as a whole: a first pass counts them and takes their CRC-32,
 * later passes give them piece by piece. Each pass draws every value once, in plan order.
 */
#ifndef TINYFLEET_DELTA_CODE_H
#define TINYFLEET_DELTA_CODE_H

#include <stddef.h>
#include <stdint.h>

#include "tinyfleet/status.h"

#define TF_DELTA_BLOCK_VALUES 32u

/* Gives the next value of the delta; called exactly `values` times per pass. */
typedef int32_t (*tf_delta_source)(void *context);

/* Private to device_runtime/codec; 160 bytes. */
typedef struct {
    tf_delta_source source;
    void *context;
    uint32_t values_left; /* not yet drawn */
    uint64_t bits;        /* not yet given, the last bit_count ones */
    uint8_t bit_count;
    uint8_t count;                         /* values in the block, 0: none drawn */
    uint8_t position;                      /* next value of the block to be written */
    uint8_t parameter;                     /* k of the block */
    uint8_t code_written;                  /* the block's 4-bit code is out */
    uint32_t block[TF_DELTA_BLOCK_VALUES]; /* zigzag form */
} tf_delta_encoder;

/* Starts a pass over `values` values. */
void tf_delta_encoder_begin(tf_delta_encoder *encoder, tf_delta_source source, void *context,
                            uint32_t values);

/* Gives the next coded bytes; returns how many, `capacity` until the coding ends, fewer (maybe 0)
 * at its end, 0 afterwards. */
size_t tf_delta_encoder_read(tf_delta_encoder *encoder, uint8_t *bytes, size_t capacity);

/* A whole pass that only counts: *coded_bytes and the CRC-32 of what a pass gives. */
void tf_delta_measure(tf_delta_encoder *encoder, tf_delta_source source, void *context,
                      uint32_t values, uint32_t *coded_bytes, uint32_t *coded_crc32);

/* Decodes a whole delta of exactly `value_count` values. TF_BAD_INPUT: too few or left-over bytes,
 * filling that isn't zero, or any form the encoder would not have chosen. For
 * gateways and tests; firmware doesn't link it. */
tf_status tf_delta_decode(const uint8_t *bytes, size_t length, int32_t *values,
                          uint32_t value_count);

#endif
