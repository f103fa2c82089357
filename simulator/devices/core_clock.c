/* Counts what an emulated core executes: Unicorn calls this at the start of each block of code.
 * In C, since a call of Python costs a hundred times what a block does. */
#include <stdint.h>

typedef struct {
    uint64_t clocks;             /* one per 16 bits of code */
    uint64_t limit;              /* no block starts at or after it */
    int (*stop)(void *emulator); /* uc_emu_stop */
    uint64_t is_stopped;         /* by the limit */
} core_clock;

void core_clock_count(void *emulator, uint64_t address, uint32_t bytes, void *context);

void core_clock_count(void *emulator, uint64_t address, uint32_t bytes, void *context) {
    core_clock *clock = *(core_clock **)context; /* of the device whose turn it is */
    (void)address;
    if (clock->clocks >= clock->limit) {
        clock->is_stopped = 1;
        clock->stop(emulator); /* in front of the block, which counts when it is executed */
        return;
    }
    clock->clocks += bytes / 2u;
}
