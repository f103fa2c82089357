/* Samples meet the engine: scoring on the held-out ones, training on the others. */
#ifndef TINYFLEET_SCORING_H
#define TINYFLEET_SCORING_H

#include "tinyfleet/client.h"

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
