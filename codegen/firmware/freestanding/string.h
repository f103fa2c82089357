/* The part of <string.h> that the runtime uses, for builds without a C library.
 *
 * The macros let the compiler expand small copies of known size in place; memory.c has the
 * functions that it calls otherwise.
 */
#ifndef TINYFLEET_FREESTANDING_STRING_H
#define TINYFLEET_FREESTANDING_STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
int memcmp(const void *left, const void *right, size_t bytes);
size_t strlen(const char *text);

#define memcpy(to, from, bytes) __builtin_memcpy((to), (from), (bytes))
#define memmove(to, from, bytes) __builtin_memmove((to), (from), (bytes))
#define memset(to, value, bytes) __builtin_memset((to), (value), (bytes))
#define memcmp(left, right, bytes) __builtin_memcmp((left), (right), (bytes))
#define strlen(text) __builtin_strlen(text)

#endif
