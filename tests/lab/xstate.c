/* Preloaded into User Mode Linux, so that Debian 12's runs on a CPU with AMX.

It saves at most 2,696 bytes of a guest process's registers, and the host takes them back only
whole (EFAULT where the CPU has more). What it does not know of is the state of tiles: no guest
uses them, so they are put back as the host shows them, marked as never used. */
#define _GNU_SOURCE
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define GETREGSET 0x4204
#define SETREGSET 0x4205
#define HEADER 512
#define TILES (3UL << 17)

static long call(long request, long pid, void *addr, void *data)
{
    return syscall(SYS_ptrace, request, pid, addr, data);
}

long ptrace(int request, ...)
{
    va_list args;
    va_start(args, request);
    long pid = va_arg(args, int);
    void *addr = va_arg(args, void *), *data = va_arg(args, void *);
    va_end(args);
    if (request >= 1 && request <= 3) { /* PEEK*: the C library returns the word itself */
        long word, failed = call(request, pid, addr, &word);
        return failed ? failed : word;
    }
    if (request != SETREGSET || (unsigned long)addr != NT_X86_XSTATE)
        return call(request, pid, addr, data);
    static char whole[1 << 16];
    struct iovec *part = data, all = {whole, sizeof whole};
    long failed = call(GETREGSET, pid, addr, &all);
    if (failed || part->iov_len >= all.iov_len)
        return failed ? failed : call(SETREGSET, pid, addr, part);
    memcpy(whole, part->iov_base, part->iov_len);
    *(unsigned long *)(whole + HEADER) &= ~TILES;
    return call(SETREGSET, pid, addr, &all);
}
