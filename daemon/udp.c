/*
 * Datagrams: see udp.h. What is sent waits for the turn's end and goes in batches. The kernel keeps what it learns of destinations that
 * could not be reached (ICMP) in a queue of the socket's: it is emptied before that would fail a datagram to somebody else.
 */
#include "udp.h"

#include <errno.h>
#include <linux/errqueue.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "mem.h"

#define SEND_VECTOR 32 /* datagrams of one system call */

/* A datagram that waits to be sent. */
struct datagram {
	struct datagram *next;
	struct addr to;
	size_t length;
	char bytes[];
};

/* A failure that waits to be told. */
struct report {
	struct report *next;
	const char *code, *why;
	uint16_t port;
	char host[];
};

struct udp {
	struct conn *c;
	const struct udp_events *events;
	struct event room; /* there is room in the socket's buffer */
	struct datagram *first, **last;
	size_t count, bytes; /* of them */
	size_t reserved, reserved_bytes;
	struct report *reports, **last_report;
	size_t report_count;
};

/* The transport's data. */
static struct udp *udp_of(const struct conn *c)
{
	return c->transport_data;
}

/* Brings conn's sums in step. */
static void account(struct udp *u)
{
	conn_transport_queued(u->c, u->bytes + u->reserved_bytes, u->count);
}

/* Keeps a failure for the turn's end. */
void udp_report(struct conn *c, const char *code, const char *why, const char *host, uint16_t port)
{
	struct udp *u = udp_of(c);
	size_t length = strlen(host);

	c->conns->loop->stats->datagrams_failed++;
	if (u->report_count >= UDP_MAX_REPORTS || c->state == CONN_ENDING)
		return;
	struct report *r = mem_alloc(sizeof *r + length + 1);
	*r = (struct report){.code = code, .why = why, .port = port};
	memcpy(r->host, host, length + 1);
	*u->last_report = r;
	u->last_report = &r->next;
	u->report_count++;
	conn_transport_dirty(c);
}

/* The same for an errno and an address. */
static void report_errno(struct conn *c, int error, const struct addr *to)
{
	char host[ADDR_TEXT_SIZE];

	udp_report(c, errno_code(error), errno_text(error), addr_host(to, host), addr_port(to));
}

/* Tells what has failed up to now. */
static void tell_reports(struct udp *u)
{
	struct report *r = u->reports, *next;

	u->reports = NULL;
	u->last_report = &u->reports;
	u->report_count = 0;
	for (; r; r = next) {
		next = r->next;
		if (u->c->user && u->c->state != CONN_ENDING)
			u->events->on_send_error(u->c, r->code, r->why, r->host, r->port);
		free(r);
	}
}

/* Takes one entry out of the kernel's queue of errors. False: there is none. */
static bool take_error(struct conn *c, bool *remote)
{
	struct addr to = {.length = sizeof to - offsetof(struct addr, any)};
	char payload[1], control[512] __attribute__((aligned(8)));
	struct iovec part = {payload, sizeof payload};
	struct msghdr message = {.msg_name = &to.any,
	                         .msg_namelen = to.length,
	                         .msg_iov = &part,
	                         .msg_iovlen = 1,
	                         .msg_control = control,
	                         .msg_controllen = sizeof control};

	if (recvmsg(c->fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
		return false;
	to.length = message.msg_namelen;
	for (struct cmsghdr *m = CMSG_FIRSTHDR(&message); m; m = CMSG_NXTHDR(&message, m)) {
		struct sock_extended_err e;
		bool known =
			(m->cmsg_level == IPPROTO_IP && m->cmsg_type == IP_RECVERR) || (m->cmsg_level == IPPROTO_IPV6 && m->cmsg_type == IPV6_RECVERR);
		if (!known)
			continue;
		memcpy(&e, CMSG_DATA(m), sizeof e);
		if (e.ee_origin != SO_EE_ORIGIN_ICMP && e.ee_origin != SO_EE_ORIGIN_ICMP6)
			continue; /* our own send has returned it already */
		*remote = true;
		report_errno(c, (int)e.ee_errno, &to);
	}
	return true;
}

/* Empties that queue, as far as one pass goes. True if there was word from the network in it. */
static bool take_errors(struct conn *c)
{
	bool remote = false;

	for (int i = 0; i < UDP_BATCH && take_error(c, &remote); i++)
		;
	return remote;
}

/* Input: one pass, so that the others get their turn. */
static void readable(struct conn *c)
{
	struct udp *u = udp_of(c);
	struct loop *loop = c->conns->loop;

	if (c->reading == READING_ERRORS) {
		take_errors(c);
		return;
	}
	for (int i = 0; i < UDP_BATCH && c->state == CONN_OPEN && !c->paused && !c->finishing; i++) {
		struct addr from = {.length = sizeof from - offsetof(struct addr, any)};
		ssize_t n = recvfrom(c->fd, loop->buffer, LOOP_BUFFER_SIZE, 0, &from.any, &from.length);
		if (n < 0) {
			bool empty = errno == EAGAIN;
			if (!empty || i == 0) /* called for nothing: there is an error to be had */
				take_errors(c);
			if (empty)
				break;
			continue;
		}
		c->last_io_ns = loop_now(loop);
		c->bytes_in += (uint64_t)n;
		loop->stats->bytes_in += (uint64_t)n;
		loop->stats->datagrams_in++;
		if (!c->user)
			continue;
		c->peer = from;
		u->events->on_datagram(c, loop->buffer, (size_t)n);
		c->peer.length = 0;
	}
}

/* Takes datagrams off the head of the queue. */
static void pop(struct udp *u, size_t n)
{
	for (; n; n--) {
		struct datagram *d = u->first;
		u->first = d->next;
		u->count--;
		u->bytes -= d->length;
		free(d);
	}
	if (!u->first)
		u->last = &u->first;
	account(u);
}

/* Sends some of the queue in one system call; how many, or -1 with errno. */
static int send_some(struct udp *u)
{
	struct mmsghdr messages[SEND_VECTOR];
	struct iovec parts[SEND_VECTOR];
	unsigned n = 0;

	for (struct datagram *d = u->first; d && n < SEND_VECTOR; d = d->next, n++) {
		parts[n] = (struct iovec){d->bytes, d->length};
		messages[n] =
			(struct mmsghdr){.msg_hdr = {.msg_name = &d->to.any, .msg_namelen = d->to.length, .msg_iov = &parts[n], .msg_iovlen = 1}};
	}
	int sent = sendmmsg(u->c->fd, messages, n, MSG_DONTWAIT);
	for (int i = 0; i < sent; i++) {
		u->c->bytes_out += messages[i].msg_len;
		u->c->conns->loop->stats->bytes_out += messages[i].msg_len;
	}
	return sent;
}

/* Sends what goes; what the system refuses is told and left out. Returns how many have left the queue. */
static size_t flush(struct conn *c)
{
	struct udp *u = udp_of(c);
	struct loop *loop = c->conns->loop;
	size_t gone = 0;
	int excuses = 0; /* errors that may have been about earlier datagrams */

	while (u->first && !c->paused && !c->writing && gone < UDP_SEND_BATCH) {
		int sent = send_some(u);
		if (sent >= 0) {
			c->last_io_ns = loop_now(loop);
			loop->stats->datagrams_out += (uint64_t)sent;
			gone += (size_t)sent;
			pop(u, (size_t)sent);
			excuses = 0;
			continue;
		}
		int error = errno;
		if (error == EAGAIN)
			break;
		if (error == EINTR || (error != EMSGSIZE && excuses++ < 4 && take_errors(c)))
			continue;
		report_errno(c, error, &u->first->to);
		gone++;
		pop(u, 1);
		excuses = 0;
	}
	tell_reports(u);
	return gone;
}

/* Does anything wait? */
static bool pending(const struct conn *c)
{
	const struct udp *u = udp_of(c);

	return u->first || u->reserved;
}

/* The socket takes more. */
static void on_room(evutil_socket_t fd, short what, void *data)
{
	struct udp *u = data;

	(void)fd, (void)what;
	conn_transport_room(u->c);
}

/* Waits for that. */
static void watch_room(struct conn *c, bool on)
{
	struct udp *u = udp_of(c);

	if (on)
		event_add(&u->room, NULL);
	else
		event_del(&u->room);
}

/* Frees all of it. */
static void udp_free(struct conn *c)
{
	struct udp *u = udp_of(c);
	struct report *next;

	event_del(&u->room);
	u->reserved = u->reserved_bytes = 0;
	pop(u, u->count);
	for (struct report *r = u->reports; r; r = next) {
		next = r->next;
		free(r);
	}
	free(u);
	c->transport_data = NULL;
}

const struct conn_transport udp_transport = {
	.readable = readable,
	.flush = flush,
	.pending = pending,
	.watch_room = watch_room,
	.free = udp_free,
};

/* Opens it. */
void udp_open(struct conn *c, int fd, const struct udp_events *events)
{
	struct udp *u = mem_zalloc(sizeof *u);

	u->c = c;
	u->events = events;
	u->last = &u->first;
	u->last_report = &u->reports;
	event_assign(&u->room, c->conns->loop->base, fd, EV_WRITE, on_room, u);
	conn_set_transport(c, &udp_transport, u);
	conn_open(c, fd, NULL);
}

/* Is there room for one more? */
static bool has_room(const struct conn *c, size_t length)
{
	const struct udp *u = udp_of(c);
	size_t now = (u->count + u->reserved + 1) * sizeof(struct datagram) + u->bytes + u->reserved_bytes;

	return length <= c->flow.max_outbound && now <= c->flow.max_outbound - length && c->conns->queued + length <= c->conns->max_queued;
}

/* Queues. */
enum send_result udp_send(struct conn *c, const void *bytes, size_t length, const struct addr *to)
{
	struct udp *u = udp_of(c);

	if (!conn_usable(c) && c->state != CONN_FLUSHING)
		return SEND_CLOSED;
	if (length > UDP_MAX_LENGTH) {
		report_errno(c, EMSGSIZE, to);
	} else if (!has_room(c, length)) {
		c->conns->loop->stats->datagrams_dropped++;
		c->full = true;
		report_errno(c, ENOBUFS, to);
	} else {
		struct datagram *d = mem_alloc(sizeof *d + length);
		*d = (struct datagram){.to = *to, .length = length};
		memcpy(d->bytes, bytes, length);
		*u->last = d;
		u->last = &d->next;
		u->count++;
		u->bytes += length;
		account(u);
		if (!c->writing)
			conn_transport_dirty(c);
		if (c->queued > c->flow.high_water)
			c->full = true;
	}
	return c->full ? SEND_FULL : SEND_OK;
}

/* Reserves. */
bool udp_reserve(struct conn *c, size_t length)
{
	struct udp *u = udp_of(c);

	if (!has_room(c, length))
		return false;
	u->reserved++;
	u->reserved_bytes += length;
	account(u);
	if (c->queued > c->flow.high_water)
		c->full = true;
	return true;
}

/* Gives a reservation up. */
void udp_give_up(struct conn *c, size_t length)
{
	struct udp *u = udp_of(c);

	u->reserved--;
	u->reserved_bytes -= length;
	account(u);
	conn_transport_dirty(c);
}
