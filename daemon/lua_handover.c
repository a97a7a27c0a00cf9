/*
 * Hand-over: see lua_handover.h. The order is such that each step can fail and leaves the connection with the code of before: the state is
 * asked for, a new instance is made, the connection is moved to it, the new code takes over; if that fails it is moved back. Only then
 * does the old instance lose its timers and its place in the registry.
 */
#include "lua_handover.h"

#include <stdlib.h>
#include <string.h>

#include "lua_channel.h"
#include "lua_handler.h"
#include "lua_plain.h"
#include "mem.h"

/* A handler of the new code, for all connections that had the one of the same name. */
struct heir {
	const char *name; /* the old VM's */
	struct lua_class class;
	char *handler; /* the same name, the new VM's */
	char *why;     /* why no connection can move to it, NULL: they can */
	struct heir *next;
};

/* One call into a VM for one connection. */
struct handover_call {
	struct vm_call call; /* first: the body's argument leads back here */
	struct lua_conn *lc;
	const struct lua_class *class;
	struct plain state;
	char *why; /* the state cannot travel; caller frees */
	uint64_t signature;
	bool found;
};

/* What takeover may change of a connection, as it was before. */
struct before {
	struct flow flow;
	bool paused;
	const struct conn_filter *filter;
	bool shut_asked;
};

/* Does the method at the instance exist? */
static int has_body(lua_State *L)
{
	struct handover_call *h = lua_touserdata(L, 1);

	h->found = lua_conn_push_method(L, h->lc, h->call.callback);
	return 0;
}

/* Has the class a takeover? An empty table stands for an instance. */
static int heir_body(lua_State *L)
{
	struct handover_call *h = lua_touserdata(L, 1);

	lua_newtable(L);
	lua_rawgeti(L, LUA_REGISTRYINDEX, h->class->meta_ref);
	lua_setmetatable(L, -2);
	h->found = lua_getfield(L, -1, "takeover") != LUA_TNIL;
	return 0;
}

/* Copies the state out of the old VM. */
static int handover_done(lua_State *L, int status, lua_KContext context)
{
	struct handover_call *h = (struct handover_call *)context;

	(void)status;
	(void)!plain_encode(L, -1, "the state", &h->state, &h->why);
	return 0;
}

/* handover(self) -> state */
static int handover_body(lua_State *L)
{
	struct handover_call *h = lua_touserdata(L, 1);

	if (!lua_conn_push_method(L, h->lc, "handover"))
		return 0;
	lua_callk(L, 1, 1, (lua_KContext)h, handover_done);
	return handover_done(L, LUA_OK, (lua_KContext)h);
}

/* Makes the new instance. */
static int make_body(lua_State *L)
{
	struct handover_call *h = lua_touserdata(L, 1);

	lua_rawgeti(L, LUA_REGISTRYINDEX, h->class->meta_ref);
	h->lc = lua_conn_make(L, lua_gettop(L), h->signature);
	return 0;
}

/* takeover(self, state) */
static int takeover_body(lua_State *L)
{
	struct handover_call *h = lua_touserdata(L, 1);

	if (!lua_conn_push_method(L, h->lc, "takeover"))
		return luaL_error(L, "it has no takeover");
	plain_push(L, h->state.bytes, h->state.length);
	return vm_call_script(L, 2);
}

/* An error in handover or takeover ends nothing. */
static void stay(struct vm_subject *s, const char *message)
{
	(void)s, (void)message;
}

/* Enters a VM. NULL, or the first line of the error (caller frees), which was reported. */
static char *enter(struct handover_call *h, const char *callback, lua_CFunction body)
{
	struct lua_conn *lc = h->lc;
	char *message;

	h->call = (struct vm_call){.body = body, .argument = h, .callback = callback, .subject = &lc->subject};
	if (vm_try(lc->vm, &h->call, &message))
		return NULL;
	void (*failed)(struct vm_subject *, const char *) = lc->subject.failed;
	lc->subject.failed = stay;
	vm_report(lc->vm, &lc->subject, callback, message);
	lc->subject.failed = failed;
	char *line = mem_printf("%s failed: %.*s", callback, (int)strcspn(message, "\n"), message);
	free(message);
	return line;
}

/* Is there still something to hand over? What is closing finishes where it is. */
static bool is_alive(const struct lua_conn *lc)
{
	return lc->c && conn_usable(lc->c);
}

/* Why a connection is tied to the code that it has, NULL: it is not. */
static const char *tie(const struct lua_conn *lc)
{
	const struct conn *c = lc->c;

	if (c->state == CONN_CONNECTING)
		return "it is still connecting";
	if (c->watch_only)
		return "it is a watch";
	if (c->transport)
		return "it is a datagram socket";
	if (lc->child)
		return "it is a child process's";
	if (lc->has_listeners)
		return "it has listeners of its events";
	if (c->sources)
		return "a file is being streamed";
	if (c->relay || c->feeder)
		return "it is relayed";
	if (lc->tasks)
		return "a coroutine of it has not ended";
	if (lc->readings)
		return "a coroutine reads from it";
	if (!lc->handler)
		return "its handler was not given by name";
	return NULL;
}

/* Finds out whether the new code has a handler of that name that takes connections over. */
static struct heir *find_heir(struct heir **heirs, struct vm *to, const char *name)
{
	struct handover_call h = {0};
	struct heir *heir = *heirs;

	while (heir && strcmp(heir->name, name) != 0)
		heir = heir->next;
	if (heir)
		return heir;
	heir = mem_zalloc(sizeof *heir);
	heir->name = name;
	heir->next = *heirs;
	*heirs = heir;
	if (!lua_handler_load(to, name, NULL, &heir->class, &heir->handler, &heir->why))
		return heir;
	h.class = &heir->class;
	h.call = (struct vm_call){.body = heir_body, .argument = &h, .callback = "takeover"};
	if (vm_try(to, &h.call, &heir->why) && !h.found)
		heir->why = mem_printf("the new code of handler '%s' has no takeover", name);
	return heir;
}

/* Makes up for what takeover has changed before it failed. False where that cannot be: the connection is the new code's then. */
static bool undo(struct conn *c, const struct before *before)
{
	if (c->state == CONN_ENDING)
		return true;
	if (c->sources || c->relay || c->feeder || c->filter != before->filter || c->shut_asked != before->shut_asked)
		return false;
	if (before->paused)
		conn_pause(c);
	else
		conn_resume(c);
	if (c->flow.idle_timeout_ns != before->flow.idle_timeout_ns)
		conn_set_idle_timeout(c, before->flow.idle_timeout_ns);
	if (c->flow.low_water != before->flow.low_water || c->flow.high_water != before->flow.high_water)
		return conn_set_watermarks(c, before->flow.low_water, before->flow.high_water);
	return true;
}

/* Ends a handle that its connection has left. */
static void leave(struct lua_conn *lc)
{
	if (lc->cancel_timers)
		lc->cancel_timers(lc);
	if (lc->coroutines)
		lc->coroutines->on_ended(lc);
	if (lc->cancel_subscriptions)
		lc->cancel_subscriptions(lc);
	lua_conn_let_go(lc);
}

/* Lets the new code take a connection over with its state. NULL, or why it has not (caller frees). */
static char *take_over(struct lua_conn *lc, struct heir *heir, struct vm *to, struct plain state, struct lua_conn **after)
{
	struct handover_call h = {.class = &heir->class, .state = state, .signature = lc->signature};
	struct conn *c = lc->c;
	struct before before = {.flow = c->flow, .paused = c->paused, .filter = c->filter, .shut_asked = c->shut_asked};
	char *why;

	h.call = (struct vm_call){.body = make_body, .argument = &h, .callback = "takeover"};
	if (!vm_try(to, &h.call, &why))
		return why;
	h.lc->handler = heir->handler;
	lua_conn_move(lc, h.lc);
	lua_channel_copy(lc, h.lc); /* the old one's stay as they are, should it stay, whatever takeover does with them */
	why = enter(&h, "takeover", takeover_body);
	if (why && undo(c, &before)) {
		lua_conn_move(h.lc, lc);
		leave(h.lc);
		return why;
	}
	if (why)
		conn_end_text(c, "EHANDLER", mem_printf("handler error: %s", why));
	free(why);
	*after = h.lc;
	return NULL;
}

/* Moves one connection. NULL, or why it stays (caller frees). */
static char *move(struct lua_conn *lc, struct heir *heir, struct vm *to, struct lua_conn **after)
{
	struct handover_call h = {.lc = lc};
	const char *tied;
	char *why = enter(&h, "handover", handover_body);

	if (!why)
		why = h.why;
	if (!why && !is_alive(lc))
		why = mem_strdup("it was closed in handover");
	else if (!why && (tied = tie(lc))) /* since handover */
		why = mem_strdup(tied);
	if (!why)
		why = take_over(lc, heir, to, h.state, after);
	free(h.state.bytes);
	return why;
}

/* Tells that a connection stays where it is. */
static void log_stay(struct lua_conn *lc, enum log_level level, const char *why)
{
	struct log_context context = {0};
	char peer[ADDR_TEXT_SIZE];

	lc->subject.describe(&lc->subject, &context, peer);
	log_event(level, &context, "stays on generation %llu: %s", (unsigned long long)lc->vm->options.generation, why);
}

/* Sees to one connection. True if it has moved. */
static bool hand_over(struct lua_conn *lc, struct heir **heirs, struct vm *to, struct lua_conn **after)
{
	struct stats *stats = to->options.loop->stats;
	uint64_t stopped = stats->callbacks_stopped;
	const char *tied = tie(lc);
	struct heir *heir = tied ? NULL : find_heir(heirs, to, lc->handler);

	if (tied || heir->why) {
		log_stay(lc, LEVEL_INFO, tied ? tied : heir->why);
		return false;
	}
	char *why = move(lc, heir, to, after);
	if (!why) {
		stats->handovers++;
		return true;
	}
	stats->handovers_failed++;
	log_stay(lc, LEVEL_WARN, why);
	free(why);
	if (stats->callbacks_stopped != stopped) /* the others would take as long each, and nothing else is done meanwhile */
		heir->why = mem_printf("the hand-over of another connection of handler '%s' was stopped for taking too long", heir->name);
	return false;
}

/* Has the instance a handover? An error in the look-up counts as one that fails. */
static bool has_handover(struct lua_conn *lc)
{
	struct handover_call h = {.lc = lc};
	char *why = enter(&h, "handover", has_body);

	if (why) {
		lc->vm->options.loop->stats->handovers_failed++;
		log_stay(lc, LEVEL_WARN, why);
	}
	free(why);
	return h.found;
}

/* Hands over what can be. Those that come back, and those that scripts open meanwhile, enter the list before the ones that are still to be
 * seen to. */
struct lua_handover_count lua_handover(struct vm *from, struct vm *to,
                                       void (*on_moved)(struct lua_conn *before, struct lua_conn *after, void *data), void *data)
{
	struct lua_handover_count count = {0};
	struct heir *heirs = NULL, *heir;
	struct lua_conn *next, *after = NULL;

	for (struct lua_conn *lc = from->conns; lc; lc = next) {
		next = lc->next;
		if (!is_alive(lc) || !has_handover(lc))
			continue;
		if (!hand_over(lc, &heirs, to, &after)) {
			count.stayed++;
			continue;
		}
		count.moved++;
		on_moved(lc, after, data);
		leave(lc);
	}
	while ((heir = heirs)) {
		heirs = heir->next;
		lua_class_free(to, &heir->class);
		free(heir->why);
		free(heir);
	}
	return count;
}
