/* Lanes of NEON, as all 64-bit ARM cores have it: as lanes_avx512.h. */
#ifndef TINYFLEET_LANES_NEON_H
#define TINYFLEET_LANES_NEON_H

#include <arm_neon.h>

#include "../kernels/pairs.h"

#define TF_LANES 4u
typedef int32x4_t tf_lanes;

static inline tf_lanes tf_lanes_all(int32_t value) {
    return vdupq_n_s32(value);
}

static inline tf_lanes tf_lanes_load(const int32_t *from) {
    return vld1q_s32(from);
}

static inline tf_lanes tf_lanes_load_some(const int32_t *from, uint32_t count) {
    int32_t some[TF_LANES] = {0};
    memcpy(some, from, sizeof *from * count);
    return vld1q_s32(some);
}

static inline void tf_lanes_store(int32_t *to, tf_lanes values) {
    vst1q_s32(to, values);
}

static inline tf_lanes tf_pairs_widen(const int8_t *from) {
    return vreinterpretq_s32_s16(vmovl_s8(vld1_s8(from)));
}

static inline tf_lanes tf_lanes_add_products(tf_lanes sums, tf_lanes a, tf_lanes b) {
    const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y));
    return vaddq_s32(sums, vpaddq_s32(low, vmull_high_s16(x, y)));
}

static inline tf_lanes tf_lanes_add(tf_lanes a, tf_lanes b) {
    return vaddq_s32(a, b);
}

static inline tf_lanes tf_lanes_less(tf_lanes a, tf_lanes b) {
    return vsubq_s32(a, b);
}

static inline tf_lanes tf_lanes_and(tf_lanes a, tf_lanes b) {
    return vandq_s32(a, b);
}

static inline tf_lanes tf_lanes_xor(tf_lanes a, tf_lanes b) {
    return veorq_s32(a, b);
}

static inline tf_lanes tf_lanes_times(tf_lanes a, tf_lanes b) {
    return vmulq_s32(a, b);
}

static inline tf_lanes tf_lanes_clamp(tf_lanes values, tf_lanes low, tf_lanes high) {
    return vminq_s32(vmaxq_s32(values, low), high);
}

static inline tf_lanes tf_lanes_largest(tf_lanes a, tf_lanes b) {
    return vmaxq_s32(a, b);
}

static inline tf_lanes tf_lanes_magnitude(tf_lanes values) {
    return vabsq_s32(values);
}

static inline tf_lanes tf_lanes_left(tf_lanes values, tf_lanes by) {
    return vshlq_s32(values, by);
}

static inline tf_lanes tf_lanes_right(tf_lanes values, tf_lanes by) {
    return vshlq_s32(values, vnegq_s32(by));
}

static inline tf_lanes tf_lanes_right_unsigned(tf_lanes values, int32_t by) {
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(values), vdupq_n_s32(-by)));
}

static inline tf_lanes tf_lanes_high_product(tf_lanes a, tf_lanes b) {
    const int32x2_t low = vshrn_n_s64(vmull_s32(vget_low_s32(a), vget_low_s32(b)), 32);
    return vcombine_s32(low, vshrn_n_s64(vmull_high_s32(a, b), 32));
}

static inline tf_lanes tf_lanes_rounded_product(tf_lanes a, tf_lanes b) {
    const int32x2_t low = vrshrn_n_s64(vmull_s32(vget_low_s32(a), vget_low_s32(b)), 32);
    return vcombine_s32(low, vrshrn_n_s64(vmull_high_s32(a, b), 32));
}

static inline tf_lanes tf_lanes_wide_product(tf_lanes a, tf_lanes b, tf_lanes shift,
                                             tf_lanes *high) {
    const int64x2_t one = vdupq_n_s64(1);
    const int64x2_t low_shift = vmovl_s32(vget_low_s32(shift)), high_shift = vmovl_high_s32(shift);
    const int64x2_t low = vaddq_s64(vmull_s32(vget_low_s32(a), vget_low_s32(b)),
                                    vshlq_s64(one, vsubq_s64(low_shift, one)));
    const int64x2_t upper =
        vaddq_s64(vmull_high_s32(a, b), vshlq_s64(one, vsubq_s64(high_shift, one)));
    *high = vcombine_s32(vshrn_n_s64(low, 32), vshrn_n_s64(upper, 32));
    return vcombine_s32(vmovn_s64(vshlq_s64(low, vnegq_s64(low_shift))),
                        vmovn_s64(vshlq_s64(upper, vnegq_s64(high_shift))));
}

static inline tf_lanes tf_lanes_where_above(tf_lanes a, tf_lanes b, tf_lanes then,
                                            tf_lanes otherwise) {
    return vbslq_s32(vcgtq_s32(a, b), then, otherwise);
}

static inline tf_lanes tf_lanes_widen16(const int16_t *from, uint32_t count) {
    int16_t words[TF_LANES] = {0};
    memcpy(words, from, sizeof *from * count);
    return vmovl_s16(vld1_s16(words));
}

static inline tf_lanes tf_lanes_widen8(const int8_t *from, uint32_t count) {
    int8_t bytes[8] = {0};
    memcpy(bytes, from, count);
    return vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(bytes))));
}

static inline tf_lanes tf_pairs_of(tf_lanes low, tf_lanes high) {
    return vbslq_s32(vdupq_n_u32(0xffff), low, vshlq_n_s32(high, 16));
}

static inline uint32_t tf_lanes_store_codes(int8_t *to, tf_lanes values, uint32_t count) {
    const uint32_t places[TF_LANES] = {1, 2, 4, 8};
    const int16x4_t words = vqmovn_s32(values);
    const int8x8_t codes = vqmovn_s16(vcombine_s16(words, words));
    memcpy(to, &codes, count);
    const int32x4_t again = vmovl_s16(vget_low_s16(vmovl_s8(codes)));
    return vaddvq_u32(vandq_u32(vceqq_s32(again, values), vld1q_u32(places)));
}

static inline void tf_lanes_store16(int16_t *to, tf_lanes values, uint32_t count) {
    const int16x4_t words = vqmovn_s32(values);
    memcpy(to, &words, sizeof *to * count);
}

static inline void tf_codes_less(const int8_t *from, uint32_t count, int32_t zero, int16_t *to) {
    const int16x8_t zeros = vdupq_n_s16((int16_t)zero);
    uint32_t i = 0;
    for (; i + 8u <= count; i += 8u) {
        vst1q_s16(to + i, vsubq_s16(vmovl_s8(vld1_s8(from + i)), zeros));
    }
    for (; i < count; i++) {
        to[i] = (int16_t)(from[i] - zero);
    }
}

static inline uint32_t tf_errors_mask(int16_t *error, const uint8_t *mask, uint32_t size,
                                      int32_t *largest) {
    const int16_t each[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    const int16x8_t places = vld1q_s16(each);
    int16x8_t seen = vdupq_n_s16(0);
    uint32_t i = 0;
    for (; i + 8u <= size; i += 8u) {
        const uint16x8_t set = vtstq_s16(vdupq_n_s16((int16_t)mask[i / 8u]), places);
        const int16x8_t kept = vandq_s16(vld1q_s16(error + i), vreinterpretq_s16_u16(set));
        vst1q_s16(error + i, kept);
        seen = vmaxq_s16(seen, vabsq_s16(kept));
    }
    tf_note_magnitude(largest, vmaxvq_s16(seen));
    return i;
}

#endif
