/* DSP instructions that work on two halfwords at once, and whether there are any. */
#ifndef TINYFLEET_DOT_H
#define TINYFLEET_DOT_H

#include <stdint.h>
#include <string.h>

#if defined(__ARM_FEATURE_DSP) && !defined(TF_PORTABLE_KERNELS)
#define TF_DSP 1
#include <arm_acle.h>
#else
#define TF_DSP 0
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

static inline int16x2_t tf_even(uint32_t word) {
    return __sxtb16((int8x4_t)word);
}

/* No compiler folds the rotation into the instruction by itself. */
static inline int16x2_t tf_odd(uint32_t word) {
    uint32_t odd;
    __asm("sxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(word));
    return (int16x2_t)odd;
}

/* The same with a pair of halfwords added to them. */
static inline uint32_t tf_even_plus(uint32_t add, uint32_t word) {
    uint32_t even;
    __asm("sxtab16 %0, %1, %2" : "=r"(even) : "r"(add), "r"(word));
    return even;
}

static inline uint32_t tf_odd_plus(uint32_t add, uint32_t word) {
    uint32_t odd;
    __asm("sxtab16 %0, %1, %2, ror #8" : "=r"(odd) : "r"(add), "r"(word));
    return odd;
}

/* -zero in both halves. */
static inline uint32_t tf_minus(int32_t zero) {
    return ((uint32_t)-zero & 0xffffu) | ((uint32_t)-zero << 16);
}

/* (low half of a, low half of b) and (high half of a, high half of b). */
static inline uint32_t tf_pack_low(uint32_t a, uint32_t b) {
    return (a & 0xffffu) | (b << 16);
}
static inline uint32_t tf_pack_high(uint32_t a, uint32_t b) {
    return (a >> 16) | (b & 0xffff0000u);
}

#endif

#endif
