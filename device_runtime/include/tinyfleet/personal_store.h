/* What a device has learnt for itself and never sends: two units of flash that survive a power cut at
 * any operation.
 *
 * docs/specification/flash.md has the format. Writing builds a new unit and then makes it count with
 * one programmed word; until then the old unit counts, and it stays as it is until the next writing.
 * What the application uses is said by a word besides, so that choosing again erases nothing.
 * Values of another model, or of a plan with another layout, aren't given to anybody.
 */
#ifndef TINYFLEET_PERSONAL_STORE_H
#define TINYFLEET_PERSONAL_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "tinyfleet/flash.h"

/* What is kept of a plan's state (tinyfleet/engine.h). */
typedef enum {
    TF_KEPT_PERSONAL = 0, /* personal tensors, trained beside what is shared */
    TF_KEPT_LOCAL, /* all that the plan trains, trained here alone from the factory's weights */
    TF_KEPT_PARTS
} tf_kept_part;

/* What the application infers with: wire.md, `delta.kept`. */
typedef enum {
    TF_USES_SHARED = 0,
    TF_USES_PERSONAL, /* personal tensors laid over the current version */
    TF_USES_LOCAL
} tf_kept_use;

typedef struct {
    tf_kept_use use;
    uint16_t mix; /* of personal values, also where they rest: 0 (not chosen yet) … TF_WHOLE_MIX */
} tf_kept_choice;

/* All fields are the store's own; the caller keeps the struct. */
typedef struct {
    const tf_flash *flash;
    tf_flash_region units[2];
    uint32_t model_digest;
    int8_t unit; /* that counts, -1: none */
} tf_personal_store;

/* Looks for the unit that counts. `region` is two units of one size; of 0 bytes where the firmware
 * has no plan with personal tensors. `model_digest` tells values of this model from others.
 * TF_FLASH_FAILED: it is outside the flash, or can't be halved. */
tf_status tf_personal_open(tf_personal_store *store, const tf_flash *flash,
                           const tf_flash_region *region, uint32_t model_digest);

/* Whether a unit has values of another model, which writing would erase. */
bool tf_personal_has_others(const tf_personal_store *store);

/* The layout of the values that there are of a part; 0: none. */
uint32_t tf_personal_layout(const tf_personal_store *store, tf_kept_part part);

/* The values of a part in flash, 4-byte aligned; NULL where there are none with this layout. They
 * move with the next writing. */
const uint8_t *tf_personal_values(const tf_personal_store *store, tf_kept_part part,
                                  uint32_t layout);

/* What the application uses; shared where nothing was chosen, or what was is gone. */
tf_kept_choice tf_personal_choice(const tf_personal_store *store);

/* Word `index` of what is written. */
typedef uint32_t (*tf_personal_source)(void *context, uint32_t index);

/* Replaces a part, whose values are `bytes` (a multiple of 4) from `source`. The other part and the
 * choice stay; where this one leaves the other no room, that goes, and the choice with it.
 * TF_NO_MEMORY: the region is too small. TF_FLASH_FAILED: the flash failed, and the values are what
 * they were. */
tf_status tf_personal_write(tf_personal_store *store, tf_kept_part part, uint32_t layout,
                            uint32_t bytes, tf_personal_source source, void *context);

/* Notes what the application is to use from now on; nothing is written where that is so already.
 * TF_NOT_FOUND: there are no values to choose from. TF_FLASH_FAILED: the flash failed, and the choice
 * is what it was. */
tf_status tf_personal_choose(tf_personal_store *store, tf_kept_choice choice);

#endif
