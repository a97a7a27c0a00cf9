/*
 * Names to addresses by c-ares: hosts file first, then the name servers; UDP, and TCP where an answer is cut short. Never blocking.
 */
#ifndef REACTORD_RESOLVER_H
#define REACTORD_RESOLVER_H

#include <stdbool.h>
#include <stdint.h>

#include "addr.h"
#include "loop.h"

#define RESOLVER_MAX_LOOKUPS 10000       /* under way at once; one more fails with EAI_AGAIN */
#define RESOLVER_TIMEOUT_NS 20000000000u /* for a whole look-up */
#define RESOLVER_TRY_MS 1500             /* for the first question to a server; doubled with each round, later answers count too */
#define RESOLVER_TRIES 3                 /* questions to each server */

struct resolver;
struct lookup;

struct resolver *resolver_new(struct loop *loop) __attribute__((warn_unused_result));

/* Look-ups still under way are dropped without a call. */
void resolver_free(struct resolver *r);

/* Sets the name servers, as "127.0.0.1:5353,[::1]:53" (copied); NULL: those of /etc/resolv.conf, which the next look-up reads anew.
 * Look-ups under way go on with the old ones. */
void resolver_set_servers(struct resolver *r, const char *servers);

/* Looks host up. family: AF_INET, AF_INET6, or AF_UNSPEC for both. servers: other ones than those set, or NULL. on_done comes once, perhaps before this function returns: addresses in order of preference with count > 0, or
 * count 0 with code ("EAI_NONAME", "EAI_AGAIN", …) and why, both static. The addresses are valid during the call. Returns a handle for
 * resolver_cancel, or NULL when on_done has been called already. */
struct lookup *resolver_lookup(struct resolver *r, const char *host, uint16_t port, int family, const char *servers,
                               void (*on_done)(void *data, const struct addr *addresses, size_t count, const char *code, const char *why),
                               void *data) __attribute__((warn_unused_result));

/* Its on_done will not be called. */
void resolver_cancel(struct lookup *lookup);

/* Looks a name up in the hosts file alone (and "localhost"), at once; for addresses to listen on. */
bool resolver_local_name(const char *host, uint16_t port, struct addr *a) __attribute__((warn_unused_result));

#endif
