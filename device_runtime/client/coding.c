/* The two codings of a delta. Both draw its values from the engine again in each pass. */
#include "coding.h"

#include <string.h>

static void rewind(void *context) {
    tf_client *client = context;
    tf_delta_begin(&client->sending.cursor, &client->engine);
}

static int32_t next_value(void *context) {
    tf_client *client = context;
    return tf_delta_next(&client->sending.cursor);
}

tf_reason tf_coding_refusal(const tf_client *client) {
    const tf_task *task = &client->task;
    if (task->weighting > TF_WEIGHTING_UNIFORM || task->coding > TF_CODING_MASKED) {
        return TF_REASON_UNKNOWN_CODING;
    }
    if (task->coding == TF_CODING_RICE) {
        return TF_REASON_NONE;
    }
    if (task->weighting != TF_WEIGHTING_UNIFORM) {
        return TF_REASON_UNKNOWN_CODING;
    }
    if (!tf_mask_is_sound(task)) {
        return TF_REASON_MALFORMED_TASK;
    }
    return tf_keys_can_mask(&client->keys, task->unmaskers) ? TF_REASON_NONE
                                                            : TF_REASON_OTHER_UNMASKERS;
}

/* A nonce that no other delta of this device has, whatever resets come between: by its counter, and
 * where somebody has erased the journal, by its other bytes. */
static tf_reason draw_nonce(tf_client *client, uint8_t nonce[TF_NONCE_BYTES]) {
    const tf_port *port = client->config->port;
    const uint64_t counter = tf_journal_highest(&client->journal, TF_JOURNAL_MASK) + 1u;
    tf_flash_put_word(nonce, (uint32_t)counter);
    if (port->secret == NULL) {
        tf_flash_put_word(nonce + 4, port->entropy(port->context));
        tf_flash_put_word(nonce + 8, port->entropy(port->context));
    } else if (!port->secret(port->context, nonce + 4, TF_NONCE_BYTES - 4u)) {
        return TF_REASON_NO_RANDOM_NUMBERS;
    }
    return counter <= UINT32_MAX &&
                   tf_journal_raise(&client->journal, TF_JOURNAL_MASK, counter) == TF_OK
               ? TF_REASON_NONE
               : TF_REASON_FLASH_FAILURE;
}

static tf_reason open_mask(tf_client *client, uint32_t values) {
    const tf_mask_source source = {rewind, next_value, client, values};
    uint8_t nonce[TF_NONCE_BYTES];
    /* Keys may have come since the task has begun. */
    if (!tf_keys_can_mask(&client->keys, client->task.unmaskers) ||
        !tf_keys_make_seal_keys(&client->keys)) {
        return TF_REASON_OTHER_UNMASKERS;
    }
    const tf_reason refusal = draw_nonce(client, nonce);
    if (refusal != TF_REASON_NONE) {
        return refusal;
    }
    tf_mask_open(&client->sending.encoder.masked, &source, &client->task, &client->keys, nonce);
    return TF_REASON_NONE;
}

tf_reason tf_coding_measure(tf_client *client, uint32_t values) {
    tf_client_sending *sending = &client->sending;
    sending->values = values;
    sending->is_masked = client->task.coding == TF_CODING_MASKED && values > 0u;
    if (sending->is_masked) {
        const tf_reason refusal = open_mask(client, values);
        if (refusal != TF_REASON_NONE) {
            return refusal;
        }
        tf_mask_measure(&sending->encoder.masked, &client->task, &sending->coded_bytes,
                        &sending->coded_crc32);
    } else {
        rewind(client);
        tf_delta_measure(&sending->encoder.rice, next_value, client, values, &sending->coded_bytes,
                         &sending->coded_crc32);
    }
    tf_coding_begin(client);
    return TF_REASON_NONE;
}

void tf_coding_begin(tf_client *client) {
    tf_client_sending *sending = &client->sending;
    sending->encoded = 0;
    if (sending->is_masked) {
        tf_mask_encoder_begin(&sending->encoder.masked);
    } else {
        rewind(client);
        tf_delta_encoder_begin(&sending->encoder.rice, next_value, client, sending->values);
    }
}

void tf_coding_read(tf_client *client, uint8_t *bytes, size_t count) {
    tf_client_sending *sending = &client->sending;
    if (sending->is_masked) {
        (void)tf_mask_encoder_read(&sending->encoder.masked, bytes, count);
    } else {
        (void)tf_delta_encoder_read(&sending->encoder.rice, bytes, count);
    }
    sending->encoded += (uint32_t)count;
}
