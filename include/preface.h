/*
 * Connections that a proxy has made: before they are anybody's they have to say a PROXY header, within a time. Exactly its bytes are taken
 * from the socket; what follows, TLS included, is left to whoever gets the connection.
 */
#ifndef REACTORD_PREFACE_H
#define REACTORD_PREFACE_H

#include <stdbool.h>

#include "addr.h"
#include "loop.h"
#include "proxyproto.h"

struct preface;

/* Those of one listener. */
struct prefaces {
	struct loop *loop;
	uint64_t timeout_ns; /* of each, from its beginning */
	struct preface *all;
	bool paused; /* nothing is read, the time runs */
	/* Each is told once, and is gone then. fd is the callee's. why is static, and NULL where the peer has left without a word. */
	void (*on_header)(void *data, int fd, const struct addr *peer, const struct proxyproto *header);
	void (*on_failure)(void *data, int fd, const struct addr *peer, const char *why);
	void *data;
};

/* One more; fd is taken over. */
void preface_start(struct prefaces *prefaces, int fd, const struct addr *peer);

/* Stops and resumes reading. */
void prefaces_pause(struct prefaces *prefaces, bool pause);

/* Closes all; nobody is told. Returns how many there were. */
size_t prefaces_clear(struct prefaces *prefaces);

#endif
