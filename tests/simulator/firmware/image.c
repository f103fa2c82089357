/* A small firmware for the tests of the emulated boards: it touches every peripheral of
 * docs/specification/boards.md in the way that the stm32 port does. TF_USART_V2 is 0 or 1,
 * DTR_PIN a pin of port B. */
#include <stdint.h>

#define REG(address) (*(volatile uint32_t *)(address))
#define RCC_AHB1ENR REG(0x40023830u)
#define FLASH_KEYR REG(0x40023C04u)
#define FLASH_SR REG(0x40023C0Cu)
#define FLASH_CR REG(0x40023C10u)
#define USART1 0x40011000u
#if TF_USART_V2
#define USART_CR1 REG(USART1 + 0x00u)
#define USART_BRR REG(USART1 + 0x0Cu)
#define USART_CR3 REG(USART1 + 0x08u)
#define USART_CLEAR_IDLE REG(USART1 + 0x20u) = 1u << 4
#define USART_ENABLE 0x1Du /* IDLEIE, RE, TE, UE */
#define USART_RX_DATA (USART1 + 0x24u)
#define USART_TX_DATA (USART1 + 0x28u)
#else
#define USART_CR1 REG(USART1 + 0x0Cu)
#define USART_BRR REG(USART1 + 0x08u)
#define USART_CR3 REG(USART1 + 0x14u)
#define USART_CLEAR_IDLE (void)REG(USART1), (void)REG(USART1 + 0x04u)
#define USART_ENABLE 0x201Cu
#define USART_RX_DATA (USART1 + 0x04u)
#define USART_TX_DATA (USART1 + 0x04u)
#endif
#define DMA2 0x40026400u
#define STREAM(n, r) REG(DMA2 + 0x10u + 0x18u * (n) + 4u * (r))
#define GPIOB_BSRR REG(0x40020418u)
#define GPIOB_IDR REG(0x40020410u)
#define RING_BYTES 64u
#define NVIC_WORD_1(clear) REG(0xE000E100u + (clear) + 4u)
#define RECEPTION (1u << (37 - 32) | 1u << (58 - 32)) /* USART1 and DMA2 stream 2 */

extern uint32_t _stack_top[], _sidata[], _sdata[], _edata[], _sbss[], _ebss[];
void reset_handler(void);
void hard_fault(void);

__attribute__((section(".vectors"), used)) void *const vectors[] = {_stack_top, reset_handler, 0,
                                                                    hard_fault};

uint8_t ring[RING_BYTES];
uint8_t out[256];
volatile uint32_t looks = 0, milliseconds, battery, entropy, command;
volatile uint32_t initialised = 0x12345678u;
volatile uint32_t fault_frame, exception;
int8_t numbers[1024];

/* Bytes that came since `*from`, echoed with each bit flipped. */
static void echo(uint32_t *from) {
    uint32_t position = RING_BYTES - STREAM(2, 1);
    uint32_t count = 0;
    while (*from != position) {
        out[count++] = ring[*from] ^ 0xFFu;
        *from = (*from + 1u) % RING_BYTES;
    }
    if (count != 0) {
        REG(DMA2 + 0x0Cu) = 1u << 27;
        STREAM(7, 2) = USART_TX_DATA;
        STREAM(7, 3) = (uint32_t)(uintptr_t)out;
        STREAM(7, 1) = count;
        STREAM(7, 0) = 4u << 25 | 1u << 10 | 1u << 6 | 1u;
        while ((REG(DMA2 + 0x04u) & 1u << 27) == 0) {
        }
    }
}

uint32_t unlock(void) {
    FLASH_KEYR = 0x45670123u;
    FLASH_KEYR = 0xCDEF89ABu;
    return FLASH_CR;
}

uint32_t erase(uint32_t sector) {
    FLASH_CR = 1u << 1 | sector << 3 | 2u << 8;
    FLASH_CR |= 1u << 16;
    while ((FLASH_SR & 1u << 16) != 0) {
    }
    FLASH_CR = 0;
    return 0;
}

uint32_t program(uint32_t address, uint32_t value) {
    FLASH_CR = 1u | 2u << 8;
    REG(address) = value;
    while ((FLASH_SR & 1u << 16) != 0) {
    }
    FLASH_CR = 0;
    return REG(address);
}

uint32_t poke(uint32_t address, uint32_t value) {
    REG(address) = value;
    return value;
}

uint32_t peek(uint32_t address) {
    return REG(address);
}

uint32_t poke_byte(uint32_t address, uint32_t value) {
    *(volatile uint8_t *)(uintptr_t)address = (uint8_t)value;
    return value;
}

uint32_t spin(void) {
    for (;;) {
        initialised++;
    }
}

/* Stores each of 1 … rounds to the output register of port B and to SRAM, and draws as many
 * random words; returns how often it did so by a count that only SRAM holds. `looking`: it also
 * reads a register without side effects. */
uint32_t traffic(uint32_t rounds, uint32_t looking) {
    volatile uint32_t count = 0;
    for (uint32_t i = 1; i <= rounds; i++) {
        REG(0x40020414u) = i;
        entropy = REG(0x50060808u);
        count++;
        if (looking != 0) {
            milliseconds = GPIOB_IDR;
        }
    }
    return count;
}

/* Programs `words` words from `address` on, each with its own number. */
uint32_t program_many(uint32_t address, uint32_t words) {
    for (uint32_t i = 0; i < words; i++) {
        program(address + 4u * i, i);
    }
    return words;
}

/* Loops, calls, predicated instructions: something to count. */
__attribute__((noinline)) int32_t clamp(int32_t value, int32_t low, int32_t high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

int32_t mix(uint32_t rounds, int32_t a, int32_t b, int32_t c, int32_t d, int32_t e) {
    int32_t sum = a + b + c + d + e;
    for (uint32_t i = 0; i < rounds; i++) {
        numbers[i % 1024u] = (int8_t)clamp((int32_t)(i * 7u) - sum, -100, 100);
        if (i % 3u == 0) {
            sum += numbers[(i * 5u) % 1024u];
        } else if (i % 7u == 2) {
            sum -= clamp(sum, -5, 5);
        }
    }
    return sum;
}

uint32_t deep(uint32_t bytes) {
    volatile uint8_t local[bytes];
    local[0] = 1;
    local[bytes - 1u] = 2;
    return local[0] + local[bytes - 1u];
}

/* Executes exactly 6 + 13 * rounds instructions, whatever the conditions of its IT blocks say:
 * before the loop 3 (push, mov, mov.w), in the loop 13, after it 3 (mov, nop.w, pop). */
__attribute__((naked, noinline)) uint32_t counted(uint32_t rounds __attribute__((unused))) {
    __asm volatile(".syntax unified\n"
                   "push {r4, lr}\n"
                   "movs r1, #0\n"
                   "mov.w r4, #0\n"
                   "1:\n"
                   "tst r0, #1\n"
                   "ite eq\n"
                   "addeq r1, #1\n"
                   "addne r4, #1\n"
                   "cmp r0, #5\n"
                   "ittt lt\n"
                   "addlt.w r1, r1, #2\n"
                   "addlt r1, #1\n"
                   "addlt.w r4, r4, #1\n"
                   "nop.w\n"
                   "nop\n"
                   "subs r0, #1\n"
                   "bne 1b\n"
                   "mov r0, r1\n"
                   "nop.w\n"
                   "pop {r4, pc}\n");
}

/* Returns 4, which an IT block that didn't end where it ends would lower; the load in it is the first
 * look at the page of *place. */
__attribute__((naked, noinline)) uint32_t predicated(uint32_t place __attribute__((unused))) {
    __asm volatile(".syntax unified\n"
                   "movs r1, #0\n"
                   "cmp r1, #0\n"
                   "itee eq\n"
                   "ldreq r2, [r0]\n"
                   "movne r2, #0\n"
                   "movne r1, #9\n"
                   "b 1f\n"
                   "nop\n"
                   "1:\n"
                   "adds r1, #1\n"
                   "adds r1, #1\n"
                   "adds r1, #1\n"
                   "adds r1, #1\n"
                   "mov r0, r1\n"
                   "bx lr\n");
}

uint32_t undefined(void) {
    __asm volatile("udf #0");
    return 0;
}

static void run(void) {
    uint32_t from = 0;
    RCC_AHB1ENR |= 1u << 1 | 1u << 22;
    REG(0x40020400u) = 1u << (2u * DTR_PIN); /* output */
    USART_BRR = 139u;                        /* 115,108 baud at 16 MHz */
    USART_CR1 = USART_ENABLE;
    USART_CR3 = 1u << 6 | 1u << 7;
    STREAM(2, 2) = USART_RX_DATA;
    STREAM(2, 3) = (uint32_t)(uintptr_t)ring;
    STREAM(2, 1) = RING_BYTES;
    STREAM(2, 0) = 4u << 25 | 1u << 10 | 1u << 8 | 3u << 3 | 1u;
    NVIC_WORD_1(0) = RECEPTION;
    REG(0x40000028u) = 16000u - 1u; /* milliseconds */
    REG(0x40000014u) = 1u;
    REG(0x40000000u) = 1u;
    REG(0x40012008u) = 1u;
    GPIOB_BSRR = 1u << DTR_PIN;
    for (;;) {
        looks++;
        milliseconds = REG(0x40000024u);
        REG(0x40012008u) = 1u << 30 | 1u;
        battery = REG(0x4001204Cu);
        entropy = REG(0x50060808u);
        echo(&from);
        if (command == 1u) {
            GPIOB_BSRR = 0x10000u << DTR_PIN;
        } else if (command == 2u) {
            REG(0xE000ED0Cu) = 0x05FA0004u;
        }
        __asm volatile("wfi");
        REG(0xE000ED04u) = 1u << 25;
        USART_CLEAR_IDLE;
        REG(DMA2 + 0x08u) = 0x3Du << 16;
        NVIC_WORD_1(0x180u) = RECEPTION;
    }
}

__attribute__((noinline, used)) static void on_fault(uint32_t frame) {
    fault_frame = frame;
    exception = REG(0xE000ED04u) & 0x1FFu;
    if (command == 3u) {
        REG(0x30000000u) = 1; /* once more */
    }
    for (;;) {
        __asm volatile("wfi");
    }
}

__attribute__((naked)) void hard_fault(void) {
    __asm volatile("mrs r0, msp\n\tldr r1, =_stack_top\n\tmsr msp, r1\n\tb on_fault\n\t.ltorg");
}

void reset_handler(void) {
    __asm volatile("cpsid i");
    volatile uint32_t *to = _sdata;
    for (const uint32_t *from = _sidata; to < _edata;) {
        *to++ = *from++;
    }
    for (to = _sbss; to < _ebss;) {
        *to++ = 0;
    }
    run();
}
