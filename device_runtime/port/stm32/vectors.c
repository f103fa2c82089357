/* The vector table. All but the first two entries are faults: the firmware takes no exception, and
 * those of peripherals are masked for good (a pending interrupt ends `wfi` all the same). */
#include "../cortex_m/cortex_m.h"

#define FOUR(entry) entry, entry, entry, entry
#define SIXTEEN(entry) FOUR(entry), FOUR(entry), FOUR(entry), FOUR(entry)

/* 98 lines on the F746, fewer on the F407. */
static const tf_vector vectors[16 + 98] __attribute__((section(".vectors"), used)) = {
    (tf_vector)(uintptr_t)__stack_top,
    Reset_Handler,
    tf_cortex_m_fault,
    tf_cortex_m_fault,
    FOUR(tf_cortex_m_fault),
    FOUR(tf_cortex_m_fault),
    FOUR(tf_cortex_m_fault),
    SIXTEEN(tf_cortex_m_fault),
    SIXTEEN(tf_cortex_m_fault),
    SIXTEEN(tf_cortex_m_fault),
    SIXTEEN(tf_cortex_m_fault),
    SIXTEEN(tf_cortex_m_fault),
    SIXTEEN(tf_cortex_m_fault),
    tf_cortex_m_fault,
    tf_cortex_m_fault,
};
