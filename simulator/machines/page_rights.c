/* What the pages of an emulated core may be used for: Unicorn asks for each that its cache of
 * translations (TLB) doesn't hold. Addresses are physical ones.
 *
 * Unicorn 2.1 stores without a detour only to pages that can't hold code, while its own answer for
 * a core of Armv7-M is that SRAM can: each store then looks for translated code in its page. */
#include <stdbool.h>
#include <stdint.h>

enum { READ = 1, WRITE = 2, EXECUTE = 4 };

typedef struct {
    uint64_t address;
    int rights;
} page; /* uc_tlb_entry */

typedef struct {
    uint64_t first, end;
} range;

bool page_rights_fill(void *emulator, uint64_t address, int access, page *found, void *context);

/* Armv7-M reference manual, B3.1: peripherals and devices can't be executed. Nor can the end of the
 * address space, but nothing is mapped there, and Unicorn wants to look where emulation ends. */
static bool holds_peripherals(uint64_t address) {
    const unsigned sixteenth = (unsigned)(address >> 28);
    return sixteenth == 4 || sixteenth == 5 || (sixteenth >= 10 && sixteenth < 15);
}

/* Whether the memory allows what is asked for is Unicorn's to find out, and to call hooks for. */
bool page_rights_fill(void *emulator, uint64_t address, int access, page *found, void *context) {
    const range *data = context;
    const bool is_data = address >= data->first && address < data->end;
    (void)emulator;
    (void)access;
    found->address = address;
    found->rights = is_data || holds_peripherals(address) ? READ | WRITE : READ | WRITE | EXECUTE;
    return true;
}
