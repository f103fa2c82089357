/* From the reset vector to main. Interrupts stay masked for good (PRIMASK): the firmware polls,
 * and a pending interrupt ends `wfi` all the same. */
#include <stdint.h>

#include "registers.h"

#define STACK_PAINT 0xA5A5A5A5u

extern uint32_t __stack_bottom[], __stack_top[];
extern uint32_t __data_start[], __data_end[], __data_load[];
extern uint32_t __bss_start[], __bss_end[];

int main(void);
void Reset_Handler(void);

static void fault(void) {
    for (;;) {
        __asm volatile("bkpt #0");
    }
}

typedef void (*vector)(void);

/* The core's own exceptions. Those of peripherals never run, so they need no entries. */
static const vector vectors[16] __attribute__((section(".vectors"), used)) = {
    (vector)(uintptr_t)__stack_top,
    Reset_Handler,
    fault, /* NMI */
    fault, /* HardFault */
    fault, /* MemManage */
    fault, /* BusFault */
    fault, /* UsageFault */
    0,
    0,
    0,
    0,
    fault, /* SVCall */
    fault, /* DebugMonitor */
    0,
    fault, /* PendSV */
    fault, /* SysTick */
};

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
    __asm volatile("dsb\n\tisb" ::: "memory");
    SCB_VTOR = TF_FLASH_ADDRESS;
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
    fault(); /* main doesn't return */
}
