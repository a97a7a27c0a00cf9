/*
 * The folder of a store: where it is, whose it is, whether it is in use. Who uses or holds it has a shared lock on it; who gets one for himself
 * alone may remove it.
 */
#include "store_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem.h"
#include "store.h"

#define PREFIX "reactord-shared-"
#define OPEN_TRIES 10

/* The folders that a store may be in, in order; NULL behind the last. base has room for a copy of the first. */
static void list_bases(const char *bases[4], char base[256])
{
	const char *runtime = getenv("RUNTIME_DIRECTORY"), *temporary = getenv("TMPDIR");
	size_t count = 0, length = runtime ? strcspn(runtime, ":") : 0;

	if (length && length < 256) {
		memcpy(base, runtime, length);
		base[length] = '\0';
		bases[count++] = base;
	}
	bases[count++] = "/dev/shm";
	bases[count++] = temporary && *temporary ? temporary : "/tmp";
	bases[count] = NULL;
}

/* Opens a store's folder, if it is one of ours. -1 with errno. */
static int open_folder(int base, const char *name)
{
	int fd = openat(base, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	if (fd >= 0 && (fstat(fd, &st) < 0 || st.st_uid != geteuid() || (st.st_mode & 077))) {
		close(fd);
		errno = EPERM;
		return -1;
	}
	return fd;
}

/* Removes a store's folder that nobody has open. */
static void remove_unused(int base, const char *name)
{
	int fd = open_folder(base, name);

	if (fd < 0)
		return;
	if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
		unlinkat(fd, "data.mdb", 0);
		unlinkat(fd, "lock.mdb", 0);
		unlinkat(base, name, AT_REMOVEDIR);
	}
	close(fd);
}

/* Removes what daemons that were killed have left. */
static void remove_stale(int base, const char *path)
{
	DIR *dir = opendir(path);

	for (struct dirent *entry; dir && (entry = readdir(dir));)
		if (strncmp(entry->d_name, PREFIX, sizeof PREFIX - 1) == 0)
			remove_unused(base, entry->d_name);
	if (dir)
		closedir(dir);
}

/* Makes the folder in a base, or finds it made by another process; the descriptor has a lock that says that it is in use. -1 with errno. */
static int take(const char *path, const char *name)
{
	int base = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd = -1;
	struct stat st;

	if (base < 0)
		return -1;
	for (int i = 0; i < OPEN_TRIES && fd < 0; i++) { /* somebody who clears up may have been faster than our lock */
		if (mkdirat(base, name, 0700) < 0 && errno != EEXIST)
			break;
		fd = open_folder(base, name);
		if (fd >= 0 && (flock(fd, LOCK_SH | LOCK_NB) < 0 || fstat(fd, &st) < 0 || st.st_nlink == 0)) {
			close(fd);
			fd = -1;
			errno = EAGAIN;
		}
	}
	int error = errno;
	if (fd >= 0)
		remove_stale(base, path);
	close(base);
	errno = error;
	return fd;
}

/* Takes it in the first base where that can be done. */
int store_folder_take(const char *name, char **path)
{
	const char *bases[4];
	char first[256];

	list_bases(bases, first);
	for (const char **base = bases; *base; base++) {
		int fd = take(*base, name);
		if (fd < 0)
			continue;
		*path = mem_printf("%s/%s", *base, name);
		return fd;
	}
	return -1;
}

/* 128 random bits. */
char *store_make_name(void)
{
	uint64_t bits[2];

	if (getrandom(bits, sizeof bits, 0) != sizeof bits)
		abort(); /* cannot happen for so few bytes */
	return mem_printf(PREFIX "%016llx%016llx", (unsigned long long)bits[0], (unsigned long long)bits[1]);
}

/* Holds a store wherever it is. */
int store_hold(const char *name)
{
	const char *bases[4];
	char first[256];
	int fd = -1;

	list_bases(bases, first);
	for (const char **path = bases; *path && fd < 0; path++) {
		int base = open(*path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (base < 0)
			continue;
		fd = open_folder(base, name);
		if (fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) < 0) {
			close(fd);
			fd = -1;
		}
		close(base);
	}
	return fd;
}

/* Removes a store wherever it is. */
void store_remove(const char *name)
{
	const char *bases[4];
	char first[256];

	list_bases(bases, first);
	for (const char **path = bases; *path; path++) {
		int base = open(*path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (base < 0)
			continue;
		remove_unused(base, name);
		close(base);
	}
}
