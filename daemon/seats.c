/* The processes of a master: see seats.h. */
#include "seats.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "channel_hub.h"
#include "log.h"
#include "mem.h"
#include "member.h"
#include "sig.h"

#define LOOKS 4 /* at the processes, within the time after which one hangs */

static void on_retry(void *data);
static void on_kill(void *data);
static void on_look(void *data);

/* Makes the seats, all empty. */
void seats_init(struct seats *set, struct loop *loop, struct scoreboard *board, const struct seats_events *events, void *data)
{
	*set = (struct seats){.loop = loop, .board = board, .count = (unsigned)board->count, .events = events, .data = data};
	set->all = mem_zalloc(set->count * sizeof *set->all);
	set->hub = channel_hub_new();
	timer_init(&set->look, on_look, set);
	for (unsigned i = 0; i < set->count; i++) {
		struct seat *seat = &set->all[i];
		seat->seats = set;
		seat->index = i + 1;
		timer_init(&seat->retry, on_retry, seat);
		timer_init(&seat->kill, on_kill, seat);
	}
}

/* Lets go of a seat's bus. */
static void leave(struct seat *seat)
{
	if (!seat->bus)
		return;
	channel_hub_leave(seat->seats->hub, seat->bus);
	bus_free(seat->bus);
	seat->bus = NULL;
}

/* Frees them. */
void seats_clear(struct seats *set)
{
	if (!set->all)
		return;
	for (unsigned i = 0; i < set->count; i++) {
		timer_stop(set->loop, &set->all[i].retry);
		timer_stop(set->loop, &set->all[i].kill);
		leave(&set->all[i]);
	}
	timer_stop(set->loop, &set->look);
	channel_hub_free(set->hub);
	free(set->all);
	set->all = NULL;
	set->hub = NULL;
	set->count = 0;
}

/* What a process that is gone had open is gone with it. */
static void clear_gauges(struct score *score)
{
	score->turn_began_ns = 0;
	for (size_t i = 0; i < stats_row_count; i++)
		if (stats_rows[i].gauge)
			memset((char *)&score->stats + stats_rows[i].offset, 0, sizeof(uint64_t));
}

/* How a process has ended, in words. */
static const char *describe(const struct seat *seat, char text[64])
{
	char name[SIG_NAME_SIZE];

	if (WIFSIGNALED(seat->wait_status))
		snprintf(text, 64, "was killed by SIG%s%s", sig_name(WTERMSIG(seat->wait_status), name), seat->hung ? ", as it hung" : "");
	else
		snprintf(text, 64, "ended with status %d", WEXITSTATUS(seat->wait_status));
	return text;
}

/* Is it over? Its last words have been heard, and its status is there. */
static void check_end(struct seat *seat)
{
	char how[64];

	if (!seat->reaped || !seat->bus_ended)
		return;
	timer_stop(seat->seats->loop, &seat->kill);
	leave(seat);
	clear_gauges(&seat->seats->board->scores[seat->index - 1]);
	describe(seat, how);
	if (loop_clock() - seat->started_ns >= SEAT_SOON_NS)
		seat->failures = 0;
	seat->state = SEAT_EMPTY;
	seat->pid = 0;
	seat->seats->events->on_end(seat->seats->data, seat, how);
}

/* Its end of the bus is closed. */
static void on_bus_end(void *data)
{
	struct seat *seat = data;

	seat->bus_ended = true;
	if (!seat->reaped && !timer_waiting(&seat->kill))
		timer_start(seat->seats->loop, &seat->kill, SEAT_GOODBYE_NS);
	check_end(seat);
}

/* It was given the time to end by itself. */
static void on_kill(void *data)
{
	struct seat *seat = data;

	if (seat->pid && !seat->reaped)
		kill(seat->pid, SIGKILL);
}

/* A message for the master. */
static void on_message(void *data, const struct bus_message *message)
{
	struct seat *seat = data;

	seat->seats->events->on_message(seat->seats->data, seat, message);
}

/* Starts a process. No signal may reach it before it has handlers of its own: those that it inherits would tell the master. */
static bool start(struct seat *seat)
{
	struct seats *set = seat->seats;
	sigset_t all, before;
	int fds[2];

	if (!bus_pair(fds))
		return false;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	pid_t pid = fork();
	if (pid == 0) {
		close(fds[0]);
		set->events->become(set->data, seat, fds[1]);
		abort(); /* it does not return */
	}
	int saved = errno;
	sigprocmask(SIG_SETMASK, &before, NULL);
	close(fds[1]);
	if (pid < 0) {
		close(fds[0]);
		errno = saved;
		return false;
	}
	seat->pid = pid;
	seat->state = SEAT_STARTING;
	seat->reaped = seat->bus_ended = seat->hung = seat->awaited = false;
	seat->seen_turn_ns = 0;
	seat->started_ns = loop_clock();
	seat->bus = bus_new(set->loop, fds[0], MEMBER_QUEUE, on_bus_end, seat);
	for (int kind = 0; kind < BUS_KINDS; kind++)
		if (kind != BUS_ORDERS)
			bus_on(seat->bus, (enum bus_kind)kind, on_message, seat);
	channel_hub_join(set->hub, seat->bus);
	return true;
}

/* The wait is over. */
static void on_retry(void *data)
{
	seat_want(data);
}

/* Asks for it. */
void seat_want(struct seat *seat)
{
	timer_stop(seat->seats->loop, &seat->retry);
	seat->wanted = true;
	loop_wake(seat->seats->loop);
}

/* Starts those that are asked for. */
void seats_start(struct seats *set)
{
	for (unsigned i = 0; i < set->count; i++) {
		struct seat *seat = &set->all[i];
		if (!seat->wanted)
			continue;
		seat->wanted = false;
		if (start(seat))
			continue;
		log_error("process %u cannot be started: %s", seat->index, strerrordesc_np(errno));
		seat_replace(seat);
	}
}

/* The first is replaced at once, and the second if the first had lived for a while. */
uint64_t seat_replace(struct seat *seat)
{
	uint64_t wait_ns = 0;

	if (seat->failures) {
		wait_ns = SEAT_WAIT_NS;
		for (unsigned i = 1; i < seat->failures && wait_ns < SEAT_LONGEST_NS; i++)
			wait_ns *= 2;
		if (wait_ns > SEAT_LONGEST_NS)
			wait_ns = SEAT_LONGEST_NS;
	}
	seat->failures++;
	timer_start(seat->seats->loop, &seat->retry, wait_ns);
	return wait_ns;
}

/* Now. */
void seats_hurry(struct seats *set)
{
	for (unsigned i = 0; i < set->count; i++) {
		struct seat *seat = &set->all[i];
		seat->failures = 0;
		if (timer_waiting(&seat->retry))
			timer_start(set->loop, &seat->retry, 0);
	}
}

/* Never. */
void seats_hold(struct seats *set)
{
	for (unsigned i = 0; i < set->count; i++) {
		timer_stop(set->loop, &set->all[i].retry);
		set->all[i].wanted = false;
	}
}

/* Looks for the ones that have ended. */
void seats_reap(struct seats *set)
{
	for (unsigned i = 0; i < set->count; i++) {
		struct seat *seat = &set->all[i];
		if (!seat->pid || seat->reaped || waitpid(seat->pid, &seat->wait_status, WNOHANG) != seat->pid)
			continue;
		seat->reaped = true;
		check_end(seat);
	}
}

/* Ends one that hangs. */
void seat_end_hanging(struct seat *seat, const char *why)
{
	if (!seat->pid || seat->reaped || seat->hung)
		return;
	seat->hung = true;
	log_error("process %u (pid %ld) hangs: it %s", seat->index, (long)seat->pid, why);
	kill(seat->pid, SIGABRT);
	timer_start(seat->seats->loop, &seat->kill, SEAT_ABORT_NS);
}

/* Looks whether any hangs: it is in the same turn as before, and in that in the same callback. */
static void on_look(void *data)
{
	struct seats *set = data;
	uint64_t now = loop_clock();

	for (unsigned i = 0; i < set->count; i++) {
		struct seat *seat = &set->all[i];
		const volatile struct score *score = &set->board->scores[i];
		uint64_t turn = score->turn_began_ns, callbacks = score->stats.callbacks;
		if (!seat->pid || seat->reaped || seat->hung)
			continue;
		if (seat->state == SEAT_STARTING) {
			if (now - seat->started_ns >= SEAT_LOADING_NS && now - seat->started_ns >= set->hang_ns)
				seat_end_hanging(seat, "does not get done with loading");
			continue;
		}
		if (!turn || turn != seat->seen_turn_ns || callbacks != seat->seen_callbacks) {
			seat->seen_turn_ns = turn;
			seat->seen_callbacks = callbacks;
			seat->seen_ns = now;
		} else if (now - seat->seen_ns >= set->hang_ns) {
			char why[64];
			snprintf(why, sizeof why, "has done nothing new for %.1f s", (double)(now - seat->seen_ns) / 1e9);
			seat_end_hanging(seat, why);
		}
	}
	seats_watch(set, set->hang_ns);
}

/* Sets the time, and when to look next. */
void seats_watch(struct seats *set, uint64_t hang_ns)
{
	set->hang_ns = hang_ns;
	if (hang_ns)
		timer_start(set->loop, &set->look, hang_ns / LOOKS);
	else
		timer_stop(set->loop, &set->look);
}

/* Sends. A process that cannot be told any more is as good as gone, and ends when its bus does. */
void seat_send(struct seat *seat, enum bus_kind kind, const void *bytes, size_t length, const int *fds, size_t fd_count)
{
	if (seat->bus && !seat->bus_ended && !bus_send(seat->bus, kind, bytes, length, fds, fd_count) && kind < BUS_ORDERS) {
		log_error("process %u cannot be told what to do: %s", seat->index, strerrordesc_np(errno));
		if (!seat->reaped)
			kill(seat->pid, SIGKILL);
	}
}

/* To all. */
void seats_send(struct seats *set, enum bus_kind kind, const void *bytes, size_t length)
{
	for (unsigned i = 0; i < set->count; i++)
		seat_send(&set->all[i], kind, bytes, length, NULL, 0);
}

/* Signals those that have not ended. */
void seats_kill(struct seats *set, int signo)
{
	for (unsigned i = 0; i < set->count; i++)
		if (set->all[i].pid && !set->all[i].reaped)
			kill(set->all[i].pid, signo);
}

/* Counts. */
unsigned seats_taken(const struct seats *set)
{
	unsigned count = 0;

	for (unsigned i = 0; i < set->count; i++)
		count += set->all[i].state != SEAT_EMPTY;
	return count;
}
