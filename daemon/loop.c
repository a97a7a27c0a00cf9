/* The turn of the loop: see loop.h. */
#include "loop.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "mem.h"

/* Makes the loop with libevent's best poller (epoll) and no threads of its own. */
struct loop *loop_new(struct score *score)
{
	struct loop *loop = mem_zalloc(sizeof *loop);

	loop->base = event_base_new();
	if (!loop->base) {
		int saved = errno ? errno : EINVAL;
		free(loop);
		errno = saved;
		return NULL;
	}
	loop->score = score;
	loop->stats = &score->stats;
	loop->scorer = scorer_new(score);
	loop->process = loop->processes = 1;
	loop->buffer = mem_alloc(LOOP_BUFFER_SIZE);
	return loop;
}

/* Frees the loop; every event and hook on it must have gone before. */
void loop_free(struct loop *loop)
{
	if (!loop)
		return;
	event_base_free(loop->base);
	scorer_free(loop->scorer);
	free(loop->buffer);
	free(loop);
}

/* Runs the hooks of one stage. */
static void run_stage(struct loop *loop, enum loop_stage stage)
{
	for (struct loop_hook *hook = loop->hooks[stage]; hook; hook = loop->following) {
		loop->following = hook->next;
		hook->run(hook->data);
	}
}

/* The turn. */
void loop_turn(struct loop *loop)
{
	run_stage(loop, STAGE_POLL);

	int flags = loop->awake ? EVLOOP_ONCE | EVLOOP_NONBLOCK : EVLOOP_ONCE;
	loop->awake = false;
	loop->now_ns = loop->score->turn_began_ns = 0;
	event_base_loop(loop->base, flags);
	uint64_t began = loop_now(loop);

	run_stage(loop, STAGE_TICK);
	run_stage(loop, STAGE_END);
	loop->stats->turns++;
	uint64_t now = loop_clock();
	scorer_turn(loop->scorer, now, now - began);
}

/* Marks the next pass as one that must not sleep. */
void loop_wake(struct loop *loop)
{
	loop->awake = true;
}

/* Appends a hook to its stage. */
void loop_hook_add(struct loop *loop, enum loop_stage stage, struct loop_hook *hook)
{
	struct loop_hook **end = &loop->hooks[stage];

	while (*end)
		end = &(*end)->next;
	hook->next = NULL;
	*end = hook;
}

/* Takes a hook out of its stage; one that is not in it is ignored. */
void loop_hook_remove(struct loop *loop, enum loop_stage stage, struct loop_hook *hook)
{
	for (struct loop_hook **at = &loop->hooks[stage]; *at; at = &(*at)->next) {
		if (*at != hook)
			continue;
		*at = hook->next;
		if (loop->following == hook)
			loop->following = hook->next;
		return;
	}
}

/* The real clock. */
uint64_t loop_clock(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The turn's clock: taken when the first callback of the turn asks for it, which is after the poller has returned. */
uint64_t loop_now(struct loop *loop)
{
	if (!loop->now_ns) {
		loop->now_ns = loop->score->turn_began_ns = loop_clock();
		loop->fresh = true;
	}
	return loop->now_ns;
}

/* The beginning of a callback. Reading a clock is cheap, and there may be a callback in every three microseconds. */
uint64_t loop_begin(struct loop *loop)
{
	uint64_t began = loop_now(loop);

	if (!loop->fresh)
		return loop_clock();
	loop->fresh = false;
	return began;
}
