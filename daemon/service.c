/*
 * A service's life: see service.h. The newest generation gets new connections, older ones live until their last connection has ended.
 */
#include "service.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"
#include "lua_core.h"
#include "lua_signal.h"
#include "mem.h"
#include "notify.h"
#include "pidfile.h"
#include "privs.h"
#include "sig.h"
#include "startup.h"
#include "watchdog.h"

#define PROGRESS_NS 250000000u /* between two lines of progress of a drain */

/* Drains and ends. */
void service_ask_drain(struct service *s, double drain_s, int status)
{
	s->stop_asked = true;
	if (drain_s >= 0)
		s->drain_s = drain_s;
	if (status >= 0)
		s->status = status;
	if (s->runtime.loop)
		loop_wake(s->runtime.loop);
}

/* Steps back. */
void service_ask_step_back(struct service *s)
{
	s->replaced = true;
	if (s->runtime.loop)
		loop_wake(s->runtime.loop);
}

/* Ends. */
void service_ask_stop(struct service *s)
{
	s->stop_now = true;
	if (s->runtime.loop)
		loop_wake(s->runtime.loop);
}

/* em.stop in a handler. */
static void on_stop(struct vm *vm, double drain_s, int status)
{
	struct service *s = vm->options.host_data;

	service_ask_drain(s, drain_s, status);
	if (s->on_stop)
		s->on_stop(s, drain_s, status);
}

/* The generation whose VM that is. */
static struct generation *generation_of(struct service *s, const struct vm *vm)
{
	struct generation *g = s->newest;

	while (g && g->vm != vm)
		g = g->older;
	return g;
}

/* A VM is full of live data: it is replaced at the turn's end. */
static void on_exhausted(struct vm *vm)
{
	struct service *s = vm->options.host_data;
	struct generation *g = generation_of(s, vm);

	if (!g)
		return; /* it is still loading, and that fails by itself */
	g->exhausted = true;
	loop_wake(s->runtime.loop);
}

/* `reactord run HANDLER`: an error that belongs to nobody ends the run. */
static void on_uncaught(struct vm *vm)
{
	struct service *s = vm->options.host_data;

	s->stop_now = true;
	s->status = 1;
	loop_wake(s->runtime.loop);
}

/* Is the process on its way out? */
static bool is_stopping(struct vm *vm)
{
	struct service *s = vm->options.host_data;

	return s->state != SERVING || s->stop_asked || s->stop_now;
}

static const struct vm_host daemon_host = {.on_stop = on_stop, .on_exhausted = on_exhausted, .stopping = is_stopping};
static const struct vm_host run_host = {
	.on_stop = on_stop, .on_exhausted = on_exhausted, .on_uncaught = on_uncaught, .stopping = is_stopping};

/* Aims the listeners at a generation's handlers. */
static void aim(struct generation *g, struct port *const *open)
{
	for (size_t i = 0; i < g->config->listen_count; i++) {
		for (size_t n = 0; n < open[i]->count; n++)
			open[i]->sockets[n]->user = &g->acceptors[i];
		g->receivers[i].l = open[i]->sockets[0];
	}
}

/* Puts what was prepared in the place of what was there before. Nothing in it can fail. */
void service_commit(struct service *s, struct prepared *p)
{
	struct generation *g = p->generation, *before = s->newest;
	size_t alive = 0;

	aim(g, p->open);
	ports_commit(&s->ports, g->config, p->open, before != NULL);
	ports_resume(&s->ports);
	runtime_configure(&s->runtime, g->config);
	s->last_number = g->number;
	g->older = before;
	s->newest = g;
	s->runtime.score->generation = g->number;
	generation_start(g, before);
	loop_wake(s->runtime.loop); /* for its first turns, see at_end */
	if (before)
		generation_retire(before, g);
	generation_hand_over(g);
	for (struct generation *old = g; old; old = old->older)
		if ((old == g || old->vm->conn_count) && ++alive > (size_t)g->config->generations && old != g)
			generation_expire(old);
	shared_config_release(p->shared);
	*p = (struct prepared){0};
}

/* Forgets it. */
void service_abort(struct prepared *p)
{
	if (!p->shared)
		return;
	ports_abort(p->open, p->shared->config->listen_count);
	generation_free(p->generation);
	shared_config_release(p->shared);
	*p = (struct prepared){0};
}

/* Frees the generations that nothing is connected to any more. */
static void reap_generations(struct service *s)
{
	if (!s->newest)
		return;
	for (struct generation **at = &s->newest->older; *at;) {
		struct generation *g = *at;
		if (g->vm->conn_count) {
			at = &g->older;
			continue;
		}
		*at = g->older;
		log_debug("generation %llu has ended", (unsigned long long)g->number);
		generation_free(g);
	}
}

/* Loads the handlers of a configuration. */
static struct generation *load(struct service *s, struct shared_config *shared, struct sources *sources, struct problems *problems)
{
	return generation_new(&s->runtime, shared, sources, s->last_number + 1, !s->options->config_path,
	                      s->options->config_path ? &daemon_host : &run_host, s, problems);
}

/* Builds all that is new. */
bool service_prepare(struct service *s, struct shared_config *shared, struct sources *sources, struct prepared *p,
                     struct problems *problems)
{
	size_t before = problems->count;

	reap_generations(s); /* what has ended in this turn does not count any more */
	shared->users++;
	*p = (struct prepared){.shared = shared, .generation = load(s, shared, sources, problems)};
	p->open = ports_open(&s->ports, shared->config, s->newest && shared->config->user, problems);
	if (problems->count == before)
		return true;
	service_abort(p);
	return false;
}

/* Prepares and commits in one go; false with all problems, and nothing has changed then. */
static bool replace(struct service *s, struct shared_config *shared, struct sources *sources, struct problems *problems)
{
	struct prepared p;

	if (!service_prepare(s, shared, sources, &p, problems))
		return false;
	if (!settings_apply_log(shared->config, problems) ||
	    (!s->newest && !startup_announce(s->options, s->pid_file, &s->ports, s->control, problems))) {
		service_abort(&p);
		return false;
	}
	service_commit(s, &p);
	return true;
}

/* Tells those who wait for it what became of a reload. */
static void answer_reload(struct service *s, const struct problems *problems)
{
	struct report r = {.status = COMMAND_DONE};

	if (problems) {
		r = report_failures(problems);
	} else {
		r.result = json_object();
		json_object_set_new(r.result, "generation", json_integer((json_int_t)s->last_number));
	}
	control_answer_all(&s->reloaders, r);
}

/* SIGHUP: all of it, or nothing. */
static void reload(struct service *s)
{
	struct problems problems = {0};

	notify_reloading();
	struct config *config = settings_read(s->options, &problems);
	bool done = false;
	if (config) {
		config_check_reload(s->newest->config, config, &problems);
		if (problems.count) {
			config_free(config);
		} else {
			struct shared_config *shared = shared_config_new(config);
			struct sources *sources = sources_new();
			done = replace(s, shared, sources, &problems);
			sources_unref(sources);
			shared_config_release(shared);
		}
	}
	char *status;
	if (done) {
		s->runtime.stats->reloads++;
		status = mem_printf("Serving, generation %llu", (unsigned long long)s->last_number);
		log_info("reloaded: generation %llu serves", (unsigned long long)s->last_number);
	} else {
		s->runtime.stats->reloads_refused++;
		settings_log_problems(&problems, "reload refused: ");
		status = mem_printf("Reload refused, generation %llu serves on: %s", (unsigned long long)s->last_number,
		                    problems.count ? problems.lines[0] : "");
		log_error("reload refused: generation %llu serves on", (unsigned long long)s->last_number);
	}
	notify_ready(status);
	free(status);
	answer_reload(s, done ? NULL : &problems);
	problems_clear(&problems);
}

/* Replaces a generation whose memory is full; its connections end. */
static void replace_exhausted(struct service *s, struct generation *g)
{
	struct problems problems = {0};

	g->exhausted = false;
	s->runtime.stats->memory_replacements++;
	log_error("memory_limit (%llu bytes) reached by the live data of generation %llu: its connections end",
	          (unsigned long long)g->config->memory_limit, (unsigned long long)g->number);
	if (g == s->newest && s->state == SERVING) {
		if (replace(s, g->shared, g->sources, &problems)) {
			log_info("generation %llu serves in its place", (unsigned long long)s->last_number);
		} else { /* its files have been broken meanwhile: go on with what there is */
			settings_log_problems(&problems, "cannot replace it: ");
			g->vm->exhausted = false;
		}
	}
	generation_end(g, "ELIMIT", "memory");
	problems_clear(&problems);
}

/* What was to be another process's is ours again, unless that has it by now. */
static void keep_all(struct service *s)
{
	if (s->replaced)
		return;
	ports_keep(&s->ports);
	control_keep(s->control);
	for (struct generation *g = s->newest; g; g = g->older)
		lua_net_keep(g->vm);
}

/* The end of everything that is open, now. */
static void finish(struct service *s)
{
	s->state = STOPPED;
	spread_stop(&s->last_days);
	if (s->pending)
		service_abort(s->pending);
	keep_all(s);
	upgrade_cancel(&s->upgrade);
	ports_close(&s->ports, false);
	for (struct generation *g = s->newest; g; g = g->older) {
		generation_stop_dialling(g);
		core_call_hooks(g->vm);
		core_shutdown(g->vm, "stopped", false);
	}
	runtime_finish(&s->runtime);
	for (struct generation *g = s->newest; g; g = g->older) /* what the last unbinds have made */
		core_shutdown(g->vm, "stopped", false);
	runtime_finish(&s->runtime);
}

/* Asks some of the connections that a drain waits for to end. Returns how many are still to be asked. */
static size_t finish_accepted(struct service *s, size_t some)
{
	size_t left = 0;

	for (struct generation *g = s->newest; g; g = g->older) {
		size_t before = generation_finish_accepted(g, 0, NULL), now = some ? generation_finish_accepted(g, some, "stopped") : before;
		some -= before - now;
		left += now;
	}
	return left;
}

/* Counts them. */
static size_t count_accepted(void *data)
{
	return finish_accepted(data, 0);
}

/* The drain comes to its end. */
static void end_some(void *data, size_t some)
{
	finish_accepted(data, some);
}

/* The drain has taken too long. */
static void on_drain_limit(void *data)
{
	struct service *s = data;

	s->stop_now = true;
	loop_wake(s->runtime.loop);
}

static const struct spread_events last_days = {.count = count_accepted, .end_some = end_some, .on_limit = on_drain_limit};

/* Connections that the drain waits for. */
static size_t accepted(const struct service *s)
{
	size_t count = 0;

	for (const struct generation *g = s->newest; g; g = g->older)
		count += generation_accepted(g);
	return count;
}

/* The new process serves, or has failed. */
static void on_upgraded(struct upgrade *u, bool taken_over)
{
	struct service *s = u->data;
	char *why = NULL;

	struct report r = {.status = COMMAND_DONE};

	s->replaced = taken_over;
	keep_all(s);
	if (taken_over)
		r.result = json_pack("{s:i}", "pid", (int)u->pid);
	else
		r = report_failures(&u->reasons);
	control_answer_all(&s->upgraders, r);
	if (!taken_over && s->pid_file && s->pid_file->path && !pidfile_write(s->pid_file, &why)) {
		log_error("%s", why);
		free(why);
	}
	loop_wake(s->runtime.loop);
}

/* SIGUSR2: starts another process with our sockets. What scripts listen on from here on is not among them. */
static void upgrade(struct service *s)
{
	struct legacy *legacy = legacy_new();

	activation_leave(s->runtime.activation, legacy);
	ports_leave(&s->ports, legacy);
	control_leave(s->control, legacy);
	lua_net_leave(s->newest->vm, legacy);
	upgrade_leave_secret(legacy, tls_get_secret(s->runtime.tls));
	legacy_leave_text(legacy, "store", store_name(s->runtime.store));
	if (s->pid_file && s->pid_file->path)
		legacy_leave(legacy, LEGACY_PID_FILE, NULL, s->pid_file->fd, NULL);
	s->upgrade.on_done = on_upgraded;
	s->upgrade.data = s;
	upgrade_start(&s->upgrade, s->runtime.loop, s->options->self, legacy, s->runtime.descriptor_limit,
	              s->newest->config->upgrade_timeout_ns);
}

/* Another process has taken our place: as after a reload, and as before a stop. */
static void step_back(struct service *s)
{
	size_t left = accepted(s);

	s->state = DRAINING;
	(void)ports_retire(&s->ports);
	if (s->control)
		control_shut(s->control);
	generation_retire(s->newest, NULL);
	lua_net_drop_inheritance(s->newest->vm);
	if (left)
		log_info("draining: %zu connection(s) may go on for %.0f s", left, (double)s->newest->config->drain_timeout_ns / 1e9);
	spread_start(&s->last_days, s->newest->config->drain_timeout_ns);
	if (s->reload_asked) /* meant for who serves */
		upgrade_pass_on(&s->upgrade, SIGHUP);
}

/* The beginning of the end: nothing new comes in, what clients have opened may go on for a while. */
static void drain(struct service *s)
{
	uint64_t limit_ns = s->drain_s >= 0 ? (uint64_t)(s->drain_s * 1e9) : s->newest->config->drain_timeout_ns;

	s->state = DRAINING;
	if (s->pending)
		service_abort(s->pending); /* its ports are among those that are closed here */
	upgrade_cancel(&s->upgrade);
	keep_all(s);
	notify_stopping("Draining");
	ports_close(&s->ports, false);
	for (struct generation *g = s->newest; g; g = g->older) {
		generation_stop_dialling(g);
		lua_net_close_servers(g->vm, NULL);
		lua_net_drop_inheritance(g->vm);
	}
	size_t left = accepted(s);
	if (left)
		log_info("draining: %zu connection(s) may go on for %.0f s", left, (double)limit_ns / 1e9);
	spread_start(&s->last_days, limit_ns);
}

/* Tells those who wait for the end how many connections are left, some times a second. */
static void tell_progress(struct service *s)
{
	size_t left = s->stoppers ? accepted(s) : 0;

	if (left == s->told_left || (s->told_ns && loop_now(s->runtime.loop) - s->told_ns < PROGRESS_NS))
		return;
	s->told_left = left;
	s->told_ns = loop_now(s->runtime.loop);
	for (struct control_request *q = s->stoppers; q; q = q->next)
		control_progress(q, json_pack("{s:I}", "connections", (json_int_t)left));
}

/* Somebody asks by the control socket. */
static void on_ask(void *data, struct control_request *q)
{
	struct service *s = data;
	const char *command = json_string_value(json_object_get(q->json, "command"));
	bool serving = s->state == SERVING && !s->stop_asked && !s->stop_now;

	bool reload = strcmp(command, "reload") == 0, upgrade = strcmp(command, "upgrade") == 0;

	if ((reload || upgrade) && !serving) {
		control_answer(q, report_failure(COMMAND_FAILED, mem_strdup("the daemon is stopping")));
	} else if (upgrade && upgrade_under_way(&s->upgrade)) {
		control_answer(q, report_failure(COMMAND_FAILED, mem_strdup("an upgrade is under way")));
	} else if (upgrade) {
		q->next = s->upgraders;
		s->upgraders = q;
		s->upgrade_asked = true;
	} else if (reload) {
		q->next = s->reloaders;
		s->reloaders = q;
		s->reload_asked = true;
	} else if (strcmp(command, "drain") == 0 || strcmp(command, "stop") == 0) {
		q->next = s->stoppers;
		s->stoppers = q;
		if (*command == 'd')
			service_ask_drain(s, -1, -1);
		else
			service_ask_stop(s);
	} else {
		control_answer(q, report_answer(&s->runtime, s->newest, serving ? "serving" : "draining", q->json));
	}
	loop_wake(s->runtime.loop);
}

/* The last answers, when everything has ended; left: connections that a drain did not wait for. */
static void close_control(struct service *s, size_t left)
{
	char *line = left ? mem_printf("stopped: %zu connection(s) were cut", left) : mem_strdup("stopped: no connection was left");

	control_answer_all(&s->stoppers, (struct report){.result = json_string(line)});
	control_answer_all(&s->reloaders, report_failure(COMMAND_FAILED, mem_strdup("the daemon is stopping")));
	control_answer_all(&s->upgraders, report_failure(COMMAND_FAILED, mem_strdup("the daemon is stopping")));
	free(line);
	control_close(s->control);
}

/* The turn's end of the daemon: what callbacks and signals have asked for is done here, with no script on the stack. */
static void at_end(void *data)
{
	struct service *s = data;

	if (s->state == STOPPED || !s->newest)
		return;
	for (struct generation *g = s->newest; g; g = g->older)
		if (g->exhausted) {
			replace_exhausted(s, g);
			break; /* the list has changed; the next one has its turn */
		}
	if (s->newest->turns < 2 && ++s->newest->turns == 2) { /* its next-ticks have run: what they did not claim is not wanted */
		lua_net_drop_inheritance(s->newest->vm);
		lua_signal_drop_inheritance(s->newest->vm);
		legacy_drop(s->runtime.loop->legacy, false);
	} else if (s->newest->turns < 2) {
		loop_wake(s->runtime.loop);
	}
	if (s->replaced && s->state == SERVING)
		step_back(s);
	if (s->upgrade_asked && s->state == SERVING) {
		s->upgrade_asked = false;
		upgrade(s);
	}
	if (s->reload_asked && s->state == SERVING && !upgrade_under_way(&s->upgrade)) {
		s->reload_asked = false;
		reload(s);
	}
	if (s->stop_asked && s->state == SERVING)
		drain(s);
	if (s->replaced && s->ports.all && ports_retire(&s->ports))
		ports_close(&s->ports, false);
	reap_generations(s);
	if (s->state == DRAINING)
		tell_progress(s);
}

/* Signals, in the loop. */
static void on_signal(int signo, void *data)
{
	struct service *s = data;
	bool is_run = !s->options->config_path;

	if (is_run && s->newest && lua_signal_deliver(s->newest->vm, signo))
		return;
	loop_wake(s->runtime.loop);
	switch (signo) {
	case SIGHUP:
		if (is_run)
			s->stop_now = true;
		else
			s->reload_asked = true;
		break;
	case SIGTERM:
		if (is_run || s->stop_asked)
			s->stop_now = true;
		s->stop_asked = true;
		break;
	case SIGINT: s->stop_now = true; break;
	case SIGUSR1: log_reopen(); break;
	case SIGUSR2: s->upgrade_asked = true; break;
	default: break;
	}
}

static const int signals[] = {SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

/* Watches the daemon's signals. */
static void watch_signals(struct service *s)
{
	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
		if (signals[i] != SIGUSR2 || s->options->self)
			s->watches[i] = sig_watch(s->runtime.loop, signals[i], on_signal, s);
}

/* Loads what scripts say, on the ports that are open already. */
static bool start(struct service *s, struct shared_config *shared, struct problems *problems)
{
	struct sources *sources = sources_new();
	bool done = false;

	if (problems->count)
		generation_free(load(s, shared, sources, problems)); /* it will not start, but all mistakes are told at once */
	else
		done = replace(s, shared, sources, problems);
	sources_unref(sources);
	if (!done)
		return false;
	ports_log(&s->ports);
	activation_log_unused(s->runtime.activation);
	return true;
}

/* Makes it. */
bool service_open(struct service *s, const struct service_options *options, const struct config *config, struct score *score,
                  struct activation *activation, struct problems *problems)
{
	char *why = NULL;

	*s = (struct service){.options = options, .drain_s = -1};
	if (!runtime_open(&s->runtime, config, score, activation, &why)) {
		problems_add(problems, "%s", why);
		free(why);
		return false;
	}
	s->runtime.loop->legacy = options->legacy;
	store_inherit(s->runtime.store, legacy_text(options->legacy, "store"));
	struct tls_secret secret;
	if (upgrade_take_secret(options->legacy, &secret))
		tls_set_secret(s->runtime.tls, &secret);
	if (legacy_text(options->legacy, "upgrades"))
		s->runtime.stats->upgrades = strtoull(legacy_text(options->legacy, "upgrades"), NULL, 10);
	s->ports = (struct ports){.loop = s->runtime.loop, .on_accept = lua_net_on_accept};
	spread_init(&s->last_days, s->runtime.loop, &last_days, s);
	s->at_end = (struct loop_hook){.run = at_end, .data = s};
	loop_hook_add(s->runtime.loop, STAGE_END, &s->at_end);
	return true;
}

/* Takes everything down. */
void service_close(struct service *s)
{
	ports_close(&s->ports, false);
	for (struct generation *g = s->newest, *older; g; g = older) {
		older = g->older;
		generation_free(g);
	}
	s->newest = NULL;
	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
		sig_hold(signals[i]);
		sig_unwatch(s->watches[i]);
	}
	if (s->runtime.loop)
		loop_hook_remove(s->runtime.loop, STAGE_END, &s->at_end);
	runtime_close(&s->runtime);
}

/* Turns. */
void service_serve(struct service *s)
{
	while (!s->stop_now && !(s->state == DRAINING && !accepted(s) && !s->ports.all))
		loop_turn(s->runtime.loop);
	if (s->state == SERVING)
		notify_stopping("Stopping");
	size_t left = accepted(s);
	finish(s);
	close_control(s, left);
}

/* Serves. */
int service_run(const struct service_options *options, struct config *config)
{
	struct shared_config *shared = shared_config_new(config);
	struct scoreboard *board = scoreboard_new(1);
	struct service s = {0};
	struct problems problems = {0};
	struct pidfile pid_file = {0};
	struct watchdog watchdog;
	struct control_host host = {.ask = on_ask, .data = &s};
	bool to_file = config->log_file != NULL, started = false;

	if (!board) {
		problems_add(&problems, "cannot share memory: %s", errno_text(errno));
	} else if (service_open(&s, options, config, board->scores, activation_new(options->legacy), &problems)) {
		watch_signals(&s);
		s.pid_file = &pid_file;
		started = startup_open(&s.ports, config, &pid_file, host, &s.control, &problems) && start(&s, shared, &problems);
	}
	shared_config_release(shared);
	if (started) {
		startup_tell_ready(options, s.newest->config, s.last_number);
		watchdog_start(&watchdog, s.runtime.loop);
		service_serve(&s);
		watchdog_stop(&watchdog);
	} else if (s.control) {
		control_close(s.control);
	}
	service_close(&s);
	pidfile_close(&pid_file);
	if (started)
		startup_tell_stopped(&board->scores->stats);
	else
		startup_tell_failed(options, &problems, to_file);
	log_close();
	problems_clear(&problems);
	scoreboard_free(board);
	return started ? s.status : 1;
}

/* Checks. */
int service_check(const struct service_options *options, bool dump)
{
	struct service s = {.options = options, .drain_s = -1}; /* what scripts may ask for while they load */
	struct problems problems = {0};
	char *why = NULL;
	struct config *config = settings_read(options, &problems);

	if (config) {
		struct shared_config *shared = shared_config_new(config);
		struct scoreboard *board = scoreboard_new(1);
		if (dump)
			config_dump_json(config, stdout);
		if (!privs_drop(config->user, config->group, &why) || !board ||
		    !runtime_open(&s.runtime, config, board->scores, activation_new(NULL), &why)) {
			problems_add(&problems, "%s", why ? why : errno_text(errno));
			free(why);
		} else {
			struct sources *sources = sources_new();
			generation_free(load(&s, shared, sources, &problems));
			sources_unref(sources);
			runtime_close(&s.runtime);
		}
		scoreboard_free(board);
		shared_config_release(shared);
	}
	for (size_t i = 0; i < problems.count; i++)
		fprintf(stderr, "%s\n", problems.lines[i]);
	int status = problems.count ? 1 : 0;
	if (!status && !dump)
		printf("%s: the configuration is good\n", options->config_path ? options->config_path : options->handler);
	problems_clear(&problems);
	return status;
}
