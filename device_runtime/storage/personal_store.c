/* Two units of personal values. The order of flash operations is what makes it safe:
 *
 *   write:   erase the other unit, program its values, the choice, the header, its CRC last of all
 *   choose:  program the next free choice word
 *
 * A unit counts with the CRC of its header and of its values right; of two the one with the higher
 * sequence does. A choice word carries its own complement: one that a power cut left half programmed
 * is passed over, and the choice before it counts.
 */
#include "tinyfleet/personal_store.h"

#include <stddef.h>

#include "tinyfleet/crc32.h"

#define UNIT_MAGIC 0x31504654u
#define CHOICES 16u
#define MIX_STEP 16u /* a choice word counts the mix in these */

enum {
    AT_MAGIC = 0,
    AT_SEQUENCE = 4,
    AT_MODEL_DIGEST = 8,
    AT_PARTS = 12, /* layout and bytes of each */
    AT_PAYLOAD_CRC = 28,
    AT_HEADER_CRC = 32,
    AT_CHOICES = 64,
    AT_PAYLOAD = 128
};

static uint32_t unit_word(const tf_personal_store *store, int unit, uint32_t offset) {
    return tf_flash_word(store->flash, store->units[unit].address + offset);
}

static const uint8_t *unit_bytes(const tf_personal_store *store, int unit, uint32_t offset,
                                 uint32_t bytes) {
    return store->flash->map(store->flash->context, store->units[unit].address + offset, bytes);
}

static uint32_t layout_of(const tf_personal_store *store, int unit, int part) {
    return unit_word(store, unit, (uint32_t)AT_PARTS + 8u * (uint32_t)part);
}

static uint32_t bytes_of(const tf_personal_store *store, int unit, int part) {
    return unit_word(store, unit, (uint32_t)AT_PARTS + 8u * (uint32_t)part + 4u);
}

/* Whether a unit was finished, of whatever model. */
static bool has_header(const tf_personal_store *store, int unit) {
    const uint8_t *header = unit_bytes(store, unit, 0, AT_HEADER_CRC);
    return store->units[unit].bytes >= AT_PAYLOAD && header != NULL &&
           unit_word(store, unit, AT_MAGIC) == UNIT_MAGIC &&
           unit_word(store, unit, AT_HEADER_CRC) == tf_crc32(0, header, AT_HEADER_CRC);
}

static bool is_of_model(const tf_personal_store *store, int unit) {
    return unit_word(store, unit, AT_MODEL_DIGEST) == store->model_digest;
}

static bool is_whole(const tf_personal_store *store, int unit) {
    const uint32_t room = store->units[unit].bytes - (uint32_t)AT_PAYLOAD;
    const uint32_t personal = bytes_of(store, unit, TF_KEPT_PERSONAL);
    const uint32_t local = bytes_of(store, unit, TF_KEPT_LOCAL);
    if (personal > room || local > room - personal) {
        return false;
    }
    const uint8_t *payload = unit_bytes(store, unit, AT_PAYLOAD, personal + local);
    return payload != NULL &&
           unit_word(store, unit, AT_PAYLOAD_CRC) == tf_crc32(0, payload, personal + local);
}

static uint32_t sequence_of(const tf_personal_store *store, int unit) {
    return unit_word(store, unit, AT_SEQUENCE);
}

tf_status tf_personal_open(tf_personal_store *store, const tf_flash *flash,
                           const tf_flash_region *region, uint32_t model_digest) {
    const tf_flash_region half = {
        .address = region->address,
        .bytes = region->bytes / 2u,
        .first_sector = region->first_sector,
        .sector_count = (uint16_t)(region->sector_count / 2u),
    };
    store->flash = flash;
    store->units[0] = store->units[1] = half;
    store->units[1].address += half.bytes;
    store->units[1].first_sector = (uint16_t)(half.first_sector + half.sector_count);
    store->model_digest = model_digest;
    store->unit = -1;
    if (region->bytes == 0u) {
        return TF_OK;
    }
    if (region->sector_count % 2u != 0u || half.bytes < AT_PAYLOAD ||
        flash->map(flash->context, region->address, region->bytes) == NULL) {
        return TF_FLASH_FAILED;
    }
    for (int unit = 0; unit < 2; unit++) {
        if (has_header(store, unit) && is_of_model(store, unit) && is_whole(store, unit) &&
            (store->unit < 0 || sequence_of(store, unit) > sequence_of(store, store->unit))) {
            store->unit = (int8_t)unit;
        }
    }
    return TF_OK;
}

bool tf_personal_has_others(const tf_personal_store *store) {
    bool found = false;
    for (int unit = 0; unit < 2; unit++) {
        found = found || (has_header(store, unit) && !is_of_model(store, unit));
    }
    return store->unit < 0 && found;
}

uint32_t tf_personal_layout(const tf_personal_store *store, tf_kept_part part) {
    return store->unit < 0 || bytes_of(store, store->unit, (int)part) == 0u
               ? 0u
               : layout_of(store, store->unit, (int)part);
}

static const uint8_t *values_of(const tf_personal_store *store, int unit, int part) {
    const uint32_t before = part == TF_KEPT_LOCAL ? bytes_of(store, unit, TF_KEPT_PERSONAL) : 0u;
    return unit_bytes(store, unit, (uint32_t)AT_PAYLOAD + before, bytes_of(store, unit, part));
}

const uint8_t *tf_personal_values(const tf_personal_store *store, tf_kept_part part,
                                  uint32_t layout) {
    if (layout == 0u || tf_personal_layout(store, part) != layout) {
        return NULL;
    }
    return values_of(store, store->unit, (int)part);
}

/* --- the choice ----------------------------------------------------------------------------- */

static uint32_t choice_word(tf_kept_choice choice) {
    const uint32_t said = (uint32_t)choice.use | (uint32_t)(choice.mix / MIX_STEP) << 8;
    return said | ~said << 16;
}

static uint32_t choice_offset(uint32_t index) {
    return (uint32_t)AT_CHOICES + 4u * index;
}

tf_kept_choice tf_personal_choice(const tf_personal_store *store) {
    tf_kept_choice choice = {TF_USES_SHARED, 0};
    for (uint32_t i = 0; store->unit >= 0 && i < CHOICES; i++) {
        const uint32_t word = unit_word(store, store->unit, choice_offset(i));
        const uint32_t said = word & 0xFFFFu;
        if ((word >> 16) == (~said & 0xFFFFu) && (said & 0xFFu) <= (uint32_t)TF_USES_LOCAL) {
            choice.use = (tf_kept_use)(said & 0xFFu);
            choice.mix = (uint16_t)((said >> 8) * MIX_STEP);
        }
    }
    return choice;
}

/* Choices that a unit still has room for begin at this index. */
static uint32_t first_free_choice(const tf_personal_store *store) {
    uint32_t free = CHOICES;
    while (free > 0u &&
           unit_word(store, store->unit, choice_offset(free - 1u)) == TF_FLASH_ERASED) {
        free--;
    }
    return free;
}

/* --- writing -------------------------------------------------------------------------------- */

static uint32_t word_in_flash(void *context, uint32_t index) {
    const uint8_t *values = context;
    return tf_flash_word_of(values + 4u * index, 4u);
}

/* A part of the unit that is being written. */
typedef struct {
    uint32_t layout;
    uint32_t bytes;
    tf_personal_source source;
    void *context;
} part_source;

static part_source part_in_flash(const tf_personal_store *store, int part) {
    part_source source = {0u, 0u, word_in_flash, NULL};
    if (store->unit >= 0) {
        source.layout = layout_of(store, store->unit, part);
        source.bytes = bytes_of(store, store->unit, part);
        source.context = (void *)(uintptr_t)values_of(store, store->unit, part);
    }
    return source;
}

static tf_status program(const tf_personal_store *store, int unit, uint32_t offset, uint32_t word) {
    const uint32_t address = store->units[unit].address + offset;
    return tf_flash_complete_word(store->flash, address, word) == TF_OK ? TF_OK : TF_FLASH_FAILED;
}

static tf_status program_values(const tf_personal_store *store, int unit,
                                const part_source parts[TF_KEPT_PARTS]) {
    uint32_t offset = AT_PAYLOAD;
    for (int part = 0; part < TF_KEPT_PARTS; part++) {
        for (uint32_t i = 0; i < parts[part].bytes / 4u; i++) {
            const uint32_t word = parts[part].source(parts[part].context, i);
            if (program(store, unit, offset, word) != TF_OK) {
                return TF_FLASH_FAILED;
            }
            offset += 4u;
        }
    }
    return TF_OK;
}

/* The header but for its CRC, which makes the unit count. */
static tf_status program_header(const tf_personal_store *store, int unit, uint32_t sequence,
                                const part_source parts[TF_KEPT_PARTS]) {
    const uint32_t bytes = parts[TF_KEPT_PERSONAL].bytes + parts[TF_KEPT_LOCAL].bytes;
    const uint32_t words[] = {
        UNIT_MAGIC,
        sequence,
        store->model_digest,
        parts[TF_KEPT_PERSONAL].layout,
        parts[TF_KEPT_PERSONAL].bytes,
        parts[TF_KEPT_LOCAL].layout,
        parts[TF_KEPT_LOCAL].bytes,
        tf_crc32(0, unit_bytes(store, unit, AT_PAYLOAD, bytes), bytes),
    };
    for (uint32_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (program(store, unit, 4u * i, words[i]) != TF_OK) {
            return TF_FLASH_FAILED;
        }
    }
    return TF_OK;
}

/* Above both units, so that this one counts once it is finished. */
static uint32_t next_sequence(const tf_personal_store *store) {
    uint32_t newest = 0;
    for (int unit = 0; unit < 2; unit++) {
        if (has_header(store, unit) && sequence_of(store, unit) > newest) {
            newest = sequence_of(store, unit);
        }
    }
    return newest + 1u;
}

static tf_status write_unit(tf_personal_store *store, const part_source parts[TF_KEPT_PARTS],
                            tf_kept_choice choice) {
    const int unit = store->unit == 0 ? 1 : 0;
    const uint32_t sequence = next_sequence(store);
    if (tf_flash_erase_unless_erased(store->flash, &store->units[unit]) != TF_OK ||
        program_values(store, unit, parts) != TF_OK ||
        program(store, unit, choice_offset(0), choice_word(choice)) != TF_OK ||
        program_header(store, unit, sequence, parts) != TF_OK ||
        program(store, unit, AT_HEADER_CRC,
                tf_crc32(0, unit_bytes(store, unit, 0, AT_HEADER_CRC), AT_HEADER_CRC)) != TF_OK) {
        return TF_FLASH_FAILED;
    }
    store->unit = (int8_t)unit;
    return TF_OK;
}

tf_status tf_personal_write(tf_personal_store *store, tf_kept_part part, uint32_t layout,
                            uint32_t bytes, tf_personal_source source, void *context) {
    const uint32_t unit_size = store->units[0].bytes;
    if (unit_size < AT_PAYLOAD || bytes > unit_size - (uint32_t)AT_PAYLOAD) {
        return TF_NO_MEMORY;
    }
    const uint32_t room = unit_size - (uint32_t)AT_PAYLOAD - bytes;
    const int other = part == TF_KEPT_PERSONAL ? TF_KEPT_LOCAL : TF_KEPT_PERSONAL;
    part_source parts[TF_KEPT_PARTS];
    parts[part] = (part_source){layout, bytes, source, context};
    parts[other] = part_in_flash(store, other);
    tf_kept_choice choice = tf_personal_choice(store);
    if (parts[other].bytes > room) {
        /* Of a larger plan that this firmware no longer has. */
        parts[other].bytes = 0;
        choice = (tf_kept_choice){TF_USES_SHARED, 0};
    }
    return write_unit(store, parts, choice);
}

tf_status tf_personal_choose(tf_personal_store *store, tf_kept_choice choice) {
    if (store->unit < 0) {
        return choice.use == TF_USES_SHARED ? TF_OK : TF_NOT_FOUND;
    }
    if (choice_word(tf_personal_choice(store)) == choice_word(choice)) {
        return TF_OK;
    }
    const uint32_t free = first_free_choice(store);
    if (free < CHOICES) {
        return program(store, store->unit, choice_offset(free), choice_word(choice));
    }
    part_source parts[TF_KEPT_PARTS];
    for (int part = 0; part < TF_KEPT_PARTS; part++) {
        parts[part] = part_in_flash(store, part);
    }
    return write_unit(store, parts, choice);
}
