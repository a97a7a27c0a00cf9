/* Messages between processes: see bus.h. */
#include "bus.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "mem.h"

#define READ_SIZE 65536 /* room for one read; more while a larger message comes in */
#define SEND_PARTS 64   /* messages that one call sends at most */

/* What a message begins with. Both ends are one program on one machine, so it travels as it is in memory. */
struct header {
	uint32_t length; /* of the bytes behind it */
	uint16_t kind, fd_count;
};

/* A message that waits to be sent. Its descriptors travel with its first byte. */
struct outgoing {
	struct outgoing *next;
	size_t length, sent; /* header included */
	int *fds;
	size_t fd_count; /* 0 once they have gone */
	char bytes[];
};

/* Room for the descriptors of one call. */
union control {
	struct cmsghdr header;
	char bytes[CMSG_SPACE((BUS_FDS_MAX + 3) * sizeof(int))];
};

struct bus {
	struct loop *loop;
	int fd;
	struct event *reader, *writer;
	bool ended, busy, freed; /* busy: in a callback; freed meanwhile */
	size_t limit, queued;
	struct outgoing *first, **last;
	char *in; /* what has come: in_used of in_size bytes */
	size_t in_size, in_used;
	int *fds; /* that have come with it */
	size_t fd_count;
	struct {
		void (*on_message)(void *data, const struct bus_message *message);
		void *data;
	} users[BUS_KINDS];
	void (*on_end)(void *data);
	void *data;
};

/* Makes the sockets. */
bool bus_pair(int fds[2])
{
	return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0;
}

/* Closes descriptors but for those that somebody has kept. */
static void close_all(const int *fds, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

/* Frees the first message of the queue. */
static void drop_first(struct bus *b)
{
	struct outgoing *o = b->first;

	b->first = o->next;
	if (!b->first)
		b->last = &b->first;
	b->queued -= o->length;
	close_all(o->fds, o->fd_count);
	free(o->fds);
	free(o);
}

/* Frees all. */
static void dispose(struct bus *b)
{
	while (b->first)
		drop_first(b);
	close_all(b->fds, b->fd_count);
	free(b->fds);
	free(b->in);
	free(b);
}

/* Neither reads nor writes any more. */
static void shut(struct bus *b)
{
	event_del(b->reader);
	event_del(b->writer);
	b->ended = true;
	while (b->first)
		drop_first(b);
}

/* The link is over: its user hears of it. */
static void end(struct bus *b)
{
	if (b->ended)
		return;
	shut(b);
	b->busy = true;
	b->on_end(b->data);
	b->busy = false;
}

/* One call's worth of the queue; false when nothing was taken. */
static bool send_some(struct bus *b)
{
	struct iovec parts[SEND_PARTS];
	union control control;
	struct msghdr message = {.msg_iov = parts};
	struct outgoing *o = b->first;

	if (o->fd_count) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(o->fd_count * sizeof(int));
		memset(&control, 0, message.msg_controllen);
		struct cmsghdr *c = CMSG_FIRSTHDR(&message);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(o->fd_count * sizeof(int));
		memcpy(CMSG_DATA(c), o->fds, o->fd_count * sizeof(int));
	}
	do {
		parts[message.msg_iovlen++] = (struct iovec){.iov_base = o->bytes + o->sent, .iov_len = o->length - o->sent};
		o = o->next;
	} while (o && !o->fd_count && message.msg_iovlen < SEND_PARTS);

	ssize_t n = sendmsg(b->fd, &message, MSG_NOSIGNAL);
	if (n < 0)
		return errno == EINTR;
	close_all(b->first->fds, b->first->fd_count);
	b->first->fd_count = 0;
	for (size_t left = (size_t)n; left;) {
		size_t rest = b->first->length - b->first->sent;
		if (left < rest) {
			b->first->sent += left;
			break;
		}
		left -= rest;
		drop_first(b);
	}
	return true;
}

/* The socket takes more. After an error nothing more is sent, as something would be missing: our reader, or the other end's, meets that behind
 * what can still be read. */
static void on_writable(evutil_socket_t fd, short what, void *data)
{
	struct bus *b = data;

	(void)fd, (void)what;
	while (b->first && send_some(b))
		;
	if (b->first && errno == EAGAIN)
		return;
	if (b->first)
		shutdown(b->fd, SHUT_WR);
	while (b->first)
		drop_first(b);
	event_del(b->writer);
}

/* Delivers the complete messages among what has come; false when it makes no sense. */
static bool deliver(struct bus *b)
{
	size_t at = 0, fds = 0;
	bool sane = true;

	while (!b->freed && !b->ended && b->in_used - at >= sizeof(struct header)) {
		struct header h;
		memcpy(&h, b->in + at, sizeof h);
		sane = h.length <= BUS_MESSAGE_MAX && h.kind < BUS_KINDS;
		if (!sane || b->in_used - at - sizeof h < h.length)
			break;
		sane = h.fd_count <= b->fd_count - fds;
		if (!sane)
			break;
		char *bytes = b->in + at + sizeof h, behind = bytes[h.length];
		struct bus_message message = {.kind = h.kind, .bytes = bytes, .length = h.length, .fds = b->fds + fds, .fd_count = h.fd_count};
		bytes[h.length] = '\0';
		if (b->users[h.kind].on_message)
			b->users[h.kind].on_message(b->users[h.kind].data, &message);
		bytes[h.length] = behind;
		close_all(message.fds, h.fd_count);
		at += sizeof h + h.length;
		fds += h.fd_count;
	}
	b->in_used -= at;
	memmove(b->in, b->in + at, b->in_used);
	b->fd_count -= fds;
	memmove(b->fds, b->fds + fds, b->fd_count * sizeof *b->fds);
	return sane;
}

/* Makes room for the message that comes in, and gives it back afterwards. There is always a byte more, for the NUL behind a message. */
static void fit(struct bus *b)
{
	struct header h;
	size_t wanted = READ_SIZE;

	if (b->in_used >= sizeof h) {
		memcpy(&h, b->in, sizeof h);
		if (sizeof h + h.length > wanted)
			wanted = sizeof h + h.length;
	}
	if (wanted == b->in_size)
		return;
	b->in = mem_realloc(b->in, wanted + 1);
	b->in_size = wanted;
}

/* Takes the descriptors out of a received message. One for which the process has no room is -1. */
static void take_fds(struct bus *b, struct msghdr *message)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		b->fds = mem_realloc(b->fds, (b->fd_count + count) * sizeof *b->fds);
		memcpy(b->fds + b->fd_count, CMSG_DATA(c), count * sizeof(int));
		b->fd_count += count;
	}
	if (message->msg_flags & MSG_CTRUNC) {
		b->fds = mem_realloc(b->fds, (b->fd_count + 1) * sizeof *b->fds);
		b->fds[b->fd_count++] = -1;
	}
}

/* Bytes have come, or the end. */
static void on_readable(evutil_socket_t fd, short what, void *data)
{
	struct bus *b = data;
	union control control;

	(void)what;
	fit(b);
	struct iovec part = {.iov_base = b->in + b->in_used, .iov_len = b->in_size - b->in_used};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	ssize_t n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	bool good = n > 0;
	if (good) {
		take_fds(b, &message);
		b->in_used += (size_t)n;
		b->busy = true;
		good = deliver(b);
		b->busy = false;
	}
	if (!good && !b->freed)
		end(b);
	if (b->freed)
		dispose(b);
}

/* Makes an end. */
struct bus *bus_new(struct loop *loop, int fd, size_t limit, void (*on_end)(void *data), void *data)
{
	struct bus *b = mem_zalloc(sizeof *b);

	b->loop = loop;
	b->fd = fd;
	b->limit = limit;
	b->last = &b->first;
	b->on_end = on_end;
	b->data = data;
	b->fds = mem_alloc(sizeof *b->fds);
	b->reader = event_new(loop->base, fd, EV_READ | EV_PERSIST, on_readable, b);
	b->writer = event_new(loop->base, fd, EV_WRITE | EV_PERSIST, on_writable, b);
	if (!b->reader || !b->writer || event_add(b->reader, NULL) < 0)
		abort();
	return b;
}

/* Closes it. */
void bus_free(struct bus *b)
{
	if (!b || b->freed)
		return;
	event_free(b->reader);
	event_free(b->writer);
	close(b->fd);
	b->ended = b->freed = true;
	if (!b->busy)
		dispose(b);
}

/* Notes who wants a kind. */
void bus_on(struct bus *b, enum bus_kind kind, void (*on_message)(void *data, const struct bus_message *message), void *data)
{
	b->users[kind].on_message = on_message;
	b->users[kind].data = data;
}

/* Duplicates descriptors; false with none of them when that fails. */
static bool duplicate_all(int *to, const int *fds, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		to[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
		if (to[i] < 0) {
			close_all(to, i);
			return false;
		}
	}
	return true;
}

/* Queues a message. */
bool bus_send(struct bus *b, enum bus_kind kind, const void *bytes, size_t length, const int *fds, size_t fd_count)
{
	struct header h = {.length = (uint32_t)length, .kind = (uint16_t)kind, .fd_count = (uint16_t)fd_count};

	if (b->ended || length > BUS_MESSAGE_MAX || fd_count > BUS_FDS_MAX)
		return false;
	if (kind > BUS_ORDERS && b->queued + sizeof h + length > b->limit)
		return false;
	int *copies = fd_count ? mem_alloc(fd_count * sizeof *copies) : NULL;
	if (!duplicate_all(copies, fds, fd_count)) {
		free(copies);
		return false;
	}
	struct outgoing *o = mem_alloc(sizeof *o + sizeof h + length);
	*o = (struct outgoing){.length = sizeof h + length, .fds = copies, .fd_count = fd_count};
	memcpy(o->bytes, &h, sizeof h);
	if (length)
		memcpy(o->bytes + sizeof h, bytes, length);
	if (!b->first && event_add(b->writer, NULL) < 0)
		abort();
	*b->last = o;
	b->last = &o->next;
	b->queued += o->length;
	return true;
}

/* What waits. */
size_t bus_queued(const struct bus *b)
{
	return b->queued;
}

/* Sends the rest. */
bool bus_flush(struct bus *b, int limit_ms)
{
	struct pollfd poller = {.fd = b->fd, .events = POLLOUT};

	while (b->first) {
		if (send_some(b))
			continue;
		if (errno != EAGAIN || poll(&poller, 1, limit_ms) <= 0)
			return false;
	}
	return true;
}
