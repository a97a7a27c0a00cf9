/*
 * Names to addresses by c-ares: hosts file first, never blocking.
 */
#ifndef REACTORD_RESOLVER_H
#define REACTORD_RESOLVER_H

#include <stdbool.h>
#include <stdint.h>

#include "addr.h"
#include "loop.h"

struct resolver;
struct lookup;

struct resolver *resolver_new(struct loop *loop) __attribute__((warn_unused_result));

/* Look-ups still under way are dropped without a call. */
void resolver_free(struct resolver *r);

/* Servers and settings may have changed: /etc/resolv.conf is read anew by the first look-up that finds no other under way. */
void resolver_reset(struct resolver *r);

/* Looks host up for TCP. on_done comes once, perhaps before this function returns: addresses in order of preference with count > 0, or
 * count 0 with code ("EAI_NONAME", "EAI_AGAIN", …) and why, both static. The addresses are valid during the call. Returns a handle for
 * resolver_cancel, or NULL when on_done has been called already. */
struct lookup *resolver_lookup(struct resolver *r, const char *host, uint16_t port,
	void (*on_done)(void *data, const struct addr *addresses, size_t count, const char *code, const char *why), void *data)
	__attribute__((warn_unused_result));

/* Its on_done will not be called. */
void resolver_cancel(struct lookup *lookup);

/* Looks a name up in the hosts file alone (and "localhost"), at once; for addresses to listen on. */
bool resolver_local_name(const char *host, uint16_t port, struct addr *a) __attribute__((warn_unused_result));

#endif
