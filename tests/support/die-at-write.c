/* Writes down each call that writes below a directory (files and directories made, written, renamed, flushed,
 * removed), and kills the process at one of them. For LD_PRELOAD, on Linux:
 *
 *   DIE_BELOW   the directory, absolute; the files of the database are left out, its transactions are tested apart
 *   DIE_LIST    a file that gets a line "CALL PATH" for each call before it is made; PATH begins at the directory
 *   DIE_AT      a pattern of such a line, as of a shell; `*` also matches "/". The call is not made
 *   DIE_NTH     at which call of that pattern, counted from 1
 *
 * A rename made by a direct system call is not seen, but the calls before and after it are.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long made;

static int below(const char *path) {
  const char *dir = getenv("DIE_BELOW");
  size_t length = dir ? strlen(dir) : 0;
  return length && strncmp(path, dir, length) == 0 && !strstr(path, "/refit.db");
}

static void count(const char *call, const char *path) {
  const char *list = getenv("DIE_LIST"), *at = getenv("DIE_AT"), *nth = getenv("DIE_NTH");
  if (!below(path)) return;
  char line[PATH_MAX + 64];
  int length = snprintf(line, sizeof line, "%s %s\n", call, path + strlen(getenv("DIE_BELOW")));
  int file = list ? syscall(SYS_openat, AT_FDCWD, list, O_WRONLY | O_CREAT | O_APPEND, 0644) : -1;
  if (file >= 0) { syscall(SYS_write, file, line, length); syscall(SYS_close, file); }
  line[length - 1] = 0;
  if (!at || !nth || fnmatch(at, line, 0) != 0) return;
  if (__atomic_add_fetch(&made, 1, __ATOMIC_SEQ_CST) == atol(nth)) syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
}

static void by_fd(const char *call, int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
  if (length > 0 && path[0] == '/') { path[length] = 0; count(call, path); }
}

static void by_path(const char *call, int dir, const char *name) {
  char link[64], path[2 * PATH_MAX];
  if (!name) return;
  if (name[0] == '/') { count(call, name); return; }
  if (dir == AT_FDCWD) strcpy(link, "/proc/self/cwd");
  else snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
  long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
  if (length <= 0) return;
  snprintf(path + length, sizeof path - length, "/%s", name);
  count(call, path);
}

static int opened(int dir, const char *name, int flags, mode_t mode) {
  if (flags & (O_CREAT | O_TRUNC)) by_path("open", dir, name);
  return syscall(SYS_openat, dir, name, flags | O_LARGEFILE, mode);
}

#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); \
  mode = va_arg(rest, mode_t); va_end(rest); }
int open(const char *name, int flags, ...) { MODE return opened(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE return opened(AT_FDCWD, name, flags, mode); }
int openat(int dir, const char *name, int flags, ...) { MODE return opened(dir, name, flags, mode); }
int openat64(int dir, const char *name, int flags, ...) { MODE return opened(dir, name, flags, mode); }

ssize_t write(int fd, const void *from, size_t size) { by_fd("write", fd); return syscall(SYS_write, fd, from, size); }
ssize_t writev(int fd, const struct iovec *from, int n) { by_fd("write", fd); return syscall(SYS_writev, fd, from, n); }
ssize_t pwrite(int fd, const void *from, size_t size, off_t at) {
  by_fd("write", fd);
  return syscall(SYS_pwrite64, fd, from, size, at);
}
ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) {
  by_fd("write", fd);
  return syscall(SYS_pwrite64, fd, from, size, at);
}
int fsync(int fd) { by_fd("fsync", fd); return syscall(SYS_fsync, fd); }
int fdatasync(int fd) { by_fd("fsync", fd); return syscall(SYS_fdatasync, fd); }
int ftruncate(int fd, off_t size) { by_fd("truncate", fd); return syscall(SYS_ftruncate, fd, size); }
int ftruncate64(int fd, off64_t size) { by_fd("truncate", fd); return syscall(SYS_ftruncate, fd, size); }
int fchmod(int fd, mode_t mode) { by_fd("chmod", fd); return syscall(SYS_fchmod, fd, mode); }

int mkdirat(int dir, const char *name, mode_t mode) {
  by_path("mkdir", dir, name);
  return syscall(SYS_mkdirat, dir, name, mode);
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
int unlinkat(int dir, const char *name, int flags) {
  by_path("remove", dir, name);
  return syscall(SYS_unlinkat, dir, name, flags);
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int renameat(int from, const char *name, int to, const char *new_name) {
  by_path("rename", to, new_name);
  return syscall(SYS_renameat2, from, name, to, new_name, 0);
}
int rename(const char *name, const char *new_name) { return renameat(AT_FDCWD, name, AT_FDCWD, new_name); }
int linkat(int from, const char *name, int to, const char *new_name, int flags) {
  by_path("link", to, new_name);
  return syscall(SYS_linkat, from, name, to, new_name, flags);
}
int link(const char *name, const char *new_name) { return linkat(AT_FDCWD, name, AT_FDCWD, new_name, 0); }
