/* Masked coding of a delta (docs/specification/masking.md, "Masked coding").
 *
 * Like the entropy coding, it never has the coded bytes as a whole: they are counted in a pass of
 * their own, and later ones give the same bytes piece by piece.
 */
#ifndef TINYFLEET_MASK_H
#define TINYFLEET_MASK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tinyfleet/keys.h"
#include "tinyfleet/noise.h"

#define TF_NONCE_BYTES 12u
#define TF_SEAL_BYTES (TF_KEY_BYTES + 16u)
#define TF_MASK_STREAM_BYTES 192u /* whole values of 1 … 4 bytes, whole blocks of ChaCha20 */
#define TF_CLIP_ATTEMPTS 16u

/* The values of a delta as they were learned. `next` is called once for each after `rewind`, and
 * gives the same ones each time. */
typedef struct {
    void (*rewind)(void *context);
    int32_t (*next)(void *context);
    void *context;
    uint32_t values;
} tf_mask_source;

/* How values are brought within the task's clip. */
typedef struct {
    bool is_needed;  /* else they stay as they are */
    bool truncates;  /* rounds towards zero, not at random */
    uint32_t factor; /* times 2^16 */
    uint32_t stream; /* of the random numbers that round */
} tf_clip;

/* All fields are private to device_runtime/privacy. */
typedef struct {
    tf_mask_source source;
    uint32_t values; /* with the appended one */
    uint32_t seed;   /* of the task */
    int32_t bound;
    int32_t share; /* value that is appended */
    uint32_t variance;
    tf_clip clip;
    uint8_t width; /* bytes of a masked value */
    uint8_t unmaskers;
    uint8_t head_bytes;
    uint8_t head[TF_NONCE_BYTES + TF_UNMASKERS_LIMIT * TF_SEAL_BYTES];
    uint8_t seeds[TF_UNMASKERS_LIMIT][TF_KEY_BYTES];
    uint8_t noise_key[TF_KEY_BYTES];

    /* of a pass */
    uint32_t position; /* of the next byte */
    uint32_t index;    /* of the next value */
    uint32_t counter;  /* of the streams' next block */
    uint8_t stream_position;
    uint8_t value_left; /* bytes of the value that isn't given in full */
    uint32_t value;
    tf_noise noise;
    uint8_t stream[TF_MASK_STREAM_BYTES]; /* sum of the streams of all unmaskers */
} tf_mask_encoder;

/* Whether a task's fields are of those that a delta can be masked by. */
bool tf_mask_is_sound(const tf_task *task);

/* Draws the seeds of one delta and seals them: `nonce` serves no other. The keys have their seal
 * keys. */
void tf_mask_open(tf_mask_encoder *encoder, const tf_mask_source *source, const tf_task *task,
                  const tf_keys *keys, const uint8_t nonce[TF_NONCE_BYTES]);

/* What comes first: passes over the values that choose how they are clipped, and one that counts the
 * coded bytes and takes their CRC-32. */
void tf_mask_measure(tf_mask_encoder *encoder, const tf_task *task, uint32_t *coded_bytes,
                     uint32_t *coded_crc32);

/* Starts a pass over the coded bytes. */
void tf_mask_encoder_begin(tf_mask_encoder *encoder);

/* Gives the next coded bytes; returns how many: `capacity` until they end. */
size_t tf_mask_encoder_read(tf_mask_encoder *encoder, uint8_t *bytes, size_t capacity);

#endif
