/* Socket activation: see activation.h. */
#include "activation.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "addr.h"
#include "legacy.h"
#include "log.h"
#include "mem.h"
#include "sock.h"

struct activation {
	struct activation_socket *sockets;
	size_t count;
};

/* An integer that a socket tells of itself; -1 if it is no socket. */
static int ask(int fd, int option)
{
	int value = -1;
	socklen_t size = sizeof value;

	return getsockopt(fd, SOL_SOCKET, option, &value, &size) < 0 ? -1 : value;
}

/* Does it wait for streams? */
static bool is_listening(int fd)
{
	int domain = ask(fd, SO_DOMAIN);

	return ask(fd, SO_ACCEPTCONN) == 1 && ask(fd, SO_TYPE) == SOCK_STREAM && (domain == AF_INET || domain == AF_INET6 || domain == AF_UNIX);
}

/* Notes a descriptor; children do not get it any more. */
static void add(struct activation *a, int fd, const char *name, bool listed)
{
	int flags = fcntl(fd, F_GETFL);

	fcntl(fd, F_SETFD, FD_CLOEXEC);
	if (flags >= 0 && is_listening(fd))
		fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	a->sockets = mem_realloc(a->sockets, (a->count + 1) * sizeof *a->sockets);
	a->sockets[a->count++] = (struct activation_socket){.fd = fd, .name = name ? mem_strdup(name) : NULL, .listed = listed};
}

/* The socket of that number, NULL if there is none. */
static struct activation_socket *find(const struct activation *a, int fd)
{
	for (size_t i = 0; i < a->count; i++)
		if (a->sockets[i].fd == fd)
			return &a->sockets[i];
	return NULL;
}

/* Is that descriptor in a legacy? */
static bool is_left(const struct legacy *legacy, int fd)
{
	const struct legacy_entry *e;

	for (size_t i = 0; (e = legacy_at(legacy, i)); i++)
		if (e->fd == fd)
			return true;
	return false;
}

/* Adds those that the process before was given. The names of systemd's come with a mark, since they may be empty, or be missing. */
static void add_left(struct activation *a, struct legacy *legacy)
{
	const struct legacy_entry *e;

	for (size_t i = 0; (e = legacy_at(legacy, i)); i++) {
		if (e->fd < 0 || strcmp(e->kind, LEGACY_GIVEN) != 0)
			continue;
		char *name = e->name ? mem_strdup(e->name) : NULL;
		int fd = legacy_take(legacy, LEGACY_GIVEN, name, NULL);
		add(a, fd, name && name[0] == '=' ? name + 1 : NULL, name != NULL);
		free(name);
	}
}

/* Leaves them. */
void activation_leave(const struct activation *a, struct legacy *legacy)
{
	for (size_t i = 0; i < a->count; i++) {
		const struct activation_socket *s = &a->sockets[i];
		char *name = s->name ? mem_printf("=%s", s->name) : NULL;
		legacy_leave(legacy, LEGACY_GIVEN, name ? name : s->listed ? "-" : NULL, s->fd, NULL);
		free(name);
	}
}

/* Adds the listening sockets that are open without having been announced. */
static void add_unlisted(struct activation *a, const struct legacy *legacy)
{
	DIR *folder = opendir("/proc/self/fd");
	struct dirent *entry;

	while (folder && (entry = readdir(folder))) {
		int fd = atoi(entry->d_name);
		if (fd > 2 && fd != dirfd(folder) && !find(a, fd) && !is_left(legacy, fd) && is_listening(fd))
			add(a, fd, NULL, false);
	}
	if (folder)
		closedir(folder);
}

/* Collects them. */
struct activation *activation_new(struct legacy *legacy)
{
	struct activation *a = mem_zalloc(sizeof *a);
	char **names = NULL;
	int count = sd_listen_fds_with_names(1, &names);

	if (count < 0)
		log_warn("LISTEN_FDS is of no use: %s", strerrordesc_np(-count));
	for (int i = 0; i < count; i++) {
		add(a, SD_LISTEN_FDS_START + i, names ? names[i] : NULL, true);
		if (names)
			free(names[i]);
	}
	free(names);
	add_left(a, legacy);
	add_unlisted(a, legacy);
	return a;
}

/* Closes all. */
void activation_free(struct activation *a)
{
	if (!a)
		return;
	for (size_t i = 0; i < a->count; i++) {
		close(a->sockets[i].fd);
		free(a->sockets[i].name);
	}
	free(a->sockets);
	free(a);
}

/* Says that there is no such name, and which there are. */
static void explain_names(const struct activation *a, const char *name, char **why)
{
	char *names = mem_strdup("");

	for (size_t i = 0; i < a->count; i++) {
		if (!a->sockets[i].listed)
			continue;
		char *longer = mem_printf("%s%s%s", names, *names ? ", " : "", a->sockets[i].name);
		free(names);
		names = longer;
	}
	*why = *names ? mem_printf("no socket of the name '%s' was passed to the daemon (there are: %s)", name, names)
	              : mem_printf("no socket of the name '%s' was passed to the daemon, nor any other by name", name);
	free(names);
	errno = ENOENT;
}

/* Finds the one of a name; NULL with a reason. Several may have the same. */
static struct activation_socket *find_name(const struct activation *a, const char *name, char **why)
{
	struct activation_socket *found = NULL;

	for (size_t i = 0; i < a->count; i++) {
		struct activation_socket *s = &a->sockets[i];
		if (!s->name || strcmp(s->name, name) != 0)
			continue;
		if (found) {
			*why = mem_printf("several sockets have the name '%s' (%d and %d): use the number", name, found->fd, s->fd);
			errno = EINVAL;
			return NULL;
		}
		found = s;
	}
	if (!found)
		explain_names(a, name, why);
	return found;
}

/* Finds the one of a number; NULL with a reason. */
static struct activation_socket *find_number(const struct activation *a, const char *number, char **why)
{
	long n = strlen(number) < 10 ? strtol(number, NULL, 10) : -1;
	struct activation_socket *s = n >= 0 ? find(a, (int)n) : NULL;

	if (s)
		return s;
	if (n < 0 || fcntl((int)n, F_GETFD) < 0) {
		*why = mem_printf("descriptor %s is not open", number);
		errno = EBADF;
	} else {
		*why = mem_printf("descriptor %s is %s", number,
		                  is_listening((int)n) ? "the daemon's own" : "not a listening socket that was passed to the daemon");
		errno = EINVAL;
	}
	return NULL;
}

/* Takes one. */
int activation_take(struct activation *a, const char *name, struct activation_socket **socket, char **why)
{
	bool is_number = name[strspn(name, "0123456789")] == '\0';
	struct activation_socket *s = is_number ? find_number(a, name, why) : find_name(a, name, why);

	if (!s)
		return -1;
	if (!is_listening(s->fd)) {
		*why = mem_printf("descriptor %d is not a listening stream socket", s->fd);
		errno = EINVAL;
		return -1;
	}
	if (s->taken) {
		*why = mem_printf("descriptor %d has a listener already", s->fd);
		errno = EBUSY;
		return -1;
	}
	int fd = fcntl(s->fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0) {
		*why = mem_strdup(strerrordesc_np(errno));
		return -1;
	}
	s->taken = true;
	*socket = s;
	return fd;
}

/* Logs those that nobody wants. */
void activation_log_unused(const struct activation *a)
{
	for (size_t i = 0; i < a->count; i++) {
		const struct activation_socket *s = &a->sockets[i];
		char text[ADDR_TEXT_SIZE];
		struct addr local;
		if (s->listed && !s->taken)
			log_info("nobody listens on the socket '%s' that was passed as descriptor %d (%s)", s->name, s->fd,
			         sock_local(s->fd, &local) ? addr_format(&local, text) : "no address");
	}
}
