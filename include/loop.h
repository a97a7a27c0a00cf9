/*
 * The turn of the loop on libevent: one pass of the poller, then the hooks of each later stage in the order in which they were added.
 */
#ifndef REACTORD_LOOP_H
#define REACTORD_LOOP_H

#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>

#include "scoreboard.h"

#define LOOP_BUFFER_SIZE (256 * 1024) /* bytes of the shared receive buffer */

/* The steps of a turn that others take part in. Between POLL and TICK libevent calls back for sockets, timers and signals. */
enum loop_stage {
	STAGE_POLL, /* last thing before the poller may sleep: arm what wakes it */
	STAGE_TICK, /* what scripts asked to have done after this turn's I/O */
	STAGE_END,  /* flush dirty outputs, reap closed connections */
	STAGE_COUNT
};

/* A part of the turn; owned by whoever adds it and alive until it is removed. */
struct loop_hook {
	void (*run)(void *data);
	void *data;
	struct loop_hook *next;
};

struct timers;
struct activation;
struct legacy;
struct listener;
struct bus;

struct loop {
	struct event_base *base;
	struct score *score; /* borrowed */
	struct stats *stats; /* its counters */
	struct scorer *scorer;
	struct timers *timers;         /* timer.c's */
	struct activation *activation; /* sockets that the process was started with; borrowed */
	struct legacy *legacy;         /* what a process before has left, NULL: there was none; borrowed */
	struct listener *listeners;    /* open ones */
	struct bus *bus;               /* to the master; borrowed, NULL where there is none */
	unsigned process, processes;   /* which one of how many: 1 of 1 without a master */
	struct loop_hook *hooks[STAGE_COUNT];
	struct loop_hook *following; /* hook that runs next, so that one may remove itself or its successor */
	uint64_t now_ns;             /* when this turn's callbacks began; 0: not asked yet */
	bool fresh;                  /* it was asked for since the last callback began */
	bool awake;                  /* the next pass must not sleep */
	char *buffer;                /* LOOP_BUFFER_SIZE bytes that every read of a turn goes through */
};

/* A loop, or NULL with errno, that takes over a score, which is borrowed for its lifetime. */
struct loop *loop_new(struct score *score) __attribute__((warn_unused_result));
void loop_free(struct loop *loop);

/* One turn; sleeps until something happens unless somebody called loop_wake. */
void loop_turn(struct loop *loop);

/* Keeps the next pass from sleeping: there is work that no descriptor announces. */
void loop_wake(struct loop *loop);

/* Adds a hook behind those of its stage, and takes it away again; both may be called from hooks. */
void loop_hook_add(struct loop *loop, enum loop_stage stage, struct loop_hook *hook);
void loop_hook_remove(struct loop *loop, enum loop_stage stage, struct loop_hook *hook);

/* CLOCK_MONOTONIC in nanoseconds: the real clock, and the one that stands still within a turn. */
uint64_t loop_clock(void);
uint64_t loop_now(struct loop *loop);

/* The real clock for a callback that begins: the turn's, where that was looked at for the event that leads to it. */
uint64_t loop_begin(struct loop *loop);

#endif
