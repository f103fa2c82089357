/* The delta, coded while it is sent, and sent again until somebody has it. */
#include "sending.h"

#include <string.h>

#include "clock.h"
#include "coding.h"
#include "personal.h"
#include "scoring.h"

#define FIRST_WAIT_MS 30000u /* for the receipt; twice as long each time */
#define LONGEST_WAIT_MS 240000u
#define NOBODY_LISTENS 6u /* a sixth of that where the broker knows that nobody took it */

static void send_from_start(tf_client *client) {
    client->sending.chunk = 0;
    client->sending.nobody_listens = false;
}

tf_reason tf_sending_begin(tf_client *client, uint32_t values) {
    tf_client_sending *sending = &client->sending;
    const uint32_t chunk_bytes = client->task.uplink_chunk_bytes;
    const tf_reason refusal = tf_coding_measure(client, values);
    if (refusal != TF_REASON_NONE) {
        return refusal;
    }
    const uint32_t chunks = (sending->coded_bytes + chunk_bytes - 1u) / chunk_bytes;
    sending->chunks = (uint16_t)(chunks == 0u ? 1u : chunks);
    sending->wait_ms = FIRST_WAIT_MS;
    sending->is_held = true;
    sending->is_refused = false;
    send_from_start(client);
    return TF_REASON_NONE;
}

/* Brings the encoder to the chunk that is sent next, from the start where it is beyond. */
static void seek_chunk(void *context) {
    tf_client *client = context;
    tf_client_sending *sending = &client->sending;
    const uint32_t start = (uint32_t)sending->chunk * client->task.uplink_chunk_bytes;
    uint8_t passed[32];
    if (sending->encoded > start) {
        tf_coding_begin(client);
    }
    while (sending->encoded < start) {
        const uint32_t left = start - sending->encoded;
        tf_coding_read(client, passed, left < sizeof passed ? left : (uint32_t)sizeof passed);
    }
}

static void read_chunk(void *context, uint8_t *bytes, size_t count) {
    tf_coding_read(context, bytes, count);
}

static tf_delta describe(const tf_client *client) {
    const tf_client_sending *sending = &client->sending;
    const uint32_t chunk_bytes = client->task.uplink_chunk_bytes;
    const uint32_t left = sending->coded_bytes - sending->chunk * chunk_bytes;
    tf_delta delta = {
        .lease = client->task.lease,
        .round = client->task.round,
        .coded_bytes = sending->coded_bytes,
        .coded_crc32 = sending->coded_crc32,
        .train_steps = client->train_steps,
        .loss_before_thousandths = tf_scoring_mean_loss_thousandths(&client->before),
        .loss_after_thousandths = tf_scoring_mean_loss_thousandths(&client->score),
        .chunk = sending->chunk,
        .chunks = sending->chunks,
        .train_samples = tf_personal_sends(client) ? client->order_count : 0u,
        .held_out_samples = client->score.samples,
        .correct_before = client->before.correct,
        .correct_after = client->score.correct,
        .correct_local = client->personal.correct_local,
        .coded_chunk_bytes = (uint16_t)(left < chunk_bytes ? left : chunk_bytes),
        .coding = client->task.coding,
        .weighting = client->task.weighting,
        .kept = tf_personal_kept(client),
    };
    memcpy(delta.campaign, client->task.campaign, TF_CAMPAIGN_BYTES);
    memcpy(delta.plan, client->task.plan, TF_PREFIX_BYTES);
    memcpy(delta.weights, client->task.weights, TF_PREFIX_BYTES);
    return delta;
}

static uint32_t seconds_left(const tf_client *client) {
    return (client->deadline_at - tf_client_now(client)) / 1000u + 1u; /* 0 would mean no expiry */
}

static tf_sending_result publish_chunk(tf_client *client) {
    const tf_mqtt_source source = {seek_chunk, read_chunk, client};
    tf_client_sending *sending = &client->sending;
    uint8_t *payload;
    size_t capacity;
    size_t length;
    const tf_status begun =
        tf_mqtt_publish_begin(&client->mqtt, client->delta_topic, strlen(client->delta_topic),
                              false, seconds_left(client), &payload, &capacity);
    if (begun == TF_AGAIN) {
        return TF_SENDING_GOES_ON;
    }
    const tf_delta delta = describe(client);
    if (begun != TF_OK || tf_encode_delta_head(&delta, payload, capacity, &length) != TF_OK ||
        tf_mqtt_publish_commit_stream(&client->mqtt, length, &source, delta.coded_chunk_bytes,
                                      &sending->publication_id) != TF_OK) {
        return TF_SENDING_BAD_TOPIC;
    }
    return TF_SENDING_GOES_ON;
}

/* How long to wait for the receipt of what was sent. */
static uint32_t patience(const tf_client_sending *sending) {
    return sending->nobody_listens ? sending->wait_ms / NOBODY_LISTENS : sending->wait_ms;
}

tf_sending_result tf_sending_step(tf_client *client) {
    tf_client_sending *sending = &client->sending;
    if (sending->is_refused) {
        return TF_SENDING_REFUSED;
    }
    if (sending->chunk == sending->chunks) {
        if (tf_client_elapsed(client, sending->since) < patience(sending)) {
            return TF_SENDING_GOES_ON;
        }
        sending->wait_ms =
            sending->wait_ms < LONGEST_WAIT_MS / 2u ? sending->wait_ms * 2u : LONGEST_WAIT_MS;
        send_from_start(client);
    }
    /* A status that hurries goes first. */
    if (!client->connected || sending->publication_id != 0u || client->report.wants_announce ||
        client->report.is_urgent || !tf_mqtt_can_publish(&client->mqtt)) {
        return TF_SENDING_GOES_ON;
    }
    return publish_chunk(client);
}

tf_status tf_sending_drop(tf_client *client) {
    tf_client_sending *sending = &client->sending;
    sending->is_held = false;
    if (sending->publication_id == 0u) {
        return TF_OK;
    }
    if (tf_mqtt_publish_cancel(&client->mqtt) == TF_AGAIN) {
        return TF_AGAIN;
    }
    sending->publication_id = 0;
    return TF_OK;
}

void tf_sending_on_answer(tf_client *client, const tf_mqtt_event *event) {
    tf_client_sending *sending = &client->sending;
    if (sending->publication_id == 0u || event->packet_id != sending->publication_id) {
        return;
    }
    sending->publication_id = 0;
    if (!sending->is_held) {
        return;
    }
    if (event->reason >= TF_MQTT_REASON_UNSPECIFIED) {
        sending->is_refused = true;
        return;
    }
    sending->nobody_listens =
        sending->nobody_listens || event->reason == TF_MQTT_NO_MATCHING_SUBSCRIBERS;
    sending->chunk++;
    sending->since = tf_client_now(client);
}

void tf_sending_on_lost(tf_client *client) {
    client->sending.publication_id = 0;
    client->sending.wait_ms = FIRST_WAIT_MS;
    send_from_start(client);
}
