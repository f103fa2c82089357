/* <inttypes.h> without its formats, which only zcbor's verbose mode would use. */
#ifndef TINYFLEET_FREESTANDING_INTTYPES_H
#define TINYFLEET_FREESTANDING_INTTYPES_H

#include <stdint.h>

#endif
