/*
 * Limits on the time of one callback. A POSIX timer ticks while callbacks run and sees the same callback in several ticks
 * running: it then calls on_slow, and on_overrun when that goes on, from a signal handler on the loop's own thread. Entering and leaving costs two stores; the
 * timer is armed once in a tick at most; it rings once after the last callback, and then no more while the loop sleeps.
 */
#ifndef REACTORD_GUARD_H
#define REACTORD_GUARD_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define GUARD_MIN_NS 1000000u /* shorter limits are this long: the ticks themselves take time */
#define GUARD_TICKS 4         /* ticks that make up the shorter limit; it is seen to be passed between the limit and a tick more */

struct guard {
	volatile uint64_t serial;          /* number of the callback that runs or ran last */
	void *volatile subject;            /* whose callback runs; NULL: none */
	volatile bool armed;               /* the timer will tick */
	volatile uint64_t seen_serial;     /* serial at the last tick */
	volatile int seen_ticks;           /* how many ticks have seen it */
	void (*on_slow)(void *subject);    /* async-signal-safe; called once for a callback */
	void (*on_overrun)(void *subject); /* the same */
	timer_t timer;
	uint64_t tick_ns;              /* 0: no limit */
	int slow_ticks, overrun_ticks; /* how many make up each limit; 0: no such limit */
};

/* Makes the guard of the calling thread, or NULL with errno. Not inherited over fork. */
struct guard *guard_new(void (*on_slow)(void *subject), void (*on_overrun)(void *subject)) __attribute__((warn_unused_result));
void guard_free(struct guard *g);

/* The signal that it ticks by, which nobody else may use. */
int guard_signal(void);

/* Sets the time after which a callback is slow, and the one after which it has overrun; 0 is no limit. One that is slow no sooner than it
 * has overrun is never called slow. */
void guard_set_limits(struct guard *g, uint64_t slow_ns, uint64_t overrun_ns);

/* Starts the timer's next tick. */
void guard_arm(struct guard *g);

/* Around the outermost callback. */
static inline void guard_enter(struct guard *g, void *subject)
{
	g->serial++;
	g->subject = subject;
	if (!g->armed)
		guard_arm(g);
}

static inline void guard_leave(struct guard *g)
{
	g->subject = 0;
}

#endif
