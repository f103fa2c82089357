/* Where things lie, as the linker script says. */
#include "../board.h"

/* Addresses from the linker script; what stands for a number is the address of its symbol. */
extern char __identity_start[], __identity_bytes[], __identity_sector[], __identity_sector_count[];
extern char __journal_start[], __journal_bytes[], __journal_sector[], __journal_sector_count[];
extern char __slot_a_start[], __slot_a_bytes[], __slot_a_sector[], __slot_a_sector_count[];
extern char __slot_b_start[], __slot_b_bytes[], __slot_b_sector[], __slot_b_sector_count[];
extern char __samples_start[], __samples_bytes[], __samples_sector[], __samples_sector_count[];
extern char __samples_units[], __samples_keep[];
extern char __personal_start[], __personal_bytes[], __personal_sector[], __personal_sector_count[];
extern uint8_t __pool_start[], __pool_end[];

#define NUMBER(symbol) ((uint32_t)(uintptr_t)(symbol))
#define REGION(name)                                                                          \
    {NUMBER(__##name##_start), NUMBER(__##name##_bytes), (uint16_t)NUMBER(__##name##_sector), \
     (uint16_t)NUMBER(__##name##_sector_count)}

tf_board_layout tf_board_get_layout(void) {
    const tf_board_layout layout = {
        .regions =
            {
                .identity = REGION(identity),
                .journal = REGION(journal),
                .slots = {REGION(slot_a), REGION(slot_b)},
                .samples = {REGION(samples), (uint16_t)NUMBER(__samples_units),
                            (uint8_t)NUMBER(__samples_keep)},
                .personal = REGION(personal),
            },
        .pool = __pool_start,
        .pool_bytes = NUMBER(__pool_end) - NUMBER(__pool_start),
    };
    return layout;
}
