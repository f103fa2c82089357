/* Flash in RAM whose power can be cut at any operation. */
#ifndef EMULATED_FLASH_H
#define EMULATED_FLASH_H

#include "tinyfleet/flash.h"

#define EMULATED_ADDRESS 0x08000000u
#define EMULATED_SECTOR_BYTES 4096u
#define EMULATED_SECTORS 272u

typedef struct {
    tf_flash flash;
    uint8_t bytes[EMULATED_SECTORS * EMULATED_SECTOR_BYTES];
    uint32_t operations;        /* erased sectors and programmed words so far */
    uint32_t operations_to_cut; /* the power goes during this one, counted from 1; 0: never */
    uint32_t random;
    uint32_t worn;   /* of the first 32 sectors, those that take nothing any more: one bit each */
    uint8_t dead;    /* without power everything fails */
    uint8_t rewrote; /* a word was programmed over that was not erased */
} emulated_flash;

void emulated_flash_start(emulated_flash *emulated, uint32_t seed);

#endif
