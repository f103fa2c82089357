/* Who the device is: read from a region that the device writes nothing to but its own keys. */
#ifndef TINYFLEET_IDENTITY_STORE_H
#define TINYFLEET_IDENTITY_STORE_H

#include <stdint.h>

#include "tinyfleet/flash.h"

#define TF_IDENTITY_DEVICE 1u    /* CBOR `identity` of the CDDL; tf_decode_identity reads it */
#define TF_IDENTITY_KEYS 2u      /* the device's own */
#define TF_IDENTITY_AUTHORITY 3u /* public key of its fleet's authority */
#define TF_IDENTITY_KEYRING 4u   /* that it begins with */

/* The newest intact record of that kind: `*payload` in flash, `*bytes` long.
 * TF_NOT_FOUND: there is none. */
tf_status tf_identity_read(const tf_flash *flash, const tf_flash_region *region, uint8_t kind,
                           const uint8_t **payload, uint32_t *bytes);

/* Puts a record behind those that are there; nothing is erased. TF_NO_MEMORY: it has no room;
 * TF_FLASH_FAILED: the flash failed, or the power went, and the records before still count. */
tf_status tf_identity_add(const tf_flash *flash, const tf_flash_region *region, uint8_t kind,
                          const uint8_t *payload, uint32_t bytes);

#endif
