/* The device's part of a round: announces itself, takes a task, fetches weights, scores,
 * trains, and sends the delta (docs/specification/wire.md).
 *
 * A state machine without input or output of its own: bytes, clock, entropy and flash come
 * through tf_port. tf_client_poll does a bounded piece of work per call, at most one training
 * step or one forward pass, and looks at the link each time. Only weights outlive a reset.
 */
#ifndef TINYFLEET_CLIENT_H
#define TINYFLEET_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "tinyfleet/delta_code.h"
#include "tinyfleet/engine.h"
#include "tinyfleet/flash_layout.h"
#include "tinyfleet/journal.h"
#include "tinyfleet/keys.h"
#include "tinyfleet/mask.h"
#include "tinyfleet/messages.h"
#include "tinyfleet/mqtt.h"
#include "tinyfleet/personal_store.h"
#include "tinyfleet/port.h"
#include "tinyfleet/sample_log.h"
#include "tinyfleet/weights_store.h"

#define TF_CLIENT_STATUS_TOPIC_BYTES 88u /* fleet/<fleet>/dev/<device>/status, NUL included */

/* wire.md: device states */
typedef enum {
    TF_DEVICE_OFFLINE = 0,
    TF_DEVICE_IDLE,
    TF_DEVICE_FETCHING,
    TF_DEVICE_SCORING,
    TF_DEVICE_TRAINING,
    TF_DEVICE_SENDING,
    TF_DEVICE_DECLINED,
    TF_DEVICE_FAILED
} tf_device_state;

/* wire.md: reasons */
typedef enum {
    TF_REASON_NONE = 0,
    TF_REASON_UNKNOWN_PLAN,
    TF_REASON_NOT_ENOUGH_SRAM,
    TF_REASON_DIGEST_MISMATCH,
    TF_REASON_SIZE_MISMATCH,
    TF_REASON_SCORE_DROPPED,
    TF_REASON_DEADLINE_PASSED,
    TF_REASON_NO_SAMPLES,
    TF_REASON_FLASH_FAILURE,
    TF_REASON_MALFORMED_TASK,
    TF_REASON_OTHER_MODEL,
    TF_REASON_RESTARTED_AFTER_FAULT,
    TF_REASON_RESTARTED_BY_WATCHDOG,
    TF_REASON_OLDER_LEASE,
    TF_REASON_REFUSED_BY_GATEWAY,
    TF_REASON_UNKNOWN_CODING,
    TF_REASON_NOT_SIGNED,
    TF_REASON_OTHER_UNMASKERS,
    TF_REASON_NO_PERSONAL_TENSORS,
    TF_REASON_PERSONAL_UNUSABLE,
    TF_REASON_NO_RANDOM_NUMBERS
} tf_reason;

/* Read for as long as the client is used; all memory is the caller's. */
typedef struct {
    const tf_model *model;
    const char *board; /* name in the announcement */
    const tf_port *port;
    tf_flash_layout regions;
    void *pool; /* 8-byte aligned: arena and update state of a plan */
    uint32_t pool_bytes;
    uint8_t *receive;  /* TF_MQTT_MINIMUM_RECEIVE_BYTES or more */
    uint8_t *transmit; /* TF_MQTT_MINIMUM_TRANSMIT_BYTES or more */
    uint16_t receive_bytes;
    uint16_t transmit_bytes;
    uint16_t *sample_order; /* one entry per train sample; further samples rest */
    uint16_t sample_order_size;
    uint8_t reset_cause; /* tf_reset_cause of this start */
    uint8_t fault_code;  /* of the last fault that is on record, 0: none */
    uint32_t fault_pc;
} tf_client_config;

/* What the client works on; private to device_runtime/client. */
typedef enum {
    TF_WORK_NONE,
    TF_WORK_BEGIN,   /* a task was taken: look whether it can be done */
    TF_WORK_COPY,    /* stage the weights that are built in */
    TF_WORK_FETCH,   /* chunks come in */
    TF_WORK_VERIFY,  /* all chunks are there */
    TF_WORK_DISCARD, /* what was staged is of no use */
    TF_WORK_SCORE_CURRENT,
    TF_WORK_SCORE_NEW,
    TF_WORK_COMMIT,
    TF_WORK_TRAIN,
    TF_WORK_KEEP, /* what was trained for this device alone */
    TF_WORK_SCORE_AFTER,
    TF_WORK_RELEASE,
    TF_WORK_JUDGE,   /* which of what it could use is best for this device */
    TF_WORK_MEASURE, /* length and CRC of the coded delta */
    TF_WORK_SEND     /* until its receipt */
} tf_client_work;

typedef struct {
    uint32_t cursor; /* in the sample log */
    uint64_t loss_q16;
    uint16_t samples;
    uint16_t correct;
} tf_client_score;

/* Announcement and status; fields are private to device_runtime/client. */
typedef struct {
    uint8_t campaign[TF_CAMPAIGN_BYTES];
    uint32_t round;
    uint8_t state;
    uint8_t reason;
} tf_client_condition;

typedef struct {
    char status_topic[TF_CLIENT_STATUS_TOPIC_BYTES];
    uint8_t will[TF_STATUS_MESSAGE_BYTES];
    tf_client_condition now;
    tf_client_condition published; /* what the broker has */
    tf_client_condition notice;    /* to be said once, besides */
    uint32_t since;                /* of `now` */
    uint32_t published_at;
    bool wants_announce;
    bool is_urgent; /* `now` is to be published whether or not it lasts */
    bool has_notice;
} tf_client_report;

/* Chunks from the broker, group by group. */
typedef struct {
    uint8_t sha256[TF_DIGEST_BYTES]; /* of the weights whose chunks are asked for */
    uint32_t since;                  /* last chunk or subscription */
    uint16_t group;                  /* that is subscribed or being subscribed */
    uint16_t leaving;                /* that is to be, or being, unsubscribed */
    uint16_t subscribe_id;           /* under way, 0: none */
    uint16_t unsubscribe_id;
    uint8_t came;     /* chunks of the group since it was asked for */
    uint8_t asked;    /* how often, since one of its chunks was new */
    bool is_active;   /* chunks are wanted */
    bool was_damaged; /* one of those that came */
    bool flash_failed;
} tf_client_fetch;

/* The delta on its way to the gateway. */
typedef struct {
    tf_delta_cursor cursor;
    union {
        tf_delta_encoder rice;
        tf_mask_encoder masked;
    } encoder;
    bool is_masked;   /* which of the two */
    uint32_t encoded; /* bytes that the encoder has given */
    uint32_t values;
    uint32_t coded_bytes;
    uint32_t coded_crc32;
    uint32_t since; /* it was sent as a whole, or began to be */
    uint32_t wait_ms;
    uint16_t chunks;
    uint16_t chunk;          /* that is sent next; = chunks: all are */
    uint16_t publication_id; /* 0: none under way */
    bool is_held;            /* until its receipt */
    bool is_refused;         /* by the broker */
    bool nobody_listens;     /* to the delta topic, says the broker */
} tf_client_sending;

/* What the device has for itself, and how it does with that on its held-out samples. */
typedef struct {
    tf_personal_store store;
    tf_client_score score;      /* with personal tensors, in the best mix */
    tf_client_score best_score; /* of `best` */
    tf_kept_choice best;        /* of what was compared so far */
    uint16_t mix;               /* that is tried, 0: none any more */
    uint16_t correct_local;
    bool was_judged;
    bool has_score; /* `score` and `correct_local` are this task's */
    bool has_local;
    bool is_local; /* the trial is of what was trained here alone */
    bool in_trial;
} tf_client_personal;

/* Fields are private to device_runtime/client. */
typedef struct {
    const tf_client_config *config;
    tf_identity identity;
    tf_mqtt mqtt;
    tf_mqtt_config mqtt_config;
    tf_journal journal;
    tf_weights_store weights;
    tf_sample_log log;
    tf_client_personal personal;
    tf_keys keys;
    uint32_t pool_bytes; /* without what the application keeps */
    uint32_t lease;      /* highest that was seen; with an authority: in a signed task */
    uint32_t round;      /* highest in a signed task of that lease */
    bool journal_failed; /* with these, or keys: not tried again before the next task or keyring */
    uint16_t train_samples;
    uint16_t held_out_samples;

    /* link */
    tf_client_report report;
    bool connected;
    bool listens; /* the topics for this device are subscribed */
    bool resting; /* hung up until the next check-in */
    uint16_t subscription_id;
    uint32_t subscribe_since;
    uint32_t rest_since;
    uint32_t rest_ms;
    uint32_t check_in_seconds; /* owed once the status is out; 0: none */

    /* round */
    tf_client_work work;
    bool has_task;
    bool has_finished;   /* `finished_*` name a round that is over for this device */
    bool was_called_off; /* that one, by an empty task */
    bool restarted;      /* the download was begun anew once already */
    bool new_is_staged;  /* the weights of the task wait for their commit */
    bool discards_for_good;
    tf_reason discard_reason;
    tf_task task;
    uint8_t finished_campaign[TF_CAMPAIGN_BYTES];
    uint32_t finished_round;
    char delta_topic[TF_MQTT_TOPIC_LIMIT + 1u];
    uint32_t deadline_at;
    tf_client_fetch fetch;
    uint32_t copied_chunks;
    const tf_plan *plan;
    const uint8_t *base; /* weights of the task */
    tf_engine engine;
    tf_client_score score;
    tf_client_score before;
    uint16_t order_count;
    uint16_t order_next;
    uint8_t epoch;
    uint32_t train_steps;
    tf_client_sending sending;
} tf_client;

/* Reads identity and weights from flash and starts dialling.
 * TF_NOT_FOUND: there is no identity. TF_BAD_INPUT: the identity breaks the CDDL.
 * TF_NO_MEMORY: a buffer or a slot is too small. TF_FLASH_FAILED: a region is outside the
 * flash. */
tf_status tf_client_init(tf_client *client, const tf_client_config *config);

/* Does the next piece of work. true: there is more to do at once; false: nothing before
 * bytes come or tf_client_next_poll_ms have passed. */
bool tf_client_poll(tf_client *client);

/* Milliseconds until the clock alone gives the client something to do (at most). */
uint32_t tf_client_next_poll_ms(const tf_client *client);

/* wire.md: the state that the device is in; TF_DEVICE_OFFLINE while not connected and idle. */
tf_device_state tf_client_state(const tf_client *client);

/* Prepares `engine` with what the application infers with (tf_engine_predict): the current version,
 * and what the device has for itself where that is better on its held-out samples. `pool` is the
 * application's own, tf_engine_pool_bytes of a plan, and engine and pool are good until the next
 * poll: a round may bring other weights.
 * TF_NO_MEMORY: it is too small for all plans. */
tf_status tf_client_load_model(const tf_client *client, tf_engine *engine, void *pool,
                               uint32_t pool_bytes);

/* The log that the application adds its samples to, at any time between two polls: a round that is
 * under way goes on with what is left of those that it has seen. */
tf_sample_log *tf_client_sample_log(tf_client *client);

#endif
