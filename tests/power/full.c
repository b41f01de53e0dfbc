/* A disk that runs full at a chosen write, and stays full until somebody makes room.
 *
 * Preloaded (LD_PRELOAD) into the process under test. What asks for room under one directory (a write of any
 * kind, a new file or directory, an allocation) counts; the numbers are in a file that outlives the process
 * and that the test reads and writes.
 *
 *   HARK_FULL_ROOT   the directory, canonical path
 *   HARK_FULL_STATE  file of three int64: how many more succeed, bytes of room beyond them, bytes of room
 *                    that removing a file named "ballast" gives back
 *
 * It is harsher than most disks: overwriting what is there asks for room, too.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PATH_SIZE 1024

struct room {
	int64_t writes, bytes, ballast;
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct room *room;
static char root[PATH_SIZE];

static void begin(void)
{
	const char *directory = getenv("HARK_FULL_ROOT"), *state = getenv("HARK_FULL_STATE");
	if (!directory || !state)
		return;
	snprintf(root, sizeof root, "%s/", directory);
	int fd = syscall(SYS_openat, AT_FDCWD, state, O_RDWR | O_CLOEXEC);
	room = mmap(NULL, sizeof *room, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd < 0 || room == MAP_FAILED)
		abort();
	syscall(SYS_close, fd);
}

static int is_below(const char *path)
{
	pthread_once(&once, begin);
	return room && strncmp(path, root, strlen(root)) == 0;
}

static int is_below_fd(int fd)
{
	char link[64], path[PATH_SIZE];
	int saved = errno;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, PATH_SIZE - 1);
	errno = saved;
	if (length <= 0)
		return 0;
	path[length] = 0;
	return is_below(path);
}

/* Whether there is room for so many bytes; sets errno where there is none. */
static int takes(uint64_t bytes)
{
	pthread_mutex_lock(&mutex);
	int fits = 1;
	if (room->writes > 0)
		room->writes--;
	else if (room->bytes >= (int64_t)bytes)
		room->bytes -= bytes;
	else
		fits = 0;
	pthread_mutex_unlock(&mutex);
	if (!fits)
		errno = ENOSPC;
	return fits;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
	if (is_below_fd(fd) && !takes(length))
		return -1;
	return syscall(SYS_pwrite64, fd, data, length, offset);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
	return pwrite64(fd, data, length, offset);
}

ssize_t write(int fd, const void *data, size_t length)
{
	if (is_below_fd(fd) && !takes(length))
		return -1;
	return syscall(SYS_write, fd, data, length);
}

int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
	if (is_below_fd(fd) && !takes(length))
		return ENOSPC;
	return syscall(SYS_fallocate, fd, 0, offset, length) == 0 ? 0 : errno;
}

int posix_fallocate(int fd, off_t offset, off_t length)
{
	return posix_fallocate64(fd, offset, length);
}

int mkdir(const char *path, mode_t mode)
{
	if (is_below(path) && !takes(4096))
		return -1;
	return syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

int unlink(const char *path)
{
	const char *name = strrchr(path, '/');
	int result = syscall(SYS_unlinkat, AT_FDCWD, path, 0);
	if (result == 0 && is_below(path) && name && strcmp(name, "/ballast") == 0) {
		pthread_mutex_lock(&mutex);
		room->bytes += room->ballast;
		pthread_mutex_unlock(&mutex);
	}
	return result;
}

int open64(const char *path, int flags, ...)
{
	va_list arguments;
	va_start(arguments, flags);
	mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
	va_end(arguments);
	struct stat before;
	if (flags & O_CREAT && is_below(path) &&
	    syscall(SYS_newfstatat, AT_FDCWD, path, &before, 0) != 0 && !takes(4096))
		return -1;
	return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
	va_list arguments;
	va_start(arguments, flags);
	mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
	va_end(arguments);
	return open64(path, flags, mode);
}

/* What the kernel says, but for the room. */
int statvfs64(const char *path, struct statvfs64 *answer)
{
	int (*real)(const char *, struct statvfs64 *);
	*(void **)&real = dlsym(RTLD_NEXT, "statvfs64");
	int result = real(path, answer);
	if (result == 0 && (is_below(path) || (room && strncmp(path, root, strlen(path)) == 0))) {
		pthread_mutex_lock(&mutex);
		if (room->writes <= 0)
			answer->f_bavail = room->bytes / (int64_t)answer->f_frsize;
		pthread_mutex_unlock(&mutex);
	}
	return result;
}

int statvfs(const char *path, struct statvfs *answer)
{
	return statvfs64(path, (struct statvfs64 *)answer);
}
