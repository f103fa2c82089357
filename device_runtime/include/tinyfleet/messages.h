/* Messages between device and gateway: typed structs to and from CBOR.
 *
 * The bytes are those of fleet/protocol/tinyfleet.cddl; docs/specification/wire.md says what
 * the fields mean. Encoders give TF_NO_MEMORY where `capacity` is too small and TF_BAD_INPUT
 * where a field is outside its range (a name not 1 … 32 characters of [A-Za-z0-9_-], more than
 * 16,384 coded bytes); *length is set on TF_OK only. Decoders give
 * TF_BAD_INPUT on anything the CDDL or wire.md doesn't allow, bytes after the message included, and then
 * leave the struct in an unspecified state. They keep no pointer into the bytes, but for
 * tf_task_parts.
 */
#ifndef TINYFLEET_MESSAGES_H
#define TINYFLEET_MESSAGES_H

#include <stddef.h>
#include <stdint.h>

#include "tinyfleet/engine.h" /* TF_DIGEST_BYTES */
#include "tinyfleet/status.h"

#define TF_NAME_LIMIT 32u
#define TF_PASSWORD_LIMIT 64u
#define TF_CAMPAIGN_BYTES 8u
#define TF_PREFIX_BYTES 8u
#define TF_WEIGHTS_CHUNK_LIMIT 512u  /* of the weights, without its CRC */
#define TF_UPLINK_CHUNK_LIMIT 16384u /* coded bytes in one message of a delta */

/* Longest encoding of a status, for buffers. */
#define TF_STATUS_MESSAGE_BYTES 24u

/* What a task asks for. */
#define TF_ACTION_SCORE 0u
#define TF_ACTION_TRAIN 1u
#define TF_ACTION_RELEASE 2u

#define TF_CODING_RICE 0u
#define TF_CODING_MASKED 1u

#define TF_WEIGHTING_SAMPLES 0u
#define TF_WEIGHTING_UNIFORM 1u

/* What a task does with the personal tensors of its plan. */
#define TF_PERSONAL_NOTHING 0u /* they are trained and sent as the others are */
#define TF_PERSONAL_BESIDE 1u  /* trained with the others, and kept; the others are sent */
#define TF_PERSONAL_FROZEN 2u  /* as in the version; the others are trained and sent */
#define TF_PERSONAL_ALONE 3u   /* trained while the others stay, and kept; scores are sent */
#define TF_PERSONAL_LOCAL 4u   /* the whole plan, from the device's own values; scores are sent */

/* Beside what the application works with (tf_kept_use), in a delta. */
#define TF_KEPT_WITH_PERSONAL 0x40u /* correct_after is with what the device has of them */
#define TF_KEPT_WITH_LOCAL 0x80u    /* correct_local was measured */

/* What became of a delta. */
#define TF_RECEIPT_COUNTED 0u
#define TF_RECEIPT_REFUSED 1u
#define TF_RECEIPT_LATE 2u

typedef struct {
    const char *board;        /* NUL-terminated */
    const uint8_t *bundle;    /* TF_DIGEST_BYTES */
    const uint8_t *current;   /* TF_DIGEST_BYTES */
    const uint8_t *candidate; /* TF_DIGEST_BYTES; NULL where there is none */
    uint32_t lease;           /* highest that was seen */
    uint32_t free_sram_bytes;
    uint32_t link_bits_per_second;
    uint32_t fault_pc;
    uint32_t keyring; /* generation of the keys that the device follows, 0: none */
    uint16_t train_samples;
    uint16_t held_out_samples;
    uint8_t battery;     /* 0 … 100, 128 more while it charges; 255: unknown */
    uint8_t reset_cause; /* wire.md: reset causes */
    uint8_t fault_code;
} tf_announce;

typedef struct {
    uint8_t campaign[TF_CAMPAIGN_BYTES];
    uint8_t plan[TF_DIGEST_BYTES];
    uint8_t weights[TF_DIGEST_BYTES];
    uint32_t lease;
    uint32_t round;
    uint32_t weights_bytes;
    uint32_t learning_rate_q20; /* learning rate times 2^20 */
    uint32_t seed;              /* of this device */
    uint32_t deadline_seconds;  /* from the moment the task was published */
    uint32_t check_in_seconds;  /* wait this long before the next connection */
    uint32_t clip;              /* of the values' Euclidean norm, 0: none */
    uint32_t noise_variance;    /* of the device's share, 0: none */
    uint16_t chunk_bytes;       /* of the weights */
    uint16_t uplink_chunk_bytes;
    uint16_t max_score_drop_permille; /* 0 … 1000 */
    uint16_t value_bound;             /* largest magnitude of a value before noise */
    uint16_t norm_share;    /* the value that says that the norm was within the clip, 0: none */
    uint16_t least_devices; /* whose sum may be unmasked */
    uint8_t unmaskers[TF_PREFIX_BYTES]; /* which keys seeds are sealed for */
    uint8_t personal;                   /* wire.md: personal tensors */
    uint8_t mask_bits;                  /* of a masked value: 8, 16, 24 or 32 */
    uint8_t action;                     /* TF_ACTION_…, or one that this firmware doesn't know */
    uint8_t epochs;
    uint8_t coding;    /* TF_CODING_…, or an unknown one */
    uint8_t weighting; /* TF_WEIGHTING_…, or an unknown one */
} tf_task;

/* Where a task's message, which has to stay, says what isn't for the round itself. */
typedef struct {
    const uint8_t *keyring;
    const uint8_t *signature;
    uint16_t keyring_bytes; /* 0: none */
    uint16_t signature_bytes;
    size_t signed_bytes; /* from the message's start: up to its keyring */
} tf_task_parts;

/* All of a delta's message but the coded bytes, which follow its head. */
typedef struct {
    uint8_t campaign[TF_CAMPAIGN_BYTES];
    uint8_t plan[TF_PREFIX_BYTES];    /* first bytes of the id */
    uint8_t weights[TF_PREFIX_BYTES]; /* first bytes of the digest */
    uint32_t lease;                   /* the task's */
    uint32_t round;
    uint32_t coded_bytes; /* of the whole delta */
    uint32_t coded_crc32; /* of the whole delta */
    uint32_t train_steps;
    uint32_t loss_before_thousandths;
    uint32_t loss_after_thousandths;
    uint16_t chunk;
    uint16_t chunks;
    uint16_t train_samples;
    uint16_t held_out_samples;
    uint16_t correct_before;
    uint16_t correct_after;
    uint16_t correct_local;     /* with what was trained on this device alone */
    uint16_t coded_chunk_bytes; /* in this message: 0 … TF_UPLINK_CHUNK_LIMIT */
    uint8_t coding;
    uint8_t weighting;
    uint8_t kept; /* what the application works with, and TF_KEPT_… */
} tf_delta;

typedef struct {
    uint8_t campaign[TF_CAMPAIGN_BYTES];
    uint32_t lease; /* the delta's */
    uint32_t round;
    uint32_t coded_crc32; /* of the delta that was counted */
    uint8_t result;       /* TF_RECEIPT_…, or an unknown one */
} tf_receipt;

typedef struct {
    uint8_t campaign[TF_CAMPAIGN_BYTES]; /* zeros where there is none */
    uint32_t round;
    uint8_t state;   /* wire.md: device states */
    uint8_t reason;  /* wire.md: reasons */
    uint8_t battery; /* 0 … 100, 128 more while it charges; 255: unknown */
} tf_device_status;

typedef struct {
    char device[TF_NAME_LIMIT + 1u];       /* NUL-terminated, [A-Za-z0-9_-]{1,32} */
    char fleet[TF_NAME_LIMIT + 1u];        /* likewise */
    char password[TF_PASSWORD_LIMIT + 1u]; /* NUL-terminated, holds no NUL itself */
    uint32_t reserved_sram_bytes;
    uint32_t link_bits_per_second;
} tf_identity;

tf_status tf_encode_announce(const tf_announce *announce, uint8_t *bytes, size_t capacity,
                             size_t *length);
/* The message's bytes up to its coded ones: with `coded_chunk_bytes` of those behind it, it is
 * whole. */
tf_status tf_encode_delta_head(const tf_delta *delta, uint8_t *bytes, size_t capacity,
                               size_t *length);
tf_status tf_encode_status(const tf_device_status *status, uint8_t *bytes, size_t capacity,
                           size_t *length);
tf_status tf_decode_task(const uint8_t *bytes, size_t length, tf_task *task, tf_task_parts *parts);
tf_status tf_decode_receipt(const uint8_t *bytes, size_t length, tf_receipt *receipt);
tf_status tf_decode_identity(const uint8_t *bytes, size_t length, tf_identity *identity);

#endif
