/* Calls functions on a core in QEMU: a debugger writes what to call into tf_mailbox, lets the core go
 * on at tf_call, and is told when it has come to tf_called, its breakpoint. Linked to the functions
 * that are to be called (kernels.py). */
#include <stdint.h>

/* Written and read from outside, and by tf_call and tf_fault at these places. */
typedef struct {
    uint32_t function; /* its address, bit 0 set */
    uint32_t stack;    /* where further arguments are */
    uint32_t arguments[4];
    uint32_t result;
    uint32_t fault; /* address of the instruction that faulted; 0: none did */
} mailbox;

extern mailbox tf_mailbox;
mailbox tf_mailbox;

#define CCR (*(volatile uint32_t *)0xE000ED14u)
#define CPACR (*(volatile uint32_t *)0xE000ED88u)

void tf_start_core(void);
void tf_call(void);
void tf_called(void);
void tf_fault(void);

/* First of all that the core does. */
void tf_start_core(void) {
#if __ARM_ARCH == 6
    CCR |= 1u << 3; /* the larger core that stands in for it has unaligned accesses, too */
#else
    CPACR |= 0xFu << 20; /* floats and vectors */
#endif
    __asm volatile("dsb\n\tisb" ::: "memory");
    tf_called();
}

/* clang-format off */
__attribute__((naked)) void tf_call(void) {
    __asm volatile(
        "ldr r4, =tf_mailbox\n\t"
        "ldr r5, [r4]\n\t"
        "ldr r0, [r4, #4]\n\t"
        "mov sp, r0\n\t"
        "ldr r0, [r4, #8]\n\t"
        "ldr r1, [r4, #12]\n\t"
        "ldr r2, [r4, #16]\n\t"
        "ldr r3, [r4, #20]\n\t"
        "blx r5\n\t"
        "ldr r4, =tf_mailbox\n\t"
        "str r0, [r4, #24]\n\t"
        "b tf_called\n\t"
        ".ltorg");
}

__attribute__((naked)) void tf_called(void) {
    __asm volatile("b tf_called");
}

/* The core has put eight registers on its stack, of which the seventh is the instruction's address. */
__attribute__((naked)) void tf_fault(void) {
    __asm volatile(
        "ldr r0, [sp, #24]\n\t"
        "ldr r1, =tf_mailbox\n\t"
        "str r0, [r1, #28]\n\t"
        "b tf_called\n\t"
        ".ltorg");
}
/* clang-format on */
