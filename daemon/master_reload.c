/* A reload of all processes: prepared by all, then committed by all, or by none. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "log.h"
#include "master_impl.h"
#include "mem.h"
#include "member.h"
#include "notify.h"

#define ANSWER_NS 30000000000u /* for an answer, where processes may hang for ever or are in the middle of a callback */

/* Adds one that is not known yet. */
void master_add_once(struct problems *problems, const char *text)
{
	for (size_t i = 0; i < problems->count; i++)
		if (strcmp(problems->lines[i], text) == 0)
			return;
	problems_add(problems, "%s", text);
}

/* Adds what a process has answered; true if that was nothing. */
bool master_read_answer(const struct bus_message *message, struct problems *problems)
{
	for (size_t at = 0; at < message->length; at += strlen(message->bytes + at) + 1)
		master_add_once(problems, message->bytes + at);
	return message->length == 0;
}

/* After what time a process hangs; 0: it may. A callback may take as long as it is allowed to. */
uint64_t master_hang_limit(const struct config *config)
{
	return config->callback_time_ns && config->hang_timeout_ns ? config->callback_time_ns + config->hang_timeout_ns : 0;
}

/* How long the first half of a reload may take. */
static uint64_t prepare_limit(const struct master *m)
{
	uint64_t limit_ns = master_hang_limit(m->config->config);

	return limit_ns ? limit_ns : ANSWER_NS;
}

/* How long a process may take to answer. */
uint64_t master_answer_limit(const struct master *m)
{
	uint64_t limit_ns = master_hang_limit(m->config->config);

	return limit_ns > ANSWER_NS ? limit_ns : ANSWER_NS;
}

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
	control_answer_all(&a->askers, r);
	timer_stop(m->loop, &a->limit);
	problems_clear(&a->problems);
	a->stage = IDLE;
}

/* Forgets what is being prepared. */
void master_abort(struct master *m)
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
unsigned master_awaited(const struct master *m)
{
	unsigned count = 0;

	for (unsigned i = 0; i < m->seats.count; i++)
		count += m->seats.all[i].awaited;
	return count;
}

/* All are ready: all serve with it. */
static void commit_attempt(struct master *m)
{
	struct attempt *a = &m->attempt;

	if (!settings_apply_log(a->config->config, &a->problems)) {
		master_abort(m);
		return;
	}
	ports_commit(&m->ports, a->config->config, a->open, true);
	shared_config_release(m->config);
	sources_unref(m->sources);
	m->config = a->config;
	m->sources = a->sources;
	m->number++;
	a->stage = COMMITTING;
	timer_start(m->loop, &a->limit, master_answer_limit(m));
	for (unsigned i = 0; i < m->seats.count; i++) {
		struct seat *seat = &m->seats.all[i];
		seat->awaited = seat->state == SEAT_SERVING;
		if (seat->awaited)
			seat_send(seat, BUS_COMMIT, NULL, 0, NULL, 0);
	}
	seats_watch(&m->seats, master_hang_limit(m->config->config));
	seats_hurry(&m->seats); /* the new code may be the cure */
}

/* One answer less to wait for. */
void master_go_on(struct master *m)
{
	struct attempt *a = &m->attempt;

	if (a->stage == IDLE || master_awaited(m))
		return;
	if (a->stage == COMMITTING)
		conclude(m, true);
	else if (a->problems.count)
		master_abort(m);
	else
		commit_attempt(m);
	if (a->stage == COMMITTING && !master_awaited(m)) /* there was no process to wait for */
		conclude(m, true);
}

/* A process takes too long: it hangs, for all that is known. */
void master_on_limit(void *data)
{
	struct master *m = data;
	struct attempt *a = &m->attempt;

	for (unsigned i = 0; i < m->seats.count; i++) {
		struct seat *seat = &m->seats.all[i];
		if (!seat->awaited)
			continue;
		if (a->stage == PREPARING)
			problems_add(&a->problems, "process %u has not loaded the handlers in %.0f s", seat->index, (double)prepare_limit(m) / 1e9);
		seat_end_hanging(seat, a->stage == PREPARING ? "does not get done with loading" : "does not answer");
	}
	master_abort(m);
}

/* Sends a process the sockets that are new. */
static void hand_ports(struct master *m, struct seat *seat)
{
	struct attempt *a = &m->attempt;
	const struct config *config = a->config->config;

	for (size_t i = 0; i < config->listen_count; i++) {
		if (a->problems.count || seat->bus_ended || a->open[i]->current || config->listens[i].url.scheme == SCHEME_FD)
			continue;
		char *text = mem_printf("%zu %s", ports_before(config, i), config->listens[i].url_text);
		int fd = ports_socket(a->open[i], seat->index);
		if (!bus_send(seat->bus, BUS_PORT, text, strlen(text), &fd, 1))
			problems_add(&a->problems, "listen %s: %s", config->listens[i].url_text, strerrordesc_np(errno));
		free(text);
	}
}

/* SIGHUP: all of it in all processes, or nothing in any. */
void master_reload(struct master *m)
{
	struct attempt *a = &m->attempt;

	m->reload_asked = false;
	a->askers = m->reloaders;
	m->reloaders = NULL;
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
	for (unsigned i = 0; i < m->seats.count && !a->problems.count; i++)
		if (m->seats.all[i].state == SEAT_SERVING)
			hand_ports(m, &m->seats.all[i]);
	if (a->problems.count) {
		master_abort(m);
		return;
	}
	timer_start(m->loop, &a->limit, prepare_limit(m));
	struct member_reload order = {.generation = m->number + 1, .digest = settings_digest(config)};
	for (unsigned i = 0; i < m->seats.count; i++) {
		struct seat *seat = &m->seats.all[i];
		if (seat->state != SEAT_SERVING)
			continue;
		seat_send(seat, BUS_PREPARE, &order, sizeof order, NULL, 0);
		seat->awaited = true;
	}
	master_go_on(m);
}
