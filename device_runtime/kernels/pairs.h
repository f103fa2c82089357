/* Words that hold several values, for the DSP instructions that work on both halves at once; and
 * the largest |code| of an error tensor, found while its codes are written. */
#ifndef TINYFLEET_PAIRS_H
#define TINYFLEET_PAIRS_H

#include <string.h>

#include "fixed_point.h"

#if defined(__ARM_FEATURE_DSP)
#define TF_DSP 1
#include <arm_acle.h>
#else
#define TF_DSP 0
#endif

/* Vectors of 16 bytes (Helium). A core that has them has DSP instructions as well. */
#if defined(__ARM_FEATURE_MVE)
#define TF_MVE 1
#include <arm_mve.h>
#else
#define TF_MVE 0
#endif

/* A core with neither, few registers and little stack. */
#if !TF_DSP && defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define TF_SMALL_CORE 1
#else
#define TF_SMALL_CORE 0
#endif

static inline uint32_t tf_load32(const void *from) {
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

static inline void tf_store32(void *to, uint32_t word) {
    memcpy(to, &word, sizeof word);
}

#if TF_DSP

/* Compiles only where `field` lies at `place`: assembler knows it by that. */
#define TF_AT(type, field, place) \
    extern const char type##_##field##_is_there[offsetof(type, field) == (place) ? 1 : -1]

/* The highest and the lowest code so far, for each half of a word. */
typedef struct {
    uint32_t highest, lowest;
} tf_extremes;

/* Takes note of two pairs of codes. */
static inline void tf_note_pairs(tf_extremes *seen, uint32_t a, uint32_t b) {
    uint32_t high, low;
    __asm("ssub16 %[high], %[a], %[b]\n\t"
          "sel %[high], %[a], %[b]\n\t"
          "sel %[low], %[b], %[a]\n\t"
          "ssub16 %[b], %[high], %[highest]\n\t"
          "sel %[highest], %[high], %[highest]\n\t"
          "ssub16 %[b], %[low], %[lowest]\n\t"
          "sel %[lowest], %[lowest], %[low]"
          : [highest] "+r"(seen->highest), [lowest] "+r"(seen->lowest), [high] "=&r"(high),
            [low] "=&r"(low), [b] "+r"(b)
          : [a] "r"(a)
          : "cc");
}

static inline int32_t tf_magnitude_of(const tf_extremes *seen) {
    int32_t magnitude = 0;
    tf_note_magnitude(&magnitude, (int16_t)seen->highest);
    tf_note_magnitude(&magnitude, (int32_t)seen->highest >> 16);
    tf_note_magnitude(&magnitude, (int16_t)seen->lowest);
    tf_note_magnitude(&magnitude, (int32_t)seen->lowest >> 16);
    return magnitude;
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

/* Both halves of `pair` times a factor each, plus `half`, >> shift, where that fits 16 bits. */
static inline uint32_t tf_scale_pair(uint32_t pair, int32_t first, int32_t second, int32_t half,
                                     int32_t shift) {
    int32_t low, high;
    __asm("smlabb %0, %1, %2, %3" : "=r"(low) : "r"(pair), "r"(first), "r"(half));
    __asm("smlatb %0, %1, %2, %3" : "=r"(high) : "r"(pair), "r"(second), "r"(half));
    return tf_pack_lower((uint32_t)(low >> shift), (uint32_t)(high >> shift));
}

/* Bytes 0 and 2 of a word, or 1 and 3, each added to a half of `add`. */
static inline uint32_t tf_even_plus(uint32_t add, uint32_t word) {
    uint32_t even;
    __asm("sxtab16 %0, %1, %2" : "=r"(even) : "r"(add), "r"(word));
    return even;
}

/* No compiler folds the rotation into the instruction by itself. */
static inline uint32_t tf_odd_plus(uint32_t add, uint32_t word) {
    uint32_t odd;
    __asm("sxtab16 %0, %1, %2, ror #8" : "=r"(odd) : "r"(add), "r"(word));
    return odd;
}

/* The same without anything added. */
static inline uint32_t tf_even(uint32_t word) {
    return (uint32_t)__sxtb16((int8x4_t)word);
}

static inline uint32_t tf_odd(uint32_t word) {
    uint32_t odd;
    __asm("sxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(word));
    return odd;
}

/* -zero in both halves. */
static inline uint32_t tf_minus(int32_t zero) {
    return tf_pack_lower((uint32_t)-zero, (uint32_t)-zero);
}

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
