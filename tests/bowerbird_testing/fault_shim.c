/* What a disk and a clock may do to a process, by LD_PRELOAD: a shim in Python would not see the writes of SQLite.
 *
 * In: a folder to watch (FAULT_ROOT), a folder beside it for what has become durable (FAULT_SHADOW), the number of the change before
 * which the power goes (FAULT_AT, 0 for never), and a file of 16 bytes that is mapped (FAULT_CONTROL): seconds by which the wall clock is
 * wrong (int64), and the errno with which every change below the folder fails (int32, 0 for none). `fault_arm` does the same as the
 * first three for a process that was forked.
 *
 * Out: in the shadow, `i<inode>` holds a file's content as of its last fsync, `d<inode>` a folder's names as of its last fsync, one a
 * line: `<inode> <f|d> <name>`. What existed when the shim was armed counts as durable. Inodes are kept alive by hard links, so that a
 * number never means another file. `power_cut.py` makes from this what a disk could hold after the cut. Nothing is really flushed.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct control {
    int64_t clock_offset_s;
    int32_t error;
    int32_t unused;
};

static char root[PATH_MAX], shadow[PATH_MAX];
static size_t root_length;
static long changes, cut_at, graves;
static const volatile struct control *control;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int inside; /* our own calls are not watched */

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    return dlsym(RTLD_NEXT, name);
}

static int is_below(const char *path) {
    return root_length && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    char *deleted = strstr(path, " (deleted)");
    if (deleted) *deleted = 0;
    return is_below(path);
}

static int full_path(const char *given, char *path) {
    if (given[0] == '/') {
        snprintf(path, PATH_MAX, "%s", given);
    } else {
        if (!getcwd(path, PATH_MAX)) return 0;
        size_t length = strlen(path);
        snprintf(path + length, PATH_MAX - length, "/%s", given);
    }
    return is_below(path);
}

static void keep_content(const char *path) {
    struct stat facts;
    char target[PATH_MAX + 64], buffer[65536];
    int source = REAL(open)(path, O_RDONLY);
    if (source < 0) return;
    if (fstat(source, &facts) == 0) {
        snprintf(target, sizeof target, "%s/i%lu", shadow, (unsigned long)facts.st_ino);
        int out = REAL(open)(target, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        ssize_t got;
        while (out >= 0 && (got = read(source, buffer, sizeof buffer)) > 0) REAL(write)(out, buffer, got);
        if (out >= 0) close(out);
    }
    close(source);
}

static void keep_names(const char *path, int deep) {
    struct stat facts;
    char target[PATH_MAX + 64], below[PATH_MAX + 300];
    if (stat(path, &facts) != 0) return;
    snprintf(target, sizeof target, "%s/d%lu", shadow, (unsigned long)facts.st_ino);
    FILE *out = fopen(target, "w");
    DIR *folder = opendir(path);
    struct dirent *entry;
    while (out && folder && (entry = readdir(folder))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        snprintf(below, sizeof below, "%s/%s", path, entry->d_name);
        if (lstat(below, &facts) != 0) continue;
        fprintf(out, "%lu %c %s\n", (unsigned long)facts.st_ino, S_ISDIR(facts.st_mode) ? 'd' : 'f', entry->d_name);
        if (deep && S_ISDIR(facts.st_mode)) keep_names(below, 1);
        else if (deep) keep_content(below);
    }
    if (folder) closedir(folder);
    if (out) fclose(out);
}

void fault_arm(const char *folder, const char *beside, long at) {
    inside = 1;
    snprintf(root, sizeof root, "%s", folder);
    snprintf(shadow, sizeof shadow, "%s", beside);
    root_length = strlen(root);
    changes = 0;
    cut_at = at;
    keep_names(root, 1);
    inside = 0;
}

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("FAULT_ROOT"), *beside = getenv("FAULT_SHADOW"), *at = getenv("FAULT_AT");
    const char *file = getenv("FAULT_CONTROL");
    if (file) {
        int fd = REAL(open)(file, O_RDONLY);
        void *map = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(struct control), PROT_READ, MAP_SHARED, fd, 0);
        if (map != MAP_FAILED) control = map;
        if (fd >= 0) close(fd);
    }
    if (folder && beside) fault_arm(folder, beside, at ? atol(at) : 0);
}

/* Called before a change below the root, with the lock held. Returns the errno with which it must fail, 0 to go on. */
static int change(void) {
    changes++;
    if (cut_at && changes == cut_at) {
        kill(getpid(), SIGKILL);
        pause();
    }
    return control ? control->error : 0;
}

/* A file that is about to lose its last name keeps its inode. */
static void bury(const char *path) {
    char grave[PATH_MAX + 64];
    snprintf(grave, sizeof grave, "%s/grave%ld", shadow, graves++);
    if (link(path, grave) != 0) errno = 0;
}

#define WATCHED(is_ours, before, fail, call)      \
    if (inside || !root_length) return call;      \
    {                                             \
        char path[PATH_MAX];                      \
        if (!(is_ours)) return call;              \
        pthread_mutex_lock(&lock);                \
        inside = 1;                               \
        int error = change();                     \
        __typeof__(call) result = fail;           \
        if (!error) {                             \
            before;                               \
            result = call;                        \
        }                                         \
        int after = error ? error : errno;        \
        inside = 0;                               \
        pthread_mutex_unlock(&lock);              \
        errno = after;                            \
        return result;                            \
    }

ssize_t write(int fd, const void *data, size_t size) {
    WATCHED(path_of(fd, path), (void)0, -1, REAL(write)(fd, data, size))
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    WATCHED(path_of(fd, path), (void)0, -1, REAL(pwrite)(fd, data, size, at))
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    WATCHED(path_of(fd, path), (void)0, -1, REAL(pwrite64)(fd, data, size, at))
}

int ftruncate(int fd, off_t size) {
    WATCHED(path_of(fd, path), (void)0, -1, REAL(ftruncate)(fd, size))
}

int ftruncate64(int fd, off64_t size) {
    WATCHED(path_of(fd, path), (void)0, -1, REAL(ftruncate64)(fd, size))
}

int posix_fallocate(int fd, off_t at, off_t size) {
    WATCHED(path_of(fd, path), (void)0, error, REAL(posix_fallocate)(fd, at, size))
}

int posix_fallocate64(int fd, off64_t at, off64_t size) {
    WATCHED(path_of(fd, path), (void)0, error, REAL(posix_fallocate64)(fd, at, size))
}

int mkdir(const char *name, mode_t mode) {
    WATCHED(full_path(name, path), (void)0, -1, REAL(mkdir)(name, mode))
}

int unlink(const char *name) {
    WATCHED(full_path(name, path), bury(path), -1, REAL(unlink)(name))
}

int rename(const char *from, const char *to) {
    WATCHED(full_path(to, path), bury(path), -1, REAL(rename)(from, to))
}

#define OPENED(call)                                                                   \
    mode_t mode = 0;                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                               \
        va_list rest;                                                                  \
        va_start(rest, flags);                                                         \
        mode = va_arg(rest, mode_t);                                                   \
        va_end(rest);                                                                  \
    }                                                                                  \
    if (!(flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))) return call;               \
    WATCHED(full_path(name, path), (void)0, -1, call)

int open(const char *name, int flags, ...) {
    OPENED(REAL(open)(name, flags, mode))
}

int open64(const char *name, int flags, ...) {
    OPENED(REAL(open64)(name, flags, mode))
}

static int synced(int fd) {
    struct stat facts;
    char path[PATH_MAX];
    if (inside || !root_length || !path_of(fd, path)) return 0;
    pthread_mutex_lock(&lock);
    inside = 1;
    change();
    if (fstat(fd, &facts) == 0 && S_ISDIR(facts.st_mode)) keep_names(path, 0);
    else keep_content(path);
    inside = 0;
    pthread_mutex_unlock(&lock);
    return 1;
}

int fsync(int fd) {
    return synced(fd) ? 0 : REAL(fsync)(fd);
}

int fdatasync(int fd) {
    return synced(fd) ? 0 : REAL(fdatasync)(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME && control) now->tv_sec += control->clock_offset_s;
    return result;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = REAL(gettimeofday)(now, zone);
    if (result == 0 && control) now->tv_sec += control->clock_offset_s;
    return result;
}
