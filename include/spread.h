/*
 * The end of many connections at a limit of time, spread over the last part of it: clients that all lose their connection at once come
 * back at once. Each is given a millisecond, all of them a tenth of the time at most.
 */
#ifndef REACTORD_SPREAD_H
#define REACTORD_SPREAD_H

#include <stddef.h>
#include <stdint.h>

#include "loop.h"
#include "timer.h"

#define SPREAD_EACH_NS 1000000u  /* between two connections, while that is not more than ... */
#define SPREAD_SHARE 10          /* ... this part of the time */
#define SPREAD_STEP_NS 10000000u /* how often some are asked to end */

/* Whose connections they are. */
struct spread_events {
	size_t (*count)(void *data);               /* connections that were not asked to end yet */
	void (*end_some)(void *data, size_t some); /* asks that many to end, after what is queued for them has been sent */
	void (*on_limit)(void *data);              /* the time is over: whatever is left ends now */
};

struct spread {
	struct loop *loop;
	const struct spread_events *events;
	void *data;
	struct timer timer;
	uint64_t limit_ns, until_ns; /* how long, and until when of the monotonic clock */
};

void spread_init(struct spread *s, struct loop *loop, const struct spread_events *events, void *data);

/* The time begins. */
void spread_start(struct spread *s, uint64_t limit_ns);

/* It is over as soon as the connections can be ended one after the other. After spread_start. */
void spread_hurry(struct spread *s);

void spread_stop(struct spread *s);

#endif
