/* Which set of kernels this machine can run. */
#include <stddef.h>
#include <string.h>

#include "tinyfleet/kernels.h"

extern const tf_kernel_table tf_kernels_portable;

const tf_kernel_table *tf_kernels = &tf_kernels_portable;

#if defined(__x86_64__)

#include <cpuid.h>

extern const tf_kernel_table tf_kernels_avx2, tf_kernels_avx512;

/* Bits of XCR0: registers that the operating system saves. */
#define SAVES_AVX 0x6u
#define SAVES_AVX512 0xe6u

/* Which registers the operating system saves; 0 where it can't be asked. */
static uint32_t saved_registers(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & bit_OSXSAVE) == 0u) {
        return 0;
    }
    __asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

/* Asked of the processor itself: not every compiler brings what __builtin_cpu_supports needs. */
static int has_avx2(void) {
    uint32_t a, b, c, d;
    return (saved_registers() & SAVES_AVX) == SAVES_AVX &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2) != 0u;
}

static int has_avx512(void) {
    const uint32_t wanted = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    uint32_t a, b, c, d;
    return has_avx2() && (saved_registers() & SAVES_AVX512) == SAVES_AVX512 &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & wanted) == wanted &&
           (c & bit_AVX512VNNI) != 0u;
}

#elif defined(__aarch64__)

extern const tf_kernel_table tf_kernels_neon;

#endif

static int always(void) {
    return 1;
}

typedef struct {
    const char *name;
    const tf_kernel_table *table;
    int (*runs_here)(void);
} kernel_set;

/* The best first. */
static const kernel_set sets[] = {
#if defined(__x86_64__)
    {"avx512", &tf_kernels_avx512, has_avx512},
    {"avx2", &tf_kernels_avx2, has_avx2},
#elif defined(__aarch64__)
    {"neon", &tf_kernels_neon, always}, /* as all of them */
#endif
    {"portable", &tf_kernels_portable, always},
};

static int32_t choose(const char *name) {
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        if ((name == NULL || strcmp(name, sets[i].name) == 0) && sets[i].runs_here()) {
            tf_kernels = sets[i].table;
            return 1;
        }
    }
    return 0;
}

int32_t tf_choose_kernels(const char *name) {
    return choose(name);
}

/* When the library is loaded. */
__attribute__((constructor)) static void choose_best(void) {
    choose(NULL);
}
