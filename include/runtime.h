/*
 * What one process runs on: the loop and all that hangs on it, made and taken down in one place.
 */
#ifndef REACTORD_RUNTIME_H
#define REACTORD_RUNTIME_H

#include "activation.h"
#include "channel.h"
#include "config.h"
#include "conn.h"
#include "guard.h"
#include "loop.h"
#include "lua_vm.h"
#include "process.h"
#include "resolver.h"
#include "scoreboard.h"
#include "store.h"
#include "tls.h"
#include "watch.h"

struct runtime {
	struct score *score; /* borrowed: outlives it */
	struct stats *stats; /* the score's */
	struct loop *loop;
	struct conns *conns;
	struct watches *watches;
	struct resolver *resolver;
	struct processes *processes;
	struct channels *channels;
	struct store *store; /* em.shared's */
	struct guard *guard;
	struct activation *activation;
	struct tls_contexts *tls;
	rlim_t descriptor_limit; /* soft, as it was before we raised it: other programs get that */
	struct timer repeats;    /* when the log tells how often an event was repeated */
	char *library_dir;       /* shipped handlers and em/ */
};

/* Makes it; the process takes the score over, and activation is taken over in any case. False with a reason (caller frees). */
bool runtime_open(struct runtime *r, const struct config *config, struct score *score, struct activation *activation, char **why)
	__attribute__((warn_unused_result));
void runtime_close(struct runtime *r);

/* Limits that a reload may change. */
void runtime_configure(struct runtime *r, const struct config *config);

/* Options for a VM on it. */
struct vm_options runtime_vm_options(struct runtime *r, const struct config *config, const struct vm_host *host, void *host_data);

/* Turns until every connection has sent what it had and its FIN, at most for that long. */
void runtime_flush(struct runtime *r, uint64_t limit_ns);

/* Turns until no connection is left, when all are ending: nothing waits for a peer then. For the end of a process. */
void runtime_finish(struct runtime *r);

#endif
