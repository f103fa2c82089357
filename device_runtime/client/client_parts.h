/* What the two halves of the client know of each other. */
#ifndef TINYFLEET_CLIENT_PARTS_H
#define TINYFLEET_CLIENT_PARTS_H

#include "tinyfleet/client.h"

/* client.c: the link */

uint32_t tf_client_now(const tf_client *client);
/* Milliseconds from `since` to now. */
uint32_t tf_client_elapsed(const tf_client *client, uint32_t since);
/* Notes a state; urgent ones are published at once, others when they last. */
void tf_client_note(tf_client *client, tf_device_state state, tf_reason reason, bool urgent);
/* Asks for, or gives up, the chunks of the task's weights. */
void tf_client_want_blob(tf_client *client, bool wanted);
uint32_t tf_client_seconds_left(const tf_client *client);

/* round.c: the work */

/* A message on the task topic. */
tf_status tf_round_on_task(tf_client *client, const tf_mqtt_message *message);
/* A message on a blob topic: `digits` is what follows "fleet/<fleet>/blob/". */
tf_status tf_round_on_blob(tf_client *client, const char *digits, uint32_t digits_bytes,
                           const tf_mqtt_message *message);
/* The broker's answer to the chunk of the delta under way. */
void tf_round_on_delta_answer(tf_client *client, uint8_t reason);
/* The digest of the weights that rounds start from. */
const uint8_t *tf_round_base_sha256(const tf_client *client);
/* The next piece of work; true: there is more to do at once. */
bool tf_round_step(tf_client *client);

/* Calls to the engine; scoring.c */

/* Starts a pass over the held-out samples with `weights`. */
tf_status tf_scoring_begin(tf_client *client, const uint8_t *weights);
/* Scores one sample; false: there was none left. */
bool tf_scoring_step(tf_client *client);
uint32_t tf_scoring_mean_loss_thousandths(const tf_client_score *score);
/* Counts the samples of this model in the log. */
void tf_scoring_count_samples(tf_client *client);
/* Draws the order of an epoch. */
void tf_scoring_draw_order(tf_client *client);
/* One training step; false: the epoch is over. */
bool tf_scoring_train_step(tf_client *client);

#endif
