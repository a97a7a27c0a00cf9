/* One of several processes: see member.h. */
#include "member.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "guard.h"
#include "inquiry.h"
#include "log.h"
#include "mem.h"
#include "service.h"
#include "sig.h"
#include "startup.h"

#define FLUSH_MS 1000 /* for the last message */
#define ORPHAN_S 10   /* for an end without a master */

static const int ignored[] = {SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
#define IGNORED (sizeof ignored / sizeof *ignored)

struct member {
	const struct member_place *place;
	struct service service;
	struct bus *bus;
	struct prepared prepared;
	struct member_reload reload; /* what is asked for */
	bool prepare_asked, commit_asked, abort_asked;
	struct loop_hook at_end;
	struct sig *watches[IGNORED];
};

/* Tells the master; when that cannot be told any more, the bus's end is near. */
static void tell(struct member *m, enum bus_kind kind, const void *bytes, size_t length)
{
	if (!bus_send(m->bus, kind, bytes, length, NULL, 0))
		log_debug("the master cannot be told anything");
}

/* A file on its way to the master. */
static void tell_source(void *data, const char *path, const char *text, size_t length)
{
	size_t lead = strlen(path) + 1;
	char *bytes = mem_alloc(lead + length);

	memcpy(bytes, path, lead);
	memcpy(bytes + lead, text, length);
	tell(data, BUS_SOURCE, bytes, lead + length);
	free(bytes);
}

/* Answers: what was loaded and that it is ready, or why not. */
static void answer(struct member *m, const struct problems *problems)
{
	size_t length = 0;

	if (!problems->count)
		sources_each(m->prepared.generation->sources, tell_source, m);
	for (size_t i = 0; i < problems->count; i++)
		length += strlen(problems->lines[i]) + 1;
	char *bytes = mem_alloc(length + 1), *at = bytes;
	for (size_t i = 0; i < problems->count; i++)
		at = stpcpy(at, problems->lines[i]) + 1;
	tell(m, BUS_PREPARED, bytes, length);
	free(bytes);
}

/* Prepares with that configuration and those sources, whose uses are given away. */
static bool prepare(struct member *m, struct shared_config *shared, struct sources *sources, uint64_t number, struct problems *problems)
{
	struct service *s = &m->service;

	if (s->last_number + 1 < number)
		s->last_number = number - 1;
	bool good = service_prepare(s, shared, sources, &m->prepared, problems);
	ports_drop_handed(&s->ports);
	shared_config_release(shared);
	sources_unref(sources);
	answer(m, problems);
	return good;
}

/* A reload: its first half. */
static void prepare_reload(struct member *m)
{
	struct problems problems = {0};
	struct config *config = settings_read(m->place->options, &problems);

	if (config && settings_digest(config) != m->reload.digest) {
		problems_add(&problems, "%s has changed while it was being read", m->place->options->config_path);
		config_free(config);
		config = NULL;
	}
	if (config) {
		(void)prepare(m, shared_config_new(config), sources_new(), m->reload.generation, &problems);
	} else {
		ports_drop_handed(&m->service.ports);
		answer(m, &problems);
	}
	problems_clear(&problems);
}

/* Its second half. The master has opened the log already, so that it can be opened. */
static void commit(struct member *m)
{
	struct problems problems = {0};
	bool first = !m->service.newest;

	if (first && m->place->options->detached)
		startup_detach();
	if (!first && !settings_apply_log(m->prepared.shared->config, &problems))
		settings_log_problems(&problems, "");
	problems_clear(&problems);
	service_commit(&m->service, &m->prepared);
	tell(m, BUS_COMMITTED, NULL, 0);
}

/* The turn's end: orders are carried out with no script on the stack. */
static void at_end(void *data)
{
	struct member *m = data;

	if (m->service.stop_now)
		return;
	if (m->abort_asked)
		service_abort(&m->prepared);
	if (m->prepare_asked)
		prepare_reload(m);
	if (m->commit_asked && m->prepared.shared)
		commit(m);
	m->abort_asked = m->prepare_asked = m->commit_asked = false;
}

/* Tells the master what scripts listen on. */
static void leave(struct member *m)
{
	struct legacy *legacy = legacy_new();
	const struct legacy_entry *e;

	if (m->service.newest)
		lua_net_leave(m->service.newest->vm, legacy);
	for (size_t i = 0; (e = legacy_at(legacy, i)); i++) {
		const char *path = e->file ? e->file->path : "";
		size_t name_size = strlen(e->name) + 1, path_size = strlen(path) + 1;
		struct member_left left = {.device = e->file ? e->file->device : 0, .inode = e->file ? e->file->inode : 0};
		char *bytes = mem_alloc(sizeof left + name_size + path_size);
		memcpy(bytes, &left, sizeof left);
		memcpy(bytes + sizeof left, e->name, name_size);
		memcpy(bytes + sizeof left + name_size, path, path_size);
		if (!bus_send(m->bus, BUS_LEFT, bytes, sizeof left + name_size + path_size, &e->fd, 1))
			log_debug("the master cannot be told anything");
		free(bytes);
	}
	legacy_free(legacy);
	tell(m, BUS_LEFT, NULL, 0);
}

/* An order has come. */
static void on_order(void *data, const struct bus_message *message)
{
	struct member *m = data;
	struct member_stop stop;
	char *url;

	switch (message->kind) {
	case BUS_PORT: {
		size_t before = strtoul(message->bytes, &url, 10);
		if (message->fd_count == 1 && *url == ' ') {
			ports_hand(&m->service.ports, url + 1, before, message->fds[0]);
			message->fds[0] = -1;
		}
		break;
	}
	case BUS_PREPARE:
		if (message->length != sizeof m->reload)
			break;
		memcpy(&m->reload, message->bytes, sizeof m->reload);
		m->prepare_asked = true;
		break;
	case BUS_ABORT:
		m->prepare_asked = false;
		m->abort_asked = true;
		ports_drop_handed(&m->service.ports);
		break;
	case BUS_COMMIT: m->commit_asked = true; break;
	case BUS_DRAIN:
		if (message->length != sizeof stop)
			break;
		memcpy(&stop, message->bytes, sizeof stop);
		if (!m->service.newest)
			service_ask_stop(&m->service);
		if (stop.replaced)
			service_ask_step_back(&m->service);
		else
			service_ask_drain(&m->service, stop.drain_s, stop.status);
		break;
	case BUS_STOP: service_ask_stop(&m->service); break;
	case BUS_REOPEN: log_reopen(); break;
	case BUS_LEAVE: leave(m); break;
	case BUS_KEEP:
		if (m->service.newest)
			lua_net_keep(m->service.newest->vm);
		break;
	case BUS_CONTROL_REQUEST: inquiry_reply(m->bus, message, &m->service.runtime, m->service.newest); break;
	default: break;
	}
	loop_wake(m->service.runtime.loop);
}

/* The master has gone. */
static void on_bus_end(void *data)
{
	struct member *m = data;

	if (!m->service.stop_now)
		log_error("the master has gone: this process ends");
	service_ask_stop(&m->service);
}

/* em.stop in a handler stops the whole daemon. */
static void on_stop(struct service *s, double drain_s, int status)
{
	struct member_stop stop = {.drain_s = drain_s, .status = status};

	tell(s->user, BUS_STOPPING, &stop, sizeof stop);
}

/* The master's signals are the master's: a terminal sends them to all of us. */
static void on_signal(int signo, void *data)
{
	(void)signo, (void)data;
}

/* The master is gone. The end of the bus will say so too, and end this process in good order; if that is not read, in no order. */
static void on_orphaned(int signo)
{
	(void)signo;
	alarm(ORPHAN_S);
}

/* Takes its place. */
static bool take_place(struct member *m, struct problems *problems)
{
	static const enum bus_kind orders[] = {BUS_PORT, BUS_PREPARE, BUS_COMMIT, BUS_ABORT, BUS_DRAIN,
	                                       BUS_STOP, BUS_REOPEN,  BUS_LEAVE,  BUS_KEEP,  BUS_CONTROL_REQUEST};
	const struct member_place *p = m->place;
	struct service *s = &m->service;

	if (!service_open(s, p->options, p->config->config, p->score, p->activation, problems)) {
		close(p->bus_fd);
		return false;
	}
	struct loop *loop = s->runtime.loop;
	loop->process = p->index;
	loop->processes = p->count;
	s->ports.from_master = s->ports.silent = true;
	s->ports.handed = p->handed;
	s->pending = &m->prepared;
	s->on_stop = on_stop;
	s->user = m;
	tls_set_secret(s->runtime.tls, &p->secret);
	store_rename(s->runtime.store, p->store);
	signal(sig_orphan(), on_orphaned);
	m->bus = loop->bus = bus_new(loop, p->bus_fd, MEMBER_QUEUE, on_bus_end, m);
	channels_link(s->runtime.channels, m->bus);
	for (size_t i = 0; i < sizeof orders / sizeof *orders; i++)
		bus_on(m->bus, orders[i], on_order, m);
	for (size_t i = 0; i < IGNORED; i++)
		m->watches[i] = sig_watch(loop, ignored[i], on_signal, m);
	m->at_end = (struct loop_hook){.run = at_end, .data = m};
	loop_hook_add(loop, STAGE_END, &m->at_end);
	return true;
}

/* Serves. */
int member_run(const struct member_place *place)
{
	struct member m = {.place = place};
	struct problems problems = {0};
	char name[16];

	snprintf(name, sizeof name, "reactord/%u", place->index);
	prctl(PR_SET_NAME, name);
	bool placed = take_place(&m, &problems);
	settings_log_problems(&problems, "");
	sigset_t of_guard; /* the limit on the time of callbacks is for loading too */
	sigemptyset(&of_guard);
	sigaddset(&of_guard, guard_signal());
	if (placed)
		sigprocmask(SIG_UNBLOCK, &of_guard, NULL);
	bool started = placed && prepare(&m, place->config, place->sources, place->generation, &problems);
	problems_clear(&problems);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (started)
		service_serve(&m.service);
	if (m.bus)
		bus_flush(m.bus, FLUSH_MS);
	service_abort(&m.prepared);
	if (placed)
		loop_hook_remove(m.service.runtime.loop, STAGE_END, &m.at_end);
	for (size_t i = 0; i < IGNORED; i++)
		sig_unwatch(m.watches[i]);
	if (m.bus)
		channels_link(m.service.runtime.channels, NULL);
	bus_free(m.bus);
	service_close(&m.service);
	if (started)
		startup_tell_stopped(&place->score->stats);
	log_close();
	return started ? 0 : 1;
}
