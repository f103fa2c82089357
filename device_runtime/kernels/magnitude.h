/* The largest |code| of an error tensor, found while its codes are written. */
#ifndef TINYFLEET_MAGNITUDE_H
#define TINYFLEET_MAGNITUDE_H

#include "fixed_point.h"

#if defined(__ARM_FEATURE_DSP) && !defined(TF_PORTABLE_KERNELS)
#define TF_PAIRS 1

typedef uint32_t __attribute__((may_alias)) tf_two_codes;

/* The larger of the magnitudes so far and of the two codes, for each half of a word. The halves are
 * unsigned: |-32768| has its place. */
static inline uint32_t tf_larger_of_pairs(uint32_t largest, uint32_t codes) {
    uint32_t size, difference;
    __asm("ssub16 %[size], %[none], %[codes]\n\t"
          "sel %[size], %[size], %[codes]\n\t"
          "usub16 %[difference], %[size], %[largest]\n\t"
          "sel %[largest], %[size], %[largest]"
          : [largest] "+r"(largest), [size] "=&r"(size), [difference] "=&r"(difference)
          : [codes] "r"(codes), [none] "r"(0)
          : "cc");
    return largest;
}

static inline int32_t tf_largest_of_pair(uint32_t largest) {
    const uint32_t low = largest & 0xffffu, high = largest >> 16;
    return (int32_t)(low > high ? low : high);
}

/* The lower, or upper, halves of both words. */
static inline uint32_t tf_pack_lower(uint32_t low, uint32_t high) {
    uint32_t both;
    __asm("pkhbt %0, %1, %2, lsl #16" : "=r"(both) : "r"(low), "r"(high));
    return both;
}

static inline uint32_t tf_pack_upper(uint32_t low, uint32_t high) {
    uint32_t both;
    __asm("pkhtb %0, %1, %2, asr #16" : "=r"(both) : "r"(high), "r"(low));
    return both;
}

#else
#define TF_PAIRS 0
#endif

/* Saturation to 16 bits leaves -32768 where -32767 is the limit: amends that and the magnitude. */
static inline void tf_amend_lowest(int16_t *codes, uint32_t size, int32_t *magnitude) {
    if (*magnitude <= 32767) {
        return;
    }
    for (uint32_t i = 0; i < size; i++) {
        if (codes[i] < -32767) {
            codes[i] = -32767;
        }
    }
    *magnitude = 32767;
}

#endif
