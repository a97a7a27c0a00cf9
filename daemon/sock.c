/* Sockets: see sock.h. */
#include "sock.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The options that scripts may use; the numbers are the platform's. */
static const struct sock_option options[] = {
	{"socket", "rcvbuf", SOL_SOCKET, SO_RCVBUF, false},
	{"socket", "sndbuf", SOL_SOCKET, SO_SNDBUF, false},
	{"socket", "rcvlowat", SOL_SOCKET, SO_RCVLOWAT, false},
	{"socket", "keepalive", SOL_SOCKET, SO_KEEPALIVE, true},
	{"socket", "reuseaddr", SOL_SOCKET, SO_REUSEADDR, true},
	{"socket", "reuseport", SOL_SOCKET, SO_REUSEPORT, true},
	{"socket", "broadcast", SOL_SOCKET, SO_BROADCAST, true},
	{"socket", "dontroute", SOL_SOCKET, SO_DONTROUTE, true},
	{"socket", "oobinline", SOL_SOCKET, SO_OOBINLINE, true},
	{"socket", "priority", SOL_SOCKET, SO_PRIORITY, false},
	{"socket", "mark", SOL_SOCKET, SO_MARK, false},
	{"socket", "incoming_cpu", SOL_SOCKET, SO_INCOMING_CPU, false},
	{"socket", "busy_poll", SOL_SOCKET, SO_BUSY_POLL, false},
	{"socket", "error", SOL_SOCKET, SO_ERROR, false},
	{"socket", "type", SOL_SOCKET, SO_TYPE, false},
	{"socket", "domain", SOL_SOCKET, SO_DOMAIN, false},
	{"socket", "acceptconn", SOL_SOCKET, SO_ACCEPTCONN, true},
	{"tcp", "nodelay", IPPROTO_TCP, TCP_NODELAY, true},
	{"tcp", "cork", IPPROTO_TCP, TCP_CORK, true},
	{"tcp", "quickack", IPPROTO_TCP, TCP_QUICKACK, true},
	{"tcp", "maxseg", IPPROTO_TCP, TCP_MAXSEG, false},
	{"tcp", "keepidle", IPPROTO_TCP, TCP_KEEPIDLE, false},
	{"tcp", "keepintvl", IPPROTO_TCP, TCP_KEEPINTVL, false},
	{"tcp", "keepcnt", IPPROTO_TCP, TCP_KEEPCNT, false},
	{"tcp", "syncnt", IPPROTO_TCP, TCP_SYNCNT, false},
	{"tcp", "defer_accept", IPPROTO_TCP, TCP_DEFER_ACCEPT, false},
	{"tcp", "user_timeout", IPPROTO_TCP, TCP_USER_TIMEOUT, false},
	{"tcp", "notsent_lowat", IPPROTO_TCP, TCP_NOTSENT_LOWAT, false},
	{"tcp", "fastopen", IPPROTO_TCP, TCP_FASTOPEN, false},
	{"ip", "tos", IPPROTO_IP, IP_TOS, false},
	{"ip", "ttl", IPPROTO_IP, IP_TTL, false},
	{"ip", "mtu_discover", IPPROTO_IP, IP_MTU_DISCOVER, false},
	{"ip", "freebind", IPPROTO_IP, IP_FREEBIND, true},
	{"ip", "multicast_ttl", IPPROTO_IP, IP_MULTICAST_TTL, false},
	{"ip", "multicast_loop", IPPROTO_IP, IP_MULTICAST_LOOP, true},
	{"ip", "multicast_all", IPPROTO_IP, IP_MULTICAST_ALL, true},
	{"ipv6", "v6only", IPPROTO_IPV6, IPV6_V6ONLY, true},
	{"ipv6", "tclass", IPPROTO_IPV6, IPV6_TCLASS, false},
	{"ipv6", "unicast_hops", IPPROTO_IPV6, IPV6_UNICAST_HOPS, false},
	{"ipv6", "multicast_hops", IPPROTO_IPV6, IPV6_MULTICAST_HOPS, false},
	{"ipv6", "multicast_loop", IPPROTO_IPV6, IPV6_MULTICAST_LOOP, true},
	{"ipv6", "multicast_all", IPPROTO_IPV6, IPV6_MULTICAST_ALL, true},
};

/* Opens a socket. */
int sock_open(int family)
{
	return socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

/* Accepts one connection. */
int sock_accept(int fd, struct addr *peer)
{
	peer->length = sizeof *peer - offsetof(struct addr, any);
	return accept4(fd, &peer->any, &peer->length, SOCK_CLOEXEC | SOCK_NONBLOCK);
}

/* Starts to connect. */
int sock_connect(int fd, const struct addr *to)
{
	int r;

	do
		r = connect(fd, &to->any, to->length);
	while (r < 0 && errno == EINTR);
	return r;
}

/* Takes the pending error. */
int sock_error(int fd)
{
	int error = 0;
	socklen_t size = sizeof error;

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
		return errno == ENOTSOCK ? 0 : errno;
	return error;
}

/* Asks for the local address. */
bool sock_local(int fd, struct addr *a)
{
	a->length = sizeof *a - offsetof(struct addr, any);
	if (getsockname(fd, &a->any, &a->length) == 0)
		return true;
	a->length = 0;
	return false;
}

/* Asks for the peer's address. */
bool sock_peer(int fd, struct addr *a)
{
	a->length = sizeof *a - offsetof(struct addr, any);
	if (getpeername(fd, &a->any, &a->length) == 0)
		return true;
	a->length = 0;
	return false;
}

/* Sets one integer option. */
static int set_int(int fd, int level, int number, int value)
{
	return setsockopt(fd, level, number, &value, sizeof value);
}

/* Nagle's algorithm off or on. */
void sock_nodelay(int fd, bool on)
{
	(void)set_int(fd, IPPROTO_TCP, TCP_NODELAY, on);
}

/* Lets others share the port. */
void sock_reuse_port(int fd)
{
	(void)set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1);
}

/* Keep-alive with its three figures. */
int sock_keepalive(int fd, bool on, int idle, int interval, int count)
{
	if (set_int(fd, SOL_SOCKET, SO_KEEPALIVE, on) < 0)
		return -1;
	if (on && idle && set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, idle) < 0)
		return -1;
	if (on && interval && set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, interval) < 0)
		return -1;
	if (on && count && set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, count) < 0)
		return -1;
	return 0;
}

/* Looks an option up. */
const struct sock_option *sock_option(const char *level, const char *name)
{
	for (size_t i = 0; i < sizeof options / sizeof *options; i++)
		if (strcmp(options[i].level, level) == 0 && strcmp(options[i].name, name) == 0)
			return &options[i];
	return NULL;
}

/* Sets an option. */
int sock_option_set(int fd, const struct sock_option *option, int value)
{
	return set_int(fd, option->level_number, option->number, value);
}

/* Reads an option. */
int sock_option_get(int fd, const struct sock_option *option, int *value)
{
	socklen_t size = sizeof *value;

	*value = 0;
	return getsockopt(fd, option->level_number, option->number, value, &size);
}

/* Binds to an address. */
static int bind_to(int fd, const struct addr *a, bool reuse_port)
{
	if (set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1) < 0)
		return -1;
	if (reuse_port && set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1) < 0)
		return -1;
	/* "[::]" and "0.0.0.0" are two addresses that may be listened on side by side */
	if (a->any.sa_family == AF_INET6 && set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1) < 0)
		return -1;
	return bind(fd, &a->any, a->length);
}

/* Opens, binds, listens. */
int sock_listen(const struct addr *a, int backlog, bool reuse_port)
{
	int fd = sock_open(a->any.sa_family);

	if (fd < 0)
		return -1;
	if (bind_to(fd, a, reuse_port) < 0 || (backlog >= 0 && listen(fd, backlog) < 0)) {
		int saved = errno;
		close(fd);
		errno = saved;
		return -1;
	}
	return fd;
}

/* Is it the address of a group? */
static bool is_group(const struct addr *a)
{
	if (a->any.sa_family == AF_INET)
		return IN_MULTICAST(ntohl(a->in.sin_addr.s_addr));
	return a->any.sa_family == AF_INET6 && IN6_IS_ADDR_MULTICAST(&a->in6.sin6_addr);
}

/* Sets a datagram socket up and binds it. Other than for streams SO_REUSEADDR would let anyone take over a port that is in use. */
static int bind_datagram(int fd, const struct addr *a, bool reuse_port)
{
	bool ipv6 = a->any.sa_family == AF_INET6;

	if (set_int(fd, SOL_SOCKET, SO_BROADCAST, 1) < 0)
		return -1;
	if (is_group(a) && set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1) < 0)
		return -1;
	if (reuse_port && set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1) < 0)
		return -1;
	if (ipv6 && set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1) < 0)
		return -1;
	if (set_int(fd, ipv6 ? IPPROTO_IPV6 : IPPROTO_IP, ipv6 ? IPV6_RECVERR : IP_RECVERR, 1) < 0)
		return -1;
	return bind(fd, &a->any, a->length);
}

/* Opens and binds. */
int sock_datagram(const struct addr *a, bool reuse_port)
{
	int fd = socket(a->any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd >= 0 && bind_datagram(fd, a, reuse_port) < 0) {
		int saved = errno;
		close(fd);
		errno = saved;
		return -1;
	}
	return fd;
}

/* Duplicates. */
int sock_duplicate(int fd)
{
	return fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

/* Groups. */
int sock_multicast(int fd, enum sock_multicast what, const struct addr *group, unsigned interface)
{
	if (group->any.sa_family == AF_INET) {
		static const int numbers[] = {IP_ADD_MEMBERSHIP, IP_DROP_MEMBERSHIP, IP_MULTICAST_IF};
		struct ip_mreqn request = {.imr_multiaddr = group->in.sin_addr, .imr_ifindex = (int)interface};
		return setsockopt(fd, IPPROTO_IP, numbers[what], &request, sizeof request);
	}
	if (what == MULTICAST_SEND)
		return set_int(fd, IPPROTO_IPV6, IPV6_MULTICAST_IF, (int)interface);
	struct ipv6_mreq request = {.ipv6mr_multiaddr = group->in6.sin6_addr, .ipv6mr_interface = interface};
	return setsockopt(fd, IPPROTO_IPV6, what == MULTICAST_JOIN ? IPV6_ADD_MEMBERSHIP : IPV6_DROP_MEMBERSHIP, &request, sizeof request);
}
