/* Descriptors that come from outside: see adopt.h. */
#include "adopt.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* Asks a poller of its own. */
bool adopt_pollable(int fd)
{
	int poller = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event = {.events = EPOLLIN};

	if (poller < 0)
		return true; /* adding it to the loop will tell */
	bool refused = epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0 && errno == EPERM;
	close(poller);
	return !refused;
}

/* May others have the same open file, so that its flags must be left alone? It must be something that can be opened anew, too. */
static bool is_shared(int fd, const struct stat *st)
{
	if (S_ISCHR(st->st_mode) && st->st_rdev == makedev(5, 2)) /* a pseudo-terminal's master: to open it anew makes another one */
		return false;
	return isatty(fd) || (fd <= STDERR_FILENO && (S_ISFIFO(st->st_mode) || S_ISCHR(st->st_mode)));
}

/* Opens the same file anew. */
static int reopen(int fd, int flags)
{
	char path[32];

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return open(path, (flags & (O_ACCMODE | O_APPEND)) | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
}

/* Takes a descriptor over. */
bool adopt_open(struct adopted *a, int fd)
{
	int flags = fcntl(fd, F_GETFL);
	struct stat st;

	if (flags < 0 || fstat(fd, &st) < 0)
		return false;
	if (S_ISDIR(st.st_mode)) {
		errno = EISDIR;
		return false;
	}
	*a = (struct adopted){.fd = fd, .origin = fd, .flags = -1};
	a->can_read = (flags & O_ACCMODE) != O_WRONLY;
	a->can_write = (flags & O_ACCMODE) != O_RDONLY;
	if (is_shared(fd, &st)) {
		int again = reopen(fd, flags);
		if (again >= 0)
			a->fd = again;
		else
			a->can_write = a->can_write && !a->can_read; /* reading waits for the poller, writing might block */
	} else if (!S_ISREG(st.st_mode) && !(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0) {
		a->flags = flags;
	}
	if (fd > STDERR_FILENO)
		(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
	a->pollable = adopt_pollable(a->fd);
	return true;
}

/* Gives it back. */
int adopt_release(struct adopted *a)
{
	if (a->fd != a->origin)
		close(a->fd);
	if (a->flags >= 0)
		(void)fcntl(a->origin, F_SETFL, a->flags);
	return a->origin;
}

/* Closes it. */
void adopt_close(struct adopted *a)
{
	if (a->origin <= STDERR_FILENO) {
		(void)adopt_release(a);
		return;
	}
	if (a->fd != a->origin)
		close(a->fd);
	close(a->origin);
}
