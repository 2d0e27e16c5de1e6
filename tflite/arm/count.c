/* A plugin for qemu-user: how often each block of instructions runs between the guest's marks 0 and 1.
 *
 * qemu-aarch64 -plugin libcount.so,histogram=FILE ... writes a line "address instructions" for each block. The guest
 * marks a point with getpriority(77, mark), a system call that answers EINVAL and does nothing.
 *
 * Debian's qemu brings no header for plugins; these are the declarations of include/qemu/qemu-plugin.h (7.2, API 1).
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t,
                                                  void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
typedef void syscall_callback(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                              uint64_t, uint64_t, uint64_t);
extern void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_callback *);

int qemu_plugin_version = 1;

enum { GETPRIORITY = 141, MARK = 77, BITS = 20, BLOCKS = 1 << BITS, INLINE_ADD = 0 };
static struct { uint64_t address, instructions; } *blocks;
static const char *histogram;

static uint64_t *counter(uint64_t address)
{
    uint64_t hash = (address >> 2) * UINT64_C(0x9E3779B97F4A7C15) >> (64 - BITS);
    while (blocks[hash].address && blocks[hash].address != address)
        hash = (hash + 1) % BLOCKS;
    blocks[hash].address = address;
    return &blocks[hash].instructions;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD, counter(qemu_plugin_tb_vaddr(block)),
                                             qemu_plugin_tb_n_insns(block));
}

static void called(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t which, uint64_t mark, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    if (number != GETPRIORITY || (int)which != MARK)
        return;
    if (mark == 0) {
        for (size_t i = 0; i < BLOCKS; i++)
            blocks[i].instructions = 0;
        return;
    }
    FILE *file = fopen(histogram, "w");
    if (!file)
        abort();
    for (size_t i = 0; i < BLOCKS; i++)
        if (blocks[i].instructions)
            fprintf(file, "%" PRIx64 " %" PRIu64 "\n", blocks[i].address, blocks[i].instructions);
    fclose(file);
}

int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "histogram=", 10))
            histogram = strdup(argv[i] + 10);
    blocks = calloc(BLOCKS, sizeof *blocks);
    if (!histogram || !blocks)
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
