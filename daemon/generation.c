/* One generation of handlers: see generation.h. */
#include "generation.h"

#include <stdlib.h>
#include <string.h>

#include "lua_channel.h"
#include "lua_core.h"
#include "lua_go.h"
#include "lua_handler.h"
#include "lua_handover.h"
#include "lua_signal.h"
#include "lua_timer.h"
#include "lua_udp.h"
#include "lua_watch.h"
#include "mem.h"

/* Makes a configuration shareable. */
struct shared_config *shared_config_new(struct config *config)
{
	struct shared_config *shared = mem_zalloc(sizeof *shared);

	shared->config = config;
	shared->users = 1;
	return shared;
}

/* One user less. */
void shared_config_release(struct shared_config *shared)
{
	if (--shared->users)
		return;
	config_free(shared->config);
	free(shared);
}

#define RECEIVER_RETRY_NS 1000000000u /* between two instances that received nothing */

static void dial(struct dialer *d);

/* The connection of a connect block has ended: another one after the wait that the block asks for. */
static void on_unbound(struct lua_conn *lc, void *data)
{
	struct dialer *d = data;

	(void)lc;
	d->lc = NULL;
	if (!d->stopped && d->conf->has_reconnect)
		timer_start(d->generation->runtime->loop, &d->retry, d->conf->reconnect_ns);
}

/* The wait is over. */
static void on_retry(void *data)
{
	dial(data);
}

/* Makes the block's next connection. */
static void dial(struct dialer *d)
{
	if (d->stopped || d->lc)
		return;
	d->lc = lua_net_connect(d->generation->vm, d->conf, &d->class, d->tls, d->handler);
	if (d->lc) {
		d->lc->on_unbound = on_unbound;
		d->lc->on_unbound_data = d;
	} else if (d->conf->has_reconnect) {
		timer_start(d->generation->runtime->loop, &d->retry, d->conf->reconnect_ns);
	}
}

static void receive(struct receiver *r);

/* An instance has ended. After an error the next one begins at once, unless it had received nothing: then it would end so again. One that
 * its script has closed stays closed until the next reload. */
static void on_receiver_unbound(struct lua_conn *lc, void *data)
{
	struct receiver *r = data;

	r->lc = NULL;
	if (!r->stopped && lc->end_code)
		timer_start(r->generation->runtime->loop, &r->retry, lc->end_used ? 0 : RECEIVER_RETRY_NS);
}

/* The wait is over. */
static void on_receiver_retry(void *data)
{
	receive(data);
}

/* Makes the block's next instance. */
static void receive(struct receiver *r)
{
	struct generation *g = r->generation;
	struct lua_acceptor *a = &g->acceptors[r->conf - g->config->listens];

	if (r->stopped || r->lc)
		return;
	r->lc = lua_udp_serve(g->vm, &a->class, &a->flow, a->handler, r->l);
	if (r->lc) {
		r->lc->on_unbound = on_receiver_unbound;
		r->lc->on_unbound_data = r;
	} else {
		timer_start(g->runtime->loop, &r->retry, RECEIVER_RETRY_NS);
	}
}

/* Ends the instances for that reason. */
static void stop_receiving(struct generation *g, const char *why)
{
	for (size_t i = 0; i < g->config->listen_count; i++) {
		struct receiver *r = &g->receivers[i];
		r->stopped = true;
		timer_stop(g->runtime->loop, &r->retry);
		if (r->lc)
			conn_finish(r->lc->c, NULL, why);
	}
}

/* Adds the reason why a block's handler cannot be used, once for each handler. */
static void add_problem(struct problems *problems, const char *file, int line, char *why)
{
	bool known = false;

	for (size_t i = 0; i < problems->count && !known; i++)
		known = strstr(problems->lines[i], why) != NULL;
	if (!known)
		problems_add_at(problems, file, line, "%s", why);
	free(why);
}

/* Gets a block's TLS context, if it has one. */
static void load_tls(struct generation *g, const struct tls_conf *conf, bool server, const char *file, int line, const char *url,
                     struct tls_context **tls, struct problems *problems)
{
	const char *code;
	char *why = NULL;

	if (!conf)
		return;
	*tls = tls_context_get(g->runtime->tls, conf, server, &code, &why);
	if (!*tls)
		problems_add_at(problems, file, line, "tls of %s \"%s\": %s", server ? "listen" : "connect", url, why);
	free(why);
}

/* Loads the handlers of all blocks. */
static void load(struct generation *g, struct problems *problems)
{
	char *why = NULL;

	for (size_t i = 0; i < g->config->listen_count; i++) {
		struct listen_conf *conf = &g->config->listens[i];
		struct lua_acceptor *a = &g->acceptors[i];
		*a = (struct lua_acceptor){.vm = g->vm, .flow = conf->flow};
		g->receivers[i] = (struct receiver){.generation = g, .conf = conf};
		timer_init(&g->receivers[i].retry, on_receiver_retry, &g->receivers[i]);
		load_tls(g, conf->tls, true, conf->file, conf->line, conf->url_text, &a->tls, problems);
		if (!lua_handler_load(g->vm, conf->handler, &conf->args, &a->class, &a->handler, &why))
			add_problem(problems, conf->file, conf->line, why);
	}
	for (size_t i = 0; i < g->config->connect_count; i++) {
		struct dialer *d = &g->dialers[i];
		*d = (struct dialer){.generation = g, .conf = &g->config->connects[i]};
		timer_init(&d->retry, on_retry, d);
		load_tls(g, d->conf->tls, false, d->conf->file, d->conf->line, d->conf->url_text, &d->tls, problems);
		if (!lua_handler_load(g->vm, d->conf->handler, &d->conf->args, &d->class, &d->handler, &why))
			add_problem(problems, d->conf->file, d->conf->line, why);
	}
}

/* Asks so many connections, accepted ones alone or all, to end after writing. Returns how many are left to be asked. */
static size_t finish(struct generation *g, bool accepted, size_t some, const char *why)
{
	size_t left = 0;

	for (struct lua_conn *lc = g->vm->conns; lc; lc = lc->next) {
		if (!conn_usable(lc->c) || (accepted && !lc->listener))
			continue;
		if (some) {
			some--;
			conn_finish(lc->c, NULL, why);
		} else {
			left++;
		}
	}
	return left;
}

/* Counts those of a retired generation that go on. */
static size_t count_alive(void *data)
{
	return finish(data, false, 0, NULL);
}

/* Its time comes to its end. */
static void end_some(void *data, size_t some)
{
	finish(data, false, some, "reloaded");
}

/* Its time is up: what is still connected ends. */
static void on_limit(void *data)
{
	generation_end(data, NULL, "reloaded");
}

static const struct spread_events last_days = {.count = count_alive, .end_some = end_some, .on_limit = on_limit};

/* Builds a generation completely. */
struct generation *generation_new(struct runtime *runtime, struct shared_config *shared, struct sources *sources, uint64_t number,
                                  bool is_script, const struct vm_host *host, void *host_data, struct problems *problems)
{
	struct generation *g = mem_zalloc(sizeof *g);
	size_t before = problems->count;
	char *why = NULL;

	g->runtime = runtime;
	g->number = number;
	g->shared = shared;
	g->config = shared->config;
	g->sources = sources_ref(sources);
	shared->users++;
	spread_init(&g->last_days, runtime->loop, &last_days, g);
	struct vm_options options = runtime_vm_options(runtime, g->config, host, host_data);
	options.generation = number;
	options.sources = sources;
	options.is_script = is_script;
	g->vm = core_new(&options, &why);
	if (!g->vm) {
		problems_add(problems, "%s", why);
		free(why);
	} else {
		g->acceptors = mem_zalloc((g->config->listen_count + 1) * sizeof *g->acceptors);
		g->receivers = mem_zalloc((g->config->listen_count + 1) * sizeof *g->receivers);
		g->dialers = mem_zalloc((g->config->connect_count + 1) * sizeof *g->dialers);
		tls_read_through(runtime->tls, sources);
		load(g, problems);
		tls_read_through(runtime->tls, NULL);
	}
	runtime->stats->generations++;
	if (problems->count == before)
		return g;
	generation_free(g);
	return NULL;
}

/* Frees it. */
void generation_free(struct generation *g)
{
	if (!g)
		return;
	if (g->vm) {
		core_shutdown(g->vm, "stopped", false); /* timers and servers of its last unbinds */
		for (size_t i = 0; i < g->config->listen_count; i++) {
			lua_class_free(g->vm, &g->acceptors[i].class);
			tls_context_unref(g->acceptors[i].tls);
			timer_stop(g->runtime->loop, &g->receivers[i].retry);
		}
		for (size_t i = 0; i < g->config->connect_count; i++) {
			timer_stop(g->runtime->loop, &g->dialers[i].retry);
			if (g->dialers[i].lc) /* taken over from an older generation, which may outlive this one */
				g->dialers[i].lc->on_unbound = NULL;
			lua_class_free(g->vm, &g->dialers[i].class);
			tls_context_unref(g->dialers[i].tls);
		}
		vm_free(g->vm);
	}
	spread_stop(&g->last_days);
	free(g->acceptors);
	free(g->receivers);
	free(g->dialers);
	shared_config_release(g->shared);
	sources_unref(g->sources);
	g->runtime->stats->generations--;
	free(g);
}

/* Are two connect blocks the same as far as a live connection is concerned? */
static bool same_block(const struct connect_conf *a, const struct connect_conf *b)
{
	const char *bind_a = a->bind ? a->bind : "", *bind_b = b->bind ? b->bind : "";

	return strcmp(a->url_text, b->url_text) == 0 && strcmp(a->handler, b->handler) == 0 && value_equal(&a->args, &b->args) &&
	       strcmp(bind_a, bind_b) == 0 && a->proxy_protocol == b->proxy_protocol;
}

/* Takes a connection over from the dialer of the same block, if there is one. False: there is none, or nothing is left of it that
 * would ever connect, as this block asks for. */
static bool take_over(struct dialer *d, struct generation *before)
{
	struct loop *loop = d->generation->runtime->loop;

	for (size_t i = 0; before && i < before->config->connect_count; i++) {
		struct dialer *old = &before->dialers[i];
		if (old->stopped || !same_block(d->conf, old->conf))
			continue;
		old->stopped = true;
		d->lc = old->lc;
		old->lc = NULL;
		if (d->lc) {
			d->lc->on_unbound = on_unbound;
			d->lc->on_unbound_data = d;
		} else if (d->conf->has_reconnect && timer_waiting(&old->retry)) { /* as soon as either block has it */
			uint64_t due_ns = loop_now(loop) + d->conf->reconnect_ns;
			timer_start_at(loop, &d->retry, old->retry.due_ns < due_ns ? old->retry.due_ns : due_ns);
		}
		timer_stop(loop, &old->retry);
		return d->lc || timer_waiting(&d->retry) || !d->conf->has_reconnect;
	}
	return false;
}

/* Begins to serve. */
void generation_start(struct generation *g, struct generation *before)
{
	if (before)
		lua_channel_start(g->vm);
	vm_start(g->vm);
	for (size_t i = 0; i < g->config->listen_count; i++)
		if (g->config->listens[i].url.scheme == SCHEME_UDP)
			receive(&g->receivers[i]);
	for (size_t i = 0; i < g->config->connect_count; i++) {
		g->dialers[i].stopped = g->runtime->loop->process > 1 && !g->config->connects[i].each_process; /* the first process has it */
		if (!g->dialers[i].stopped && !take_over(&g->dialers[i], before))
			dial(&g->dialers[i]);
	}
}

/* Dials no more. */
static void stop_dialling(struct generation *g)
{
	for (size_t i = 0; i < g->config->connect_count; i++) {
		g->dialers[i].stopped = true;
		timer_stop(g->runtime->loop, &g->dialers[i].retry);
	}
}

/* Dials and receives no more. */
void generation_stop_dialling(struct generation *g)
{
	stop_dialling(g);
	stop_receiving(g, "stopped");
}

/* Steps back. */
void generation_retire(struct generation *g, struct generation *heir)
{
	stop_dialling(g);
	stop_receiving(g, "reloaded");
	for (size_t i = 0; i < g->config->connect_count; i++)
		if (g->dialers[i].lc)
			conn_end(g->dialers[i].lc->c, NULL, "reloaded"); /* its block is gone or has changed */
	g->vm->retired = true;
	lua_watch_retire(g->vm);
	lua_timer_cancel_all(g->vm, false);
	lua_channel_cancel_all(g->vm, false);
	lua_signal_cancel_all(g->vm, heir ? heir->vm : NULL);
	lua_go_cancel_all(g->vm);
	lua_net_close_servers(g->vm, heir ? heir->vm : NULL);
	g->vm->first_tick = g->vm->next_tick;
	spread_start(&g->last_days, (heir ? heir : g)->config->reload_timeout_ns);
}

/* A connection has moved. If it was a connect block's, it still is. */
static void on_moved(struct lua_conn *before, struct lua_conn *after, void *data)
{
	struct generation *g = data;

	for (size_t i = 0; i < g->config->connect_count; i++)
		if (g->dialers[i].lc == before)
			g->dialers[i].lc = after;
}

/* Takes over from older ones. */
void generation_hand_over(struct generation *g)
{
	struct lua_handover_count sum = {0};

	for (struct generation *old = g->older; old; old = old->older) {
		if (old->vm->exhausted)
			continue; /* its data has filled its memory: its connections end with it */
		struct lua_handover_count count = lua_handover(old->vm, g->vm, on_moved, g);
		sum.moved += count.moved;
		sum.stayed += count.stayed;
	}
	if (sum.moved || sum.stayed)
		log_info("generation %llu has taken over %zu connection(s), %zu stay on older code", (unsigned long long)g->number, sum.moved,
		         sum.stayed);
}

/* Ends what is connected. */
void generation_end(struct generation *g, const char *code, const char *why)
{
	g->vm->closing = g->vm->retired;
	for (struct lua_conn *lc = g->vm->conns; lc; lc = lc->next)
		conn_end(lc->c, code, why);
}

/* Makes its last days short. */
void generation_expire(struct generation *g)
{
	spread_hurry(&g->last_days);
}

/* Ends some of what clients have opened. */
size_t generation_finish_accepted(struct generation *g, size_t some, const char *why)
{
	return finish(g, true, some, why);
}

/* Counts what clients have opened. */
size_t generation_accepted(const struct generation *g)
{
	size_t count = 0;

	for (struct lua_conn *lc = g->vm->conns; lc; lc = lc->next)
		count += lc->listener != NULL;
	return count;
}
