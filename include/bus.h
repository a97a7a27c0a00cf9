/*
 * A link between two of our processes: whole messages in their order over a pair of Unix stream sockets, each with a kind, bytes, and
 * perhaps descriptors. Nothing waits: what the socket does not take is queued, and the loop sends it.
 */
#ifndef REACTORD_BUS_H
#define REACTORD_BUS_H

#include <stdbool.h>
#include <stddef.h>

#include "loop.h"

#define BUS_MESSAGE_MAX (4u << 20) /* bytes of one message */
#define BUS_FDS_MAX 250            /* descriptors of one message; the kernel takes 253. If some of several find no room, the link breaks */

/* What a message is about. Orders come first: they are few and must arrive, so the queue's limit is not for them. */
enum bus_kind {
	BUS_PORT, /* from the master to a process, see member.h */
	BUS_PREPARE,
	BUS_COMMIT,
	BUS_ABORT,
	BUS_DRAIN,
	BUS_STOP,
	BUS_REOPEN,
	BUS_SOURCE, /* from a process to the master */
	BUS_PREPARED,
	BUS_COMMITTED,
	BUS_STOPPING,
	BUS_LEAVE,   /* for an upgrade: what do scripts listen on? */
	BUS_KEEP,    /* nothing has come of it */
	BUS_LEFT,    /* process to master: one of them, and its descriptor; empty behind the last */
	BUS_ORDERS,  /* from here on the queue's limit counts */
	BUS_CHANNEL, /* data of named channels */
	BUS_CONTROL_REQUEST,
	BUS_CONTROL_REPLY,
	BUS_KINDS
};

/* A message that has come; all of it belongs to the bus and is good for the call. */
struct bus_message {
	enum bus_kind kind;
	const char *bytes; /* NUL-terminated behind its length */
	size_t length;
	int *fds; /* whoever keeps one puts -1 in its place; the others are closed. -1 already: this process had no room for it */
	size_t fd_count;
};

struct bus;

/* A pair of connected sockets for the two ends; false with errno. */
bool bus_pair(int fds[2]) __attribute__((warn_unused_result));

/* An end of a link on such a socket, which is taken over. limit: bytes that may wait to be sent, more than the largest message. on_end
 * comes once, in the loop, when the other end is closed and all that it had sent was delivered, or when the link is broken. */
struct bus *bus_new(struct loop *loop, int fd, size_t limit, void (*on_end)(void *data), void *data) __attribute__((warn_unused_result));

/* Closes it without a word; may be called in its callbacks. What waits to be sent is lost: see bus_flush. */
void bus_free(struct bus *b);

/* Whom messages of a kind are for. Those that nobody wants are dropped. */
void bus_on(struct bus *b, enum bus_kind kind, void (*on_message)(void *data, const struct bus_message *message), void *data);

/* Queues a message; bytes are copied, descriptors duplicated. False: the link has ended, the queue is over its limit, the message is
 * too large, or no descriptor was left. */
bool bus_send(struct bus *b, enum bus_kind kind, const void *bytes, size_t length, const int *fds, size_t fd_count)
	__attribute__((warn_unused_result));

/* Bytes that wait to be sent. */
size_t bus_queued(const struct bus *b);

/* Sends what is queued and waits for that, for the end of a process; false when the time did not do. */
bool bus_flush(struct bus *b, int limit_ms);

#endif
