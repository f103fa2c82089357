/* Who the device is: read from a region that nothing on the device ever writes. */
#ifndef TINYFLEET_IDENTITY_STORE_H
#define TINYFLEET_IDENTITY_STORE_H

#include <stdint.h>

#include "tinyfleet/flash.h"

#define TF_IDENTITY_DEVICE 1u /* CBOR `identity` of the CDDL; tf_decode_identity reads it */

/* The newest intact record of that kind: `*payload` in flash, `*bytes` long.
 * TF_NOT_FOUND: there is none. */
tf_status tf_identity_read(const tf_flash *flash, const tf_flash_region *region, uint8_t kind,
                           const uint8_t **payload, uint32_t *bytes);

#endif
