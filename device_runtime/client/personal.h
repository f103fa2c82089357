/* What a device does for itself in a round, and what it keeps of it (wire.md, Personal tensors). */
#ifndef TINYFLEET_PERSONAL_H
#define TINYFLEET_PERSONAL_H

#include "tinyfleet/client.h"

/* Looks for what there is, and has it said where that is of no use to this firmware. */
tf_status tf_personal_init(tf_client *client);

/* A task was taken: TF_REASON_NONE, or why it can't be done. */
tf_reason tf_personal_take(tf_client *client);

/* Whether training of the task makes a delta, or nothing but scores and what is kept. */
bool tf_personal_sends(const tf_client *client);
/* How many values the delta of its training has. */
uint32_t tf_personal_delta_values(const tf_client *client);

/* The engine has the task's weights: what isn't to be trained is fixed, what is kept is laid over. */
tf_status tf_personal_begin_training(tf_client *client);
/* Whether what was trained is kept here. */
bool tf_personal_keeps(const tf_client *client);
/* Keeps it. The flash erases for it, so no chunk may come. */
tf_status tf_personal_keep(tf_client *client);

/* Whether the device compares what it could use. */
bool tf_personal_judges(const tf_client *client);
/* Starts that comparison; `client->before` is the score of the shared weights. */
void tf_personal_begin_judging(tf_client *client);
/* Scores one sample, or takes the next step; false: all is known, `client->score` is that with
 * personal tensors. */
bool tf_personal_judge_step(tf_client *client);
/* Notes what is best for this device, where that is what the application would work with. */
tf_status tf_personal_choose_best(tf_client *client);
/* What of this stands in the delta's `kept`. */
uint8_t tf_personal_kept(const tf_client *client);

#endif
