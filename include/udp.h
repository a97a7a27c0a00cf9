/*
 * Datagram sockets: a connection (conn.h) whose transport is datagrams. It begins bound, has no peer but the sender of the datagram
 * that is being handled, and ends by its user alone: what cannot be sent or delivered is told and leaves it open.
 */
#ifndef REACTORD_UDP_H
#define REACTORD_UDP_H

#include "conn.h"

#define UDP_BATCH 64         /* datagrams received in one pass at most */
#define UDP_SEND_BATCH 256   /* sent in one pass at most */
#define UDP_MAX_LENGTH 65527 /* bytes: the most that any family takes (IPv4: 65,507) */
#define UDP_MAX_REPORTS 64   /* failures that wait to be told; more than that are counted only */

/* Beside the connection's own events, of which on_data and on_eof never come. */
struct udp_events {
	/* c->peer is the sender, during the call alone. bytes are valid during the call; length may be 0. */
	void (*on_datagram)(struct conn *c, const char *bytes, size_t length);
	/* A datagram to that host (an address, or the name that was asked for) did not go or did not arrive. Never inside udp_send. */
	void (*on_send_error)(struct conn *c, const char *code, const char *why, const char *host, uint16_t port);
};

/* Opens a new connection on a bound datagram socket, which it owns from now on. */
void udp_open(struct conn *c, int fd, const struct udp_events *events);

/* Queues a datagram (copied) for the turn's end. Where the queue, its bookkeeping included, would hold more than max_outbound the new
 * one is dropped, and that is told as ENOBUFS; longer ones than UDP_MAX_LENGTH as EMSGSIZE. */
enum send_result udp_send(struct conn *c, const void *bytes, size_t length, const struct addr *to);

/* Room in the queue for a datagram whose destination is not known yet: false where there is none. It counts as queued until it is
 * given up, be it for udp_send. */
bool udp_reserve(struct conn *c, size_t length) __attribute__((warn_unused_result));
void udp_give_up(struct conn *c, size_t length);

/* Tells the user of a failure at the turn's end. code and why are static. */
void udp_report(struct conn *c, const char *code, const char *why, const char *host, uint16_t port);

extern const struct conn_transport udp_transport;

/* Is that connection a datagram socket? */
static inline bool udp_is(const struct conn *c)
{
	return c->transport == &udp_transport;
}

#endif
