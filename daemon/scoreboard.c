/* The shared table of all processes: see scoreboard.h. */
#include "scoreboard.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "mem.h"

#define LAG_WINDOW_NS 10000000000u /* for how long a long turn is remembered, at least */
#define SHORTEST_NS 10000          /* limit of the first bucket, for what is most often counted */
#define NAMES 64                   /* callbacks that are told apart */
#define POINTERS 256               /* places for the addresses of their names */

enum { LABEL_SCRIPT = SCORE_SCRIPT, LABEL_OTHER };

const uint64_t score_limits_ns[SCORE_BUCKETS] = {
	SHORTEST_NS, 30000, 100000, 300000, 1000000, 3000000, 10000000, 30000000, 100000000, 300000000, 1000000000, 3000000000, 10000000000,
};

/*
 * Names of callbacks are constants, so they are known by their addresses: a hash of those leads to a callback's number, and that with the
 * label to the series. A series is looked for by its name once.
 */
struct scorer {
	struct score *score;
	const char *last_callback; /* what was counted last, and where: it is often the same again */
	unsigned last_label;
	struct histogram *last;
	struct {
		const char *address;
		unsigned number;
	} pointers[POINTERS];
	unsigned pointer_count, name_count;
	const char *names[NAMES];             /* of a number; 0 is for those over the bound */
	uint16_t series[SCORE_LABELS][NAMES]; /* index into the score's series + 1; 0: not known yet */
};

/* The monotonic clock. */
static uint64_t clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Bytes of a board. */
static size_t size_of(size_t count)
{
	return sizeof(struct scoreboard) + count * sizeof(struct score);
}

/* Makes the table, in memory of its own that children share. */
struct scoreboard *scoreboard_new(size_t count)
{
	/* cppcheck-suppress invalidFunctionArg ; -1 goes with MAP_ANONYMOUS */
	struct scoreboard *board = mmap(NULL, size_of(count), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (board == MAP_FAILED)
		return NULL;
	board->began_ns = clock_ns();
	board->count = count;
	for (size_t i = 0; i < count; i++)
		board->scores[i].number = i;
	return board;
}

/* Gives the calling process's view of it up. */
void scoreboard_free(struct scoreboard *board)
{
	if (!board)
		return;
	munmap(board, size_of(board->count));
}

/* Scores lie behind the board's head. */
const struct scoreboard *scoreboard_of(const struct score *score)
{
	return (const struct scoreboard *)((const char *)(score - score->number) - offsetof(struct scoreboard, scores));
}

/* Adds up, or takes the one that has seen most of what all have seen. */
uint64_t scoreboard_total(const struct scoreboard *board, const struct stats_row *row)
{
	uint64_t total = 0;

	for (size_t i = 0; i < board->count; i++) {
		uint64_t value = *(const uint64_t *)((const char *)&board->scores[i].stats + row->offset);
		if (!row->common)
			total += value;
		else if (value > total)
			total = value;
	}
	return total;
}

/* The lag of a process as others see it. */
uint64_t score_lag(const struct score *score, uint64_t now_ns)
{
	uint64_t lag = 0, began = score->turn_began_ns;

	if (now_ns < score->lag_window_ns + LAG_WINDOW_NS)
		lag = score->lag_ns > score->old_lag_ns ? score->lag_ns : score->old_lag_ns;
	else if (now_ns < score->lag_window_ns + 2 * LAG_WINDOW_NS)
		lag = score->lag_ns;
	return began && now_ns > began && now_ns - began > lag ? now_ns - began : lag;
}

/* Adds a label behind the others. */
static void add_label(struct score *score, const char *text)
{
	char *label = score->labels[score->label_count];

	strncpy(label, text, SCORE_LABEL_SIZE - 1);
	label[SCORE_LABEL_SIZE - 1] = '\0';
	__atomic_store_n(&score->label_count, score->label_count + 1, __ATOMIC_RELEASE); /* readers see it whole */
}

/* Takes a score over. */
struct scorer *scorer_new(struct score *score)
{
	struct scorer *s = mem_zalloc(sizeof *s);

	s->score = score;
	s->names[0] = "other";
	s->name_count = 1;
	score->pid = getpid();
	score->started_s = (uint64_t)time(NULL);
	score->began_ns = clock_ns();
	score->generation = score->turn_began_ns = 0;
	score->lag_window_ns = score->lag_ns = score->old_lag_ns = 0;
	for (size_t i = 0; i < stats_row_count; i++)
		if (stats_rows[i].gauge)
			memset((char *)&score->stats + stats_rows[i].offset, 0, sizeof(uint64_t));
	if (!score->label_count) {
		add_label(score, "script");
		add_label(score, "other");
	}
	return s;
}

/* Lets go of it: what the score says stays. */
void scorer_free(struct scorer *s)
{
	if (!s)
		return;
	s->score->turn_began_ns = 0;
	free(s);
}

/* Finds or makes a label. */
unsigned scorer_label(struct scorer *s, const char *text)
{
	struct score *score = s->score;

	for (unsigned i = 0; i < score->label_count; i++)
		if (strncmp(score->labels[i], text, SCORE_LABEL_SIZE - 1) == 0)
			return i;
	if (score->label_count == SCORE_LABELS)
		return LABEL_OTHER;
	add_label(score, text);
	return score->label_count - 1;
}

/* The number of a callback's name that has not been met at this address. */
static unsigned number_of(struct scorer *s, const char *callback)
{
	for (unsigned i = 0; i < s->name_count; i++)
		if (strcmp(s->names[i], callback) == 0)
			return i;
	if (s->name_count == NAMES)
		return 0;
	s->names[s->name_count] = callback;
	return s->name_count++;
}

/* The number of a callback by the address of its name. */
static unsigned number_at(struct scorer *s, const char *callback)
{
	size_t i = ((uintptr_t)callback * 0x9E3779B97F4A7C15u) >> 56;

	while (s->pointers[i].address && s->pointers[i].address != callback)
		i = (i + 1) % POINTERS;
	if (!s->pointers[i].address) {
		if (s->pointer_count == POINTERS / 2)
			return 0;
		s->pointer_count++;
		s->pointers[i].address = callback;
		s->pointers[i].number = number_of(s, callback);
	}
	return s->pointers[i].number;
}

/* Finds or makes a series by its names; over the bound it is the last one, which is for all others. */
static unsigned find_series(struct score *score, unsigned label, const char *callback)
{
	unsigned n = score->series_count;

	for (unsigned i = 0; i < n; i++)
		if (score->series[i].label == label && strncmp(score->series[i].callback, callback, sizeof score->series[i].callback - 1) == 0)
			return i;
	if (n == SCORE_SERIES)
		return n - 1;
	if (n == SCORE_SERIES - 1) {
		label = LABEL_OTHER;
		callback = "other";
	}
	score->series[n].label = label;
	strncpy(score->series[n].callback, callback, sizeof score->series[n].callback - 1);
	__atomic_store_n(&score->series_count, n + 1, __ATOMIC_RELEASE);
	return n;
}

/* Counts a time. */
static void count(struct histogram *h, uint64_t ns)
{
	unsigned i = 0;

	while (ns > SHORTEST_NS && i < SCORE_BUCKETS && ns > score_limits_ns[i])
		i++;
	h->buckets[i]++;
	h->sum_ns += ns;
}

/* Counts a callback. */
void scorer_callback(struct scorer *s, unsigned label, const char *callback, uint64_t ns)
{
	if (callback != s->last_callback || label != s->last_label || !s->last) {
		unsigned number = number_at(s, callback);
		uint16_t *place = &s->series[label][number];
		if (!*place)
			*place = (uint16_t)(find_series(s->score, label, s->names[number]) + 1);
		s->last_callback = callback;
		s->last_label = label;
		s->last = &s->score->series[*place - 1].time;
	}
	count(s->last, ns);
}

/* Counts a turn, and remembers the longest of late. */
void scorer_turn(struct scorer *s, uint64_t now_ns, uint64_t ns)
{
	struct score *score = s->score;

	count(&score->turns, ns);
	if (now_ns - score->lag_window_ns >= LAG_WINDOW_NS) {
		score->old_lag_ns = now_ns - score->lag_window_ns < 2 * LAG_WINDOW_NS ? score->lag_ns : 0;
		score->lag_window_ns = now_ns;
		score->lag_ns = 0;
	}
	if (ns > score->lag_ns)
		score->lag_ns = ns;
}

/* Counts a timer. */
void scorer_timer(struct scorer *s, uint64_t ns)
{
	count(&s->score->timers, ns);
}
