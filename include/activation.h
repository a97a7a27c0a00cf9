/*
 * Socket activation: the listening sockets that the process was started with, by the names that systemd gives them (LISTEN_FDS,
 * LISTEN_FDNAMES), or by number whoever has passed them. They stay open as long as the process lives: a listener works on a duplicate, so that
 * a reload may let one go and another take it again.
 */
#ifndef REACTORD_ACTIVATION_H
#define REACTORD_ACTIVATION_H

#include <stdbool.h>

struct activation;
struct legacy;

/* One that was passed. */
struct activation_socket {
	int fd;
	char *name;  /* systemd's, NULL if it has none */
	bool listed; /* by LISTEN_FDS, else just open */
	bool taken;  /* a listener works on it; who took it clears this */
};

/* Collects them, and takes the variables out of the environment. Before the process opens any socket of its own. legacy: of a process before that
 * was given them (or NULL); what else is in it is not among them. */
struct activation *activation_new(struct legacy *legacy) __attribute__((warn_unused_result));

/* Leaves them to the next process, under the same numbers and names. */
void activation_leave(const struct activation *a, struct legacy *legacy);
void activation_free(struct activation *a);

/* A duplicate of the listening stream socket of that name or number, and in *socket where it comes from. -1 with errno (ENOENT: no such name,
 * EBADF, EINVAL: not a listening stream socket, EBUSY: taken) and the reason in *why (caller frees). */
int activation_take(struct activation *a, const char *name, struct activation_socket **socket, char **why)
	__attribute__((warn_unused_result));

/* Logs those of systemd's that nobody has taken. */
void activation_log_unused(const struct activation *a);

#endif
