/* The identity region is a run of records from its start. */
#include "tinyfleet/identity_store.h"

#include "record_run.h"

tf_status tf_identity_read(const tf_flash *flash, const tf_flash_region *region, uint8_t kind,
                           const uint8_t **payload, uint32_t *bytes) {
    const tf_run run = {flash, region->address, 0, region->bytes};
    tf_run_record record;
    if (!tf_run_newest(&run, kind, &record)) {
        return TF_NOT_FOUND;
    }
    *payload = record.payload;
    *bytes = record.bytes;
    return TF_OK;
}

tf_status tf_identity_add(const tf_flash *flash, const tf_flash_region *region, uint8_t kind,
                          const uint8_t *payload, uint32_t bytes) {
    const tf_run run = {flash, region->address, 0, region->bytes};
    uint32_t end = tf_run_end(&run);
    return tf_run_append(&run, &end, kind, payload, bytes);
}
