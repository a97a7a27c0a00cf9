/*
 * Outgoing connections: a name or path becomes a connected descriptor. Addresses are tried in order of preference with the families
 * interleaved, the next one 250 ms after the last or as soon as that failed; the first to answer wins (RFC 8305).
 */
#ifndef REACTORD_CONNECTOR_H
#define REACTORD_CONNECTOR_H

#include "addr.h"
#include "loop.h"
#include "resolver.h"

#define CONNECTOR_STAGGER_NS 250000000u

struct connector;

/* fd is the caller's, peer its address; or fd is -1 with code and why, both static. The connector is gone afterwards. */
typedef void connector_done(void *data, int fd, const struct addr *peer, const char *code, const char *why);

/* Connects to host and port; bind (NULL: any) is the local address. on_done never comes before this function has returned. */
struct connector *connector_start(struct loop *loop, struct resolver *resolver, const char *host, uint16_t port, const struct addr *bind,
                                  connector_done *on_done, void *data) __attribute__((warn_unused_result));

/* The same for an address. */
struct connector *connector_start_addr(struct loop *loop, const struct addr *to, const struct addr *bind, connector_done *on_done,
                                       void *data) __attribute__((warn_unused_result));

/* Gives up; on_done will not be called. */
void connector_cancel(struct connector *k);

#endif
