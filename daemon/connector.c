/* Outgoing connections: see connector.h. */
#include "connector.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conn.h"
#include "mem.h"
#include "sock.h"
#include "timer.h"

#define RETRY_FULL_BACKLOG_NS 10000000u /* a Unix listener with a full backlog gives no sign of room: ask again */

/* One address being tried. */
struct attempt {
	struct connector *connector;
	struct addr to;
	int fd; /* -1: not started or failed */
	struct event *event;
};

struct connector {
	struct loop *loop;
	struct lookup *lookup;
	struct addr bind; /* length 0: any */
	struct attempt *attempts;
	size_t count, started, pending; /* of attempts */
	struct timer next;              /* the next attempt, or the first step */
	const char *code, *why;         /* of the last failure */
	connector_done *on_done;
	void *data;
};

/* Frees everything but a descriptor that is kept. */
static void discard(struct connector *k, int keep)
{
	if (k->lookup)
		resolver_cancel(k->lookup);
	timer_stop(k->loop, &k->next);
	for (size_t i = 0; i < k->count; i++) {
		struct attempt *a = &k->attempts[i];
		if (a->event)
			event_free(a->event);
		if (a->fd >= 0 && a->fd != keep)
			close(a->fd);
	}
	free(k->attempts);
	free(k);
}

/* The end of the whole undertaking. */
static void finish(struct connector *k, int fd, const struct addr *peer, const char *code, const char *why)
{
	connector_done *on_done = k->on_done;
	void *data = k->data;
	struct addr to = peer ? *peer : (struct addr){0};

	discard(k, fd);
	on_done(data, fd, fd >= 0 ? &to : NULL, code, why);
}

/* One attempt has failed. */
static void failed(struct connector *k, struct attempt *a, int error)
{
	if (a->event)
		event_free(a->event);
	a->event = NULL;
	if (a->fd >= 0) {
		close(a->fd);
		k->pending--;
	}
	a->fd = -1;
	k->code = errno_code(error);
	k->why = errno_text(error);
	if (k->started < k->count)
		timer_start(k->loop, &k->next, 0);
	else if (!k->pending)
		finish(k, -1, NULL, k->code, k->why);
}

/* The kernel knows how an attempt went. */
static void on_outcome(evutil_socket_t fd, short what, void *data)
{
	struct attempt *a = data;
	int error = sock_error(fd);

	(void)what;
	if (error)
		failed(a->connector, a, error);
	else
		finish(a->connector, fd, &a->to, NULL, NULL);
}

/* Tries the next address; while one is under way the one after it waits its 250 ms. */
static void on_next(void *data)
{
	struct connector *k = data;
	struct attempt *a = &k->attempts[k->started++];
	int error = 0;

	a->fd = sock_open(a->to.any.sa_family);
	if (a->fd < 0) {
		failed(k, a, errno);
		return;
	}
	k->pending++;
	if (k->bind.length && bind(a->fd, &k->bind.any, k->bind.length) < 0)
		error = errno;
	else if (sock_connect(a->fd, &a->to) == 0) {
		finish(k, a->fd, &a->to, NULL, NULL);
		return;
	} else
		error = errno;
	if (error == EAGAIN && a->to.any.sa_family == AF_UNIX) {
		close(a->fd);
		a->fd = -1;
		k->pending--;
		k->started--;
		timer_start(k->loop, &k->next, RETRY_FULL_BACKLOG_NS);
		return;
	}
	if (error == EINPROGRESS) {
		a->event = event_new(k->loop->base, a->fd, EV_WRITE, on_outcome, a);
		if (!a->event)
			abort();
		if (event_add(a->event, NULL) == 0) {
			if (k->started < k->count)
				timer_start(k->loop, &k->next, CONNECTOR_STAGGER_NS);
			return;
		}
		error = errno ? errno : EIO;
	}
	failed(k, a, error);
}

/* Takes the addresses of a look-up over, families by turns, beginning with that of the first. Those that the local address cannot reach
 * are left out. */
static void take_addresses(struct connector *k, const struct addr *addresses, size_t count)
{
	size_t next[2] = {0, 0};

	k->attempts = mem_zalloc((count ? count : 1) * sizeof *k->attempts);
	for (size_t turn = 0; next[0] < count || next[1] < count; turn = !turn) {
		size_t *i = &next[turn];
		while (*i < count && (addresses[*i].any.sa_family == addresses[0].any.sa_family) != (turn == 0))
			(*i)++;
		if (*i >= count)
			continue;
		const struct addr *a = &addresses[(*i)++];
		if (k->bind.length && k->bind.any.sa_family != a->any.sa_family)
			continue;
		k->attempts[k->count++] = (struct attempt){.connector = k, .to = *a, .fd = -1};
	}
	if (!k->count) {
		k->code = "EADDRNOTAVAIL";
		k->why = "the local address and the remote one are of different kinds";
	}
}

/* The name is known, or will not be. */
static void on_lookup(void *data, const struct addr *addresses, size_t count, const char *code, const char *why)
{
	struct connector *k = data;

	k->lookup = NULL;
	if (count) {
		take_addresses(k, addresses, count);
	} else {
		k->code = code;
		k->why = why;
	}
	timer_start(k->loop, &k->next, 0);
}

/* The first step after connector_start has returned. */
static void on_first(void *data)
{
	struct connector *k = data;

	if (!k->count) {
		finish(k, -1, NULL, k->code, k->why);
		return;
	}
	k->next.on_fire = on_next;
	on_next(k);
}

/* What both ways of starting have in common. */
static struct connector *connector_new(struct loop *loop, const struct addr *bind, connector_done *on_done, void *data)
{
	struct connector *k = mem_zalloc(sizeof *k);

	k->loop = loop;
	if (bind)
		k->bind = *bind;
	k->on_done = on_done;
	k->data = data;
	timer_init(&k->next, on_first, k);
	return k;
}

/* Connects by name. */
struct connector *connector_start(struct loop *loop, struct resolver *resolver, const char *host, uint16_t port, const struct addr *bind,
                                  connector_done *on_done, void *data)
{
	struct addr to;

	if (addr_from_numeric(&to, host, port)) /* an address never goes to the resolver */
		return connector_start_addr(loop, &to, bind, on_done, data);
	struct connector *k = connector_new(loop, bind, on_done, data);
	k->lookup = resolver_lookup(resolver, host, port, AF_UNSPEC, NULL, on_lookup, k);
	return k;
}

/* Connects to an address. */
struct connector *connector_start_addr(struct loop *loop, const struct addr *to, const struct addr *bind, connector_done *on_done,
                                       void *data)
{
	struct connector *k = connector_new(loop, bind, on_done, data);

	take_addresses(k, to, 1);
	timer_start(loop, &k->next, 0);
	return k;
}

/* Gives up. */
void connector_cancel(struct connector *k)
{
	discard(k, -1);
}
