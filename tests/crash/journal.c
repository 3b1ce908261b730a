/* Preloaded behind killer.c: writes down what a daemon did to names and data, so that what it has
not synced can be taken back (loss.py), as a power loss takes it back.

JOURNAL_BELOW  a directory: what is below it counts
JOURNAL_FILE   each call that succeeded as a line: function, inode, size, path, the other path, and
               where the file is kept whose name was removed or replaced (tabs between; - for none)
JOURNAL_KEEP   the directory they are kept in, on the same filesystem */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static const char *below, *keep;
static int journal = -1;
static atomic_long kept;

/* Read the environment anew: a process that was forked says by it what it wants. */
void journal_arm(void)
{
    const char *path = getenv("JOURNAL_FILE");
    below = getenv("JOURNAL_BELOW"), keep = getenv("JOURNAL_KEEP");
    int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
    journal = path && below && keep ? syscall(SYS_openat, AT_FDCWD, path, flags, 0644) : -1;
}

/* The whole path of a name below a directory's descriptor, or of a descriptor (path: null). */
static void whole_path(char *out, int fd, const char *path)
{
    char name[64], base[PATH_MAX] = "";
    if (path && *path == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    snprintf(name, sizeof name, fd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, base, sizeof base - 1);
    base[length > 0 ? length : 0] = 0;
    snprintf(out, PATH_MAX, path ? "%.2000s/%.2000s" : "%.4000s", base, path);
}

static int counts(char *whole, int fd, const char *path)
{
    if (journal < 0)
        return 0;
    whole_path(whole, fd, path);
    return !strncmp(whole, below, strlen(below));
}

/* Keep the file of a name that is about to go; say where ("-": there is none to keep). */
static void save(char *where, int fd, const char *path)
{
    char whole[PATH_MAX];
    int before = errno;
    strcpy(where, "-");
    if (counts(whole, fd, path)) {
        snprintf(where, PATH_MAX, "%.2000s/%ld", keep, atomic_fetch_add(&kept, 1));
        if (syscall(SYS_linkat, AT_FDCWD, whole, AT_FDCWD, where, 0))
            strcpy(where, "-");
    }
    errno = before;
}

static void note(const char *function, int fd, const char *path, const char *other, const char *where)
{
    char whole[PATH_MAX], line[3 * PATH_MAX];
    struct stat there = {0};
    int before = errno;
    if (counts(whole, fd, path)) {
        fstatat(AT_FDCWD, whole, &there, AT_SYMLINK_NOFOLLOW);
        if (!path)
            fstat(fd, &there);
        int n = snprintf(line, sizeof line, "%s\t%lu\t%ld\t%s\t%s\t%s\n", function, there.st_ino,
                         (long)there.st_size, whole, other, where);
        if (syscall(SYS_write, journal, line, (size_t)n) != n)
            abort();
    }
    errno = before;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int moved(int outcome, int fd, const char *from, int tofd, const char *to, const char *where)
{
    char other[PATH_MAX];
    if (!outcome && counts(other, fd, from))
        note("rename", tofd, to, other, where);
    return outcome;
}

int rename(const char *from, const char *to)
{
    char where[PATH_MAX];
    save(where, AT_FDCWD, to);
    return moved(REAL(rename)(from, to), AT_FDCWD, from, AT_FDCWD, to, where);
}

int renameat(int fd, const char *from, int tofd, const char *to)
{
    char where[PATH_MAX];
    save(where, tofd, to);
    return moved(REAL(renameat)(fd, from, tofd, to), fd, from, tofd, to, where);
}

static int done(const char *function, int outcome, int fd, const char *path)
{
    if (!outcome)
        note(function, fd, path, "-", "-");
    return outcome;
}

#define CALL(name, as, fd, path, types, values) \
    int name types { return done(as, REAL(name) values, fd, path); }
CALL(link, "link", AT_FDCWD, to, (const char *from, const char *to), (from, to))
CALL(linkat, "link", tofd, to, (int fd, const char *from, int tofd, const char *to, int f),
     (fd, from, tofd, to, f))
CALL(mkdir, "mkdir", AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
CALL(mkdirat, "mkdir", fd, path, (int fd, const char *path, mode_t mode), (fd, path, mode))
CALL(rmdir, "rmdir", AT_FDCWD, path, (const char *path), (path))
CALL(fsync, "fsync", fd, NULL, (int fd), (fd))
CALL(ftruncate64, "write", fd, NULL, (int fd, off64_t n), (fd, n))

static int unlinked(int fd, const char *path, int flags)
{
    char where[PATH_MAX];
    if (flags & AT_REMOVEDIR)
        return done("rmdir", REAL(unlinkat)(fd, path, flags), fd, path);
    save(where, fd, path);
    int outcome = REAL(unlinkat)(fd, path, flags);
    if (!outcome)
        note("unlink", fd, path, "-", where);
    return outcome;
}

int unlink(const char *path) { return unlinked(AT_FDCWD, path, 0); }
int unlinkat(int fd, const char *path, int flags) { return unlinked(fd, path, flags); }

static ssize_t written(ssize_t n, int fd)
{
    if (n > 0)
        note("write", fd, NULL, "-", "-");
    return n;
}

ssize_t write(int fd, const void *data, size_t n) { return written(REAL(write)(fd, data, n), fd); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at)
{
    return written(REAL(pwrite64)(fd, data, n, at), fd);
}

static int opened(int file, int flags, int fd, const char *path)
{
    if (file >= 0 && flags & O_CREAT)
        note("create", fd, path, "-", "-");
    return file;
}

#define OPEN(name, types, fd, ...)                                  \
    int name types                                                  \
    {                                                               \
        mode_t mode = 0;                                            \
        if (flags & O_CREAT) {                                      \
            va_list rest;                                           \
            va_start(rest, flags);                                  \
            mode = va_arg(rest, mode_t);                            \
            va_end(rest);                                           \
        }                                                           \
        return opened(REAL(name)(__VA_ARGS__, flags, mode), flags, fd, path); \
    }
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(openat64, (int fd, const char *path, int flags, ...), fd, fd, path)
