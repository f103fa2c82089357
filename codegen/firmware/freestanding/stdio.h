/* Empty: zcbor includes <stdio.h> for its verbose mode, which the device doesn't have. */
#ifndef TINYFLEET_FREESTANDING_STDIO_H
#define TINYFLEET_FREESTANDING_STDIO_H
#endif
