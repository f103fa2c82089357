/* A plugin of QEMU's that counts what the core executes: for each piece of code that QEMU has
 * translated, where it begins, how many instructions it has, and how often it was begun.
 *
 * Loaded with counts=FILE, which is mapped and shared with who wants to know. The declarations are
 * those of QEMU's plugin interface, version 1 (qemu-plugin.h), whose functions the program exports. */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_info_t;

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                                  void (*translated)(qemu_plugin_id_t id,
                                                                     struct qemu_plugin_tb *tb));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb,
                                                 void (*executed)(unsigned vcpu, void *context),
                                                 int registers, void *context);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);

#define ARGUMENT "counts="
#define NO_REGISTERS 0

typedef struct {
    uint32_t address, instructions;
    uint64_t executions;
} block;

/* What the file is. */
typedef struct {
    uint64_t used; /* of the blocks; more than there are where they don't suffice */
    uint64_t unused;
    block blocks[];
} block_counts;

__attribute__((visibility("default"))) int qemu_plugin_version = 1;
__attribute__((visibility("default"))) int
qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int count, char **values);

static block_counts *counts;
static uint64_t most;

static void executed(unsigned vcpu, void *context) {
    (void)vcpu;
    ((block *)context)->executions++;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    (void)id;
    const uint64_t at = counts->used++;
    if (at < most) {
        counts->blocks[at].address = (uint32_t)qemu_plugin_tb_vaddr(tb);
        counts->blocks[at].instructions = (uint32_t)qemu_plugin_tb_n_insns(tb);
        qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, NO_REGISTERS, &counts->blocks[at]);
    }
}

int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int count,
                        char **values) {
    (void)info;
    if (count != 1 || strncmp(values[0], ARGUMENT, strlen(ARGUMENT)) != 0) {
        return -1;
    }
    const int file = open(values[0] + strlen(ARGUMENT), O_RDWR);
    struct stat about;
    if (file < 0 || fstat(file, &about) != 0) {
        return -1;
    }
    void *mapped = mmap(NULL, (size_t)about.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    (void)close(file);
    if (mapped == MAP_FAILED) {
        return -1;
    }
    counts = mapped;
    most = ((uint64_t)about.st_size - sizeof *counts) / sizeof(block);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
