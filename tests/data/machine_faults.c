/* Makes the calls of a process fail that write to its files, as a disk does that is full or broken, and tells
 * it how much memory there is. Loaded before the C library (LD_PRELOAD). The environment variable DISK_FAULTS names a file; while that is there,
 * it says which calls fail: `KIND ERRNO PART TIMES`.
 *
 * KIND is write, sync or lock. PART is a part of the path of the files whose calls fail. TIMES is `once`,
 * and the file is removed by the call that fails, or `always`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(type, name, ...)                                                  \
    static type (*real)(__VA_ARGS__);                                          \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* The error with which this call fails; zero when it does not. */
static int fault(const char *kind, int fd) {
    const char *rules = getenv("DISK_FAULTS");
    char text[256] = {0}, wanted[16], part[128], times[16], link[64], path[1024];
    int error;
    if (!rules || access(rules, F_OK)) return 0;
    FILE *file = fopen(rules, "r");
    if (!file) return 0;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    if (!length || sscanf(text, "%15s %d %127s %15s", wanted, &error, part, times) != 4) return 0;
    if (strcmp(wanted, kind)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t read = readlink(link, path, sizeof path - 1);
    if (read < 0) return 0;
    path[read] = 0;
    if (!strstr(path, part)) return 0;
    /* One call alone removes the file. */
    if (!strcmp(times, "once") && unlink(rules)) return 0;
    return error;
}

#define FAIL_AS(kind, fd)                                                      \
    int error = fault(kind, fd);                                               \
    if (error) {                                                               \
        errno = error;                                                         \
        return -1;                                                             \
    }

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    FAIL_AS("write", fd);
    return real(fd, bytes, count, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    return pwrite64(fd, bytes, count, at);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    REAL(ssize_t, "write", int, const void *, size_t);
    FAIL_AS("write", fd);
    return real(fd, bytes, count);
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    FAIL_AS("sync", fd);
    return real(fd);
}

int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    FAIL_AS("sync", fd);
    return real(fd);
}

/* The environment variable MEMINFO names a file that is read in the place of /proc/meminfo. */
static const char *place_of(const char *path) {
    const char *memory = getenv("MEMINFO");
    return memory && !strcmp(path, "/proc/meminfo") ? memory : path;
}

int open64(const char *path, int flags, ...) {
    REAL(int, "open64", const char *, int, ...);
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return real(place_of(path), flags, mode);
}

static int control(int fd, int command, void *argument) {
    REAL(int, "fcntl64", int, int, ...);
    if (command == F_SETLK || command == F_SETLK64) {
        FAIL_AS("lock", fd);
    }
    return real(fd, command, argument);
}

int fcntl(int fd, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return control(fd, command, argument);
}

int fcntl64(int fd, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return control(fd, command, argument);
}
