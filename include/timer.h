/*
 * Timers: a heap of due times over one timerfd. Never early, ties fire in the order in which they were started, stopping
 * frees the place at once, any number. A timer is part of its owner's struct; starting and stopping allocate nothing but the heap.
 */
#ifndef REACTORD_TIMER_H
#define REACTORD_TIMER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loop.h"

struct timer {
	uint64_t due_ns;             /* CLOCK_MONOTONIC */
	uint64_t sequence;           /* order of starting, decides ties */
	size_t place;                /* in the heap, from 1; 0: not waiting */
	void (*on_fire)(void *data); /* the timer is not waiting any more and may be started again or freed */
	void *data;
};

/* Gives the loop its timers; false with errno. */
bool timers_open(struct loop *loop) __attribute__((warn_unused_result));
void timers_close(struct loop *loop);

void timer_init(struct timer *t, void (*on_fire)(void *data), void *data);

/* Starts or restarts t: due after delay_ns from the real clock, or at a time of that clock. */
void timer_start(struct loop *loop, struct timer *t, uint64_t delay_ns);
void timer_start_at(struct loop *loop, struct timer *t, uint64_t due_ns);
void timer_stop(struct loop *loop, struct timer *t);

static inline bool timer_waiting(const struct timer *t)
{
	return t->place != 0;
}

#endif
