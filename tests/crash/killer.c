/* Preloaded into a daemon: counts its calls that change files below given directories, writes each
to a trace, and kills the process just before a chosen one.

CRASH_BELOW  directories, with a colon between two: only what is below them counts
CRASH_TRACE  each call as a line: number, function, path (the new one, of two)
CRASH_ON     kill before a call whose "function path" this pattern matches (of a shell's kind)
CRASH_NTH    before which of those (1: the first)
CRASH_TERM   send SIGTERM before the call with this number

A kill after a call is a kill before the next: nothing else that can be seen lies between. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>
#include <utime.h>

static const char *below, *on;
static long nth, term_at;
static int trace = -1;
static atomic_long count, matches;

/* Read the environment anew: a process that was forked says by it what it wants. */
__attribute__((constructor)) void crash_arm(void)
{
    const char *n = getenv("CRASH_NTH"), *term = getenv("CRASH_TERM");
    const char *path = getenv("CRASH_TRACE");
    below = getenv("CRASH_BELOW");
    on = getenv("CRASH_ON");
    nth = n ? atol(n) : 1;
    term_at = term ? atol(term) : 0;
    count = matches = 0;
    trace = path ? syscall(SYS_openat, AT_FDCWD, path,
                           O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
}

static int is_below(const char *path)
{
    for (const char *p = below, *end; *p; p = *end ? end + 1 : end) {
        end = strchrnul(p, ':');
        size_t length = end - p;
        if (!strncmp(path, p, length) && (path[length] == '/' || !path[length]))
            return 1;
    }
    return 0;
}

static void whole_path(char *out, int fd, const char *path)
{
    char name[64], base[PATH_MAX] = "";
    if (path && *path == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    if (fd == AT_FDCWD)
        snprintf(name, sizeof name, "/proc/self/cwd");
    else
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, base, sizeof base - 1);
    base[length > 0 ? length : 0] = 0;
    if (path)
        snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, path);
    else
        snprintf(out, PATH_MAX, "%s", base);
}

/* Called before each: by name (path), or by descriptor (path is null). */
static void before(const char *function, int fd, const char *path)
{
    char whole[PATH_MAX], line[PATH_MAX + 128];
    int kept = errno;
    if (trace < 0 || !below)
        return;
    whole_path(whole, fd, path);
    if (is_below(whole)) {
        long number = atomic_fetch_add(&count, 1) + 1;
        int head = snprintf(line, sizeof line, "%ld ", number);
        int length = head + snprintf(line + head, sizeof line - head, "%s %s\n", function, whole);
        if (syscall(SYS_write, trace, line, (size_t)length) != length)
            abort();
        if (number == term_at)
            kill(getpid(), SIGTERM);
        line[length - 1] = 0;
        if (on && !fnmatch(on, line + head, FNM_PATHNAME) && atomic_fetch_add(&matches, 1) + 1 == nth) {
            syscall(SYS_write, trace, "killed\n", 7L);
            kill(getpid(), SIGKILL);
        }
    }
    errno = kept;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(name, fd, path, types, values)           \
    int name types                                    \
    {                                                 \
        static __typeof__(&name) real;                \
        before(#name, fd, path);                      \
        if (!real)                                     \
            real = REAL(name);                         \
        return real values;                            \
    }
#define WRITE(name, types, values)                    \
    ssize_t name types                                \
    {                                                 \
        static __typeof__(&name) real;                \
        before(#name, fd, NULL);                      \
        if (!real)                                     \
            real = REAL(name);                         \
        return real values;                            \
    }
#define OPEN(name, types, fd, ...)                              \
    int name types                                              \
    {                                                           \
        static __typeof__(&name) real;                          \
        mode_t mode = 0;                                        \
        if (flags & (O_CREAT | __O_TMPFILE)) {                  \
            va_list rest;                                       \
            va_start(rest, flags);                              \
            mode = va_arg(rest, mode_t);                        \
            va_end(rest);                                       \
        }                                                       \
        if (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))    \
            before("open", fd, path);                           \
        if (!real)                                              \
            real = REAL(name);                                  \
        return real(__VA_ARGS__, flags, mode);                  \
    }

OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(openat, (int fd, const char *path, int flags, ...), fd, fd, path)
OPEN(openat64, (int fd, const char *path, int flags, ...), fd, fd, path)

WRITE(write, (int fd, const void *data, size_t n), (fd, data, n))
WRITE(pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at))
WRITE(pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at))
WRITE(writev, (int fd, const struct iovec *v, int n), (fd, v, n))
WRITE(pwritev, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at))
WRITE(pwritev64, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at))
WRITE(pwritev2, (int fd, const struct iovec *v, int n, off_t at, int f), (fd, v, n, at, f))
WRITE(pwritev64v2, (int fd, const struct iovec *v, int n, off64_t at, int f), (fd, v, n, at, f))
WRITE(copy_file_range, (int from, off64_t *a, int fd, off64_t *b, size_t n, unsigned f),
      (from, a, fd, b, n, f))
WRITE(sendfile, (int fd, int from, off_t *at, size_t n), (fd, from, at, n))

CALL(rename, AT_FDCWD, to, (const char *from, const char *to), (from, to))
CALL(renameat, tofd, to, (int fd, const char *from, int tofd, const char *to), (fd, from, tofd, to))
CALL(renameat2, tofd, to, (int fd, const char *from, int tofd, const char *to, unsigned f),
     (fd, from, tofd, to, f))
CALL(link, AT_FDCWD, to, (const char *from, const char *to), (from, to))
CALL(linkat, tofd, to, (int fd, const char *from, int tofd, const char *to, int f),
     (fd, from, tofd, to, f))
CALL(symlink, AT_FDCWD, to, (const char *from, const char *to), (from, to))
CALL(symlinkat, fd, to, (const char *from, int fd, const char *to), (from, fd, to))
CALL(unlink, AT_FDCWD, path, (const char *path), (path))
CALL(unlinkat, fd, path, (int fd, const char *path, int f), (fd, path, f))
CALL(remove, AT_FDCWD, path, (const char *path), (path))
CALL(rmdir, AT_FDCWD, path, (const char *path), (path))
CALL(mkdir, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
CALL(mkdirat, fd, path, (int fd, const char *path, mode_t mode), (fd, path, mode))
CALL(mkfifo, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
CALL(mknod, AT_FDCWD, path, (const char *path, mode_t mode, dev_t dev), (path, mode, dev))
CALL(truncate, AT_FDCWD, path, (const char *path, off_t n), (path, n))
CALL(truncate64, AT_FDCWD, path, (const char *path, off64_t n), (path, n))
CALL(ftruncate, fd, NULL, (int fd, off_t n), (fd, n))
CALL(ftruncate64, fd, NULL, (int fd, off64_t n), (fd, n))
CALL(fallocate, fd, NULL, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n))
CALL(fallocate64, fd, NULL, (int fd, int mode, off64_t at, off64_t n), (fd, mode, at, n))
CALL(posix_fallocate, fd, NULL, (int fd, off_t at, off_t n), (fd, at, n))
CALL(posix_fallocate64, fd, NULL, (int fd, off64_t at, off64_t n), (fd, at, n))
CALL(fsync, fd, NULL, (int fd), (fd))
CALL(fdatasync, fd, NULL, (int fd), (fd))
CALL(chmod, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
CALL(fchmod, fd, NULL, (int fd, mode_t mode), (fd, mode))
CALL(fchmodat, fd, path, (int fd, const char *path, mode_t mode, int f), (fd, path, mode, f))
CALL(chown, AT_FDCWD, path, (const char *path, uid_t u, gid_t g), (path, u, g))
CALL(lchown, AT_FDCWD, path, (const char *path, uid_t u, gid_t g), (path, u, g))
CALL(fchown, fd, NULL, (int fd, uid_t u, gid_t g), (fd, u, g))
CALL(fchownat, fd, path, (int fd, const char *path, uid_t u, gid_t g, int f), (fd, path, u, g, f))
CALL(utime, AT_FDCWD, path, (const char *path, const struct utimbuf *t), (path, t))
CALL(utimes, AT_FDCWD, path, (const char *path, const struct timeval t[2]), (path, t))
CALL(lutimes, AT_FDCWD, path, (const char *path, const struct timeval t[2]), (path, t))
CALL(utimensat, fd, path, (int fd, const char *path, const struct timespec t[2], int f),
     (fd, path, t, f))
CALL(futimens, fd, NULL, (int fd, const struct timespec t[2]), (fd, t))
