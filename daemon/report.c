/* Answers to commands: see report.h. */
#include "report.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"
#include "lua_eval.h"
#include "mem.h"
#include "metrics.h"

/* Nanoseconds as seconds. */
static json_t *seconds(uint64_t ns)
{
	return json_real((double)ns / 1e9);
}

/* A text that may come from anywhere, or null. */
static json_t *text(const char *bytes)
{
	if (!bytes)
		return json_null();
	struct value v = {.kind = VALUE_STRING, .string = {.bytes = (char *)bytes, .length = strlen(bytes)}};
	return option_value_json(&v); /* bytes that are not UTF-8 are replaced */
}

/* A failure with one reason. */
struct report report_failure(int status, char *why)
{
	struct report r = {.status = status, .result = json_array()};

	json_array_append_new(r.result, text(why));
	free(why);
	return r;
}

/* A failure with many. */
struct report report_failures(const struct problems *problems)
{
	struct report r = {.status = COMMAND_FAILED, .result = json_array()};

	for (size_t i = 0; i < problems->count; i++)
		json_array_append_new(r.result, text(problems->lines[i]));
	return r;
}

/* One counter over all processes. */
static json_t *total(const struct scoreboard *board, const char *name)
{
	for (size_t i = 0; i < stats_row_count; i++)
		if (strcmp(stats_rows[i].name, name) == 0)
			return json_integer((json_int_t)scoreboard_total(board, &stats_rows[i]));
	abort();
}

/* One line for each process. */
static json_t *process_rows(const struct scoreboard *board, uint64_t now_ns)
{
	json_t *rows = json_array();

	for (size_t i = 0; i < board->count; i++) {
		const struct score *s = &board->scores[i];
		if (!s->pid)
			continue;
		json_t *row = json_object();
		json_object_set_new(row, "process", json_integer((json_int_t)i + 1));
		json_object_set_new(row, "pid", json_integer(s->pid));
		json_object_set_new(row, "generation", json_integer((json_int_t)s->generation));
		json_object_set_new(row, "connections", json_integer((json_int_t)s->stats.connections));
		json_object_set_new(row, "queued", json_integer((json_int_t)s->stats.bytes_queued));
		json_object_set_new(row, "lua_memory", json_integer((json_int_t)s->stats.lua_memory));
		json_object_set_new(row, "lag", seconds(score_lag(s, now_ns)));
		json_object_set_new(row, "uptime", seconds(now_ns - s->began_ns));
		json_array_append_new(rows, row);
	}
	return rows;
}

/* The daemon at a glance. */
json_t *report_status(const struct scoreboard *board, pid_t pid, const char *state, const char *config)
{
	static const char *const counters[][2] = {
		{"connections", "connections"},
		{"listeners", "listeners"},
		{"accepted", "connections_accepted"},
		{"bytes_in", "bytes_in"},
		{"bytes_out", "bytes_out"},
		{"queued", "bytes_queued"},
		{"lua_memory", "lua_memory"},
		{"handler_errors", "handler_errors"},
		{"reloads", "reloads"},
		{"reloads_refused", "reloads_refused"},
	};
	json_t *o = json_object();
	uint64_t now_ns = loop_clock(), generation = 0, lag = 0;

	for (size_t i = 0; i < board->count; i++) {
		const struct score *s = &board->scores[i];
		if (s->generation > generation)
			generation = s->generation;
		if (s->pid && score_lag(s, now_ns) > lag)
			lag = score_lag(s, now_ns);
	}
	json_object_set_new(o, "state", json_string(state));
	json_object_set_new(o, "pid", json_integer(pid));
	json_object_set_new(o, "version", json_string(VERSION));
	json_object_set_new(o, "config", text(config));
	json_object_set_new(o, "uptime", seconds(now_ns - board->began_ns));
	json_object_set_new(o, "generation", json_integer((json_int_t)generation));
	json_object_set_new(o, "processes", json_integer((json_int_t)board->count));
	for (size_t i = 0; i < sizeof counters / sizeof *counters; i++)
		json_object_set_new(o, counters[i][0], total(board, counters[i][1]));
	json_object_set_new(o, "lag", seconds(lag));
	json_object_set_new(o, "log_level", json_string(log_level_name(log_get_level())));
	json_object_set_new(o, "process_list", process_rows(board, now_ns));
	return o;
}

/* All counters. */
struct report report_metrics(const struct scoreboard *board)
{
	char *metrics = metrics_text(board, loop_clock());
	struct report report = {.result = text(metrics)};

	free(metrics);
	return report;
}

/* The state of a connection in a word. */
static const char *state_name(const struct conn *c)
{
	static const char *const names[] = {"connecting", "open", "closing", "closing", "closing"};

	return c->finishing ? "closing" : names[c->state];
}

/* One connection. */
static json_t *connection_row(const struct generation *g, const struct lua_conn *lc, uint64_t now_ns)
{
	const struct conn *c = lc->c;
	char peer[ADDR_TEXT_SIZE];
	json_t *row = json_object();

	json_object_set_new(row, "id", json_integer((json_int_t)lc->signature));
	json_object_set_new(row, "process", json_integer((json_int_t)c->conns->loop->process));
	json_object_set_new(row, "listener", text(lc->label));
	json_object_set_new(row, "handler", text(lc->handler));
	json_object_set_new(row, "peer", text(c->peer.length ? addr_format(&c->peer, peer) : NULL));
	json_object_set_new(row, "state", json_string(state_name(c)));
	json_object_set_new(row, "outgoing", json_boolean(lc->outgoing));
	json_object_set_new(row, "tls", json_boolean(c->filter != NULL));
	json_object_set_new(row, "bytes_in", json_integer((json_int_t)c->bytes_in));
	json_object_set_new(row, "bytes_out", json_integer((json_int_t)c->bytes_out));
	json_object_set_new(row, "queued", json_integer((json_int_t)c->queued));
	json_object_set_new(row, "age", seconds(c->opened_ns && c->opened_ns < now_ns ? now_ns - c->opened_ns : 0));
	json_object_set_new(row, "idle", seconds(c->last_io_ns && c->last_io_ns < now_ns ? now_ns - c->last_io_ns : 0));
	json_object_set_new(row, "generation", json_integer((json_int_t)g->number));
	return row;
}

/* A connection that may become a row. */
struct candidate {
	const struct generation *g;
	const struct lua_conn *lc;
};

/* The newest first. */
static int newer(const void *a, const void *b)
{
	uint64_t x = ((const struct candidate *)a)->lc->signature, y = ((const struct candidate *)b)->lc->signature;

	return (x < y) - (x > y);
}

/* How many rows a request wants. */
static size_t row_limit(const json_t *request)
{
	json_int_t limit = json_integer_value(json_object_get(request, "limit"));

	return limit <= 0 ? COMMAND_ROWS : limit > COMMAND_ROWS_MAX ? COMMAND_ROWS_MAX : (size_t)limit;
}

/* Connections with numbers below that of the request, a page of them: no turn takes long, however many there are. */
static struct report connections(const struct runtime *r, const struct generation *newest, const json_t *request)
{
	json_int_t before = json_integer_value(json_object_get(request, "before"));
	size_t limit = row_limit(request), count = 0;
	struct candidate *all = mem_zalloc((r->conns->count + 1) * sizeof *all);
	struct report report = {.result = json_array()};
	uint64_t now_ns = loop_clock();

	for (const struct generation *g = newest; g; g = g->older)
		for (const struct lua_conn *lc = g->vm->conns; lc; lc = lc->next)
			if (lc->c && count < r->conns->count && (before <= 0 || (json_int_t)lc->signature < before))
				all[count++] = (struct candidate){g, lc};
	qsort(all, count, sizeof *all, newer);
	for (size_t i = 0; i < count && i < limit; i++)
		json_array_append_new(report.result, connection_row(all[i].g, all[i].lc, now_ns));
	if (count > limit)
		report.more = (json_int_t)all[limit - 1].lc->signature;
	free(all);
	return report;
}

/* Every listener that serves. */
static struct report listeners(const struct runtime *r)
{
	struct report report = {.result = json_array()};

	for (const struct listener *l = r->loop->listeners; l; l = l->next) {
		const struct lua_acceptor *a = l->user;
		if (!a || l->on_accept != lua_net_on_accept)
			continue;
		json_t *row = json_object();
		json_object_set_new(row, "process", json_integer((json_int_t)r->loop->process));
		json_object_set_new(row, "listener", text(l->name));
		json_object_set_new(row, "handler", text(a->handler));
		json_object_set_new(row, "generation", json_integer((json_int_t)a->vm->options.generation));
		json_object_set_new(row, "connections", json_integer((json_int_t)l->live));
		json_object_set_new(row, "max_connections", json_integer((json_int_t)l->max_connections));
		json_object_set_new(row, "tls", json_boolean(a->tls != NULL));
		json_object_set_new(row, "accepting", json_boolean(l->watched || l->datagrams));
		json_array_insert_new(report.result, 0, row); /* the list has the last one first */
	}
	return report;
}

/* Adds the callbacks of a label to a handler's. */
static void add_callbacks(const struct score *score, const char *label, uint64_t *calls, uint64_t *ns)
{
	for (unsigned i = 0; i < score->series_count; i++) {
		const struct series *s = &score->series[i];
		if (strncmp(score->labels[s->label], label, SCORE_LABEL_SIZE - 1) != 0)
			continue;
		*ns += s->time.sum_ns;
		for (size_t b = 0; b <= SCORE_BUCKETS; b++)
			*calls += s->time.buckets[b];
	}
}

/* One handler of a generation. Callbacks are those of its blocks since the start, whatever code served them. */
static json_t *handler_row(const struct runtime *r, const struct generation *g, const char *name)
{
	json_int_t connections = 0, blocks = 0;
	uint64_t calls = 0, ns = 0;
	json_t *row = json_object();

	for (const struct lua_conn *lc = g->vm->conns; lc; lc = lc->next)
		connections += lc->handler && strcmp(lc->handler, name) == 0;
	for (const struct listener *l = r->loop->listeners; l; l = l->next) {
		const struct lua_acceptor *a = l->user;
		if (a && l->on_accept == lua_net_on_accept && a->vm == g->vm && a->handler && strcmp(a->handler, name) == 0) {
			blocks++;
			add_callbacks(r->score, l->name, &calls, &ns);
		}
	}
	for (size_t i = 0; i < g->config->connect_count; i++)
		if (g->dialers[i].handler && strcmp(g->dialers[i].handler, name) == 0) {
			blocks++;
			add_callbacks(r->score, g->config->connects[i].url_text, &calls, &ns);
		}
	json_object_set_new(row, "process", json_integer((json_int_t)r->loop->process));
	json_object_set_new(row, "handler", text(name));
	json_object_set_new(row, "generation", json_integer((json_int_t)g->number));
	json_object_set_new(row, "blocks", json_integer(blocks));
	json_object_set_new(row, "connections", json_integer(connections));
	json_object_set_new(row, "callbacks", json_integer((json_int_t)calls));
	json_object_set_new(row, "callback_time", seconds(ns));
	json_object_set_new(row, "callback_mean", seconds(calls ? ns / calls : 0));
	return row;
}

/* Adds a row for a handler that has none yet. */
static void add_handler(json_t *rows, const struct runtime *r, const struct generation *g, const char *name)
{
	size_t i;
	json_t *row;

	json_array_foreach(rows, i, row)
	{
		if (json_integer_value(json_object_get(row, "generation")) == (json_int_t)g->number &&
		    strcmp(json_string_value(json_object_get(row, "handler")), name) == 0)
			return;
	}
	json_array_append_new(rows, handler_row(r, g, name));
}

/* Every handler of the configurations in use. */
static struct report handlers(const struct runtime *r, const struct generation *newest)
{
	struct report report = {.result = json_array()};

	for (const struct generation *g = newest; g; g = g->older) {
		for (size_t i = 0; i < g->config->listen_count; i++)
			if (g->acceptors[i].handler)
				add_handler(report.result, r, g, g->acceptors[i].handler);
		for (size_t i = 0; i < g->config->connect_count; i++)
			if (g->dialers[i].handler)
				add_handler(report.result, r, g, g->dialers[i].handler);
	}
	return report;
}

/* Ends a connection by its number. */
static struct report close_connection(struct generation *newest, const char *id)
{
	uint64_t signature = strtoull(id, NULL, 10);

	for (struct generation *g = newest; g; g = g->older)
		for (struct lua_conn *lc = g->vm->conns; lc; lc = lc->next)
			if (lc->signature == signature && lc->c && lc->c->state != CONN_ENDING) {
				conn_end(lc->c, NULL, "closed");
				loop_wake(lc->c->conns->loop);
				return (struct report){.result = json_string("closed")};
			}
	return report_failure(COMMAND_FAILED, mem_printf("there is no connection %s", id));
}

/* Sets what is logged. */
static struct report set_log_level(const char *name)
{
	enum log_level level;

	if (log_level_parse(name, &level))
		log_set_level(level);
	return (struct report){.result = json_string(name)};
}

/* Runs Lua. */
static struct report eval(const struct runtime *r, struct generation *newest, const char *code)
{
	char *result = NULL;

	if (!newest->config->control_eval)
		return report_failure(COMMAND_FAILED, mem_strdup("eval is off: control_eval = true in the configuration allows it"));
	if (!lua_eval(newest->vm, code, &result))
		return report_failure(COMMAND_FAILED, result);
	struct report report = {.result = text(result)};
	free(result);
	if (r->loop->processes > 1) /* several do it, each with a result of its own */
		report.result = json_pack("[{s:I, s:o}]", "process", (json_int_t)r->loop->process, "result", report.result);
	return report;
}

/* Answers. */
struct report report_answer(struct runtime *r, struct generation *newest, const char *state, const json_t *request)
{
	const char *command = json_string_value(json_object_get(request, "command"));
	const char *argument = json_string_value(json_object_get(request, "argument"));

	if (strcmp(command, "status") == 0)
		return (struct report){.result = report_status(scoreboard_of(r->score), getpid(), state, newest->config->file)};
	if (strcmp(command, "connections") == 0)
		return connections(r, newest, request);
	if (strcmp(command, "listeners") == 0)
		return listeners(r);
	if (strcmp(command, "handlers") == 0)
		return handlers(r, newest);
	if (strcmp(command, "close") == 0)
		return close_connection(newest, argument);
	if (strcmp(command, "log-level") == 0)
		return set_log_level(argument);
	if (strcmp(command, "eval") == 0)
		return eval(r, newest, argument);
	if (strcmp(command, "metrics") == 0)
		return report_metrics(scoreboard_of(r->score));
	return report_failure(COMMAND_FAILED, mem_printf("%s is not for a single process", command));
}

/* Orders rows of connections as a process does. */
static int newer_row(const void *a, const void *b)
{
	json_int_t x = json_integer_value(json_object_get(*(json_t *const *)a, "id"));
	json_int_t y = json_integer_value(json_object_get(*(json_t *const *)b, "id"));

	return (x < y) - (x > y);
}

/* Pages of connections: the newest of all of them make one page. */
static void merge_page(struct report *all, size_t limit)
{
	size_t count = json_array_size(all->result), i;
	json_t **rows = mem_zalloc((count + 1) * sizeof *rows), *row, *sorted = json_array();

	json_array_foreach(all->result, i, row)
	{
		rows[i] = row;
	}
	qsort(rows, count, sizeof *rows, newer_row);
	for (i = 0; i < count && i < limit; i++)
		json_array_append(sorted, rows[i]);
	if ((count > limit || all->more) && i)
		all->more = json_integer_value(json_object_get(rows[i - 1], "id"));
	free(rows);
	json_decref(all->result);
	all->result = sorted;
}

/* Makes one answer of several. Rows are put together; of single values the first counts; one process that knows a connection is enough. */
struct report report_merge(const json_t *request, struct report *reports, size_t count)
{
	const char *command = json_string_value(json_object_get(request, "command"));
	struct report all = {.status = -1};

	for (size_t i = 0; i < count; i++) {
		struct report *r = &reports[i];
		if (!r->result)
			continue;
		bool better = all.status < 0 || (all.status > COMMAND_DONE && r->status == COMMAND_DONE);
		if (!better && r->status == all.status && json_is_array(all.result) && all.status == COMMAND_DONE) {
			json_array_extend(all.result, r->result);
			if (r->more)
				all.more = r->more;
		}
		if (better) {
			json_decref(all.result);
			all = *r;
		} else {
			json_decref(r->result);
		}
		*r = (struct report){0};
	}
	if (all.status < 0)
		return report_failure(COMMAND_FAILED, mem_strdup("no process answers"));
	if (all.status == COMMAND_DONE && strcmp(command, "connections") == 0)
		merge_page(&all, row_limit(request));
	return all;
}

/* As JSON. */
json_t *report_pack(const struct report *r)
{
	json_t *o = json_object();

	json_object_set_new(o, "exit", json_integer(r->status));
	json_object_set(o, r->status == COMMAND_DONE ? "result" : "errors", r->result);
	if (r->more)
		json_object_set_new(o, "more", json_integer(r->more));
	return o;
}

/* From JSON. */
bool report_unpack(struct report *r, const json_t *from)
{
	json_t *result = json_object_get(from, "result"), *errors = json_object_get(from, "errors");

	*r = (struct report){.status = (int)json_integer_value(json_object_get(from, "exit")),
	                     .more = json_integer_value(json_object_get(from, "more"))};
	r->result = json_incref(r->status == COMMAND_DONE ? result : errors);
	return r->result != NULL;
}
