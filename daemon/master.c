/* The master of several processes: see master.h. */
#include "master.h"

#include <errno.h>
#include <event2/event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "activation.h"
#include "command.h"
#include "log.h"
#include "master_impl.h"
#include "mem.h"
#include "member.h"
#include "notify.h"
#include "sig.h"
#include "startup.h"
#include "store.h"

#define GOODBYE_NS 15000000000u /* beyond the drain's limit, for the end of the processes */

/* --- starting and stopping ------------------------------------------------------------------------------------------ */

/* Frees what the master has, as its end or as a new process, which leaves alone what is the master's in the world outside. */
static void clear(struct master *m, bool is_master)
{
	seats_clear(&m->seats);
	explicit_bzero(&m->secret, sizeof m->secret);
	if (m->loop && m->loop->timers) {
		timer_stop(m->loop, &m->stop_limit);
		timer_stop(m->loop, &m->attempt.limit);
		watchdog_stop(&m->watchdog);
		timer_stop(m->loop, &m->progress);
	}
	ports_close(&m->ports, !is_master);
	pidfile_close(&m->pid_file);
	if (m->store_hold >= 0)
		close(m->store_hold);
	for (size_t i = 0; i < sizeof m->watches / sizeof *m->watches; i++)
		sig_unwatch(m->watches[i]);
	legacy_free(m->leaving);
	if (is_master)
		upgrade_cancel(&m->upgrade);
	else
		upgrade_abandon(&m->upgrade);
	if (!is_master) {
		control_abandon(m->control);
		inquiries_end(&m->inquiries);
		control_answer_all(&m->reloaders, (struct report){0});
		control_answer_all(&m->attempt.askers, (struct report){0});
		control_answer_all(&m->stoppers, (struct report){0});
		control_answer_all(&m->upgraders, (struct report){0});
	}
	if (m->loop && m->loop->timers)
		timers_close(m->loop);
	loop_free(m->loop);
	activation_free(m->activation);
	if (m->config)
		shared_config_release(m->config);
	sources_unref(m->sources);
	problems_clear(&m->problems);
}

/* The new process: keeps its place and forgets that it was the master. */
static void __attribute__((noreturn)) become(void *data, struct seat *seat, int bus_fd)
{
	struct master *m = data;
	struct service_options options = *m->options;
	char *store = m->store;
	pid_t master = m->pid;

	prctl(PR_SET_PDEATHSIG, sig_orphan());
	if (getppid() != master)
		_exit(1);
	tls_forward_secret(&m->secret);
	event_reinit(m->loop->base); /* before anything is taken out of a poller that is the master's too */
	if (options.detached && !m->told_ready)
		close(options.ready_fd);
	legacy_select(options.legacy, seat->index, m->seats.count);
	options.self = NULL;
	unsetenv("NOTIFY_SOCKET");
	unsetenv("WATCHDOG_USEC");
	unsetenv("WATCHDOG_PID");
	log_set_process(seat->index);
	struct scoreboard *board = m->board;
	struct member_place place = {
		.index = seat->index,
		.count = m->seats.count,
		.bus_fd = bus_fd,
		.options = &options,
		.config = m->config,
		.sources = m->sources,
		.generation = m->number,
		.score = &board->scores[seat->index - 1],
		.activation = m->activation,
		.handed = ports_share(&m->ports, m->config->config, seat->index),
		.store = store,
		.secret = m->secret,
	};
	m->config = NULL;
	m->sources = NULL;
	m->activation = NULL;
	clear(m, false);
	free(m->score);
	int status = member_run(&place);
	legacy_free(options.legacy);
	free(store);
	scoreboard_free(board);
	exit(status);
}

/* What was to be another daemon's is ours again. */
void master_keep_all(struct master *m)
{
	seats_send(&m->seats, BUS_KEEP, NULL, 0);
	ports_keep(&m->ports);
	control_keep(m->control);
}

/* Ends the daemon: no process is replaced any more; when all have ended, it is over. limit_ns: for that. */
static void stop(struct master *m, uint64_t limit_ns)
{
	m->state = STOPPING;
	if (!m->replaced) {
		legacy_free(m->leaving);
		m->leaving = NULL;
		upgrade_cancel(&m->upgrade);
		master_keep_all(m);
	}
	seats_hold(&m->seats);
	timer_stop(m->loop, &m->attempt.limit);
	ports_close(&m->ports, false);
	timer_start(m->loop, &m->stop_limit, limit_ns);
}

/* They have had their time. */
static void on_stop_limit(void *data)
{
	struct master *m = data;

	log_error("processes that do not end are killed");
	seats_kill(&m->seats, SIGKILL);
}

/* All end at once. */
void master_stop_now(struct master *m)
{
	master_abort(m);
	if (m->state == SERVING)
		notify_stopping("Stopping");
	stop(m, GOODBYE_NS);
	seats_send(&m->seats, BUS_STOP, NULL, 0);
}

/* All drain and end. drain_s < 0: as configured. */
void master_drain(struct master *m, double drain_s)
{
	struct member_stop order = {.drain_s = drain_s, .status = -1, .replaced = m->replaced};

	master_abort(m);
	if (!m->replaced)
		notify_stopping("Draining");
	stop(m, (drain_s >= 0 ? (uint64_t)(drain_s * 1e9) : m->config->config->drain_timeout_ns) + GOODBYE_NS);
	seats_send(&m->seats, BUS_DRAIN, &order, sizeof order);
}

/* It cannot start. Each reason is told once, whichever processes have found it. */
static void fail(struct master *m)
{
	m->failed = true;
	master_stop_now(m);
}

/* --- what processes say --------------------------------------------------------------------------------------------- */

/* The next step of the start: the first process loads everything, then the others do with what it has found, then all serve. */
static void go_on_starting(struct master *m)
{
	unsigned ready = 0, serving = 0;

	for (unsigned i = 0; i < m->seats.count; i++) {
		ready += m->seats.all[i].state == SEAT_READY;
		serving += m->seats.all[i].state == SEAT_SERVING;
	}
	if (serving == m->seats.count) {
		m->state = SERVING;
		m->told_ready = true;
		ports_log(&m->ports);
		activation_log_unused(m->activation);
		legacy_drop(m->loop->legacy, true);
		startup_tell_ready(m->options, m->config->config, m->number);
		if (!m->options->legacy)
			watchdog_start(&m->watchdog, m->loop);
	} else if (ready == m->seats.count) {
		if (!startup_announce(m->options, &m->pid_file, &m->ports, m->control, &m->problems)) {
			fail(m);
			return;
		}
		seats_watch(&m->seats, master_hang_limit(m->config->config));
		if (m->options->legacy) { /* nobody else serves any more: from here on a process that ends is replaced */
			watchdog_start(&m->watchdog, m->loop);
			m->state = SERVING;
		}
		seats_send(&m->seats, BUS_COMMIT, NULL, 0);
	} else if (ready == 1 && seats_taken(&m->seats) == 1) {
		for (unsigned i = 1; i < m->seats.count; i++)
			seat_want(&m->seats.all[i]);
	}
}

/* A process has loaded everything, or says why not. */
static void on_prepared(struct master *m, struct seat *seat, const struct bus_message *message)
{
	struct problems problems = {0};

	if (seat->state == SEAT_SERVING) {
		if (m->attempt.stage == PREPARING && seat->awaited) {
			seat->awaited = false;
			master_read_answer(message, &m->attempt.problems);
			master_go_on(m);
		}
		return;
	}
	if (m->state == STARTING) {
		if (master_read_answer(message, &m->problems)) {
			seat->state = SEAT_READY;
			go_on_starting(m);
		} else {
			fail(m);
		}
	} else if (master_read_answer(message, &problems)) {
		seat->state = SEAT_READY;
		seat_send(seat, BUS_COMMIT, NULL, 0, NULL, 0);
	} else {
		for (size_t i = 0; i < problems.count; i++)
			log_error("process %u cannot start: %s", seat->index, problems.lines[i]);
		problems_clear(&problems);
	}
}

/* A process serves. */
static void on_committed(struct master *m, struct seat *seat)
{
	bool starts = seat->state == SEAT_READY;

	seat->state = SEAT_SERVING;
	seat->awaited = false;
	if (!m->told_ready && m->state != STOPPING)
		go_on_starting(m);
	else if (starts)
		log_info("process %u serves (pid %ld)", seat->index, (long)seat->pid);
	master_go_on(m);
}

/* A file that a process has loaded. What another one has found in it under the same name must be the same. */
static void on_source(struct master *m, struct seat *seat, const struct bus_message *message)
{
	bool is_attempt = seat->state == SEAT_SERVING;
	size_t lead = strlen(message->bytes) + 1;

	if (lead > message->length || (is_attempt && m->attempt.stage != PREPARING))
		return;
	if (sources_add(is_attempt ? m->attempt.sources : m->sources, message->bytes, message->bytes + lead, message->length - lead))
		return;
	char *text = mem_printf("%s has changed while it was being loaded", message->bytes);
	if (is_attempt)
		master_add_once(&m->attempt.problems, text);
	free(text);
}

/* A process has said something. */
static void on_message(void *data, struct seat *seat, const struct bus_message *message)
{
	struct master *m = data;
	struct member_stop order;

	switch (message->kind) {
	case BUS_SOURCE: on_source(m, seat, message); break;
	case BUS_PREPARED: on_prepared(m, seat, message); break;
	case BUS_COMMITTED: on_committed(m, seat); break;
	case BUS_LEFT: master_on_left(m, seat, message); break;
	case BUS_CONTROL_REPLY: inquiry_answered(&m->inquiries, seat->index, message); break;
	case BUS_STOPPING:
		if (message->length != sizeof order || m->state == STOPPING)
			break;
		memcpy(&order, message->bytes, sizeof order);
		if (order.status >= 0)
			m->status = order.status;
		master_drain(m, order.drain_s);
		break;
	default: break;
	}
}

/* A process has ended. */
static void on_end(void *data, struct seat *seat, const char *how)
{
	struct master *m = data;
	bool was_awaited = seat->awaited;

	seat->awaited = false;
	inquiry_lost(&m->inquiries, seat->index);
	if (m->state == STOPPING) {
		if (!m->failed && strcmp(how, "ended with status 0") != 0)
			log_error("process %u %s", seat->index, how);
		return;
	}
	if (m->state == STARTING) {
		problems_add(&m->problems, "process %u %s while it started", seat->index, how);
		fail(m);
		return;
	}
	tls_forward_secret(&m->secret);
	master_go_on_upgrading(m);
	uint64_t wait_ns = seat_replace(seat);
	if (wait_ns)
		log_error("process %u %s: the next one starts in %.0f s", seat->index, how, (double)wait_ns / 1e9);
	else
		log_error("process %u %s: another one takes its place", seat->index, how);
	if (m->attempt.stage == PREPARING && was_awaited)
		problems_add(&m->attempt.problems, "process %u %s while it loaded the handlers", seat->index, how);
	master_go_on(m); /* it is over when all have answered: a late answer would be taken for one to the next reload */
}

static const struct seats_events events = {.become = become, .on_message = on_message, .on_end = on_end};

/* --- the master itself ---------------------------------------------------------------------------------------------- */

/* Signals, in the loop. */
static void on_signal(int signo, void *data)
{
	struct master *m = data;

	switch (signo) {
	case SIGCHLD: seats_reap(&m->seats); break;
	case SIGHUP: m->reload_asked = true; break;
	case SIGTERM:
		if (m->state == SERVING)
			master_drain(m, -1);
		else
			master_stop_now(m);
		break;
	case SIGINT: master_stop_now(m); break;
	case SIGUSR1:
		log_reopen();
		seats_send(&m->seats, BUS_REOPEN, NULL, 0);
		break;
	case SIGUSR2: m->upgrade_asked = true; break;
	default: break;
	}
}

/* Is every process where it is to be, so that a reload can begin? Those that wait for their next start do not matter. */
static bool is_settled(const struct master *m)
{
	for (unsigned i = 0; i < m->seats.count; i++)
		if (m->seats.all[i].state == SEAT_STARTING || m->seats.all[i].state == SEAT_READY ||
		    (m->seats.all[i].state == SEAT_SERVING && m->seats.all[i].hung))
			return false;
	return m->state == SERVING && m->attempt.stage == IDLE && !m->leaving && !upgrade_under_way(&m->upgrade);
}

/* All counters of all processes and of the master, in one set. */
static struct stats total(const struct master *m)
{
	struct stats sum = m->score->stats;

	for (unsigned i = 0; i < m->board->count; i++)
		for (size_t row = 0; row < stats_row_count; row++) {
			size_t offset = stats_rows[row].offset;
			uint64_t *to = (uint64_t *)((char *)&sum + offset),
					 value = *(const uint64_t *)((const char *)&m->board->scores[i].stats + offset);
			*to = !stats_rows[row].common ? *to + value : *to > value ? *to : value;
		}
	return sum;
}

/* Upgrades are the master's, whose own counters are not on the board: it shows them where they are looked for. */
static void show_upgrades(struct master *m)
{
	struct stats *first = &m->board->scores[0].stats;

	first->upgrades = m->score->stats.upgrades;
	first->upgrades_refused = m->score->stats.upgrades_refused;
}

/* Makes the master's loop and opens what the processes will serve; false with all problems. */
static bool begin(struct master *m, unsigned count)
{
	static const int signals[] = {SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

	signal(SIGPIPE, SIG_IGN); /* of the log; processes set it anew */
	m->score = mem_zalloc(sizeof *m->score);
	m->board = scoreboard_new(count);
	m->loop = m->board ? loop_new(m->score) : NULL;
	if (!m->loop || !timers_open(m->loop)) {
		problems_add(&m->problems, "cannot start the event loop: %s", strerrordesc_np(errno));
		return false;
	}
	m->loop->processes = count;
	m->loop->process = 0;
	m->activation = m->loop->activation = activation_new(m->options->legacy);
	m->loop->legacy = m->options->legacy;
	if (legacy_text(m->loop->legacy, "upgrades"))
		m->score->stats.upgrades = strtoull(legacy_text(m->loop->legacy, "upgrades"), NULL, 10);
	m->ports = (struct ports){.loop = m->loop, .slots = count};
	const char *store = legacy_text(m->loop->legacy, "store");
	m->store = store ? mem_strdup(store) : store_make_name();
	m->store_hold = store ? store_hold(store) : -1;
	if (!upgrade_take_secret(m->options->legacy, &m->secret))
		tls_make_secret(&m->secret);
	seats_init(&m->seats, m->loop, m->board, &events, m);
	m->inquiries = (struct inquiries){.loop = m->loop, .count = count, .send = master_send_request, .data = m};
	timer_init(&m->progress, master_on_progress, m);
	timer_init(&m->stop_limit, on_stop_limit, m);
	timer_init(&m->attempt.limit, master_on_limit, m);
	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
		if (signals[i] != SIGUSR2 || m->options->self)
			m->watches[i] = sig_watch(m->loop, signals[i], on_signal, m);
	struct rlimit limit;
	m->descriptor_limit = getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 1024;
	struct control_host host = {.ask = master_on_ask, .data = m};
	if (!startup_open(&m->ports, m->config->config, &m->pid_file, host, &m->control, &m->problems) || m->problems.count)
		return false;
	seat_want(&m->seats.all[0]);
	return true;
}

/* Serves. */
int master_run(const struct service_options *options, struct config *config, unsigned count)
{
	struct master m = {
		.options = options, .pid = getpid(), .config = shared_config_new(config), .sources = sources_new(), .number = 1, .store_hold = -1};
	bool to_file = config->log_file != NULL;

	if (!begin(&m, count)) {
		m.failed = true;
		m.state = STOPPING;
	}
	while (m.state != STOPPING || seats_taken(&m.seats)) {
		if (m.reload_asked && is_settled(&m))
			master_reload(&m);
		if (m.upgrade_asked && is_settled(&m))
			master_upgrade(&m);
		if (m.attempt.stage != PREPARING) /* a process begins with what all have then */
			seats_start(&m.seats);
		show_upgrades(&m);
		loop_turn(m.loop);
	}
	inquiries_end(&m.inquiries);
	if (m.control) {
		control_answer_all(&m.stoppers, (struct report){.result = json_string("stopped")});
		control_answer_all(&m.reloaders, report_failure(COMMAND_FAILED, mem_strdup("the daemon is stopping")));
		control_answer_all(&m.attempt.askers, report_failure(COMMAND_FAILED, mem_strdup("the daemon is stopping")));
		control_answer_all(&m.upgraders, report_failure(COMMAND_FAILED, mem_strdup("the daemon is stopping")));
		control_close(m.control);
	}
	struct problems problems = m.problems;
	m.problems = (struct problems){0};
	clear(&m, true);
	if (m.failed) {
		startup_tell_failed(options, &problems, to_file);
	} else {
		struct stats sum = total(&m);
		startup_tell_stopped(&sum);
	}
	log_close();
	problems_clear(&problems);
	if (m.store)
		store_remove(m.store);
	free(m.store);
	free(m.score);
	scoreboard_free(m.board);
	return m.failed ? 1 : m.status;
}
