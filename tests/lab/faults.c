/* Preloaded into a daemon: makes chosen calls of a real process fail, as a sick filesystem does.

FAULT_RULES names a file of lines CALL PATH ERRNO EVERY, read again whenever it is replaced: every
EVERYth CALL fails that is at PATH or an entry of it (or anything below, where PATH ends in a star);
a rename or link is at both of its names. ERRNO 0 lets the call pass. Each call struck adds a line
CALL ERRNO PATH to the file FAULT_LOG. Its own system calls go past the C library, and past itself. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <dirent.h>
#include <unistd.h>

#define RULES 32
#define LONGEST 1024
struct rule { char call[16], path[LONGEST]; int err, every, seen, deep; };
static struct rule rules[RULES];
static int count, out = -1;
static struct timespec stamp;
static unsigned long long inode;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void load(void)
{
    static char text[RULES * LONGEST];
    const char *name = getenv("FAULT_RULES");
    struct stat now;
    if (!name || syscall(SYS_newfstatat, AT_FDCWD, name, &now, 0) != 0)
        return;
    if (inode == now.st_ino && !memcmp(&stamp, &now.st_mtim, sizeof stamp))
        return;
    int fd = syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC);
    long size = fd < 0 ? -1 : syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    if (size < 0)
        return;
    text[size] = 0, inode = now.st_ino, stamp = now.st_mtim, count = 0;
    for (char *save, *line = strtok_r(text, "\n", &save); line; line = strtok_r(0, "\n", &save)) {
        struct rule *r = &rules[count];
        if (count == RULES || sscanf(line, "%15s %1023s %d %d", r->call, r->path, &r->err, &r->every) != 4)
            continue;
        size_t end = strlen(r->path);
        r->seen = 0, r->deep = end && r->path[end - 1] == '*';
        if (r->deep)
            r->path[end - 1] = 0;
        count++;
    }
}

static int is_at(const struct rule *r, const char *path)
{
    size_t n = strlen(r->path);
    if (strncmp(path, r->path, n) || (path[n] && path[n] != '/'))
        return 0;
    return r->deep || !path[n] || !strchr(path + n + 1, '/');
}

static void note(const char *call, int err, const char *path)
{
    char line[LONGEST + 64];
    if (out < 0 && getenv("FAULT_LOG"))
        out = syscall(SYS_openat, AT_FDCWD, getenv("FAULT_LOG"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    int size = snprintf(line, sizeof line, "%s %d %s\n", call, err, path);
    syscall(SYS_write, out, line, size);
}

/* The path of a name below a directory's descriptor, or of a descriptor (name: null). */
static const char *resolve(int fd, const char *name, char *buffer)
{
    char link[64];
    if (name && (name[0] == '/' || fd == AT_FDCWD))
        return name;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, LONGEST - 1);
    buffer[n > 0 ? n : 0] = 0;
    if (name)
        strncat(strcat(buffer, "/"), name, LONGEST - strlen(buffer) - 2);
    return buffer;
}

static int strike(const char *call, int fd, const char *name, int fd2, const char *name2)
{
    int before = errno, err = 0;
    char one[2 * LONGEST], two[2 * LONGEST];
    pthread_mutex_lock(&lock);
    load();
    for (int i = 0; i < count && !err; i++) {
        struct rule *r = &rules[i];
        if (strcmp(r->call, "*") && strcmp(r->call, call))
            continue;
        const char *first = resolve(fd, name, one), *second = name2 ? resolve(fd2, name2, two) : first;
        const char *hit = is_at(r, first) ? first : is_at(r, second) ? second : 0;
        if (hit && ++r->seen % r->every == 0)
            note(call, err = r->err, hit);
    }
    pthread_mutex_unlock(&lock);
    errno = err ? err : before;
    return err;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define ONE(kind, name, args, pass, call, fd, path, bad) \
    kind name args { if (strike(call, fd, path, 0, 0)) return bad; REAL(name); return real pass; }
#define TWO(name, args, pass, call, fd, path, fd2, path2) \
    int name args { if (strike(call, fd, path, fd2, path2)) return -1; REAL(name); return real pass; }

TWO(rename, (const char *a, const char *b), (a, b), "rename", AT_FDCWD, a, AT_FDCWD, b)
TWO(renameat, (int d, const char *a, int e, const char *b), (d, a, e, b), "rename", d, a, e, b)
TWO(link, (const char *a, const char *b), (a, b), "link", AT_FDCWD, a, AT_FDCWD, b)
TWO(linkat, (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f), "link", d, a, e, b)
ONE(int, unlink, (const char *p), (p), "unlink", AT_FDCWD, p, -1)
ONE(int, unlinkat, (int d, const char *p, int f), (d, p, f), f & AT_REMOVEDIR ? "rmdir" : "unlink", d, p, -1)
ONE(int, rmdir, (const char *p), (p), "rmdir", AT_FDCWD, p, -1)
ONE(int, mkdir, (const char *p, mode_t m), (p, m), "mkdir", AT_FDCWD, p, -1)
ONE(int, chmod, (const char *p, mode_t m), (p, m), "chmod", AT_FDCWD, p, -1)
ONE(int, fchmod, (int d, mode_t m), (d, m), "chmod", d, 0, -1)
ONE(ssize_t, write, (int d, const void *b, size_t n), (d, b, n), "write", d, 0, -1)
ONE(ssize_t, pwrite64, (int d, const void *b, size_t n, off64_t o), (d, b, n, o), "write", d, 0, -1)
ONE(ssize_t, read, (int d, void *b, size_t n), (d, b, n), "read", d, 0, -1)
ONE(ssize_t, pread64, (int d, void *b, size_t n, off64_t o), (d, b, n, o), "read", d, 0, -1)
ONE(int, fsync, (int d), (d), "fsync", d, 0, -1)
ONE(int, ftruncate64, (int d, off64_t n), (d, n), "truncate", d, 0, -1)
ONE(int, utimensat, (int d, const char *p, const struct timespec t[2], int f), (d, p, t, f), "utime", d, p, -1)
ONE(DIR *, opendir, (const char *p), (p), "opendir", AT_FDCWD, p, 0)
ONE(DIR *, fdopendir, (int d), (d), "opendir", d, 0, 0)
ONE(int, stat64, (const char *p, struct stat64 *s), (p, s), "stat", AT_FDCWD, p, -1)
ONE(int, lstat64, (const char *p, struct stat64 *s), (p, s), "stat", AT_FDCWD, p, -1)
ONE(int, fstatat64, (int d, const char *p, struct stat64 *s, int f), (d, p, s, f), "stat", d, p, -1)
ONE(int, fstat64, (int d, struct stat64 *s), (d, s), "stat", d, 0, -1)
ONE(int, statvfs64, (const char *p, struct statvfs64 *s), (p, s), "statvfs", AT_FDCWD, p, -1)

static int mode_of(int flags, va_list more)
{
    return flags & O_CREAT ? va_arg(more, int) : 0;
}

int open64(const char *p, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    int mode = mode_of(flags, more);
    va_end(more);
    if (strike(flags & O_CREAT ? "create" : "open", AT_FDCWD, p, 0, 0))
        return -1;
    REAL(open64);
    return real(p, flags, mode);
}

int openat64(int d, const char *p, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    int mode = mode_of(flags, more);
    va_end(more);
    if (strike(flags & O_CREAT ? "create" : "open", d, p, 0, 0))
        return -1;
    REAL(openat64);
    return real(d, p, flags, mode);
}
