/* Where in flash everything lies that outlives a reset (docs/specification/flash.md). */
#ifndef TINYFLEET_FLASH_LAYOUT_H
#define TINYFLEET_FLASH_LAYOUT_H

#include "tinyfleet/flash.h"
#include "tinyfleet/sample_log.h"

typedef struct {
    tf_flash_region identity;
    tf_flash_region journal;  /* two units of one size */
    tf_flash_region slots[2]; /* of the weights store */
    tf_sample_region samples;
    tf_flash_region personal; /* two units of one size; no bytes where no plan is personal */
} tf_flash_layout;

#endif
