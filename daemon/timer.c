/*
 * A binary heap of timers by (due, sequence). One timerfd, armed once a turn at most and only when the earliest due time has become
 * earlier or the last alarm has rung: libevent's own timers fire equal deadlines in no order, and its clock is coarse.
 */
#include "timer.h"

#include <stdlib.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "mem.h"

struct timers {
	struct loop *loop;
	struct timer **heap; /* heap[1] is due first; heap[0] is not used */
	size_t count, capacity;
	uint64_t sequence;   /* of the next timer started */
	struct event *alarm; /* libevent's view of fd */
	int fd;
	uint64_t armed_ns;    /* due time that fd is set to; UINT64_MAX: none */
	bool rung;            /* fd is readable and wants to be set anew */
	struct loop_hook arm; /* before the poller sleeps */
};

/* Is a to fire before b? */
static inline bool before(const struct timer *a, const struct timer *b)
{
	return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->sequence < b->sequence;
}

/* Puts t at a place of the heap. */
static inline void put(struct timers *ts, size_t place, struct timer *t)
{
	ts->heap[place] = t;
	t->place = place;
}

/* Moves the hole at place up until t fits in it. */
static void sift_up(struct timers *ts, size_t place, struct timer *t)
{
	while (place > 1 && before(t, ts->heap[place / 2])) {
		put(ts, place, ts->heap[place / 2]);
		place /= 2;
	}
	put(ts, place, t);
}

/* Moves the hole at place down until t fits in it. */
static void sift_down(struct timers *ts, size_t place, struct timer *t)
{
	for (;;) {
		size_t child = place * 2;
		if (child > ts->count)
			break;
		if (child < ts->count && before(ts->heap[child + 1], ts->heap[child]))
			child++;
		if (!before(ts->heap[child], t))
			break;
		put(ts, place, ts->heap[child]);
		place = child;
	}
	put(ts, place, t);
}

/* Takes t out of the heap. */
static void take_out(struct timers *ts, struct timer *t)
{
	size_t place = t->place;
	struct timer *last = ts->heap[ts->count--];

	t->place = 0;
	if (last == t)
		return;
	if (place > 1 && before(last, ts->heap[place / 2]))
		sift_up(ts, place, last);
	else
		sift_down(ts, place, last);
	if (ts->capacity > 1024 && ts->count < ts->capacity / 4) {
		ts->capacity /= 2;
		ts->heap = mem_realloc(ts->heap, (ts->capacity + 1) * sizeof *ts->heap);
	}
}

/* The alarm rang: fires what is due now, but nothing that was started meanwhile, so that I/O gets its turn. */
static void on_alarm(evutil_socket_t fd, short what, void *data)
{
	struct timers *ts = data;
	uint64_t now = loop_now(ts->loop), first_new = ts->sequence;

	(void)fd, (void)what;
	ts->rung = true;
	while (ts->count) {
		struct timer *t = ts->heap[1];
		if (t->due_ns > now || t->sequence >= first_new)
			break;
		take_out(ts, t);
		scorer_timer(ts->loop->scorer, now - t->due_ns);
		t->on_fire(t->data);
	}
}

/* Sets the alarm for the earliest timer. An alarm that is too early because its timer was stopped is left to ring once. */
static void arm(void *data)
{
	struct timers *ts = data;
	uint64_t due = ts->count ? ts->heap[1]->due_ns : UINT64_MAX;

	if (!ts->rung && due >= ts->armed_ns)
		return;
	struct itimerspec when = {0};
	if (due != UINT64_MAX) {
		when.it_value.tv_sec = (time_t)(due / 1000000000u);
		when.it_value.tv_nsec = (long)(due % 1000000000u);
	}
	timerfd_settime(ts->fd, TFD_TIMER_ABSTIME, &when, NULL); /* also makes fd unreadable again */
	ts->armed_ns = due;
	ts->rung = false;
}

/* Opens the timerfd and hangs the timers into the loop. */
bool timers_open(struct loop *loop)
{
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (fd < 0)
		return false;

	struct timers *ts = mem_zalloc(sizeof *ts);
	ts->loop = loop;
	ts->fd = fd;
	ts->armed_ns = UINT64_MAX;
	ts->alarm = event_new(loop->base, fd, EV_READ | EV_PERSIST, on_alarm, ts);
	if (!ts->alarm || event_add(ts->alarm, NULL) < 0) {
		if (ts->alarm)
			event_free(ts->alarm);
		close(fd);
		free(ts);
		return false;
	}
	ts->arm = (struct loop_hook){.run = arm, .data = ts};
	loop_hook_add(loop, STAGE_POLL, &ts->arm);
	loop->timers = ts;
	return true;
}

/* Closes the timers of a loop; those still waiting will never fire. */
void timers_close(struct loop *loop)
{
	struct timers *ts = loop->timers;

	if (!ts)
		return;
	for (size_t i = 1; i <= ts->count; i++)
		ts->heap[i]->place = 0;
	loop_hook_remove(loop, STAGE_POLL, &ts->arm);
	event_free(ts->alarm);
	close(ts->fd);
	free(ts->heap);
	free(ts);
	loop->timers = NULL;
}

/* Prepares a timer that is not waiting. */
void timer_init(struct timer *t, void (*on_fire)(void *data), void *data)
{
	*t = (struct timer){.on_fire = on_fire, .data = data};
}

/* Starts t after a delay from the real clock. */
void timer_start(struct loop *loop, struct timer *t, uint64_t delay_ns)
{
	uint64_t now = loop_clock();

	timer_start_at(loop, t, delay_ns < UINT64_MAX / 2 - now ? now + delay_ns : UINT64_MAX / 2);
}

/* Starts t for a point of the monotonic clock. */
void timer_start_at(struct loop *loop, struct timer *t, uint64_t due_ns)
{
	struct timers *ts = loop->timers;

	timer_stop(loop, t);
	if (ts->count == ts->capacity) {
		ts->capacity = ts->capacity ? ts->capacity * 2 : 64;
		ts->heap = mem_realloc(ts->heap, (ts->capacity + 1) * sizeof *ts->heap);
	}
	/* not before this turn: one that starts itself anew in the past would keep those that are due now from their place */
	t->due_ns = due_ns > loop->now_ns ? due_ns : loop->now_ns;
	t->sequence = ts->sequence++;
	ts->count++;
	sift_up(ts, ts->count, t);
}

/* Stops t; one that does not wait is left alone. */
void timer_stop(struct loop *loop, struct timer *t)
{
	if (t->place)
		take_out(loop->timers, t);
}
