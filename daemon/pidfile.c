/* The pid file: see pidfile.h. */
#include "pidfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem.h"

/* The pid in a file, 0 if there is none that a process could have. */
static long read_pid(const char *path)
{
	char text[32];
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return 0;
	ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	long pid = strtol(text, NULL, 10);
	return pid > 0 && pid <= INT_MAX ? pid : 0;
}

/* Writes it. */
bool pidfile_write(const char *path, char **why)
{
	char text[32];
	long other = read_pid(path);

	if (other > 1 && other != (long)getpid() && (kill((pid_t)other, 0) == 0 || errno == EPERM)) {
		*why = mem_printf("pid file %s: process %ld is running", path, other);
		return false;
	}
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644);
	int length = snprintf(text, sizeof text, "%ld\n", (long)getpid());
	if (fd < 0 || fchmod(fd, 0644) < 0 || write(fd, text, (size_t)length) != length) {
		*why = mem_printf("pid file %s: %s", path, strerror(errno));
		if (fd >= 0)
			close(fd);
		return false;
	}
	close(fd);
	return true;
}

/* Removes it; without the right to do so it is left behind, and the next start finds that its process is gone. */
void pidfile_remove(const char *path)
{
	if (read_pid(path) == (long)getpid())
		(void)unlink(path);
}
