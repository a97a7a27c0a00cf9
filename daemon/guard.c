/* The limit on callback time: see guard.h. */
#include "guard.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mem.h"

/* A signal that nobody else uses. */
int guard_signal(void)
{
	return SIGRTMIN + 1;
}

/* The tick: counts how often it has met the running callback. Between callbacks it lets the timer rest. */
static void on_tick(int signo, siginfo_t *info, void *context)
{
	int saved = errno;
	struct guard *g = info->si_value.sival_ptr;

	(void)signo, (void)context;
	if (info->si_code != SI_TIMER || !g)
		return;
	g->armed = false;
	if (g->subject) {
		if (g->serial != g->seen_serial) {
			g->seen_serial = g->serial;
			g->seen_ticks = 0;
		} else {
			int ticks = ++g->seen_ticks;
			if (ticks == g->slow_ticks)
				g->on_slow(g->subject);
			if (ticks == g->overrun_ticks)
				g->on_overrun(g->subject);
		}
		guard_arm(g);
	}
	errno = saved;
}

/* Makes the timer, aimed at the calling thread: only there may a hook be set into the running Lua. */
struct guard *guard_new(void (*on_slow)(void *subject), void (*on_overrun)(void *subject))
{
	struct guard *g = mem_zalloc(sizeof *g);
	struct sigaction action = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART};
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = guard_signal(), .sigev_value.sival_ptr = g};

	event._sigev_un._tid = gettid();
	g->on_slow = on_slow;
	g->on_overrun = on_overrun;
	sigemptyset(&action.sa_mask);
	if (sigaction(guard_signal(), &action, NULL) < 0 || timer_create(CLOCK_MONOTONIC, &event, &g->timer) < 0) {
		int saved = errno;
		free(g);
		errno = saved;
		return NULL;
	}
	return g;
}

/* Ends the timer. A tick that is still pending is taken before the memory goes. */
void guard_free(struct guard *g)
{
	if (!g)
		return;
	timer_delete(g->timer);
	signal(guard_signal(), SIG_IGN); /* discards a pending one */
	free(g);
}

/* How many ticks make up a limit, rounded up. */
static int ticks_of(uint64_t limit_ns, uint64_t tick_ns)
{
	uint64_t ticks = tick_ns ? (limit_ns + tick_ns - 1) / tick_ns : 0;

	return ticks < INT_MAX ? (int)ticks : INT_MAX;
}

/* Changes the limits, from the next tick on. */
void guard_set_limits(struct guard *g, uint64_t slow_ns, uint64_t overrun_ns)
{
	if (overrun_ns && slow_ns >= overrun_ns)
		slow_ns = 0;
	uint64_t shorter_ns = slow_ns ? slow_ns : overrun_ns;
	if (shorter_ns && shorter_ns < GUARD_MIN_NS)
		shorter_ns = GUARD_MIN_NS;
	g->tick_ns = shorter_ns / GUARD_TICKS;
	g->slow_ticks = ticks_of(slow_ns, g->tick_ns);
	g->overrun_ticks = ticks_of(overrun_ns, g->tick_ns);
}

/* One tick from now; async-signal-safe. */
void guard_arm(struct guard *g)
{
	if (!g->tick_ns)
		return;
	struct itimerspec when = {.it_value = {.tv_sec = (time_t)(g->tick_ns / 1000000000u), .tv_nsec = (long)(g->tick_ns % 1000000000u)}};
	g->armed = true;
	timer_settime(g->timer, 0, &when, NULL);
}
