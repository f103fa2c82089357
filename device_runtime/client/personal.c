/* Personal tensors: trained, kept, compared, and used by the application; never sent. */
#include "personal.h"

#include <stddef.h>
#include <string.h>

#include "report.h"
#include "scoring.h"

#define MIX_STEP 64u /* tried from whole down to this, where the mix is chosen */

/* --- plans and layouts ---------------------------------------------------------------------- */

static uint32_t layout_of(const tf_plan *plan, tf_kept_part part) {
    return part == TF_KEPT_PERSONAL ? plan->personal_layout : plan->local_layout;
}

/* A plan that reads what is kept of a part and fits `bytes`; NULL where there is none. */
static const tf_plan *find_plan(const tf_client *client, tf_kept_part part, uint32_t bytes) {
    const tf_model *model = client->config->model;
    const uint32_t layout = tf_personal_layout(&client->personal.store, part);
    for (uint16_t i = 0; layout != 0u && i < model->plan_count; i++) {
        if (layout_of(&model->plans[i], part) == layout &&
            tf_engine_pool_bytes(model, &model->plans[i]) <= bytes) {
            return &model->plans[i];
        }
    }
    return NULL;
}

/* Loads `plan` with the version that a part belongs to, and lays over it what is kept. */
static tf_status load_kept(const tf_client *client, tf_engine *engine, const tf_plan *plan,
                           const uint8_t *version, tf_kept_part part, uint32_t mix, void *pool,
                           uint32_t pool_bytes) {
    const tf_model *model = client->config->model;
    const bool personal_only = part == TF_KEPT_PERSONAL;
    const tf_status status = tf_engine_load(
        engine, model, plan, personal_only ? version : model->factory_weights, pool, pool_bytes);
    const uint8_t *kept = tf_personal_values(&client->personal.store, part, layout_of(plan, part));
    if (status == TF_OK && kept != NULL) {
        tf_engine_lay_over(engine, kept, personal_only, mix);
    }
    return status;
}

/* --- what the application works with -------------------------------------------------------- */

tf_status tf_client_load_model(const tf_client *client, tf_engine *engine, void *pool,
                               uint32_t pool_bytes) {
    const tf_model *model = client->config->model;
    const uint8_t *current = tf_weights_current(&client->weights);
    const tf_kept_choice choice = tf_personal_choice(&client->personal.store);
    const tf_kept_part part = choice.use == TF_USES_LOCAL ? TF_KEPT_LOCAL : TF_KEPT_PERSONAL;
    const tf_plan *plan = find_plan(client, part, pool_bytes);
    if (choice.use != TF_USES_SHARED && plan != NULL) {
        const uint32_t mix = choice.use == TF_USES_LOCAL ? TF_WHOLE_MIX : choice.mix;
        return load_kept(client, engine, plan, current, part, mix, pool, pool_bytes);
    }
    for (uint16_t i = 0; i < model->plan_count; i++) {
        if (tf_engine_load(engine, model, &model->plans[i], current, pool, pool_bytes) == TF_OK) {
            return TF_OK;
        }
    }
    return TF_NO_MEMORY;
}

static bool is_readable(const tf_client *client) {
    const uint32_t any = UINT32_MAX;
    const tf_personal_store *store = &client->personal.store;
    return !tf_personal_has_others(store) &&
           (tf_personal_layout(store, TF_KEPT_PERSONAL) == 0u ||
            find_plan(client, TF_KEPT_PERSONAL, any) != NULL) &&
           (tf_personal_layout(store, TF_KEPT_LOCAL) == 0u ||
            find_plan(client, TF_KEPT_LOCAL, any) != NULL);
}

tf_status tf_personal_init(tf_client *client) {
    const tf_client_config *config = client->config;
    const tf_status status =
        tf_personal_open(&client->personal.store, config->port->flash, &config->regions.personal,
                         config->model->model_digest);
    if (status == TF_OK && !is_readable(client)) {
        tf_report_note_besides(client, &client->task, TF_DEVICE_IDLE, TF_REASON_PERSONAL_UNUSABLE);
    }
    return status;
}

/* --- the task ------------------------------------------------------------------------------- */

static bool trains(const tf_client *client) {
    return client->task.action == TF_ACTION_TRAIN;
}

tf_reason tf_personal_take(tf_client *client) {
    const uint8_t asked = client->task.personal;
    client->personal.was_judged = false;
    client->personal.has_score = false;
    client->personal.has_local = false;
    client->personal.correct_local = 0;
    if (asked == TF_PERSONAL_NOTHING) {
        return TF_REASON_NONE;
    }
    if (asked > TF_PERSONAL_LOCAL) {
        return TF_REASON_MALFORMED_TASK;
    }
    return client->plan == NULL || client->plan->personal_layout == 0u ||
                   client->config->regions.personal.bytes == 0u
               ? TF_REASON_NO_PERSONAL_TENSORS
               : TF_REASON_NONE;
}

bool tf_personal_sends(const tf_client *client) {
    const uint8_t asked = client->task.personal;
    return trains(client) && asked != TF_PERSONAL_ALONE && asked != TF_PERSONAL_LOCAL;
}

uint32_t tf_personal_delta_values(const tf_client *client) {
    if (!tf_personal_sends(client)) {
        return 0;
    }
    return client->task.personal == TF_PERSONAL_NOTHING ? client->plan->delta_values
                                                        : client->plan->shared_values;
}

/* What the task's training adds to. */
static tf_kept_part part_of_task(const tf_client *client) {
    return client->task.personal == TF_PERSONAL_LOCAL ? TF_KEPT_LOCAL : TF_KEPT_PERSONAL;
}

tf_status tf_personal_begin_training(tf_client *client) {
    const uint8_t asked = client->task.personal;
    tf_status status = TF_OK;
    if (tf_personal_keeps(client)) {
        status =
            load_kept(client, &client->engine, client->plan, client->base, part_of_task(client),
                      TF_WHOLE_MIX, client->config->pool, client->pool_bytes);
    }
    client->engine.keeps_personal = asked != TF_PERSONAL_NOTHING;
    if (asked == TF_PERSONAL_FROZEN) {
        client->engine.frame.updates = TF_UPDATE_SHARED;
    } else if (asked == TF_PERSONAL_ALONE) {
        client->engine.frame.updates = TF_UPDATE_PERSONAL;
    }
    return status;
}

bool tf_personal_keeps(const tf_client *client) {
    const uint8_t asked = client->task.personal;
    return trains(client) && asked != TF_PERSONAL_NOTHING && asked != TF_PERSONAL_FROZEN;
}

static uint32_t next_kept_word(void *context, uint32_t index) {
    const tf_client *client = context;
    return tf_engine_kept_word(&client->engine, part_of_task(client) == TF_KEPT_PERSONAL, index);
}

tf_status tf_personal_keep(tf_client *client) {
    const tf_kept_part part = part_of_task(client);
    return tf_personal_write(&client->personal.store, part, layout_of(client->plan, part),
                             tf_engine_kept_bytes(client->plan, part == TF_KEPT_PERSONAL),
                             next_kept_word, client);
}

/* --- what is best --------------------------------------------------------------------------- */

/* After any release too: what is used may not go with the new version, or what rests may. */
bool tf_personal_judges(const tf_client *client) {
    const tf_personal_store *store = &client->personal.store;
    if (client->task.action == TF_ACTION_RELEASE &&
        (tf_personal_layout(store, TF_KEPT_PERSONAL) != 0u ||
         tf_personal_layout(store, TF_KEPT_LOCAL) != 0u)) {
        return true;
    }
    return client->task.personal != TF_PERSONAL_NOTHING &&
           (!trains(client) || !tf_personal_sends(client));
}

/* More right answers, or as many with less loss. */
static bool is_better(const tf_client_score *one, const tf_client_score *other) {
    return one->correct != other->correct ? one->correct > other->correct
                                          : one->loss_q16 < other->loss_q16;
}

/* Loads the next of what could be used; false: there is none. */
static bool begin_trial(tf_client *client) {
    tf_client_personal *personal = &client->personal;
    const tf_client_config *config = client->config;
    const tf_plan *plan = NULL;
    if (personal->mix > 0u) {
        plan = find_plan(client, TF_KEPT_PERSONAL, client->pool_bytes);
    }
    if (plan == NULL && !personal->is_local) {
        personal->is_local = true;
        plan = find_plan(client, TF_KEPT_LOCAL, client->pool_bytes);
    }
    client->score = (tf_client_score){0, 0, 0, 0};
    return plan != NULL && load_kept(client, &client->engine, plan, client->base,
                                     personal->is_local ? TF_KEPT_LOCAL : TF_KEPT_PERSONAL,
                                     personal->is_local ? TF_WHOLE_MIX : personal->mix,
                                     config->pool, client->pool_bytes) == TF_OK;
}

/* Notes the score of a trial, and which one is next. */
static void end_trial(tf_client *client) {
    tf_client_personal *personal = &client->personal;
    if (personal->is_local) {
        personal->correct_local = client->score.correct;
        personal->has_local = true;
        if (is_better(&client->score, &personal->best_score)) {
            personal->best_score = client->score;
            personal->best.use = TF_USES_LOCAL;
        }
        return;
    }
    if (!personal->has_score || is_better(&client->score, &personal->score)) {
        personal->score = client->score;
        personal->has_score = true;
        personal->best.mix = personal->mix;
        if (is_better(&client->score, &personal->best_score)) {
            personal->best_score = client->score;
            personal->best.use = TF_USES_PERSONAL;
        }
    }
    personal->mix =
        (uint16_t)(client->task.personal == TF_PERSONAL_ALONE ? personal->mix - MIX_STEP : 0u);
}

void tf_personal_begin_judging(tf_client *client) {
    tf_client_personal *personal = &client->personal;
    const tf_kept_choice used = tf_personal_choice(&personal->store);
    const bool chooses_mix = client->task.personal == TF_PERSONAL_ALONE;
    personal->was_judged = true;
    personal->is_local = false;
    personal->mix = chooses_mix || used.mix == 0u ? (uint16_t)TF_WHOLE_MIX : used.mix;
    personal->best = (tf_kept_choice){TF_USES_SHARED, personal->mix};
    personal->best_score = client->before;
    personal->in_trial = begin_trial(client);
}

bool tf_personal_judge_step(tf_client *client) {
    tf_client_personal *personal = &client->personal;
    if (!personal->in_trial) {
        client->score = personal->has_score ? personal->score : client->before;
        return false;
    }
    if (!tf_scoring_step(client)) {
        end_trial(client);
        personal->in_trial = !personal->is_local && begin_trial(client);
    }
    return true;
}

tf_status tf_personal_choose_best(tf_client *client) {
    const uint8_t *current = tf_weights_current_sha256(&client->weights);
    if (client->before.samples == 0u ||
        memcmp(current, client->task.weights, TF_DIGEST_BYTES) != 0) {
        return TF_OK; /* nobody knows; or it is a candidate, and the application has another one */
    }
    return tf_personal_choose(&client->personal.store, client->personal.best);
}

uint8_t tf_personal_kept(const tf_client *client) {
    const tf_client_personal *personal = &client->personal;
    uint32_t kept = (uint32_t)tf_personal_choice(&personal->store).use;
    kept |= personal->has_score ? TF_KEPT_WITH_PERSONAL : 0u;
    kept |= personal->has_local ? TF_KEPT_WITH_LOCAL : 0u;
    return (uint8_t)kept;
}
