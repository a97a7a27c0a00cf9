/*
 * The processes of a master, each in its seat: started, heard and watched, replaced when they die, killed when they hang.
 */
#ifndef REACTORD_SEATS_H
#define REACTORD_SEATS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "bus.h"
#include "loop.h"
#include "scoreboard.h"
#include "timer.h"

#define SEAT_SOON_NS 5000000000u     /* who ends sooner after its start than that has not even begun */
#define SEAT_WAIT_NS 1000000000u     /* before the third start in a row like that; each further wait is twice as long, ... */
#define SEAT_LONGEST_NS 30000000000u /* ... up to this */
#define SEAT_LOADING_NS 30000000000u /* for loading everything, at least, while others serve */
#define SEAT_ABORT_NS 1000000000u    /* from ABRT to KILL, for one that hangs */
#define SEAT_GOODBYE_NS 5000000000u  /* for the end of a process that does not listen to the master any more */

enum seat_state {
	SEAT_EMPTY,
	SEAT_STARTING,
	SEAT_READY, /* has loaded everything */
	SEAT_SERVING
};

struct channel_hub;
struct seats;

struct seat {
	struct seats *seats;
	unsigned index; /* from 1 */
	enum seat_state state;
	pid_t pid;       /* 0: none */
	struct bus *bus; /* NULL: none */
	bool bus_ended, reaped;
	int wait_status;
	bool wanted;       /* to be started */
	bool awaited;      /* the master's: an answer is due */
	unsigned failures; /* starts in a row that came to nothing */
	uint64_t started_ns;
	bool hung; /* killed for that */
	struct timer retry, kill;
	uint64_t seen_turn_ns, seen_callbacks, seen_ns; /* its last sign of life, and when that was */
};

/* What the master does about them. */
struct seats_events {
	void (*become)(void *data, struct seat *seat, int bus_fd); /* in the new process, which it ends */
	void (*on_message)(void *data, struct seat *seat, const struct bus_message *message);
	void (*on_end)(void *data, struct seat *seat, const char *how); /* it is empty now; "was killed by SIGKILL" */
};

struct seats {
	struct loop *loop;
	struct scoreboard *board; /* borrowed, a score for each */
	struct seat *all;
	unsigned count;
	struct channel_hub *hub;
	uint64_t hang_ns; /* 0: they may hang */
	struct timer look;
	const struct seats_events *events;
	void *data;
};

void seats_init(struct seats *set, struct loop *loop, struct scoreboard *board, const struct seats_events *events, void *data);

/* Frees what is left; for a new process too, in which the others are nobody's. */
void seats_clear(struct seats *set);

/* Sets after what time a process hangs; 0: never. */
void seats_watch(struct seats *set, uint64_t hang_ns);

/* Asks for the seat's process; seats_start starts those that are asked for, between two turns: a new process has no turn under way. One that
 * cannot be started is asked for again after a while. */
void seat_want(struct seat *seat);
void seats_start(struct seats *set);

/* Starts it in the place of one that has ended, or that could not be started: at once, or after a wait if that has happened often. Returns the
 * wait in nanoseconds. */
uint64_t seat_replace(struct seat *seat);

/* Starts those that wait for it at once. */
void seats_hurry(struct seats *set);

/* Starts none any more. */
void seats_hold(struct seats *set);

/* An order, to a seat that is taken. */
void seat_send(struct seat *seat, enum bus_kind kind, const void *bytes, size_t length, const int *fds, size_t fd_count);
void seats_send(struct seats *set, enum bus_kind kind, const void *bytes, size_t length);

void seats_kill(struct seats *set, int signo);

/* Ends a process that hangs, which is said with that reason: ABRT, which leaves a trace where the system keeps one, then KILL. */
void seat_end_hanging(struct seat *seat, const char *why);

/* A child has ended: looks which. */
void seats_reap(struct seats *set);

unsigned seats_taken(const struct seats *set);

#endif
