/* Connections that have to say a PROXY header: see preface.h. */
#include "preface.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "mem.h"
#include "timer.h"

struct preface {
	struct prefaces *prefaces;
	int fd;
	struct event *event;
	struct timer deadline;
	struct addr peer;
	unsigned char *bytes; /* the beginning of a header that came in pieces */
	size_t length;
	struct preface *previous, *next;
};

/* Takes one out of the list and frees it; its descriptor stays open. */
static void discard(struct preface *p)
{
	if (p->previous)
		p->previous->next = p->next;
	else
		p->prefaces->all = p->next;
	if (p->next)
		p->next->previous = p->previous;
	event_free(p->event);
	timer_stop(p->prefaces->loop, &p->deadline);
	free(p->bytes);
	free(p);
}

/* It will be no connection. */
static void fail(struct preface *p, const char *why)
{
	struct prefaces *prefaces = p->prefaces;
	struct addr peer = p->peer;
	int fd = p->fd;

	discard(p);
	prefaces->on_failure(prefaces->data, fd, &peer, why);
}

/* It is one. */
static void succeed(struct preface *p, const struct proxyproto *header)
{
	struct prefaces *prefaces = p->prefaces;
	struct addr peer = p->peer;
	int fd = p->fd;

	discard(p);
	prefaces->on_header(prefaces->data, fd, &peer, header);
}

/* Bytes are there. They are looked at first, and only those that belong to the header are taken. */
static void on_readable(evutil_socket_t fd, short what, void *data)
{
	struct preface *p = data;
	unsigned char bytes[PROXYPROTO_MAX_HEADER];
	struct proxyproto header;
	const char *why = NULL;

	(void)what;
	memcpy(bytes, p->bytes, p->length);
	ssize_t n = recv(fd, bytes + p->length, sizeof bytes - p->length, MSG_PEEK);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		fail(p, n < 0 ? strerrordesc_np(errno) : p->length ? "the end in the middle of it" : NULL);
		return;
	}
	enum proxyproto_result result = proxyproto_read(bytes, p->length + (size_t)n, &header, &why);
	if (result == PROXYPROTO_BAD) {
		fail(p, why);
		return;
	}
	size_t wanted = result == PROXYPROTO_DONE ? header.length - p->length : (size_t)n;
	if (recv(fd, bytes + p->length, wanted, 0) != (ssize_t)wanted) {
		fail(p, "it could not be read twice");
		return;
	}
	if (result == PROXYPROTO_DONE) {
		succeed(p, &header);
		return;
	}
	p->length += wanted;
	p->bytes = mem_realloc(p->bytes, p->length);
	memcpy(p->bytes, bytes, p->length);
}

/* The time is over. */
static void on_deadline(void *data)
{
	fail(data, "it took too long");
}

/* One more. */
void preface_start(struct prefaces *prefaces, int fd, const struct addr *peer)
{
	struct preface *p = mem_zalloc(sizeof *p);

	p->prefaces = prefaces;
	p->fd = fd;
	p->peer = *peer;
	p->bytes = mem_alloc(1);
	p->event = event_new(prefaces->loop->base, fd, EV_READ | EV_PERSIST, on_readable, p);
	if (!p->event)
		abort();
	timer_init(&p->deadline, on_deadline, p);
	timer_start(prefaces->loop, &p->deadline, prefaces->timeout_ns);
	p->next = prefaces->all;
	if (p->next)
		p->next->previous = p;
	prefaces->all = p;
	if (!prefaces->paused && event_add(p->event, NULL) < 0)
		fail(p, strerrordesc_np(errno));
}

/* Stops and resumes. */
void prefaces_pause(struct prefaces *prefaces, bool pause)
{
	prefaces->paused = pause;
	for (struct preface *p = prefaces->all; p; p = p->next) {
		if (pause)
			event_del(p->event);
		else
			(void)!event_add(p->event, NULL); /* where that fails the deadline ends it */
	}
}

/* Closes all. */
size_t prefaces_clear(struct prefaces *prefaces)
{
	size_t count = 0;

	for (; prefaces->all; count++) {
		int fd = prefaces->all->fd;
		discard(prefaces->all);
		close(fd);
	}
	return count;
}
