/* Records what a process does to the files under one directory, for replay up to any point.
 *
 * Preloaded (LD_PRELOAD) into the process under test. Each operation is done and then appended to
 * a log, numbered in the order in which it ended; a sync carries the number of operations that had
 * ended when it began, since it promises nothing about later ones.
 *
 *   HARK_RECORD_ROOT  directory that is recorded, canonical path; unset: nothing is recorded
 *   HARK_RECORD_LOG   file that the log is appended to
 *   HARK_FAIL_SYNCS   if set, fdatasync fails with EIO after that many have succeeded
 *   HARK_DOWNGRADE    if set, fdatasync only does what sled does without hark's help: sync_file_range
 *   HARK_UNSYNCED     no sync does anything for files whose path below the root holds this
 *
 * Entry, little-endian: kind (1), path length (2), offset (8), data length (8), path, data.
 *   P process begins   C create file or directory   W write at offset   T truncate to offset
 *   R rename to data   U unlink   F sync of file or directory; offset = operations it covers
 *   S sync_file_range of a whole file; offset as with F
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PATH_SIZE 1024

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static int downgrade;
static const char *unsynced;
static long syncs_left = -1; /* negative: without end */
static char root[PATH_SIZE];
static size_t root_length;
static uint64_t operations; /* of this process, that have ended */

static void append(char kind, const char *path, uint64_t offset, uint64_t length, const void *data)
{
	struct __attribute__((packed)) {
		char kind;
		uint16_t path_length;
		uint64_t offset, length;
	} head = { kind, (uint16_t)strlen(path), offset, length };
	size_t total = sizeof head + head.path_length + length;
	char *entry = malloc(total);
	if (!entry)
		abort();
	memcpy(entry, &head, sizeof head);
	memcpy(entry + sizeof head, path, head.path_length);
	if (length)
		memcpy(entry + sizeof head + head.path_length, data, length);
	pthread_mutex_lock(&mutex);
	if (syscall(SYS_write, log_fd, entry, total) != (long)total)
		abort();
	operations++;
	pthread_mutex_unlock(&mutex);
	free(entry);
}

static void begin(void)
{
	const char *directory = getenv("HARK_RECORD_ROOT"), *log = getenv("HARK_RECORD_LOG");
	const char *syncs = getenv("HARK_FAIL_SYNCS");
	if (syncs)
		syncs_left = atol(syncs);
	downgrade = getenv("HARK_DOWNGRADE") != NULL;
	unsynced = getenv("HARK_UNSYNCED");
	if (!directory || !log)
		return;
	snprintf(root, sizeof root, "%s/", directory);
	root_length = strlen(root);
	log_fd = syscall(SYS_openat, AT_FDCWD, log, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0644);
	if (log_fd < 0)
		abort();
	append('P', "", 0, 0, NULL);
}

/* The path below the root, or NULL. */
static const char *below(const char *path)
{
	pthread_once(&once, begin);
	return log_fd >= 0 && strncmp(path, root, root_length) == 0 ? path + root_length : NULL;
}

static const char *path_of(int fd, char *path)
{
	char link[64];
	int saved = errno;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, PATH_SIZE - 2);
	errno = saved;
	if (length <= 0)
		return NULL;
	path[length] = 0;
	const char *relative = below(path);
	if (relative)
		return relative;
	/* The root itself: a sync of it covers the names in it. */
	path[length] = '/';
	path[length + 1] = 0;
	return below(path);
}

static int is_unsynced(const char *path)
{
	return unsynced && path && strstr(path, unsynced);
}

static uint64_t ended(void)
{
	pthread_mutex_lock(&mutex);
	uint64_t count = operations;
	pthread_mutex_unlock(&mutex);
	return count;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
	char buffer[PATH_SIZE];
	const char *path = path_of(fd, buffer);
	ssize_t result = syscall(SYS_pwrite64, fd, data, length, offset);
	if (result > 0 && path)
		append('W', path, offset, result, data);
	return result;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
	return pwrite64(fd, data, length, offset);
}

ssize_t write(int fd, const void *data, size_t length)
{
	char buffer[PATH_SIZE];
	const char *path = path_of(fd, buffer);
	ssize_t result = syscall(SYS_write, fd, data, length);
	if (result > 0 && path)
		append('W', path, lseek(fd, 0, SEEK_CUR) - result, result, data);
	return result;
}

int fdatasync(int fd)
{
	char buffer[PATH_SIZE];
	const char *path = path_of(fd, buffer);
	uint64_t covered = ended();
	pthread_once(&once, begin);
	if (syncs_left == 0) {
		errno = EIO;
		return -1;
	}
	if (syncs_left > 0)
		__atomic_sub_fetch(&syncs_left, 1, __ATOMIC_RELAXED);
	if (is_unsynced(path))
		return 0;
	/* 7: wait before, write, wait after, as sled asks for. */
	int result = downgrade ? syscall(SYS_sync_file_range, fd, (off64_t)0, (off64_t)0, 7)
			       : syscall(SYS_fdatasync, fd);
	if (result == 0 && path)
		append(downgrade ? 'S' : 'F', path, covered, 0, NULL);
	return result;
}

int fsync(int fd)
{
	char buffer[PATH_SIZE];
	const char *path = path_of(fd, buffer);
	uint64_t covered = ended();
	if (is_unsynced(path))
		return 0;
	int result = syscall(SYS_fsync, fd);
	if (result == 0 && path)
		append('F', path, covered, 0, NULL);
	return result;
}

int ftruncate64(int fd, off64_t length)
{
	char buffer[PATH_SIZE];
	const char *path = path_of(fd, buffer);
	int result = syscall(SYS_ftruncate, fd, length);
	if (result == 0 && path)
		append('T', path, length, 0, NULL);
	return result;
}

int ftruncate(int fd, off_t length)
{
	return ftruncate64(fd, length);
}

int rename(const char *from, const char *to)
{
	int result = syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
	if (result == 0 && below(from) && below(to))
		append('R', below(from), 0, strlen(below(to)), below(to));
	return result;
}

int unlink(const char *path)
{
	int result = syscall(SYS_unlinkat, AT_FDCWD, path, 0);
	if (result == 0 && below(path))
		append('U', below(path), 0, 0, NULL);
	return result;
}

int rmdir(const char *path)
{
	int result = syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
	if (result == 0 && below(path))
		append('U', below(path), 0, 0, NULL);
	return result;
}

/* How whole directories are removed: by names below an open one. */
int unlinkat(int directory, const char *name, int flags)
{
	char buffer[PATH_SIZE], path[2 * PATH_SIZE];
	const char *parent = directory == AT_FDCWD ? NULL : path_of(directory, buffer);
	const char *slash = parent && *parent && parent[strlen(parent) - 1] != '/' ? "/" : "";
	int result = syscall(SYS_unlinkat, directory, name, flags);
	if (result == 0 && parent) {
		snprintf(path, sizeof path, "%s%s%s", parent, slash, name);
		append('U', path, 0, 0, NULL);
	} else if (result == 0 && directory == AT_FDCWD && below(name)) {
		append('U', below(name), 0, 0, NULL);
	}
	return result;
}

int mkdir(const char *path, mode_t mode)
{
	int result = syscall(SYS_mkdirat, AT_FDCWD, path, mode);
	if (result == 0 && below(path))
		append('C', below(path), 1, 0, NULL);
	return result;
}

int open64(const char *path, int flags, ...)
{
	va_list arguments;
	va_start(arguments, flags);
	mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
	va_end(arguments);
	struct stat before;
	int existed = syscall(SYS_newfstatat, AT_FDCWD, path, &before, 0) == 0;
	int fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
	if (fd >= 0 && below(path)) {
		if (!existed && flags & O_CREAT)
			append('C', below(path), 0, 0, NULL);
		else if (existed && flags & O_TRUNC)
			append('T', below(path), 0, 0, NULL);
	}
	return fd;
}

int open(const char *path, int flags, ...)
{
	va_list arguments;
	va_start(arguments, flags);
	mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
	va_end(arguments);
	return open64(path, flags, mode);
}
