/* From the reset vector to main. Interrupts are masked (PRIMASK) until the port wants them. */
#include "cortex_m.h"

#define STACK_PAINT 0xA5A5A5A5u

extern uint32_t __data_start[], __data_end[], __data_load[];
extern uint32_t __bss_start[], __bss_end[];

int main(void);

/* The stack may be what is broken: its last frame is handed on, and what comes starts at its top. */
void __attribute__((naked)) tf_cortex_m_fault(void) {
    __asm volatile("mrs r0, msp\n\t"
                   "ldr r1, =__stack_top\n\t"
                   "msr msp, r1\n\t"
                   "ldr r1, =tf_cortex_m_take_fault\n\t" /* beyond the reach of an Armv6-M branch */
                   "bx r1\n\t"
                   ".ltorg");
}

/* Shows later how deep the stack went. Volatile, so that no compiler makes a call of it, whose
 * frame it would paint over. */
static inline void paint_stack(void) {
    uint32_t *stack_pointer;
    __asm volatile("mov %0, sp" : "=r"(stack_pointer));
    for (volatile uint32_t *word = __stack_bottom; word < stack_pointer; word++) {
        *word = STACK_PAINT;
    }
}

void Reset_Handler(void) {
    __asm volatile("cpsid i" ::: "memory");
    SCB_CPACR |= 0xFu << 20; /* FPU on, before anything may use its registers */
    tf_cortex_m_barrier();
    SCB_VTOR = TF_FLASH_ADDRESS;
#if __ARM_ARCH == 6
    SCB_CCR |= SCB_CCR_UNALIGNED_TRAP; /* so that a larger core in an emulator has no more either */
#endif
#if __ARM_ARCH >= 8
    /* Older cores need what is below the stack to be no memory. */
    __asm volatile("msr msplim, %0" : : "r"(__stack_bottom));
#endif
    paint_stack();
    /* Ends are compared as numbers: to the language these symbols are unrelated objects. */
    const volatile uint32_t *from = __data_load;
    volatile uint32_t *to = __data_start;
    while ((uintptr_t)to < (uintptr_t)__data_end) {
        *to++ = *from++;
    }
    volatile uint32_t *word = __bss_start;
    while ((uintptr_t)word < (uintptr_t)__bss_end) {
        *word++ = 0;
    }
    main();
    tf_cortex_m_fail(TF_FAULT_MAIN_RETURNED);
}
