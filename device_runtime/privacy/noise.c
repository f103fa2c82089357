/* The sampler of Canonne, Kamath and Steinke (arXiv 2004.00010) as noise.md has it: integers only,
 * nothing is rounded. */
#include "tinyfleet/noise.h"

#include <stdbool.h>
#include <stddef.h>

#include "monocypher.h"

#define SCALES_LIMIT 64u /* a proposal of so many scales is refused */

static uint8_t next_byte(tf_noise *noise) {
    static const uint8_t nonce[12] = {0};
    if (noise->position == TF_NOISE_BLOCK_BYTES) {
        noise->counter = crypto_chacha20_ietf(noise->block, NULL, TF_NOISE_BLOCK_BYTES, noise->key,
                                              nonce, noise->counter);
        noise->position = 0;
    }
    return noise->block[noise->position++];
}

/* True with probability numerator / denominator, which is below 1. */
static bool bernoulli(tf_noise *noise, int64_t numerator, int64_t denominator) {
    int64_t rest = numerator;
    for (;;) {
        rest = rest * 256 - next_byte(noise) * denominator;
        if (rest <= 0) {
            return false;
        }
        if (rest >= denominator) {
            return true;
        }
    }
}

/* True with probability 1/e: a uniform number is between 1/3! and 1/2!, or 1/5! and 1/4!, … */
static bool exp_of_one(tf_noise *noise) {
    static const uint8_t bounds[4] = {120, 40, 10, 2}; /* 240 / 2! … 240 / 5! */
    uint8_t first;
    do {
        first = next_byte(noise);
    } while (first >= 240u);
    for (uint32_t i = 0; i < 4u; i++) {
        if (first >= bounds[i]) {
            return i % 2u == 1u;
        }
    }
    int64_t trial = 6;
    while (bernoulli(noise, 1, trial)) {
        trial++;
    }
    return trial % 2 == 1;
}

/* True with probability exp(-numerator / denominator). */
static bool exp_of_minus(tf_noise *noise, int64_t numerator, int64_t denominator) {
    while (numerator >= denominator) {
        if (!exp_of_one(noise)) {
            return false;
        }
        numerator -= denominator;
    }
    int64_t trial = 1;
    while ((trial == 1 || bernoulli(noise, 1, trial)) && bernoulli(noise, numerator, denominator)) {
        trial++;
    }
    return trial % 2 == 1;
}

void tf_noise_begin(tf_noise *noise, const uint8_t *key, uint32_t variance) {
    uint8_t bits = 0;
    while (bits < 32u && variance >> bits != 0u) {
        bits++;
    }
    noise->key = key;
    noise->variance = variance;
    noise->scale = bits / 2u;
    noise->counter = 0;
    noise->position = TF_NOISE_BLOCK_BYTES;
}

/* A proposal of a discrete Laplace, and false, or an accepted value. */
static bool propose(tf_noise *noise, int32_t *value) {
    const uint32_t scale = noise->scale;
    const uint32_t places = scale / 8u + 1u; /* bytes for `low` and a sign */
    uint32_t draw = 0;
    for (uint32_t i = 0; i < places; i++) {
        draw |= (uint32_t)next_byte(noise) << (8u * i);
    }
    const uint32_t low = draw & ((1u << scale) - 1u);
    const bool is_negative = (draw >> (8u * places - 1u)) != 0u;
    if (!exp_of_minus(noise, low, (int64_t)1 << scale)) {
        return false;
    }
    uint32_t scales = 0;
    while (scales < SCALES_LIMIT && exp_of_one(noise)) {
        scales++;
    }
    const int32_t magnitude = (int32_t)(low + (scales << scale));
    if (scales == SCALES_LIMIT || (is_negative && magnitude == 0)) {
        return false;
    }
    const int64_t distance = ((int64_t)magnitude << scale) - noise->variance;
    *value = is_negative ? -magnitude : magnitude;
    return exp_of_minus(noise, distance * distance, (int64_t)noise->variance << (2u * scale + 1u));
}

int32_t tf_noise_next(tf_noise *noise) {
    int32_t value = 0;
    while (!propose(noise, &value)) {
    }
    return value;
}
