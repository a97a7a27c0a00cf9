/*
 * The service manager's watchdog: it is told that the loop turns, by the loop, twice in the time that it waits for that (WATCHDOG_USEC). A
 * process whose loop hangs says nothing, and is killed and started again.
 */
#ifndef REACTORD_WATCHDOG_H
#define REACTORD_WATCHDOG_H

#include "loop.h"
#include "timer.h"

struct watchdog {
	struct loop *loop;
	struct timer timer;
	uint64_t every_ns; /* 0: nobody waits for us */
};

/* Begins to tell; nothing where no manager waits for it. Of several processes the main one only. */
void watchdog_start(struct watchdog *w, struct loop *loop);
void watchdog_stop(struct watchdog *w); /* one that is all zero too */

#endif
