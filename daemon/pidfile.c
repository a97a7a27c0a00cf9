/* The pid file: see pidfile.h. */
#include "pidfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem.h"

/* The pid in a file, 0 if there is none that a process could have. */
static long read_pid(int fd)
{
	char text[32];
	ssize_t n = pread(fd, text, sizeof text - 1, 0);

	if (n <= 0)
		return 0;
	text[n] = '\0';
	long pid = strtol(text, NULL, 10);
	return pid > 0 && pid <= INT_MAX ? pid : 0;
}

/* Is that the file at that path? */
static bool is_at(int fd, const char *path)
{
	struct stat ours, there;

	return fstat(fd, &ours) == 0 && lstat(path, &there) == 0 && ours.st_dev == there.st_dev && ours.st_ino == there.st_ino;
}

/* Fails for what errno says. */
static bool refuse(const char *path, int fd, char **why)
{
	*why = mem_printf("pid file %s: %s", path, strerrordesc_np(errno));
	if (fd >= 0)
		close(fd);
	return false;
}

/* Opens and locks. The file may have been removed by its last owner in between: then the lock is on nothing, and the next try makes a new
 * one. */
bool pidfile_open(struct pidfile *p, const char *path, int inherited, char **why)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	struct stat st;

	if (inherited >= 0 && is_at(inherited, path)) {
		*p = (struct pidfile){.path = mem_strdup(path), .fd = inherited};
		return true;
	}
	if (inherited >= 0)
		close(inherited);
	for (;;) {
		int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644);
		if (fd < 0 || fstat(fd, &st) < 0)
			return refuse(path, fd, why);
		if (!S_ISREG(st.st_mode)) {
			errno = EINVAL;
			*why = mem_printf("pid file %s: not a regular file", path);
			close(fd);
			return false;
		}
		if (fcntl(fd, F_OFD_SETLK, &lock) < 0) {
			if (errno != EAGAIN && errno != EACCES)
				return refuse(path, fd, why);
			long owner = read_pid(fd);
			*why = owner ? mem_printf("pid file %s: in use by process %ld", path, owner)
			             : mem_printf("pid file %s: in use by another process", path);
			close(fd);
			return false;
		}
		if (is_at(fd, path)) {
			if (fchmod(fd, 0644) < 0) /* whatever the umask */
				return refuse(path, fd, why);
			*p = (struct pidfile){.path = mem_strdup(path), .fd = fd};
			return true;
		}
		close(fd);
	}
}

/* Writes. */
bool pidfile_write(const struct pidfile *p, char **why)
{
	char text[32];
	int length = snprintf(text, sizeof text, "%ld\n", (long)getpid());

	/* in this order there is a number in it at any moment, for who reads it while another process hands it over */
	if (pwrite(p->fd, text, (size_t)length, 0) == length && ftruncate(p->fd, length) == 0)
		return true;
	*why = mem_printf("pid file %s: %s", p->path, strerrordesc_np(errno));
	return false;
}

/* Removes and closes. */
void pidfile_close(struct pidfile *p)
{
	if (!p->path)
		return;
	if (read_pid(p->fd) == (long)getpid() && is_at(p->fd, p->path))
		(void)unlink(p->path);
	close(p->fd);
	free(p->path);
	*p = (struct pidfile){0};
}
