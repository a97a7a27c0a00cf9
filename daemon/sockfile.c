/* The files of Unix listeners: see sockfile.h. */
#include "sockfile.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "mem.h"
#include "sock.h"

/* Locks the folder of a path: a descriptor whose closing unlocks it, or -1 with errno. */
static int lock_folder(const char *path)
{
	char *copy = mem_strdup(path);
	int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	free(copy);
	for (int ms = 0; fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0; ms++) {
		if (errno != EWOULDBLOCK || ms == SOCKFILE_WAIT_MS) {
			int saved = errno == EWOULDBLOCK ? EBUSY : errno;
			close(fd);
			errno = saved;
			return -1;
		}
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	return fd;
}

/* The process that listens at the other end, 0 if the system does not tell. */
static pid_t owner_of(int fd)
{
	struct ucred cred = {0};
	socklen_t size = sizeof cred;

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) < 0 ? 0 : cred.pid;
}

/* Says that an address is taken; pid 0: by whom is not known. */
static int in_use(pid_t pid, char **why)
{
	*why = pid ? mem_printf("in use by process %ld", (long)pid) : mem_strdup("in use by another process");
	errno = EADDRINUSE;
	return -1;
}

/* Makes way: removes the socket file of a server that is gone. */
static int clear_path(const char *path, const struct addr *a, char **why)
{
	struct stat st;

	if (lstat(path, &st) < 0)
		return 0;
	if (!S_ISSOCK(st.st_mode)) {
		*why = mem_strdup("the path exists and is no socket");
		errno = EEXIST;
		return -1;
	}
	int probe = sock_open(AF_UNIX);
	if (probe < 0)
		return -1;
	int r = sock_connect(probe, a), error = errno;
	pid_t pid = r == 0 ? owner_of(probe) : 0;
	close(probe);
	if (r < 0 && error == ECONNREFUSED)
		return unlink(path) < 0 && errno != ENOENT ? -1 : 0;
	if (r == 0 || error == EAGAIN || error == EPROTOTYPE) /* a full backlog, datagrams */
		return in_use(pid, why);
	errno = error;
	return -1;
}

/* Binds. The file has the permissions asked for from the first moment on; a chmod later could meet another file. */
static int bind_path(int fd, const struct addr *a, int mode)
{
	if (mode < 0)
		return bind(fd, &a->any, a->length);
	mode_t before = umask(~(mode_t)mode & 0777);
	int r = bind(fd, &a->any, a->length);
	umask(before);
	return r;
}

/* Clears, binds and listens, with the folder locked: until it listens a socket looks like a dead server's. */
static int take_path(struct sockfile *f, int fd, const char *path, const struct addr *a, int backlog, int mode, char **why)
{
	struct stat st;

	if (clear_path(path, a, why) < 0 || bind_path(fd, a, mode) < 0)
		return -1;
	if (lstat(path, &st) == 0)
		*f = (struct sockfile){.path = mem_strdup(path), .device = st.st_dev, .inode = st.st_ino};
	if (listen(fd, backlog) == 0)
		return 0;
	int saved = errno;
	(void)!sockfile_remove(f);
	errno = saved;
	return -1;
}

/* Listens on a path or an abstract name. */
int sockfile_listen(struct sockfile *f, const struct addr *a, int backlog, int mode, char **why)
{
	char path[ADDR_TEXT_SIZE];
	int fd = sock_open(AF_UNIX), r = -1;

	*f = (struct sockfile){0};
	*why = NULL;
	if (fd < 0) {
		*why = mem_strdup(strerrordesc_np(errno));
		return -1;
	}
	if (a->un.sun_path[0] == '\0') {
		r = bind(fd, &a->any, a->length) < 0 || listen(fd, backlog) < 0 ? -1 : 0;
	} else {
		int folder = lock_folder(addr_host(a, path));
		if (folder >= 0) {
			r = take_path(f, fd, path, a, backlog, mode, why);
			int saved = errno;
			close(folder);
			errno = saved;
		}
	}
	if (r == 0)
		return fd;
	int saved = errno;
	close(fd);
	if (!*why)
		*why = saved == EBUSY ? mem_strdup("another process keeps the folder locked") : mem_strdup(strerrordesc_np(saved));
	errno = saved;
	return -1;
}

/* A handle on the file, if it is still that one, for changing it and no other; -1 if not. */
static int open_handle(const struct sockfile *f)
{
	struct stat st;
	int fd = f->path ? open(f->path, O_PATH | O_NOFOLLOW | O_CLOEXEC) : -1;

	if (fd >= 0 && (fstat(fd, &st) < 0 || st.st_dev != f->device || st.st_ino != f->inode)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* Changes its permissions. */
int sockfile_change_mode(const struct sockfile *f, mode_t mode)
{
	char handle[40];
	int fd = open_handle(f);

	if (fd < 0)
		return 0;
	snprintf(handle, sizeof handle, "/proc/self/fd/%d", fd); /* fchmod takes no O_PATH */
	int r = chmod(handle, mode), saved = errno;
	close(fd);
	errno = saved;
	return r;
}

/* Gives it to a user. */
int sockfile_give(const struct sockfile *f, uid_t uid, gid_t gid)
{
	int fd = open_handle(f);

	if (fd < 0)
		return 0;
	int r = fchownat(fd, "", uid, gid, AT_EMPTY_PATH), saved = errno;
	close(fd);
	errno = saved;
	return r;
}

/* Removes it. */
int sockfile_remove(struct sockfile *f)
{
	struct stat st;

	if (!f->path)
		return 0;
	bool ours = lstat(f->path, &st) == 0 && st.st_dev == f->device && st.st_ino == f->inode;
	int r = ours ? unlink(f->path) : 0, saved = errno;
	sockfile_forget(f);
	errno = saved;
	return r;
}

/* Forgets it. */
void sockfile_forget(struct sockfile *f)
{
	free(f->path);
	*f = (struct sockfile){0};
}
