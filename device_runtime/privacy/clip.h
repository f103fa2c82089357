/* Bringing a delta's values within a Euclidean norm (masking.md, "Values"). */
#ifndef TINYFLEET_PRIVACY_CLIP_H
#define TINYFLEET_PRIVACY_CLIP_H

#include "tinyfleet/mask.h"

/* The clip that values whose squares sum to `squares` are tried with first; `squares` > clip². */
tf_clip tf_clip_first(uint32_t clip, uint64_t squares);

/* That of attempt 1 … TF_CLIP_ATTEMPTS, after one that left too much; `first` is that of attempt 0.
 * The last one never leaves too much. */
tf_clip tf_clip_next(tf_clip clip, tf_clip first, uint32_t attempt);

/* Value `index` of the delta, bounded already, as this clip has it; `seed` is the task's. */
int32_t tf_clip_value(const tf_clip *clip, uint32_t seed, uint32_t index, int32_t value);

#endif
