/*
 * Sockets: made, bound, tuned. Every descriptor is close-on-exec and non-blocking. Functions return -1 with errno
 * on failure unless they say otherwise.
 */
#ifndef REACTORD_SOCK_H
#define REACTORD_SOCK_H

#include <stdbool.h>

#include "addr.h"

/* A new TCP or Unix stream socket for an address of that family. */
int sock_open(int family) __attribute__((warn_unused_result));

/* Accepts one connection; peer is its address. */
int sock_accept(int fd, struct addr *peer) __attribute__((warn_unused_result));

/* Starts to connect: 0 when connected at once, -1 with EINPROGRESS when under way. */
int sock_connect(int fd, const struct addr *to) __attribute__((warn_unused_result));

/* The error that the kernel holds for the socket (and clears), 0 if none. */
int sock_error(int fd);

/* The local and remote address; false if there is none. */
bool sock_local(int fd, struct addr *a) __attribute__((warn_unused_result));
bool sock_peer(int fd, struct addr *a) __attribute__((warn_unused_result));

/* Switches; failures do not matter on sockets that lack them (Unix). */
void sock_nodelay(int fd, bool on);
void sock_reuse_port(int fd); /* of a bound socket, so that others of the same user can be bound beside it */

/* Keep-alive probes: after idle seconds, each interval seconds, count times; 0 leaves the system's figure. */
int sock_keepalive(int fd, bool on, int idle, int interval, int count) __attribute__((warn_unused_result));

/* An option by the names of its level and of itself ("tcp", "nodelay"); value is an int or a switch. */
struct sock_option {
	const char *level, *name;
	int level_number, number;
	bool is_switch; /* a boolean, not a number */
};

/* Looks an option up; NULL if there is none of that name. */
const struct sock_option *sock_option(const char *level, const char *name);
int sock_option_set(int fd, const struct sock_option *option, int value) __attribute__((warn_unused_result));
int sock_option_get(int fd, const struct sock_option *option, int *value) __attribute__((warn_unused_result));

/* A listening TCP socket; Unix ones are sockfile.h's. backlog < 0: it is only bound. */
int sock_listen(const struct addr *a, int backlog, bool reuse_port) __attribute__((warn_unused_result));

/* A bound datagram socket, which may broadcast and tells of every destination that could not be reached. Sharing its port is what
 * reuse_port and multicast addresses are for; else a port that is in use is EADDRINUSE. */
int sock_datagram(const struct addr *a, bool reuse_port) __attribute__((warn_unused_result));

/* Another descriptor of the same socket. */
int sock_duplicate(int fd) __attribute__((warn_unused_result));

/* Joins a group on an interface by its index (0: the system picks one), leaves it, or sends to groups by that interface. */
enum sock_multicast { MULTICAST_JOIN, MULTICAST_LEAVE, MULTICAST_SEND };
int sock_multicast(int fd, enum sock_multicast what, const struct addr *group, unsigned interface) __attribute__((warn_unused_result));

#endif
