/* Training engine: runs the programs that codegen emitted for a model.
 *
 * The caller owns all memory. Nothing here allocates, recurses, or calls out of the
 * runtime. All arithmetic is on integers (docs/specification/arithmetic.md), so that
 * host and boards give the same bits.
 */
#ifndef TINYFLEET_ENGINE_H
#define TINYFLEET_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "tinyfleet/random.h"
#include "tinyfleet/status.h"

#define TF_DIGEST_BYTES 32u

/* What a training step changes of what its plan trains. */
#define TF_UPDATE_SHARED 1u
#define TF_UPDATE_PERSONAL 2u /* tensors that the plan marks as personal */

#define TF_WHOLE_MIX 256u /* of kept values: they themselves, nothing of the version's */

/* What a step of a program works on. Generated code reads it, the client doesn't. */
typedef struct {
    const uint8_t *weights;     /* weights blob (flash), 4-byte aligned */
    uint8_t *arena;             /* activations, masks, errors, scratch of one step */
    uint8_t *state;             /* working copies and fractions of what the plan trains */
    const int8_t *input;        /* sample, HWC; behind it, int16 targets where the loss has them */
    int32_t *logits;            /* the manifest's model.logit_scale gives their unit */
    int32_t label;              /* class, or one bit for each output of a binary loss */
    uint32_t learning_rate_q20; /* of one sample: that of the batch over its size */
    uint32_t seed;              /* of the task: stochastic rounding */
    uint32_t step_index;        /* counts training steps since tf_engine_load */
    uint32_t loss_q16;          /* times 2^16: nats, or squared units of the target */
    uint32_t updates;           /* TF_UPDATE_…; both after tf_engine_load */
} tf_frame;

/* The values of one tensor that a plan trains, in delta order: lines of `count` values each. The
 * state has just these, in the order in which the blob has the whole tensor. */
typedef struct {
    uint32_t values;          /* total number of values */
    uint32_t blob_offset;     /* of the tensor in the weights blob */
    uint32_t state_offset;    /* of the trained values in the state */
    uint32_t fraction_offset; /* their int8 fractions, same order; q8.8 only */
    const uint16_t *channels; /* trained positions of the last axis, ascending; NULL: all */
    uint16_t row;             /* length of the tensor's last axis */
    uint16_t count;           /* trained positions of it */
    uint16_t taps;            /* packed: lines of one output channel */
    uint8_t bytes;            /* size of one value in the blob: 1, 2 or 4 */
    uint8_t packed;           /* 1: rows in pairs, see row_pairs.h */
    uint8_t has_fraction;     /* 1: q8.8 */
    uint8_t shift;            /* delta unit = 2^shift units of the state */
    uint8_t personal;         /* 1: may stay on the device */
} tf_segment;

typedef struct {
    uint8_t id[TF_DIGEST_BYTES];
    uint32_t arena_bytes;
    uint32_t state_bytes;
    uint32_t delta_values;
    uint32_t shared_values;   /* without those of personal tensors */
    uint32_t personal_layout; /* of what is kept of personal tensors; 0: the plan has none */
    uint32_t local_layout;    /* of what is kept of all its tensors; 0: likewise */
    uint16_t segment_count;
    uint16_t accumulate; /* samples of a batch: the update is that of their mean gradient */
    const tf_segment *segments;
    void (*forward)(tf_frame *frame);  /* input → logits, keeping what backward needs */
    void (*loss)(tf_frame *frame);     /* after forward: loss_q16 and the error of the logits */
    void (*backward)(tf_frame *frame); /* after loss: gradients, updates in place */
} tf_plan;

typedef struct {
    uint8_t bundle_id[TF_DIGEST_BYTES];
    uint8_t weights_sha256[TF_DIGEST_BYTES]; /* of factory_weights */
    const uint8_t *factory_weights;
    uint32_t model_digest; /* of what the weights mean: the manifest's model.digest, bytes 0 … 3 */
    uint32_t sample_digest; /* and of what samples mean: model.sample_digest */
    uint32_t weights_bytes;
    uint32_t sample_bytes; /* input, and targets where the loss has them */
    uint32_t labels;       /* those of samples are below it */
    uint16_t classes;      /* or other outputs; 0: see tf_tensor_output */
    uint8_t binary;        /* 1: outputs are yes or no, each for itself */
    uint16_t plan_count;
    const tf_plan *plans;
} tf_model;

/* Emitted by codegen, one per bundle. */
extern const tf_model tf_the_model;

/* Outputs that are codes of a tensor, HWC, in the arena: there from tf_engine_predict or
 * tf_engine_score to what is called next. */
typedef struct {
    uint32_t size;
    int16_t zero_point;
    const uint32_t *offsets; /* in the arena of each plan, in the model's order */
} tf_tensor_output;

/* Emitted by codegen where outputs are codes: no logits are then made, and classes is 0. */
extern const tf_tensor_output tf_the_output;

typedef struct {
    const tf_plan *plan;
    uint16_t classes;
    bool keeps_personal; /* the delta is without personal tensors */
    bool binary;
    tf_frame frame;
} tf_engine;

/* The plan with this id, or NULL. */
const tf_plan *tf_engine_find_plan(const tf_model *model, const uint8_t id[TF_DIGEST_BYTES]);

/* Bytes that tf_engine_load needs for this plan (arena, state, logits), alignment 8 included. */
uint32_t tf_engine_pool_bytes(const tf_model *model, const tf_plan *plan);

/* Prepares `plan` over `weights` (a whole blob, 4-byte aligned, read for as long as the
 * engine is used) in `pool`. Copies the trained tensors into the state.
 * TF_NO_MEMORY: the pool has fewer than tf_engine_pool_bytes. */
tf_status tf_engine_load(tf_engine *engine, const tf_model *model, const tf_plan *plan,
                         const uint8_t *weights, void *pool, uint32_t pool_bytes);

/* Runs the forward pass on one sample; returns the class with the largest logit, for a binary loss
 * the bits of all outputs that are at least 0 (a probability of one half). */
int32_t tf_engine_predict(tf_engine *engine, const int8_t *sample);

/* Forward pass and loss for a labelled sample, nothing is updated. Returns what
 * tf_engine_predict does; the loss is in engine->frame.loss_q16. */
int32_t tf_engine_score(tf_engine *engine, const int8_t *sample, int32_t label);

/* One step of SGD on one sample: forward, backward, update in place. Plans that accumulate move
 * their weights with the last sample of each batch only. The loss before the step is in
 * engine->frame.loss_q16. */
void tf_engine_train_step(tf_engine *engine, const int8_t *sample, int32_t label,
                          uint32_t learning_rate_q20, uint32_t seed);

/* The values of the delta against the blob that was loaded, in plan order (without those of personal
 * tensors where the engine keeps them), in units of 2^shift state units, rounded stochastically with
 * the seed of the last training step: the same values whenever they are asked for again, and right
 * on average over devices. */
typedef struct {
    const tf_engine *engine;
    uint32_t value;  /* index of the next value in the delta */
    uint32_t within; /* its place in the segment */
    uint16_t segment;
} tf_delta_cursor;
void tf_delta_begin(tf_delta_cursor *cursor, const tf_engine *engine);
int32_t tf_delta_next(tf_delta_cursor *cursor); /* plan->delta_values calls at most */

/* What a device keeps for itself of a plan's state, as it is after training: of each tensor its
 * trained values and their fractions, in plan order, words of four bytes. Either of the personal
 * tensors or of all; velocities aren't kept. */
uint32_t tf_engine_kept_bytes(const tf_plan *plan, bool personal_only);
/* Word `index` of it (little endian). */
uint32_t tf_engine_kept_word(const tf_engine *engine, bool personal_only, uint32_t index);
/* Lays `kept` (tf_engine_kept_bytes, 4-byte aligned) over what was loaded: the state becomes
 * version + (kept - version) * mix / 2^8, rounded, with `mix` 0 … TF_WHOLE_MIX. */
void tf_engine_lay_over(tf_engine *engine, const uint8_t *kept, bool personal_only, uint32_t mix);

#endif
