#include "tinyfleet/sha256.h"

#include <string.h>

/* FIPS 180-4, 4.2.2: fractional parts of the cube roots of the first 64 primes. */
static const uint32_t round_constants[64] = {
    0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u,
    0xab1c5ed5u, 0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu,
    0x9bdc06a7u, 0xc19bf174u, 0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu,
    0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau, 0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u,
    0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u, 0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu,
    0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u, 0xa2bfe8a1u, 0xa81a664bu,
    0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u, 0x19a4c116u,
    0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
    0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u,
    0xc67178f2u,
};

/* FIPS 180-4, 5.3.3: fractional parts of the square roots of the first 8 primes. */
static const uint32_t initial_state[8] = {
    0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
    0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u,
};

static uint32_t rotate_right(uint32_t value, unsigned count) {
    return (value >> count) | (value << (32u - count));
}

static void absorb_block(uint32_t state[8], const uint8_t *block) {
    uint32_t w[16]; /* the last 16 words of the message schedule, as a ring */
    for (size_t t = 0; t < 16; t++) {
        w[t] = (uint32_t)block[4 * t] << 24 | (uint32_t)block[4 * t + 1] << 16 |
               (uint32_t)block[4 * t + 2] << 8 | block[4 * t + 3];
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (unsigned t = 0; t < 64; t++) {
        if (t >= 16) {
            uint32_t x = w[(t + 1) & 15u];  /* W(t-15) */
            uint32_t y = w[(t + 14) & 15u]; /* W(t-2) */
            w[t & 15u] += (rotate_right(x, 7) ^ rotate_right(x, 18) ^ (x >> 3)) + w[(t + 9) & 15u] +
                          (rotate_right(y, 17) ^ rotate_right(y, 19) ^ (y >> 10));
        }
        uint32_t t1 = h + (rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25)) +
                      ((e & f) ^ (~e & g)) + round_constants[t] + w[t & 15u];
        uint32_t t2 = (rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22)) +
                      ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + t1;
        d = c;
        c = b;
        b = a;
        a = t1 + t2;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
    state[5] += f;
    state[6] += g;
    state[7] += h;
}

void tf_sha256_begin(tf_sha256 *hash) {
    memcpy(hash->state, initial_state, sizeof hash->state);
    hash->total_bytes = 0;
}

void tf_sha256_add(tf_sha256 *hash, const void *bytes, size_t length) {
    const uint8_t *next = bytes;
    size_t filled = (size_t)(hash->total_bytes & 63u);
    hash->total_bytes += length;
    while (length > 0) {
        if (filled == 0 && length >= 64) {
            absorb_block(hash->state, next);
            next += 64;
            length -= 64;
            continue;
        }
        size_t part = 64 - filled;
        if (part > length) {
            part = length;
        }
        memcpy(hash->block + filled, next, part);
        next += part;
        length -= part;
        filled += part;
        if (filled == 64) {
            absorb_block(hash->state, hash->block);
            filled = 0;
        }
    }
}

void tf_sha256_finish(tf_sha256 *hash, uint8_t digest[TF_SHA256_BYTES]) {
    uint64_t bits = hash->total_bytes * 8u;
    size_t filled = (size_t)(hash->total_bytes & 63u);
    hash->block[filled++] = 0x80;
    if (filled > 56) {
        memset(hash->block + filled, 0, 64 - filled);
        absorb_block(hash->state, hash->block);
        filled = 0;
    }
    memset(hash->block + filled, 0, 56 - filled);
    for (unsigned i = 0; i < 8; i++) {
        hash->block[56 + i] = (uint8_t)(bits >> (56u - 8u * i));
    }
    absorb_block(hash->state, hash->block);
    for (unsigned i = 0; i < 32; i++) {
        digest[i] = (uint8_t)(hash->state[i / 4] >> (24u - 8u * (i % 4)));
    }
}
