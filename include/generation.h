/*
 * One generation of handlers: a configuration, the VM that its handlers live in, and what the listen and connect blocks need of both.
 */
#ifndef REACTORD_GENERATION_H
#define REACTORD_GENERATION_H

#include "config.h"
#include "lua_conn.h"
#include "lua_net.h"
#include "runtime.h"
#include "sources.h"
#include "spread.h"
#include "timer.h"

struct generation;

/* A connect block: keeps its connection up. */
struct dialer {
	struct generation *generation;
	const struct connect_conf *conf;
	struct lua_class class;
	struct tls_context *tls; /* NULL: plain */
	char *handler;
	struct lua_conn *lc; /* NULL between two */
	struct timer retry;
	bool stopped; /* dials no more */
};

/* A listen block of datagrams: keeps an instance of its handler on the listener's socket. */
struct receiver {
	struct generation *generation;
	const struct listen_conf *conf;
	struct listener *l;  /* set by whoever keeps the listeners */
	struct lua_conn *lc; /* NULL: none now */
	struct timer retry;
	bool stopped; /* makes no more */
};

/* A configuration that several generations may share. */
struct shared_config {
	struct config *config;
	unsigned users;
};

struct generation {
	struct runtime *runtime;
	uint64_t number;
	struct shared_config *shared;
	struct config *config;   /* shared's */
	struct sources *sources; /* what its handlers were loaded from */
	struct vm *vm;
	struct lua_acceptor *acceptors; /* one a listen block, in the config's order */
	struct receiver *receivers;     /* one a listen block, in use for udp:// alone */
	struct dialer *dialers;         /* one a connect block */
	struct spread last_days;        /* of a retired one's connections */
	bool exhausted;                 /* its memory is full */
	unsigned turns;                 /* since it took over, as far as they matter */
	struct generation *older;
};

/* Takes config over into something to share, with one user; the last release frees it. */
struct shared_config *shared_config_new(struct config *config);
void shared_config_release(struct shared_config *shared);

/* Loads the handlers of a configuration into a new VM: files that are in sources from there, the others are added to them. NULL when anything is wrong; all of it is in problems. is_script: for
 * reactord run. */
struct generation *generation_new(struct runtime *runtime, struct shared_config *shared, struct sources *sources, uint64_t number,
                                  bool is_script, const struct vm_host *host, void *host_data, struct problems *problems)
	__attribute__((warn_unused_result));

/* Frees one whose connections have all ended. */
void generation_free(struct generation *g);

/* Begins to serve: next-ticks run, datagrams are received, connect blocks dial. The dialers of unchanged blocks take over the connections of before (or NULL). */
void generation_start(struct generation *g, struct generation *before);

/* Has a newer one taken its place: no more dialling, no timers of its own, its servers are left to the heir (or closed). Its
 * connections go on. */
void generation_retire(struct generation *g, struct generation *heir);

/* Moves to it what can be moved of the connections of older generations, which have retired. */
void generation_hand_over(struct generation *g);

/* Ends its connections for that reason, now. code NULL: orderly. */
void generation_end(struct generation *g, const char *code, const char *why);

/* Ends those of a retired one soon, as its time will: one after the other. */
void generation_expire(struct generation *g);

/* Asks at most that many of the connections that clients have opened to end after writing. Returns how many are still to be asked. */
size_t generation_finish_accepted(struct generation *g, size_t some, const char *why);

/* Ends dialling and receiving datagrams, for a stop. */
void generation_stop_dialling(struct generation *g);

/* Connections that came in by a listener. */
size_t generation_accepted(const struct generation *g);

#endif
