/*
 * What each process of the daemon tells of itself, in memory that all of them share: counters, when its turn began, how late it is, how
 * long callbacks take. A process writes its own score alone, without locks; others read it, also when it has died. Its successor goes on
 * with the same counters.
 */
#ifndef REACTORD_SCOREBOARD_H
#define REACTORD_SCOREBOARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "stats.h"

#define SCORE_LABELS 128     /* listeners and connect blocks that have series of their own */
#define SCORE_LABEL_SIZE 128 /* bytes of a label; longer ones are cut */
#define SCORE_SERIES 512     /* pairs of label and callback */
#define SCORE_BUCKETS 13     /* limits of a histogram's buckets */

extern const uint64_t score_limits_ns[SCORE_BUCKETS]; /* 10 us to 10 s */

/* How long things took; the last bucket is for what is over every limit. The count is the sum of the buckets. */
struct histogram {
	uint64_t sum_ns;
	uint64_t buckets[SCORE_BUCKETS + 1]; /* the lowest, where most are, beside the sum */
};

/* Time in one callback of the connections of one listener or connect block. */
struct series {
	struct histogram time;
	unsigned label; /* index into the score's labels */
	char callback[32];
} __attribute__((aligned(64)));

/* One process. */
struct score {
	size_t number;          /* its place on the board */
	pid_t pid;              /* 0: none has ever been */
	uint64_t started_s;     /* wall clock */
	uint64_t began_ns;      /* the same moment by CLOCK_MONOTONIC */
	uint64_t generation;    /* of handlers that serves */
	uint64_t turn_began_ns; /* CLOCK_MONOTONIC: since then the loop has not slept; 0: it sleeps */
	struct stats stats;
	struct histogram turns;      /* from the poller's return to the turn's end: what may delay anybody else */
	struct histogram timers;     /* how late timers fire */
	uint64_t lag_window_ns;      /* when the present window began */
	uint64_t lag_ns, old_lag_ns; /* longest turn in this window and in the one before */
	unsigned label_count;
	char labels[SCORE_LABELS][SCORE_LABEL_SIZE];
	unsigned series_count;
	struct series series[SCORE_SERIES];
};

/* All of them. */
struct scoreboard {
	uint64_t began_ns; /* when it was made, by CLOCK_MONOTONIC */
	size_t count;
	struct score scores[];
};

/* Room for that many processes, shared with every child forked from now on; NULL with errno. */
struct scoreboard *scoreboard_new(size_t count) __attribute__((warn_unused_result));
void scoreboard_free(struct scoreboard *board);

/* The board that a score is on. */
const struct scoreboard *scoreboard_of(const struct score *score);

/* One row of stats_rows over all processes. */
uint64_t scoreboard_total(const struct scoreboard *board, const struct stats_row *row);

/* How long others may have to wait for the process: its longest turn of late, or the one that runs. now_ns is of the monotonic clock. */
uint64_t score_lag(const struct score *score, uint64_t now_ns);

/* The hand of a process on its score. */
struct scorer;

/* The calling process takes a score over: it is its pid from now on, gauges begin at 0, counters go on. */
struct scorer *scorer_new(struct score *score) __attribute__((warn_unused_result));
void scorer_free(struct scorer *s);

/* The number of a label, a new one if need be. SCORE_SCRIPT stands for whatever belongs to no listener or connect block; the label "other"
 * for all when the table is full. */
#define SCORE_SCRIPT 0
unsigned scorer_label(struct scorer *s, const char *text);

/* A callback has taken that long; its name is a string constant. */
void scorer_callback(struct scorer *s, unsigned label, const char *callback, uint64_t ns);

/* A turn that ends now has taken that long; a timer has fired that much late. */
void scorer_turn(struct scorer *s, uint64_t now_ns, uint64_t ns);
void scorer_timer(struct scorer *s, uint64_t ns);

#endif
