/* Whatever a flash holds, it is read without harm, and what is stored then is found again. */
#include "tinyfleet/identity_store.h"
#include "tinyfleet/journal.h"
#include "tinyfleet/sample_log.h"
#include "tinyfleet/weights_store.h"

#define FLASH_BYTES (28u * SECTOR)
#include "ram_flash.h"

#define SLOT_SECTORS 9u /* a header of 4,096 bytes, and one more */
#define SLOTS_AT 10u
#define WEIGHTS_BYTES 100u

static tf_flash_region region(uint16_t first, uint16_t count) {
    const tf_flash_region made = {first * SECTOR, count * SECTOR, first, count};
    return made;
}

static void use_journal(void) {
    const tf_flash_region place = region(1, 2);
    const uint8_t *payload;
    uint32_t bytes;
    tf_journal journal;
    must(tf_journal_open(&journal, &flash, &place) == TF_OK);
    for (uint32_t kind = 0; kind < 256u; kind++) {
        if (tf_journal_read(&journal, (uint8_t)kind, &payload, &bytes) == TF_OK) {
            must(payload >= content && payload + bytes <= content + 3u * SECTOR);
        }
    }
    const uint64_t lease = tf_journal_highest(&journal, TF_JOURNAL_LEASE);
    const tf_status status = tf_journal_raise(&journal, TF_JOURNAL_LEASE, 0xFFFFFFFFu);
    must(status == TF_OK || status == TF_NO_MEMORY); /* records of many kinds fill both units */
    must(tf_journal_open(&journal, &flash, &place) == TF_OK);
    must(tf_journal_highest(&journal, TF_JOURNAL_LEASE) == (status == TF_OK ? 0xFFFFFFFFu : lease));
}

static void use_log(uint16_t units, uint8_t keep) {
    const tf_sample_region place = {region(3, 6), units, keep};
    static const uint8_t payload[30] = {1, 2, 3};
    tf_sample_log log;
    tf_record record;
    uint32_t cursor = 0;
    uint32_t found = 0;
    must(tf_sample_log_open(&log, &flash, &place, 7u, 1u) == TF_OK);
    while (tf_sample_log_next(&log, &cursor, &record) == TF_OK) {
        must(record.payload >= content + 3u * SECTOR &&
             record.payload + record.payload_bytes <= content + 9u * SECTOR);
        must(++found <= 6u * SECTOR / 16u);
    }
    must(found >= tf_sample_log_count(&log, false, 30u, 10u));
    for (uint32_t i = 0; i < 30u; i++) {
        const tf_status status = tf_sample_log_append(&log, 3, payload, sizeof payload);
        must(status == TF_OK || (units == 1u && status == TF_NO_MEMORY));
        if (status == TF_OK && keep == TF_KEEP_NEWEST) {
            must(tf_sample_log_at(&log, (uint16_t)((log.end - 48u) / 4u), &record) == TF_OK);
        }
    }
}

static void use_weights(void) {
    static const uint8_t factory[WEIGHTS_BYTES];
    static const uint8_t digest[TF_WEIGHTS_DIGEST_BYTES] = {9};
    const tf_flash_region slots[2] = {region(SLOTS_AT, SLOT_SECTORS),
                                      region(SLOTS_AT + SLOT_SECTORS, SLOT_SECTORS)};
    tf_weights_store store;
    must(tf_weights_open(&store, &flash, slots, factory, digest, 7u, WEIGHTS_BYTES) == TF_OK);
    const int8_t current = store.current;
    must(tf_weights_current(&store) != NULL);
    must(tf_weights_stage(&store, digest, WEIGHTS_BYTES, 64u) == TF_OK);
    must(store.staging != current && store.current == current);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    memset(content, 0xFF, sizeof content);
    const size_t slots = 2u * 160u; /* the beginnings of both slots */
    const size_t small = size > slots ? size - slots : 0u;
    memcpy(content, data, small < 9u * SECTOR ? small : 9u * SECTOR);
    for (uint32_t slot = 0; slot < 2u && size >= slots; slot++) {
        memcpy(content + (SLOTS_AT + slot * SLOT_SECTORS) * SECTOR,
               data + size - slots + slot * 160u, 160u);
    }
    const tf_flash_region identity = region(0, 1);
    const uint8_t *payload;
    uint32_t bytes;
    if (tf_identity_read(&flash, &identity, TF_IDENTITY_DEVICE, &payload, &bytes) == TF_OK) {
        must(payload >= content && payload + bytes <= content + SECTOR);
    }
    const uint8_t choice = size > 0u ? data[size - 1u] : 0u;
    use_journal();
    use_log((uint16_t)(1u + choice % 3u), (choice >> 2) & 1u);
    use_weights();
    return 0;
}
