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
#include "tinyfleet/messages.h"
#include "tinyfleet/mqtt.h"
#include "tinyfleet/port.h"
#include "tinyfleet/sample_log.h"
#include "tinyfleet/weights_store.h"

#define TF_CLIENT_DEVICE_TOPIC_BYTES 80u /* fleet/<fleet>/dev/<device>/, NUL included */
#define TF_CLIENT_STATUS_TOPIC_BYTES 88u
#define TF_CLIENT_BLOB_FILTER_BYTES 112u /* fleet/<fleet>/blob/<sha256>/+, NUL included */

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
    TF_REASON_OTHER_MODEL
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
    uint8_t *chunk;         /* TF_CODED_CHUNK_BYTES: the part of the delta under way */
    uint16_t *sample_order; /* one entry per train sample; further samples rest */
    uint16_t sample_order_size;
} tf_client_config;

/* What the client works on; private to device_runtime/client. */
typedef enum {
    TF_WORK_NONE,
    TF_WORK_BEGIN,  /* a task was taken: look whether it can be done */
    TF_WORK_COPY,   /* stage the weights that are built in */
    TF_WORK_FETCH,  /* chunks come in */
    TF_WORK_VERIFY, /* all chunks are there */
    TF_WORK_SCORE_ACTIVE,
    TF_WORK_SCORE_NEW,
    TF_WORK_COMMIT,
    TF_WORK_TRAIN,
    TF_WORK_SCORE_AFTER,
    TF_WORK_MEASURE, /* length and CRC of the coded delta */
    TF_WORK_SEND
} tf_client_work;

typedef struct {
    uint32_t cursor; /* in the sample log */
    uint64_t loss_q16;
    uint16_t samples;
    uint16_t correct;
} tf_client_score;

/* Fields are private to device_runtime/client. */
typedef struct {
    const tf_client_config *config;
    tf_identity identity;
    tf_mqtt mqtt;
    tf_mqtt_config mqtt_config;
    tf_weights_store weights;
    tf_sample_log log;
    tf_journal journal;
    uint32_t pool_bytes; /* without what the application keeps */
    uint16_t train_samples;
    uint16_t held_out_samples;
    char device_topic[TF_CLIENT_DEVICE_TOPIC_BYTES];
    char status_topic[TF_CLIENT_STATUS_TOPIC_BYTES];
    char blob_filter[TF_CLIENT_BLOB_FILTER_BYTES];
    uint8_t will[TF_STATUS_MESSAGE_BYTES];

    /* link */
    bool connected;
    bool wants_task_topic;
    bool wants_announce;
    bool wants_status;
    bool wants_blob;      /* subscription to blob_filter that the work needs */
    bool has_blob;        /* subscription that the broker holds */
    bool leaves_blob;     /* blob_filter is to be unsubscribed before another is asked for */
    bool blob_answer_due; /* SUBSCRIBE or UNSUBSCRIBE of blob_filter under way */
    bool resting;         /* hung up until the next check-in */
    uint16_t task_subscription_id;
    uint16_t blob_subscription_id;
    uint16_t status_publication_id;
    uint16_t delta_publication_id;
    uint32_t subscribe_since;
    uint32_t status_since;
    uint32_t rest_since;
    uint32_t rest_ms;
    uint32_t check_in_seconds; /* owed once the status is out; 0: none */

    /* status as last decided */
    uint8_t state;
    uint8_t reason;
    bool status_is_urgent;

    /* round */
    tf_client_work work;
    bool has_task;
    bool has_finished;  /* `finished_*` name a round that is over for this device */
    bool restarted;     /* the download was begun anew once already */
    bool flash_failed;  /* while a chunk was written */
    bool new_is_staged; /* the weights of the task wait for their commit */
    tf_task task;
    uint8_t finished_campaign[TF_CAMPAIGN_BYTES];
    uint32_t finished_round;
    char delta_topic[TF_MQTT_TOPIC_LIMIT + 1u];
    uint32_t deadline_at;
    const tf_plan *plan;
    tf_engine engine;
    tf_client_score score;
    tf_client_score before;
    uint32_t copied_chunks;
    uint32_t fetch_since; /* last chunk or subscription */
    uint16_t order_count;
    uint16_t order_next;
    uint8_t epoch;
    uint32_t train_steps;
    uint32_t coded_bytes;
    uint32_t coded_crc32;
    uint16_t chunks;
    uint16_t chunk;
    uint16_t chunk_bytes;
    bool chunk_is_ready;
    bool chunk_waits; /* nobody took it; sent again later */
    uint32_t chunk_since;
    tf_delta_cursor cursor;
    tf_delta_encoder encoder;
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

/* The log that the application adds its samples to, at any time between two polls: a round that is
 * under way goes on with what is left of those that it has seen. */
tf_sample_log *tf_client_sample_log(tf_client *client);

#endif
