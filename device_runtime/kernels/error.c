/* Error tensors: masks, sums at forks, scaling. */
#include "pairs.h"

#ifdef TF_VECTOR
#include "../vector/lanes.h"
#endif

/* Elements from `from` on, one by one. */
static void mask_singly(int16_t *error, const uint8_t *mask, uint32_t from, uint32_t size,
                        int32_t *magnitude) {
    for (uint32_t i = from; i < size; i++) {
        const int32_t kept = error[i] & -(int32_t)(mask[i >> 3] >> (i & 7u) & 1u);
        error[i] = (int16_t)kept;
        tf_note_magnitude(magnitude, kept);
    }
}

#if TF_DSP

/* Two pairs of codes stay where their bits are set. Bits are the signs of the halves of `signs`,
 * and of signs << 2; returns signs << 4. */
static inline uint32_t mask_pairs(int16_t *error, uint32_t signs, tf_extremes *seen) {
    uint32_t a = tf_load32(error), b = tf_load32(error + 2), sum;
    __asm("sadd16 %[sum], %[signs], %[none]\n\t"
          "sel %[a], %[none], %[a]\n\t"
          "lsl %[signs], %[signs], #2\n\t"
          "sadd16 %[sum], %[signs], %[none]\n\t"
          "sel %[b], %[none], %[b]\n\t"
          "lsl %[signs], %[signs], #2"
          : [a] "+r"(a), [b] "+r"(b), [signs] "+r"(signs), [sum] "=&r"(sum)
          : [none] "r"(0)
          : "cc");
    tf_store32(error, a);
    tf_store32(error + 2, b);
    tf_note_pairs(seen, a, b);
    return signs;
}

void tf_error_mask(int16_t *error, tf_scale *scale, const uint8_t *mask, uint32_t size) {
    tf_extremes seen = {0, 0};
    const uint32_t whole = size & ~15u;
    const int16_t *end = error + whole;
    const uint8_t *bytes = mask;
    for (int16_t *next = error; next != end; next += 16, bytes += 2) {
        const uint32_t bits = bytes[0] | (uint32_t)bytes[1] << 8;
        if (bits == 0u) {
            for (uint32_t i = 0; i < 16u; i += 2u) {
                tf_store32(next + i, 0);
            }
        } else if ((bits ^ 0xffffu) == 0u) {
            for (uint32_t i = 0; i < 16u; i += 4u) {
                tf_note_pairs(&seen, tf_load32(next + i), tf_load32(next + i + 2));
            }
        } else {
            /* Bits 0 and 1 become the signs of the halves, then 2 and 3, and so on. */
            uint32_t reversed;
            __asm("rbit %0, %1" : "=r"(reversed) : "r"(bits));
            uint32_t signs = tf_pack_upper(reversed, reversed << 1);
            signs = mask_pairs(next, signs, &seen);
            signs = mask_pairs(next + 4, signs, &seen);
            signs = mask_pairs(next + 8, signs, &seen);
            mask_pairs(next + 12, signs, &seen);
        }
    }
    int32_t magnitude = tf_magnitude_of(&seen);
    mask_singly(error, mask, whole, size, &magnitude);
    scale->magnitude = magnitude;
}

#else

void tf_error_mask(int16_t *error, tf_scale *scale, const uint8_t *mask, uint32_t size) {
    int32_t magnitude = 0;
    uint32_t done = 0;
#ifdef TF_VECTOR
    done = tf_errors_mask(error, mask, size, &magnitude);
#endif
    mask_singly(error, mask, done, size, &magnitude);
    scale->magnitude = magnitude;
}

#endif

static inline int32_t shifted(int32_t value, int32_t shift) {
    return shift < 0 ? value * (1 << -shift) : tf_round_shift32(value, shift);
}

#if TF_DSP

/* Both halves times 2^-shift, rounded. The factor is 2^(15 - shift) where the shift goes right,
 * 2^-shift where it goes left. */
static inline __attribute__((always_inline)) uint32_t shift_pair(uint32_t pair, int32_t factor,
                                                                 const int right) {
    uint32_t low, high;
    if (right) {
        uint32_t both;
        __asm("smlabb %0, %1, %2, %3" : "=r"(low) : "r"(pair), "r"(factor), "r"(1 << 14));
        __asm("smlatb %0, %1, %2, %3" : "=r"(high) : "r"(pair), "r"(factor), "r"(1 << 14));
        __asm("pkhtb %0, %1, %2, asr #15" : "=r"(both) : "r"(high << 1), "r"(low));
        return both;
    }
    __asm("smulbb %0, %1, %2" : "=r"(low) : "r"(pair), "r"(factor));
    __asm("smultb %0, %1, %2" : "=r"(high) : "r"(pair), "r"(factor));
    return tf_pack_lower(low, high);
}

/* 16 to the right leave nothing, nor does a factor of 0. */
static int32_t shift_factor(int32_t shift) {
    return shift > 0 ? (1 << 15) >> shift : 1 << -shift;
}

static inline uint32_t add_pairs(uint32_t a, uint32_t b) {
    uint32_t sum;
    __asm("qadd16 %0, %1, %2" : "=r"(sum) : "r"(a), "r"(b));
    return sum;
}

static inline __attribute__((always_inline)) void
add_shifted(int16_t *a, const int16_t *b, uint32_t count, int32_t a_factor, int32_t b_factor,
            const int a_right, const int b_right, tf_extremes *seen) {
    for (const int16_t *end = a + count; a != end; a += 4, b += 4) {
        const uint32_t first = add_pairs(shift_pair(tf_load32(a), a_factor, a_right),
                                         shift_pair(tf_load32(b), b_factor, b_right));
        const uint32_t second = add_pairs(shift_pair(tf_load32(a + 2), a_factor, a_right),
                                          shift_pair(tf_load32(b + 2), b_factor, b_right));
        tf_store32(a, first);
        tf_store32(a + 2, second);
        tf_note_pairs(seen, first, second);
    }
}

/* A multiple of four elements; may leave -32768. */
static int32_t add_by_pairs(int16_t *a, int32_t a_shift, const int16_t *b, int32_t b_shift,
                            uint32_t count) {
    tf_extremes seen = {0, 0};
    const int32_t a_factor = shift_factor(a_shift), b_factor = shift_factor(b_shift);
    if (a_shift > 0 && b_shift > 0) {
        add_shifted(a, b, count, a_factor, b_factor, 1, 1, &seen);
    } else if (a_shift > 0) {
        add_shifted(a, b, count, a_factor, b_factor, 1, 0, &seen);
    } else if (b_shift > 0) {
        add_shifted(a, b, count, a_factor, b_factor, 0, 1, &seen);
    } else {
        add_shifted(a, b, count, a_factor, b_factor, 0, 0, &seen);
    }
    return tf_magnitude_of(&seen);
}

#endif

void tf_error_sum(int16_t *a, tf_scale *a_scale, const int16_t *b, const tf_scale *b_scale,
                  uint32_t size) {
    if (b_scale->magnitude == 0) {
        return;
    }
    /* One bit above the larger of the two, so that the sum fits 15 bits and a sign. */
    int32_t top = b_scale->exponent + tf_bit_length((uint32_t)b_scale->magnitude);
    if (a_scale->magnitude != 0) {
        const int32_t a_top = a_scale->exponent + tf_bit_length((uint32_t)a_scale->magnitude);
        top = a_top > top ? a_top : top;
    }
    const int32_t exponent = top + 1 - 15;
    /* 16 bits to the right already leave nothing of 15. */
    const int32_t a_shift =
        a_scale->magnitude == 0 ? 0 : tf_clamp(exponent - a_scale->exponent, -14, 16);
    const int32_t b_shift = tf_clamp(exponent - b_scale->exponent, -14, 16);
    int32_t magnitude = 0;
    uint32_t i = 0;
#if TF_DSP
    i = size & ~3u;
    magnitude = add_by_pairs(a, a_shift, b, b_shift, i);
    tf_amend_lowest(a, i, &magnitude);
#endif
    for (; i < size; i++) {
        const int32_t sum = shifted(a[i], a_shift) + shifted(b[i], b_shift);
        const int32_t value = tf_clamp(sum, -32767, 32767);
        a[i] = (int16_t)value;
        tf_note_magnitude(&magnitude, value);
    }
    a_scale->exponent = exponent;
    a_scale->magnitude = magnitude;
}

void tf_error_scale(const int16_t *error, const tf_scale *scale, int16_t multiplier,
                    int32_t exponent, uint32_t size, int16_t *out, tf_scale *out_scale) {
    const int32_t headroom = tf_headroom(scale);
    const int32_t shift = 15 - headroom;
    int32_t magnitude = 0;
    uint32_t i = 0;
#if TF_DSP
    tf_extremes seen = {0, 0};
    const int32_t half = shift == 0 ? 0 : 1 << (shift - 1);
    for (; i + 4u <= size; i += 4u) {
        uint32_t pairs[2];
        for (uint32_t j = 0; j < 2u; j++) {
            const uint32_t at = i + 2u * j;
            pairs[j] = tf_scale_pair(tf_load32(error + at), multiplier, multiplier, half, shift);
            tf_store32(out + at, pairs[j]);
        }
        tf_note_pairs(&seen, pairs[0], pairs[1]);
    }
    magnitude = tf_magnitude_of(&seen);
#endif
    for (; i < size; i++) {
        const int32_t value = tf_round_shift32(error[i] * multiplier, shift);
        out[i] = (int16_t)value;
        tf_note_magnitude(&magnitude, value);
    }
    out_scale->exponent = scale->exponent + exponent - headroom;
    out_scale->magnitude = magnitude;
}
