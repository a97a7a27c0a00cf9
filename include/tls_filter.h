/*
 * TLS on a connection: a filter between its wire bytes and its plain bytes. OpenSSL works on BIOs over the loop's receive buffer and the
 * connection's output, so one read of the socket becomes one piece of plain data, and all answers of a turn are sent at once.
 */
#ifndef REACTORD_TLS_FILTER_H
#define REACTORD_TLS_FILTER_H

#include <openssl/x509.h>
#include <stdbool.h>

#include "conn.h"
#include "tls.h"

/* What a session asks and tells the connection's user. */
struct tls_events {
	void (*on_handshake)(struct conn *c); /* TLS is up */
	/* Has the user its own say about certificates? Asked when the handshake begins. */
	bool (*decides)(struct conn *c);
	/* A certificate of the peer's chain. 1 accepts, 0 refuses, -1 leaves it to OpenSSL's verdict. reason is the verdict in words. */
	int (*on_verify)(struct conn *c, X509 *certificate, bool preverified, int depth, const char *reason);
};

/* Switches the connection to TLS: bytes sent before stay clear, all that is read from now on must be TLS. As server or client as the
 * context is. hostname: whom a client calls, NULL if unknown. A use of context is taken. false: it is on already. The events are
 * borrowed. May be called before the connection has a descriptor. */
bool tls_start(struct conn *c, struct tls_context *context, const char *hostname, const struct tls_events *events)
	__attribute__((warn_unused_result));

/* The session, NULL if the connection is plain. */
SSL *tls_session(const struct conn *c);

/* Has the handshake ended? */
bool tls_is_up(const struct conn *c);

#endif
