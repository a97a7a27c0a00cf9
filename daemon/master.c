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
#include "control.h"
#include "generation.h"
#include "inquiry.h"
#include "log.h"
#include "mem.h"
#include "member.h"
#include "notify.h"
#include "seats.h"
#include "sig.h"
#include "startup.h"
#include "store.h"
#include "upgrade.h"
#include "watchdog.h"

#define PREPARE_NS 30000000000u /* for the first half of a reload, where processes may hang for ever */
#define PROGRESS_NS 250000000u /* between two lines that tell how a drain goes */
#define GOODBYE_NS 15000000000u /* beyond the drain's limit, for the end of the processes */

enum master_state { STARTING, SERVING, STOPPING };

/* A reload that is under way. */
struct attempt {
	enum { IDLE, PREPARING, COMMITTING } stage;
	struct shared_config *config;
	struct sources *sources; /* of all processes together */
	struct port **open;
	struct problems problems;
	struct timer limit;
};

struct master {
	const struct service_options *options;
	pid_t pid;
	struct scoreboard *board;
	struct score *score; /* the master's own */
	struct loop *loop;
	struct activation *activation;
	struct ports ports;
	struct pidfile pid_file;
	char *store;    /* name of em.shared's; the processes open it */
	int store_hold; /* keeps it, where it was the daemon's before; -1 */
	struct tls_secret secret; /* of TLS tickets */
	struct seats seats;
	enum master_state state;
	struct shared_config *config; /* what all serve by */
	struct sources *sources;      /* and with */
	uint64_t number;              /* of that generation */
	struct attempt attempt;
	bool reload_asked, upgrade_asked, failed, told_ready;
	struct problems problems; /* why it could not start */
	int status;
	struct timer stop_limit;
	struct watchdog watchdog;
	struct sig *watches[6];
	struct upgrade upgrade;
	struct legacy *leaving; /* what is to be left, while processes are asked for their part; else NULL */
	rlim_t descriptor_limit;                      /* as we had it */
	bool replaced;                                /* by another daemon, which has our sockets */
	struct control *control;                      /* NULL: none */
	struct control_request *reloaders, *stoppers, *upgraders; /* who waits for a reload, for the end, for a new daemon */
	struct inquiries inquiries;                   /* what processes are to answer */
	struct timer progress;                        /* tells stoppers how it goes */
	json_int_t told_left;                         /* what it has told last */
};

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
static void keep_all(struct master *m)
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
		keep_all(m);
	}
	seats_hold(&m->seats);
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

static void abort_attempt(struct master *m);

/* All end at once. */
static void stop_now(struct master *m)
{
	abort_attempt(m);
	if (m->state == SERVING)
		notify_stopping("Stopping");
	stop(m, GOODBYE_NS);
	seats_send(&m->seats, BUS_STOP, NULL, 0);
}

/* All drain and end. drain_s < 0: as configured. */
static void drain(struct master *m, double drain_s)
{
	struct member_stop order = {.drain_s = drain_s, .status = -1, .replaced = m->replaced};

	abort_attempt(m);
	if (!m->replaced)
		notify_stopping("Draining");
	stop(m, (drain_s >= 0 ? (uint64_t)(drain_s * 1e9) : m->config->config->drain_timeout_ns) + GOODBYE_NS);
	seats_send(&m->seats, BUS_DRAIN, &order, sizeof order);
}

/* It cannot start. Each reason is told once, whichever processes have found it. */
static void fail(struct master *m)
{
	m->failed = true;
	stop_now(m);
}

/* The new daemon serves, or has failed. */
static void on_upgraded(struct upgrade *u, bool taken_over)
{
	struct master *m = u->data;
	struct report r = {.status = COMMAND_DONE};
	char *why = NULL;

	m->replaced = taken_over;
	if (taken_over)
		r.result = json_pack("{s:i}", "pid", (int)u->pid);
	else
		r = report_failures(&u->reasons);
	control_answer_all(&m->upgraders, r);
	if (taken_over) {
		if (m->control)
			control_shut(m->control);
		if (m->reload_asked) /* meant for who serves */
			upgrade_pass_on(u, SIGHUP);
		drain(m, -1);
		return;
	}
	keep_all(m);
	if (m->pid_file.path && !pidfile_write(&m->pid_file, &why)) {
		log_error("%s", why);
		free(why);
	}
}

/* --- problems ------------------------------------------------------------------------------------------------------- */

/* Adds one that is not known yet. */
static void add_once(struct problems *problems, const char *text)
{
	for (size_t i = 0; i < problems->count; i++)
		if (strcmp(problems->lines[i], text) == 0)
			return;
	problems_add(problems, "%s", text);
}

/* Adds what a process has answered; true if that was nothing. */
static bool read_answer(const struct bus_message *message, struct problems *problems)
{
	for (size_t at = 0; at < message->length; at += strlen(message->bytes + at) + 1)
		add_once(problems, message->bytes + at);
	return message->length == 0;
}

/* After what time a process hangs; 0: it may. A callback may take as long as it is allowed to. */
static uint64_t hang_limit(const struct config *config)
{
	return config->callback_time_ns && config->hang_timeout_ns ? config->callback_time_ns + config->hang_timeout_ns : 0;
}

/* How long the first half of a reload may take. */
static uint64_t prepare_limit(const struct master *m)
{
	uint64_t limit_ns = hang_limit(m->config->config);

	return limit_ns ? limit_ns : PREPARE_NS;
}

/* --- reload --------------------------------------------------------------------------------------------------------- */

/* Tells what has become of an attempt, and ends it. */
static void conclude(struct master *m, bool done)
{
	struct attempt *a = &m->attempt;
	char *status;

	if (done) {
		m->board->scores[0].stats.reloads++;
		status = mem_printf("Serving, generation %llu", (unsigned long long)m->number);
		log_info("reloaded: generation %llu serves", (unsigned long long)m->number);
	} else {
		m->board->scores[0].stats.reloads_refused++;
		settings_log_problems(&a->problems, "reload refused: ");
		status = mem_printf("Reload refused, generation %llu serves on: %s", (unsigned long long)m->number,
		                    a->problems.count ? a->problems.lines[0] : "");
		log_error("reload refused: generation %llu serves on", (unsigned long long)m->number);
	}
	notify_ready(status);
	free(status);
	struct report r = {.status = COMMAND_DONE};
	if (done)
		r.result = json_pack("{s:I}", "generation", (json_int_t)m->number);
	else
		r = report_failures(&a->problems);
	control_answer_all(&m->reloaders, r);
	timer_stop(m->loop, &a->limit);
	problems_clear(&a->problems);
	a->stage = IDLE;
}

/* Forgets what is being prepared. */
static void abort_attempt(struct master *m)
{
	struct attempt *a = &m->attempt;

	if (a->stage == PREPARING) {
		for (unsigned i = 0; i < m->seats.count; i++)
			if (m->seats.all[i].state == SEAT_SERVING)
				seat_send(&m->seats.all[i], BUS_ABORT, NULL, 0, NULL, 0);
		ports_abort(a->open, a->config->config->listen_count);
		shared_config_release(a->config);
		sources_unref(a->sources);
		for (unsigned i = 0; i < m->seats.count; i++)
			m->seats.all[i].awaited = false;
		if (!a->problems.count)
			problems_add(&a->problems, "the daemon stops");
		conclude(m, false);
	}
}

/* How many answers are due. */
static unsigned awaited(const struct master *m)
{
	unsigned count = 0;

	for (unsigned i = 0; i < m->seats.count; i++)
		count += m->seats.all[i].awaited;
	return count;
}

/* All have told: starts it. */
static void go_on_upgrading(struct master *m)
{
	struct legacy *legacy = m->leaving;

	if (!legacy || awaited(m))
		return;
	m->leaving = NULL;
	activation_leave(m->activation, legacy);
	ports_leave(&m->ports, legacy);
	legacy_leave_text(legacy, "store", m->store);
	control_leave(m->control, legacy);
	upgrade_leave_secret(legacy, &m->secret);
	if (m->pid_file.path)
		legacy_leave(legacy, LEGACY_PID_FILE, NULL, m->pid_file.fd, NULL);
	m->upgrade.on_done = on_upgraded;
	m->upgrade.data = m;
	upgrade_start(&m->upgrade, m->loop, m->options->self, legacy, m->descriptor_limit, m->config->config->upgrade_timeout_ns);
}

/* A process has told of one more, or that it has told of all. */
static void on_left(struct master *m, struct seat *seat, const struct bus_message *message)
{
	struct member_left left;

	if (!message->length)
		seat->awaited = false;
	if (m->leaving && message->length > sizeof left && message->fd_count == 1) {
		const char *name = message->bytes + sizeof left, *path = name + strlen(name) + 1;
		memcpy(&left, message->bytes, sizeof left);
		struct sockfile file = {.path = (char *)path, .device = left.device, .inode = left.inode};
		legacy_give(m->leaving, seat->index, name, message->fds[0], *path ? &file : NULL);
		message->fds[0] = -1;
	}
	go_on_upgrading(m);
}

/* SIGUSR2: starts another daemon with our sockets, once every process has told what its scripts listen on. */
static void upgrade(struct master *m)
{
	m->upgrade_asked = false;
	m->leaving = legacy_new();
	for (unsigned i = 0; i < m->seats.count; i++) {
		struct seat *seat = &m->seats.all[i];
		seat->awaited = seat->state == SEAT_SERVING;
		if (seat->awaited)
			seat_send(seat, BUS_LEAVE, NULL, 0, NULL, 0);
	}
	go_on_upgrading(m);
}

/* All are ready: all serve with it. */
static void commit_attempt(struct master *m)
{
	struct attempt *a = &m->attempt;

	if (!settings_apply_log(a->config->config, &a->problems)) {
		abort_attempt(m);
		return;
	}
	ports_commit(&m->ports, a->config->config, a->open, true);
	shared_config_release(m->config);
	sources_unref(m->sources);
	m->config = a->config;
	m->sources = a->sources;
	m->number++;
	a->stage = COMMITTING;
	timer_stop(m->loop, &a->limit);
	for (unsigned i = 0; i < m->seats.count; i++) {
		struct seat *seat = &m->seats.all[i];
		seat->awaited = seat->state == SEAT_SERVING;
		if (seat->awaited)
			seat_send(seat, BUS_COMMIT, NULL, 0, NULL, 0);
	}
	seats_watch(&m->seats, hang_limit(m->config->config));
	seats_hurry(&m->seats); /* the new code may be the cure */
}

/* One answer less to wait for. */
static void go_on(struct master *m)
{
	struct attempt *a = &m->attempt;

	if (a->stage == IDLE || awaited(m))
		return;
	if (a->stage == COMMITTING)
		conclude(m, true);
	else if (a->problems.count)
		abort_attempt(m);
	else
		commit_attempt(m);
	if (a->stage == COMMITTING && !awaited(m)) /* there was no process to wait for */
		conclude(m, true);
}

/* A process takes too long: it hangs, for all that is known. */
static void on_prepare_limit(void *data)
{
	struct master *m = data;
	struct attempt *a = &m->attempt;

	for (unsigned i = 0; i < m->seats.count; i++) {
		struct seat *seat = &m->seats.all[i];
		if (!seat->awaited)
			continue;
		problems_add(&a->problems, "process %u has not loaded the handlers in %.0f s", seat->index, (double)prepare_limit(m) / 1e9);
		seat_end_hanging(seat, "does not get done with loading");
	}
	abort_attempt(m);
}

/* Sends a process the sockets that are new, and the order to prepare. */
static void order_prepare(struct master *m, struct seat *seat, const struct member_reload *order)
{
	struct attempt *a = &m->attempt;
	const struct config *config = a->config->config;

	for (size_t i = 0; i < config->listen_count; i++) {
		if (a->open[i]->current || config->listens[i].url.scheme == SCHEME_FD)
			continue;
		char *text = mem_printf("%zu %s", ports_before(config, i), config->listens[i].url_text);
		int fd = ports_socket(a->open[i], seat->index);
		seat_send(seat, BUS_PORT, text, strlen(text), &fd, 1);
		free(text);
	}
	seat_send(seat, BUS_PREPARE, order, sizeof *order, NULL, 0);
	seat->awaited = true;
}

/* SIGHUP: all of it in all processes, or nothing in any. */
static void reload(struct master *m)
{
	struct attempt *a = &m->attempt;

	m->reload_asked = false;
	notify_reloading();
	struct config *config = settings_read(m->options, &a->problems);
	if (config)
		config_check_reload(m->config->config, config, &a->problems);
	if (a->problems.count) {
		config_free(config);
		conclude(m, false);
		return;
	}
	a->config = shared_config_new(config);
	a->open = ports_open(&m->ports, config, config->user, &a->problems);
	a->sources = sources_new();
	a->stage = PREPARING;
	if (a->problems.count) {
		abort_attempt(m);
		return;
	}
	timer_start(m->loop, &a->limit, prepare_limit(m));
	struct member_reload order = {.generation = m->number + 1, .digest = settings_digest(config)};
	for (unsigned i = 0; i < m->seats.count; i++)
		if (m->seats.all[i].state == SEAT_SERVING)
			order_prepare(m, &m->seats.all[i], &order);
	go_on(m);
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
		watchdog_start(&m->watchdog, m->loop);
		seats_watch(&m->seats, hang_limit(m->config->config));
	} else if (ready == m->seats.count) {
		if (!startup_announce(m->options, &m->pid_file, &m->ports, m->control, &m->problems)) {
			fail(m);
			return;
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
			read_answer(message, &m->attempt.problems);
			go_on(m);
		}
		return;
	}
	if (m->state == STARTING) {
		if (read_answer(message, &m->problems)) {
			seat->state = SEAT_READY;
			go_on_starting(m);
		} else {
			fail(m);
		}
	} else if (read_answer(message, &problems)) {
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
	if (m->state == STARTING)
		go_on_starting(m);
	else if (starts)
		log_info("process %u serves (pid %ld)", seat->index, (long)seat->pid);
	go_on(m);
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
		add_once(&m->attempt.problems, text);
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
	case BUS_LEFT: on_left(m, seat, message); break;
	case BUS_CONTROL_REPLY: inquiry_answered(&m->inquiries, seat->index, message); break;
	case BUS_STOPPING:
		if (message->length != sizeof order || m->state != SERVING)
			break;
		memcpy(&order, message->bytes, sizeof order);
		if (order.status >= 0)
			m->status = order.status;
		drain(m, order.drain_s);
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
	go_on_upgrading(m);
	uint64_t wait_ns = seat_replace(seat);
	if (wait_ns)
		log_error("process %u %s: the next one starts in %.0f s", seat->index, how, (double)wait_ns / 1e9);
	else
		log_error("process %u %s: another one takes its place", seat->index, how);
	if (m->attempt.stage == PREPARING && was_awaited) {
		problems_add(&m->attempt.problems, "process %u %s while it loaded the handlers", seat->index, how);
		abort_attempt(m);
	} else {
		go_on(m);
	}
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
			drain(m, -1);
		else
			stop_now(m);
		break;
	case SIGINT: stop_now(m); break;
	case SIGUSR1:
		log_reopen();
		seats_send(&m->seats, BUS_REOPEN, NULL, 0);
		break;
	case SIGUSR2: m->upgrade_asked = true; break;
	default: break;
	}
}

/* Asks a process, if it serves. */
static bool send_request(void *data, unsigned process, const char *bytes, size_t length)
{
	struct seat *seat = &((struct master *)data)->seats.all[process - 1];

	return seat->state == SEAT_SERVING && !seat->bus_ended && bus_send(seat->bus, BUS_CONTROL_REQUEST, bytes, length, NULL, 0);
}

/* Tells those who wait for the end how many connections are left, and again in a while. */
static void on_progress(void *data)
{
	struct master *m = data;
	json_int_t left = 0;

	for (size_t i = 0; i < m->board->count; i++)
		left += (json_int_t)m->board->scores[i].stats.connections;
	for (struct control_request *q = m->stoppers; q && left != m->told_left; q = q->next)
		control_progress(q, json_pack("{s:I}", "connections", left));
	m->told_left = left;
	timer_start(m->loop, &m->progress, PROGRESS_NS);
}

/* What is answered from the scoreboard, which the master shares, and by the processes. */
static void answer(struct master *m, struct control_request *q, const char *command)
{
	enum log_level level;

	if (strcmp(command, "status") == 0) {
		const char *state = m->state == STOPPING ? "draining" : "serving";
		control_answer(q, (struct report){.result = report_status(m->board, m->pid, state, m->config->config->file)});
	} else if (strcmp(command, "metrics") == 0) {
		control_answer(q, report_metrics(m->board));
	} else {
		if (strcmp(command, "log-level") == 0 && log_level_parse(json_string_value(json_object_get(q->json, "argument")), &level))
			log_set_level(level);
		inquiry_start(&m->inquiries, q);
	}
}

/* Somebody asks by the control socket. */
static void on_ask(void *data, struct control_request *q)
{
	struct master *m = data;
	const char *command = json_string_value(json_object_get(q->json, "command"));

	bool reload = strcmp(command, "reload") == 0, upgrade = strcmp(command, "upgrade") == 0;

	if ((reload || upgrade) && m->state != SERVING) {
		control_answer(q, report_failure(COMMAND_FAILED, mem_strdup("the daemon is stopping")));
	} else if (upgrade && (m->leaving || upgrade_under_way(&m->upgrade))) {
		control_answer(q, report_failure(COMMAND_FAILED, mem_strdup("an upgrade is under way")));
	} else if (upgrade) {
		q->next = m->upgraders;
		m->upgraders = q;
		m->upgrade_asked = true;
	} else if (reload) {
		q->next = m->reloaders;
		m->reloaders = q;
		m->reload_asked = true;
	} else if (strcmp(command, "drain") == 0 || strcmp(command, "stop") == 0) {
		q->next = m->stoppers;
		m->stoppers = q;
		if (*command == 's')
			stop_now(m);
		else if (m->state == SERVING)
			drain(m, -1);
		timer_start(m->loop, &m->progress, 0);
	} else {
		answer(m, q, command);
	}
}

/* Is every process where it is to be, so that a reload can begin? Those that wait for their next start do not matter. */
static bool is_settled(const struct master *m)
{
	for (unsigned i = 0; i < m->seats.count; i++)
		if (m->seats.all[i].state == SEAT_STARTING || m->seats.all[i].state == SEAT_READY)
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
			*(uint64_t *)((char *)&sum + offset) += *(const uint64_t *)((const char *)&m->board->scores[i].stats + offset);
		}
	return sum;
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
	m->inquiries = (struct inquiries){.loop = m->loop, .count = count, .send = send_request, .data = m};
	timer_init(&m->progress, on_progress, m);
	timer_init(&m->stop_limit, on_stop_limit, m);
	timer_init(&m->attempt.limit, on_prepare_limit, m);
	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
		if (signals[i] != SIGUSR2 || m->options->self)
			m->watches[i] = sig_watch(m->loop, signals[i], on_signal, m);
	struct rlimit limit;
	m->descriptor_limit = getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 1024;
	struct control_host host = {.ask = on_ask, .data = m};
	if (!startup_open(&m->ports, m->config->config, &m->pid_file, host, &m->control, &m->problems) || m->problems.count)
		return false;
	seat_want(&m->seats.all[0]);
	return true;
}

/* Serves. */
int master_run(const struct service_options *options, struct config *config, unsigned count)
{
	struct master m = {.options = options, .pid = getpid(), .config = shared_config_new(config), .sources = sources_new(), .number = 1, .store_hold = -1};
	bool to_file = config->log_file != NULL;

	if (!begin(&m, count)) {
		m.failed = true;
		m.state = STOPPING;
	}
	while (m.state != STOPPING || seats_taken(&m.seats)) {
		if (m.reload_asked && is_settled(&m))
			reload(&m);
		if (m.upgrade_asked && is_settled(&m))
			upgrade(&m);
		seats_start(&m.seats);
		loop_turn(m.loop);
	}
	inquiries_end(&m.inquiries);
	if (m.control) {
		control_answer_all(&m.stoppers, (struct report){.result = json_string("stopped")});
		control_answer_all(&m.reloaders, report_failure(COMMAND_FAILED, mem_strdup("the daemon is stopping")));
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
