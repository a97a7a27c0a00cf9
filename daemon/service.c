/*
 * The daemon's life: open, give up rights, load, serve; reload; drain, stop. The newest generation gets new connections, older ones live
 * until their last connection has ended.
 */
#include "service.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "generation.h"
#include "lua_core.h"
#include "lua_signal.h"
#include "mem.h"
#include "notify.h"
#include "pidfile.h"
#include "privs.h"
#include "runtime.h"
#include "sig.h"
#include "spread.h"

enum service_state { SERVING, DRAINING, STOPPED };

/* An open listener of the configuration. */
struct port {
	struct listener *l;
	struct port *next;
};

struct service {
	const struct service_options *options;
	struct runtime runtime;
	struct generation *newest; /* leads to the older ones */
	uint64_t last_number;
	struct port *ports;
	enum service_state state;
	bool reload_asked, stop_asked, stop_now;
	double drain_s;          /* em.stop's; < 0: the configuration's */
	struct spread last_days; /* of a drain */
	struct loop_hook at_end;
	struct sig *watches[4];
	int status;
	struct pidfile pid_file;
};

/* em.stop in a handler: the process drains and ends. */
static void on_stop(struct vm *vm, double drain_s, int status)
{
	struct service *s = vm->options.host_data;

	s->stop_asked = true;
	if (drain_s >= 0)
		s->drain_s = drain_s;
	if (status >= 0)
		s->status = status;
	loop_wake(s->runtime.loop);
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

/* Makes a configuration for one handler on some URLs. */
static struct config *config_for_handler(const struct service_options *o, struct problems *problems)
{
	struct config *config = config_defaults(o->overrides, o->override_count, problems);

	if (!config)
		return NULL;
	config->unsafe = true;
	/* its own folder, for require; the handlers' folders cannot have been set otherwise */
	config->handlers.items = mem_realloc(config->handlers.items, sizeof *config->handlers.items);
	config->handlers.items[config->handlers.count++] = mem_strndup(o->handler, (size_t)(strrchr(o->handler, '/') - o->handler));
	config->listens = mem_zalloc(o->url_count * sizeof *config->listens);
	size_t good = 0;
	for (size_t i = 0; i < o->url_count; i++) {
		char *why = NULL;
		if (!config_listen(&config->listens[i], o->urls[i], NULL, &why)) {
			problems_add(problems, "%s", why);
			free(why);
			continue;
		}
		config->listens[i].handler = mem_strdup(o->handler);
		good++;
	}
	config->listen_count = o->url_count; /* a refused one is all zero */
	if (good == o->url_count)
		return config;
	config_free(config);
	return NULL;
}

/* Reads the configuration anew. */
static struct config *read_config(const struct service_options *o, struct problems *problems)
{
	if (!o->config_path)
		return config_for_handler(o, problems);
	return config_load(o->config_path, o->overrides, o->override_count, problems);
}

/* Writes all problems to the log, each an event. */
static void log_problems(const struct problems *problems, const char *lead)
{
	for (size_t i = 0; i < problems->count; i++)
		log_error("%s%s", lead, problems->lines[i]);
}

/* Finds the open listener of a URL. */
static struct port *find_port(struct service *s, const char *url)
{
	for (struct port *p = s->ports; p; p = p->next)
		if (strcmp(p->l->url, url) == 0)
			return p;
	return NULL;
}

/* How many blocks of a configuration before that one have its URL: they may share it by reuse_port. */
static size_t occurrence(const struct config *config, size_t block)
{
	size_t n = 0;

	for (size_t i = 0; i < block; i++)
		n += strcmp(config->listens[i].url_text, config->listens[block].url_text) == 0;
	return n;
}

/* The listeners of a configuration, open ones reused, the others opened: an array of listen_count, entries NULL where that failed. */
static struct listener **open_ports(struct service *s, const struct config *config, struct problems *problems)
{
	struct listener **open = mem_zalloc((config->listen_count + 1) * sizeof *open);

	for (size_t i = 0; i < config->listen_count; i++) {
		const struct listen_conf *conf = &config->listens[i];
		char *why = NULL;
		struct port *p = find_port(s, conf->url_text);
		for (size_t n = occurrence(config, i); p && n; n--) {
			for (p = p->next; p && strcmp(p->l->url, conf->url_text) != 0;)
				p = p->next;
		}
		open[i] = p ? p->l : listener_open(s->runtime.loop, conf, lua_net_on_accept, NULL, &why);
		if (!open[i]) {
			bool gave_up = errno == EACCES && s->newest && config->user;
			problems_add_at(problems, conf->file, conf->line, "%s%s", why,
			                gave_up ? ": the daemon has given up its rights, restart it" : "");
			free(why);
		}
	}
	return open;
}

/* Is that listener among the service's ports? */
static bool is_port(const struct service *s, const struct listener *l)
{
	for (const struct port *p = s->ports; p; p = p->next)
		if (p->l == l)
			return true;
	return false;
}

/* Closes those that open_ports has opened newly. */
static void close_new_ports(struct service *s, struct listener **open, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (open[i] && !is_port(s, open[i]))
			listener_close(open[i]);
}

/* Makes the listeners those of a generation: closes the ones that are not in its configuration, aims the others at its handlers. */
static void take_ports(struct service *s, struct generation *g, struct listener **open)
{
	struct port *old = s->ports, *next, **end = &s->ports;

	for (size_t i = 0; i < g->config->listen_count; i++)
		if (s->newest && !is_port(s, open[i]))
			log_info("listening on %s", open[i]->name);
	for (struct port *p = old; p; p = next) {
		bool kept = false;
		for (size_t i = 0; i < g->config->listen_count; i++)
			kept |= open[i] == p->l;
		next = p->next;
		if (!kept) {
			log_info("no longer listening on %s", p->l->name);
			listener_close(p->l);
		}
		free(p);
	}
	s->ports = NULL;
	for (size_t i = 0; i < g->config->listen_count; i++) {
		struct port *p = mem_zalloc(sizeof *p);
		p->l = open[i];
		p->l->user = &g->acceptors[i];
		g->receivers[i].l = p->l;
		if (s->newest) /* at the start it has just been opened so */
			listener_update(p->l, &g->config->listens[i]);
		*end = p;
		end = &p->next;
	}
}

/* Puts a generation in the place of the one before, and lets it take connections over if asked to. Nothing in it can fail. */
static void swap(struct service *s, struct generation *g, struct listener **open, bool hand_over)
{
	struct generation *before = s->newest;
	size_t alive = 0;

	take_ports(s, g, open);
	runtime_configure(&s->runtime, g->config);
	g->older = before;
	s->newest = g;
	s->runtime.score->generation = g->number;
	generation_start(g, before);
	if (before)
		generation_retire(before, g);
	if (hand_over)
		generation_hand_over(g);
	for (struct generation *old = g; old; old = old->older)
		if ((old == g || old->vm->conn_count) && ++alive > (size_t)g->config->generations && old != g)
			generation_expire(old);
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

/* Opens the log as a configuration says; on failure the old one stays. */
static bool apply_log(const struct config *config, struct problems *problems)
{
	char *why = NULL;

	if (log_open(config->log_level, config->log_format, config->log_file, &why))
		return true;
	problems_add(problems, "log: %s", why);
	free(why);
	return false;
}

/* Loads the handlers of a configuration. */
static struct generation *load(struct service *s, struct shared_config *shared, struct problems *problems)
{
	return generation_new(&s->runtime, shared, s->last_number + 1, !s->options->config_path,
	                      s->options->config_path ? &daemon_host : &run_host, s, problems);
}

/* Builds a generation from a configuration and puts it in place; false with all problems, and nothing has changed then. */
static bool replace(struct service *s, struct shared_config *shared, bool hand_over, struct problems *problems)
{
	struct generation *g = load(s, shared, problems);
	struct listener **open = open_ports(s, shared->config, problems);
	bool done = !problems->count && apply_log(shared->config, problems);

	if (done) {
		s->last_number++;
		swap(s, g, open, hand_over);
	} else {
		close_new_ports(s, open, shared->config->listen_count);
		generation_free(g);
	}
	free(open);
	return done;
}

/* SIGHUP: all of it, or nothing. */
static void reload(struct service *s)
{
	struct problems problems = {0};

	notify_reloading();
	struct config *config = read_config(s->options, &problems);
	bool done = false;
	if (config) {
		config_check_reload(s->newest->config, config, &problems);
		if (problems.count) {
			config_free(config);
		} else {
			struct shared_config *shared = shared_config_new(config);
			reap_generations(s); /* what has ended in this turn does not count any more */
			done = replace(s, shared, true, &problems);
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
		log_problems(&problems, "reload refused: ");
		status = mem_printf("Reload refused, generation %llu serves on: %s", (unsigned long long)s->last_number,
		                    problems.count ? problems.lines[0] : "");
		log_error("reload refused: generation %llu serves on", (unsigned long long)s->last_number);
	}
	notify_ready(status);
	free(status);
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
		if (replace(s, g->shared, false, &problems)) {
			log_info("generation %llu serves in its place", (unsigned long long)s->last_number);
		} else { /* its files have been broken meanwhile: go on with what there is */
			log_problems(&problems, "cannot replace it: ");
			g->vm->exhausted = false;
		}
	}
	generation_end(g, "ELIMIT", "memory");
	problems_clear(&problems);
}

/* Closes the listeners of the configuration. */
static void close_ports(struct service *s)
{
	for (struct port *p = s->ports, *next; p; p = next) {
		next = p->next;
		listener_close(p->l);
		free(p);
	}
	s->ports = NULL;
}

/* The end of everything that is open, now. */
static void finish(struct service *s)
{
	s->state = STOPPED;
	spread_stop(&s->last_days);
	close_ports(s);
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

/* The beginning of the end: nothing new comes in, what clients have opened may go on for a while. */
static void drain(struct service *s)
{
	uint64_t limit_ns = s->drain_s >= 0 ? (uint64_t)(s->drain_s * 1e9) : s->newest->config->drain_timeout_ns;

	s->state = DRAINING;
	notify_stopping("Draining");
	close_ports(s);
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

/* The turn's end of the daemon: what callbacks and signals have asked for is done here, with no script on the stack. */
static void at_end(void *data)
{
	struct service *s = data;

	if (s->state == STOPPED)
		return;
	for (struct generation *g = s->newest; g; g = g->older)
		if (g->exhausted) {
			replace_exhausted(s, g);
			break; /* the list has changed; the next one has its turn */
		}
	if (s->newest->turns < 2 && ++s->newest->turns == 2) { /* its next-ticks have run: what they did not claim is not wanted */
		lua_net_drop_inheritance(s->newest->vm);
		lua_signal_drop_inheritance(s->newest->vm);
	} else if (s->newest->turns < 2) {
		loop_wake(s->runtime.loop);
	}
	if (s->reload_asked && s->state == SERVING) {
		s->reload_asked = false;
		reload(s);
	}
	if (s->stop_asked && s->state == SERVING)
		drain(s);
	reap_generations(s);
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
	default: break;
	}
}

static const int signals[] = {SIGHUP, SIGINT, SIGTERM, SIGUSR1};

/* Watches the daemon's signals. */
static void watch_signals(struct service *s)
{
	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
		s->watches[i] = sig_watch(s->runtime.loop, signals[i], on_signal, s);
}

/* Gives socket files and the log to the user that the daemon becomes, so that it may change, remove and reopen them. */
static void give_away_files(struct service *s, const struct config *config)
{
	uid_t uid;
	gid_t gid;
	char *why = NULL;

	if (!config->user || !privs_lookup(config->user, config->group, &uid, &gid, &why)) {
		free(why);
		return;
	}
	for (struct port *p = s->ports; p; p = p->next)
		listener_give(p->l, uid, gid);
	log_give(uid, gid);
}

/* Opens sockets with the rights we came with, drops them, then loads what scripts say. */
static bool start(struct service *s, struct config *config, struct problems *problems)
{
	struct shared_config *shared = shared_config_new(config);
	char *why = NULL;
	bool ok = false;

	struct listener **open = open_ports(s, config, problems);
	for (size_t i = 0; i < config->listen_count; i++) {
		if (!open[i])
			continue;
		struct port *p = mem_zalloc(sizeof *p);
		p->l = open[i];
		listener_pause(p->l);
		p->next = s->ports;
		s->ports = p;
	}
	free(open);
	if (!problems->count && config->pid_file &&
	    (!pidfile_open(&s->pid_file, config->pid_file, -1, &why) || !pidfile_write(&s->pid_file, &why))) {
		problems_add(problems, "%s", why);
		free(why);
	}
	if (!problems->count)
		give_away_files(s, config);
	if (!privs_drop(config->user, config->group, &why)) {
		problems_add(problems, "%s", why);
		free(why);
	} else if (problems->count) {
		generation_free(load(s, shared, problems)); /* it will not start, but all mistakes are told at once */
	} else if (replace(s, shared, false, problems)) {
		for (struct port *p = s->ports; p; p = p->next) {
			listener_resume(p->l);
			log_info("listening on %s", p->l->name);
		}
		activation_log_unused(s->runtime.activation);
		ok = true;
	}
	shared_config_release(shared);
	return ok;
}

/* Tells whoever started us that we serve, and lets go of the terminal. */
static void tell_ready(struct service *s)
{
	char status[64];
	size_t count = s->newest->config->listen_count;

	log_info("ready: pid %ld, %zu listener%s", (long)getpid(), count, count == 1 ? "" : "s");
	snprintf(status, sizeof status, "Serving, generation %llu", (unsigned long long)s->last_number);
	notify_ready(status);
	if (!s->options->detached)
		return;
	if (!s->newest->config->log_file)
		log_warn("detached without log.file: from here on nothing is logged");
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null >= 0) {
		dup2(null, 0);
		dup2(null, 1);
		dup2(null, 2);
		close(null);
	}
	if (write(s->options->ready_fd, "1", 1) != 1)
		log_warn("nobody waits for the daemon to be ready");
	close(s->options->ready_fd);
}

/* The last line of the log: what is left over must be nothing. */
static void tell_stopped(const struct stats *stats)
{
	char *line = mem_strdup("stopped:");

	for (size_t i = 0; i < stats_row_count; i++) {
		const uint64_t *value = (const uint64_t *)((const char *)stats + stats_rows[i].offset);
		char *longer = mem_printf("%s %s=%llu", line, stats_rows[i].name, (unsigned long long)*value);
		free(line);
		line = longer;
	}
	log_info("%s", line);
	free(line);
}

/* Takes everything down. */
static void take_down(struct service *s)
{
	close_ports(s);
	for (struct generation *g = s->newest, *older; g; g = older) {
		older = g->older;
		generation_free(g);
	}
	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
		sig_hold(signals[i]);
		sig_unwatch(s->watches[i]);
	}
	if (s->runtime.loop)
		loop_hook_remove(s->runtime.loop, STAGE_END, &s->at_end);
	runtime_close(&s->runtime);
	pidfile_close(&s->pid_file);
}

/* Serves. */
int service_run(const struct service_options *options)
{
	struct service s = {.options = options, .drain_s = -1};
	struct problems problems = {0};
	char *why = NULL;
	bool started = false, to_file = false;
	struct scoreboard *board = scoreboard_new(1);

	/* what is wrong with the configuration is told before that says how to log: in the journal's way if it is the journal */
	if (!log_open(LEVEL_INFO, FORMAT_AUTO, NULL, &why))
		free(why);
	struct config *config = read_config(options, &problems);
	if (config && apply_log(config, &problems)) {
		to_file = config->log_file != NULL;
		if (!board || !runtime_open(&s.runtime, config, board->scores, &why)) {
			problems_add(&problems, "%s", why ? why : errno_text(errno));
			free(why);
			config_free(config);
		} else {
			spread_init(&s.last_days, s.runtime.loop, &last_days, &s);
			watch_signals(&s);
			started = start(&s, config, &problems);
		}
	} else if (config) {
		config_free(config);
	}
	if (!started) {
		log_problems(&problems, "");
		take_down(&s);
		log_close();
		if (to_file) /* whoever has started us looks at standard error */
			log_problems(&problems, "");
		problems_clear(&problems);
		scoreboard_free(board);
		return 1;
	}
	problems_clear(&problems);
	s.at_end = (struct loop_hook){.run = at_end, .data = &s};
	loop_hook_add(s.runtime.loop, STAGE_END, &s.at_end);
	tell_ready(&s);
	while (!s.stop_now && !(s.state == DRAINING && !accepted(&s)))
		loop_turn(s.runtime.loop);
	if (s.state == SERVING)
		notify_stopping("Stopping");
	finish(&s);
	take_down(&s);
	tell_stopped(s.runtime.stats);
	scoreboard_free(board);
	log_close();
	return s.status;
}

/* Checks. */
int service_check(const struct service_options *options, bool dump)
{
	struct service s = {.options = options}; /* what scripts may ask for while they load */
	struct problems problems = {0};
	char *why = NULL;
	struct config *config = read_config(options, &problems);

	if (config) {
		struct shared_config *shared = shared_config_new(config);
		struct scoreboard *board = scoreboard_new(1);
		if (dump)
			config_dump_json(config, stdout);
		if (!privs_drop(config->user, config->group, &why) || !board || !runtime_open(&s.runtime, config, board->scores, &why)) {
			problems_add(&problems, "%s", why ? why : errno_text(errno));
			free(why);
		} else {
			generation_free(load(&s, shared, &problems));
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
