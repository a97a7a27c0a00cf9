/* The plainest good echo server on epoll: what the kernel allows one thread, and so the measure for reactord. */
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_SIZE (256 * 1024)
#define BATCH 64

struct conn {
	int fd;
	char *rest;       /* what the peer did not take yet, NULL as a rule; while there is any we do not read */
	size_t rest_size; /* bytes in rest */
	size_t rest_sent; /* of these, already sent */
};

static char buffer[READ_SIZE];

/* Opens the listening socket on 127.0.0.1 and prints the port that it got. */
static int listen_on(uint16_t port)
{
	struct sockaddr_in sin = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof sin;
	int one = 1;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0)
		err(1, "socket");
	if (bind(fd, (struct sockaddr *)&sin, size) < 0 || listen(fd, SOMAXCONN) < 0)
		err(1, "127.0.0.1:%d", port);
	if (getsockname(fd, (struct sockaddr *)&sin, &size) < 0)
		err(1, "getsockname");
	printf("%d\n", ntohs(sin.sin_port));
	fflush(stdout);
	return fd;
}

/* Tells epoll what to wait for on a connection: its input, or room for the rest. */
static void watch(int ep, int operation, struct conn *c, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = c};

	if (epoll_ctl(ep, operation, c->fd, &ev) < 0)
		err(1, "epoll_ctl");
}

/* Takes every connection that waits in the backlog. */
static void on_acceptable(int ep, int listener)
{
	int one = 1;

	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		struct conn *c;

		if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
			continue;
		if (fd < 0 && errno == EAGAIN)
			return;
		if (fd < 0 || !(c = calloc(1, sizeof *c)))
			err(1, "accept");
		c->fd = fd;
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		watch(ep, EPOLL_CTL_ADD, c, EPOLLIN);
	}
}

/* Closes a connection, which also takes it out of epoll. */
static void conn_free(struct conn *c)
{
	close(c->fd);
	free(c->rest);
	free(c);
}

/* Reads once and writes it back at once; what does not fit is kept until there is room. */
static void on_readable(int ep, struct conn *c)
{
	ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
	ssize_t sent;

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) {
		conn_free(c);
		return;
	}
	sent = send(c->fd, buffer, (size_t)got, MSG_NOSIGNAL);
	if (sent == got)
		return;
	if (sent < 0 && errno != EAGAIN && errno != EINTR) {
		conn_free(c);
		return;
	}
	if (sent < 0)
		sent = 0;
	c->rest_size = (size_t)(got - sent);
	c->rest_sent = 0;
	if (!(c->rest = malloc(c->rest_size)))
		err(1, "malloc");
	memcpy(c->rest, buffer + sent, c->rest_size);
	watch(ep, EPOLL_CTL_MOD, c, EPOLLOUT);
}

/* Sends more of the rest and goes back to reading when it is gone. */
static void on_writable(int ep, struct conn *c)
{
	ssize_t sent = send(c->fd, c->rest + c->rest_sent, c->rest_size - c->rest_sent, MSG_NOSIGNAL);

	if (sent < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (sent < 0) {
		conn_free(c);
		return;
	}
	c->rest_sent += (size_t)sent;
	if (c->rest_sent < c->rest_size)
		return;
	free(c->rest);
	c->rest = NULL;
	watch(ep, EPOLL_CTL_MOD, c, EPOLLIN);
}

/* Lifts the soft limit of descriptors to the hard one. */
static void raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

/* Serves until it is killed: echo_epoll PORT. */
int main(int argc, char **argv)
{
	struct epoll_event events[BATCH], listening = {.events = EPOLLIN, .data.ptr = NULL};
	char *end = NULL;
	unsigned long port = argc == 2 ? strtoul(argv[1], &end, 10) : 65536;
	int ep, listener;

	if (port > 65535 || end == argv[1] || *end) {
		fprintf(stderr, "usage: echo_epoll PORT (0: any; the port is printed)\n");
		return 2;
	}
	raise_descriptor_limit();
	listener = listen_on((uint16_t)port);
	ep = epoll_create1(EPOLL_CLOEXEC);
	if (ep < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, listener, &listening) < 0)
		err(1, "epoll");
	for (;;) {
		int n = epoll_wait(ep, events, BATCH, -1);

		if (n < 0 && errno != EINTR)
			err(1, "epoll_wait");
		for (int i = 0; i < n; i++) {
			struct conn *c = events[i].data.ptr;

			if (!c)
				on_acceptable(ep, listener);
			else if (c->rest)
				on_writable(ep, c);
			else
				on_readable(ep, c);
		}
	}
}
