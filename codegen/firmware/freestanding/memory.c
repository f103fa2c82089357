/* Memory functions that compilers call on their own, for builds without a C library.
 *
 * Both compilers get these, so that a copy costs about the same in every image. They are built
 * with -fno-builtin: a loop that is recognised as memcpy would call itself.
 */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
int memcmp(const void *left, const void *right, size_t bytes);
size_t strlen(const char *text);

/* May alias anything, as the bytes of every object may be copied. */
typedef uint32_t __attribute__((may_alias)) word;

static int both_aligned(const void *left, const void *right) {
    return (((uintptr_t)left | (uintptr_t)right) & 3u) == 0u;
}

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
    uint8_t *out = to;
    const uint8_t *in = from;
    if (both_aligned(to, from)) {
        word *out_words = to;
        const word *in_words = from;
        for (; bytes >= 4u; bytes -= 4u) {
            *out_words++ = *in_words++;
        }
        out = (uint8_t *)out_words;
        in = (const uint8_t *)in_words;
    }
    while (bytes-- > 0u) {
        *out++ = *in++;
    }
    return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
    uint8_t *out = to;
    const uint8_t *in = from;
    if ((uintptr_t)out <= (uintptr_t)in) {
        while (bytes-- > 0u) {
            *out++ = *in++;
        }
    } else {
        while (bytes-- > 0u) {
            out[bytes] = in[bytes];
        }
    }
    return to;
}

void *memset(void *to, int value, size_t bytes) {
    uint8_t *out = to;
    while (bytes > 0u && ((uintptr_t)out & 3u) != 0u) {
        *out++ = (uint8_t)value;
        bytes--;
    }
    word *words = (word *)out;
    const word pattern = (uint8_t)value * 0x01010101u;
    for (; bytes >= 4u; bytes -= 4u) {
        *words++ = pattern;
    }
    out = (uint8_t *)words;
    while (bytes-- > 0u) {
        *out++ = (uint8_t)value;
    }
    return to;
}

int memcmp(const void *left, const void *right, size_t bytes) {
    const uint8_t *a = left;
    const uint8_t *b = right;
    for (; bytes > 0u; bytes--, a++, b++) {
        if (*a != *b) {
            return *a < *b ? -1 : 1;
        }
    }
    return 0;
}

size_t strlen(const char *text) {
    const char *end = text;
    while (*end != '\0') {
        end++;
    }
    return (size_t)(end - text);
}

#if defined(__clang__)
/* clang calls copies by their names in the ARM run-time ABI (RTABI 4.3.4); note the order of
 * the arguments of __aeabi_memset. */
void __aeabi_memcpy(void *restrict to, const void *restrict from, size_t bytes);
void __aeabi_memcpy4(void *restrict to, const void *restrict from, size_t bytes);
void __aeabi_memcpy8(void *restrict to, const void *restrict from, size_t bytes);
void __aeabi_memmove(void *to, const void *from, size_t bytes);
void __aeabi_memmove4(void *to, const void *from, size_t bytes);
void __aeabi_memmove8(void *to, const void *from, size_t bytes);
void __aeabi_memset(void *to, size_t bytes, int value);
void __aeabi_memset4(void *to, size_t bytes, int value);
void __aeabi_memset8(void *to, size_t bytes, int value);
void __aeabi_memclr(void *to, size_t bytes);
void __aeabi_memclr4(void *to, size_t bytes);
void __aeabi_memclr8(void *to, size_t bytes);

void __aeabi_memcpy(void *restrict to, const void *restrict from, size_t bytes) {
    (void)memcpy(to, from, bytes);
}
void __aeabi_memcpy4(void *restrict to, const void *restrict from, size_t bytes) {
    (void)memcpy(to, from, bytes);
}
void __aeabi_memcpy8(void *restrict to, const void *restrict from, size_t bytes) {
    (void)memcpy(to, from, bytes);
}
void __aeabi_memmove(void *to, const void *from, size_t bytes) {
    (void)memmove(to, from, bytes);
}
void __aeabi_memmove4(void *to, const void *from, size_t bytes) {
    (void)memmove(to, from, bytes);
}
void __aeabi_memmove8(void *to, const void *from, size_t bytes) {
    (void)memmove(to, from, bytes);
}
void __aeabi_memset(void *to, size_t bytes, int value) {
    (void)memset(to, value, bytes);
}
void __aeabi_memset4(void *to, size_t bytes, int value) {
    (void)memset(to, value, bytes);
}
void __aeabi_memset8(void *to, size_t bytes, int value) {
    (void)memset(to, value, bytes);
}
void __aeabi_memclr(void *to, size_t bytes) {
    (void)memset(to, 0, bytes);
}
void __aeabi_memclr4(void *to, size_t bytes) {
    (void)memset(to, 0, bytes);
}
void __aeabi_memclr8(void *to, size_t bytes) {
    (void)memset(to, 0, bytes);
}
#endif
