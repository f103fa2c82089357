/* Typed messages over the code that zcbor generates from tinyfleet.cddl. */
#include "tinyfleet/messages.h"

#include <stdbool.h>
#include <string.h>

#include "tinyfleet_cbor_decode.h"
#include "tinyfleet_cbor_encode.h"

#ifndef ZCBOR_CANONICAL
#error "compile this file and zcbor's with -DZCBOR_CANONICAL (docs/specification/bundle.md)"
#endif

static bool name_character(uint8_t c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
}

/* Points `string` at a NUL-terminated name; false if it isn't one. */
static bool put_name(struct zcbor_string *string, const char *name) {
    size_t length = 0;
    if (name == NULL) {
        return false;
    }
    while (name[length] != '\0') {
        if (length == TF_NAME_LIMIT || !name_character((uint8_t)name[length])) {
            return false;
        }
        length++;
    }
    string->value = (const uint8_t *)name;
    string->len = length;
    return length > 0;
}

static void put_bytes(struct zcbor_string *string, const uint8_t *bytes, size_t length) {
    string->value = bytes;
    string->len = length;
}

/* Copies a name that zcbor has bounded to TF_NAME_LIMIT and terminates it. */
static bool take_name(char *name, const struct zcbor_string *string) {
    for (size_t i = 0; i < string->len; i++) {
        if (!name_character(string->value[i])) {
            return false;
        }
    }
    memcpy(name, string->value, string->len);
    name[string->len] = '\0';
    return true;
}

/* Likewise for a password: any text without NUL. */
static bool take_password(char *password, const struct zcbor_string *string) {
    for (size_t i = 0; i < string->len; i++) {
        if (string->value[i] == 0) {
            return false;
        }
    }
    memcpy(password, string->value, string->len);
    password[string->len] = '\0';
    return true;
}

static tf_status encode_result(int error) {
    if (error == ZCBOR_SUCCESS) {
        return TF_OK;
    }
    return error == ZCBOR_ERR_NO_PAYLOAD ? TF_NO_MEMORY : TF_BAD_INPUT;
}

tf_status tf_encode_announce(const tf_announce *announce, uint8_t *bytes, size_t capacity,
                             size_t *length) {
    static const uint8_t none[TF_DIGEST_BYTES] = {0};
    struct announce message;
    if (!put_name(&message.announce_board, announce->board)) {
        return TF_BAD_INPUT;
    }
    put_bytes(&message.announce_bundle, announce->bundle, TF_DIGEST_BYTES);
    put_bytes(&message.announce_current, announce->current, TF_DIGEST_BYTES);
    put_bytes(&message.announce_candidate, announce->candidate != NULL ? announce->candidate : none,
              TF_DIGEST_BYTES);
    message.announce_lease = announce->lease;
    message.announce_free_sram_bytes = announce->free_sram_bytes;
    message.announce_battery = announce->battery;
    message.announce_link_bits_per_second = announce->link_bits_per_second;
    message.announce_train_samples = announce->train_samples;
    message.announce_held_out_samples = announce->held_out_samples;
    message.announce_reset_cause = announce->reset_cause;
    message.announce_fault_code = announce->fault_code;
    message.announce_fault_pc = announce->fault_pc;
    message.announce_keyring = announce->keyring;
    return encode_result(cbor_encode_announce(bytes, capacity, &message, length));
}

/* How long what CBOR has in front of `count` bytes is. */
static size_t bytes_head_length(size_t count) {
    return count < 24u ? 1u : count < 256u ? 2u : 3u;
}

/* Writes it; returns its length, 0 where it doesn't fit. */
static size_t put_bytes_head(uint8_t *bytes, size_t capacity, uint16_t count) {
    const size_t length = bytes_head_length(count);
    if (length > capacity) {
        return 0;
    }
    if (length == 1u) {
        bytes[0] = (uint8_t)(0x40u | count);
    } else if (length == 2u) {
        bytes[0] = 0x58;
        bytes[1] = (uint8_t)count;
    } else {
        bytes[0] = 0x59;
        bytes[1] = (uint8_t)(count >> 8);
        bytes[2] = (uint8_t)count;
    }
    return length;
}

tf_status tf_encode_delta_head(const tf_delta *delta, uint8_t *bytes, size_t capacity,
                               size_t *length) {
    static const uint8_t nothing[1] = {0}; /* zcbor wants an address for zero bytes too */
    struct delta message;
    if (delta->coded_chunk_bytes > TF_UPLINK_CHUNK_LIMIT) {
        return TF_BAD_INPUT;
    }
    message.delta_lease = delta->lease;
    put_bytes(&message.delta_campaign, delta->campaign, TF_CAMPAIGN_BYTES);
    message.delta_round = delta->round;
    put_bytes(&message.delta_plan, delta->plan, TF_PREFIX_BYTES);
    put_bytes(&message.delta_weights, delta->weights, TF_PREFIX_BYTES);
    message.delta_coding = delta->coding;
    message.delta_weighting = delta->weighting;
    message.delta_chunk = delta->chunk;
    message.delta_chunks = delta->chunks;
    message.delta_coded_bytes = delta->coded_bytes;
    message.delta_coded_crc32 = delta->coded_crc32;
    message.delta_train_samples = delta->train_samples;
    message.delta_train_steps = delta->train_steps;
    message.delta_held_out_samples = delta->held_out_samples;
    message.delta_correct_before = delta->correct_before;
    message.delta_correct_after = delta->correct_after;
    message.delta_loss_before_thousandths = delta->loss_before_thousandths;
    message.delta_loss_after_thousandths = delta->loss_after_thousandths;
    message.delta_correct_local = delta->correct_local;
    message.delta_kept = delta->kept;
    put_bytes(&message.delta_coded, nothing, 0);
    size_t used;
    const tf_status status = encode_result(cbor_encode_delta(bytes, capacity, &message, &used));
    if (status != TF_OK) {
        return status;
    }
    used--; /* the last byte says that there are no coded bytes */
    const size_t head = put_bytes_head(bytes + used, capacity - used, delta->coded_chunk_bytes);
    *length = used + head;
    return head > 0u ? TF_OK : TF_NO_MEMORY;
}

tf_status tf_encode_status(const tf_device_status *status, uint8_t *bytes, size_t capacity,
                           size_t *length) {
    struct status message;
    message.status_state = status->state;
    message.status_reason = status->reason;
    put_bytes(&message.status_campaign, status->campaign, TF_CAMPAIGN_BYTES);
    message.status_round = status->round;
    message.status_battery = status->battery;
    return encode_result(cbor_encode_status(bytes, capacity, &message, length));
}

/* What wire.md says of a task beyond the CDDL. */
static bool is_consistent(const struct task *task) {
    const bool trains = task->task_action == TF_ACTION_TRAIN;
    const bool scores =
        task->task_action == TF_ACTION_SCORE || task->task_action == TF_ACTION_RELEASE;
    return task->task_chunk_bytes % 4u == 0u && !(trains && task->task_epochs == 0u) &&
           !(scores && task->task_epochs != 0u);
}

static void take_parts(const uint8_t *bytes, const struct task *message, tf_task_parts *parts) {
    const struct zcbor_string *keyring = &message->task_keyring;
    const struct zcbor_string *signature = &message->task_signature;
    *parts = (tf_task_parts){
        .keyring = keyring->value,
        .signature = signature->value,
        .keyring_bytes = (uint16_t)keyring->len,
        .signature_bytes = (uint16_t)signature->len,
        .signed_bytes = (size_t)(keyring->value - bytes) - bytes_head_length(keyring->len),
    };
}

tf_status tf_decode_task(const uint8_t *bytes, size_t length, tf_task *task, tf_task_parts *parts) {
    struct task message;
    size_t used = 0;
    if (cbor_decode_task(bytes, length, &message, &used) != ZCBOR_SUCCESS || used != length ||
        !is_consistent(&message)) {
        return TF_BAD_INPUT;
    }
    memcpy(task->campaign, message.task_campaign.value, TF_CAMPAIGN_BYTES);
    memcpy(task->plan, message.task_plan.value, TF_DIGEST_BYTES);
    memcpy(task->weights, message.task_weights.value, TF_DIGEST_BYTES);
    task->lease = message.task_lease;
    task->round = message.task_round;
    task->weights_bytes = message.task_weights_bytes;
    task->learning_rate_q20 = message.task_learning_rate_q20;
    task->seed = message.task_seed;
    task->deadline_seconds = message.task_deadline_seconds;
    task->check_in_seconds = message.task_check_in_seconds;
    task->chunk_bytes = (uint16_t)message.task_chunk_bytes;
    task->uplink_chunk_bytes = (uint16_t)message.task_uplink_chunk_bytes;
    task->max_score_drop_permille = (uint16_t)message.task_max_score_drop_permille;
    task->action = (uint8_t)message.task_action;
    task->epochs = (uint8_t)message.task_epochs;
    task->coding = (uint8_t)message.task_coding;
    task->weighting = (uint8_t)message.task_weighting;
    task->personal = (uint8_t)message.task_personal;
    task->mask_bits = (uint8_t)message.task_mask_bits;
    task->value_bound = (uint16_t)message.task_value_bound;
    task->clip = message.task_clip;
    task->norm_share = (uint16_t)message.task_norm_share;
    task->noise_variance = message.task_noise_variance;
    task->least_devices = (uint16_t)message.task_least_devices;
    memcpy(task->unmaskers, message.task_unmaskers.value, TF_PREFIX_BYTES);
    take_parts(bytes, &message, parts);
    return TF_OK;
}

tf_status tf_decode_receipt(const uint8_t *bytes, size_t length, tf_receipt *receipt) {
    struct receipt message;
    size_t used = 0;
    if (cbor_decode_receipt(bytes, length, &message, &used) != ZCBOR_SUCCESS || used != length) {
        return TF_BAD_INPUT;
    }
    memcpy(receipt->campaign, message.receipt_campaign.value, TF_CAMPAIGN_BYTES);
    receipt->lease = message.receipt_lease;
    receipt->round = message.receipt_round;
    receipt->coded_crc32 = message.receipt_coded_crc32;
    receipt->result = (uint8_t)message.receipt_result;
    return TF_OK;
}

tf_status tf_decode_identity(const uint8_t *bytes, size_t length, tf_identity *identity) {
    struct identity message;
    size_t used = 0;
    if (cbor_decode_identity(bytes, length, &message, &used) != ZCBOR_SUCCESS || used != length ||
        !take_name(identity->device, &message.identity_device) ||
        !take_name(identity->fleet, &message.identity_fleet) ||
        !take_password(identity->password, &message.identity_password)) {
        return TF_BAD_INPUT;
    }
    identity->reserved_sram_bytes = message.identity_reserved_sram_bytes;
    identity->link_bits_per_second = message.identity_link_bits_per_second;
    return TF_OK;
}
