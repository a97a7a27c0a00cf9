/*
 * The life of a connection in Lua: made, begun, told of data, ended. The instance is held by a registry reference from its creation
 * to its unbind and by nothing of ours afterwards. Each event is one entry into the VM; its body finds the method by a plain
 * look-up, so that self.receive_data = f switches states.
 */
#include "lua_conn.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lua_arg.h"
#include "mem.h"
#include "sock.h"

static const char handle_key; /* its address is the key of the handle in an instance */

/* One event on its way into the VM. */
struct event_call {
	struct vm_call call; /* first: the body's argument leads back here */
	struct lua_conn *lc;
	const char *bytes;   /* on_data */
	size_t length;
	bool missing;        /* the handler has no such method */
};

static const struct conn_events lua_conn_events;

/* The handle of a value, if it is a connection. */
struct lua_conn *lua_conn_test(lua_State *L, int index)
{
	struct lua_conn *lc = NULL;

	if (!lua_istable(L, index))
		return NULL;
	if (lua_rawgetp(L, index, &handle_key) == LUA_TUSERDATA) {
		if (lua_getmetatable(L, -1)) {
			if (lua_topointer(L, -1) == vm_of(L)->conn_meta)
				lc = lua_touserdata(L, -2);
			lua_pop(L, 1);
		}
	}
	lua_pop(L, 1);
	return lc;
}

/* The same, or an error. */
struct lua_conn *lua_conn_check(lua_State *L, int index)
{
	struct lua_conn *lc = lua_conn_test(L, index);

	if (!lc)
		luaL_typeerror(L, index, "connection");
	return lc;
}

/* Frees what the handle still has; the connection itself holds the instance, so there is none any more. */
static int handle_gc(lua_State *L)
{
	struct lua_conn *lc = lua_touserdata(L, 1);

	vm_drop(lc->names);
	vm_drop(lc->own_label);
	lc->names = NULL;
	lc->label = lc->own_label = NULL;
	return 0;
}

/* For the log. */
static void describe(struct vm_subject *s, struct log_context *context, char peer[ADDR_TEXT_SIZE])
{
	struct lua_conn *lc = (struct lua_conn *)s;

	if (lc->c && lc->c->peer.length)
		context->peer = addr_format(&lc->c->peer, peer);
	context->listener = lc->label;
	context->handler = lc->handler;
	context->connection = lc->signature;
}

/* An error in one of its callbacks ends it. */
static void fail(struct vm_subject *s, const char *message)
{
	struct lua_conn *lc = (struct lua_conn *)s;

	if (lc->c)
		conn_end_text(lc->c, "EHANDLER", mem_printf("handler error: %.*s", (int)strcspn(message, "\n"), message));
}

/* Makes an instance. Whatever may raise comes before the connection exists. */
struct lua_conn *lua_conn_create(lua_State *L, int meta, const struct flow *flow)
{
	struct vm *vm = vm_of(L);

	meta = lua_absindex(L, meta);
	lua_createtable(L, 0, 4);
	struct lua_conn *lc = lua_newuserdatauv(L, sizeof *lc, 0);
	memset(lc, 0, sizeof *lc);
	lc->subject = (struct vm_subject){.self_ref = LUA_NOREF, .describe = describe, .failed = fail};
	lc->handle_ref = LUA_NOREF;
	lc->vm = vm;
	lc->signature = ++vm->options.conns->last_signature;
	lua_rawgetp(L, LUA_REGISTRYINDEX, &handle_key);
	lua_setmetatable(L, -2);
	lua_rawsetp(L, -2, &handle_key);
	lua_pushinteger(L, (lua_Integer)lc->signature);
	lua_setfield(L, -2, "signature");
	lua_pushvalue(L, meta);
	lua_pushliteral(L, "__gc"); /* a script can reach the metatable: still no finalizers */
	lua_pushnil(L);
	lua_rawset(L, -3);
	lua_setmetatable(L, -2);
	lua_conn_hold(L, lc, lua_gettop(L));
	lua_conn_revive(lc, flow);
	return lc;
}

/* Holds instance and handle for a connection's life. The handle has a reference of its own: a script may empty its self. */
void lua_conn_hold(lua_State *L, struct lua_conn *lc, int instance)
{
	lua_rawgetp(L, instance, &handle_key);
	lc->handle_ref = luaL_ref(L, LUA_REGISTRYINDEX); /* not counted: it goes with the other one */
	lua_pushvalue(L, instance);
	lc->subject.self_ref = vm_ref(L);
}

/* Names its target for the log. */
void lua_conn_set_label(struct lua_conn *lc, const char *label)
{
	size_t size = strlen(label) + 1;

	vm_drop(lc->own_label);
	lc->own_label = vm_keep(lc->vm, size);
	memcpy(lc->own_label, label, size);
	lc->label = lc->own_label;
}

/* Gives a handle a connection: its first, or the one that takes the place of one that ends or has ended. */
void lua_conn_revive(struct lua_conn *lc, const struct flow *flow)
{
	struct vm *vm = lc->vm;
	struct conn *c = conn_new(vm->options.conns, flow, &lua_conn_events, lc);

	if (lc->c) {
		lc->again = c;
		return;
	}
	lc->c = c;
	lc->previous = NULL;
	lc->next = vm->conns;
	if (lc->next)
		lc->next->previous = lc;
	vm->conns = lc;
	vm->conn_count++;
}

/* The last thing of a handle's life. */
static void release(struct lua_conn *lc)
{
	struct vm *vm = lc->vm;

	if (lc->previous)
		lc->previous->next = lc->next;
	else
		vm->conns = lc->next;
	if (lc->next)
		lc->next->previous = lc->previous;
	vm->conn_count--;
	vm_unref(vm, &lc->subject.self_ref);
	luaL_unref(vm->L, LUA_REGISTRYINDEX, lc->handle_ref); /* lc may be collected from now on */
}

/* Pushes self and the method of that name; false if there is none (nothing is pushed then). */
static bool push_method(lua_State *L, struct lua_conn *lc, const char *name)
{
	lua_rawgeti(L, LUA_REGISTRYINDEX, lc->subject.self_ref);
	if (lua_getfield(L, -1, name) == LUA_TNIL) {
		lua_pop(L, 2);
		return false;
	}
	lua_insert(L, -2);
	return true;
}

/* A callback without arguments, by its name. */
static int plain_body(lua_State *L)
{
	struct event_call *e = lua_touserdata(L, 1);

	if (push_method(L, e->lc, e->call.callback))
		return vm_call_script(L, 1);
	e->missing = true;
	return 0;
}

/* Pushes em's own emit, which the library has set. */
void lua_conn_push_emit(lua_State *L)
{
	lua_rawgetp(L, LUA_REGISTRYINDEX, &lua_conn_events);
}

/* Pushes it with self and the event's name. */
static void push_emit(lua_State *L, struct lua_conn *lc, const char *event)
{
	lua_conn_push_emit(L);
	lua_rawgeti(L, LUA_REGISTRYINDEX, lc->subject.self_ref);
	lua_pushstring(L, event);
}

/* Listeners of an event without arguments; callback is the event's name. */
static int emit_body(lua_State *L)
{
	struct event_call *e = lua_touserdata(L, 1);

	push_emit(L, e->lc, e->call.callback);
	return vm_call_script(L, 2);
}

/* Enters the VM for one connection. */
static bool enter(struct lua_conn *lc, const char *callback, lua_CFunction body, struct event_call *e)
{
	e->call = (struct vm_call){.body = body, .argument = e, .callback = callback, .subject = &lc->subject};
	e->lc = lc;
	return vm_enter(lc->vm, &e->call);
}

/* receive_data(self, data) */
static int data_body(lua_State *L)
{
	struct event_call *e = lua_touserdata(L, 1);

	if (!push_method(L, e->lc, "receive_data"))
		return 0;
	lua_pushlstring(L, e->bytes, e->length);
	return vm_call_script(L, 2);
}

/* Listeners of "data". */
static int emit_data_body(lua_State *L)
{
	struct event_call *e = lua_touserdata(L, 1);

	push_emit(L, e->lc, "data");
	lua_pushlstring(L, e->bytes, e->length);
	return vm_call_script(L, 3);
}

/* Bytes have arrived. */
static void on_data(struct conn *c, const char *bytes, size_t length)
{
	struct lua_conn *lc = c->user;
	struct event_call e = {.bytes = bytes, .length = length};

	enter(lc, "receive_data", data_body, &e);
	if (lc->has_listeners && c->state == CONN_OPEN)
		enter(lc, "data", emit_data_body, &e);
}

/* The peer has ended its side. Unless the handler wants to know, so do we. */
static void on_eof(struct conn *c)
{
	struct lua_conn *lc = c->user;
	struct event_call e = {0};

	if (enter(lc, "receive_eof", plain_body, &e) && e.missing)
		conn_finish(c, NULL, "eof");
}

/* There is room for output again. */
static void on_drained(struct conn *c)
{
	struct event_call e = {0};

	enter(c->user, "drained", plain_body, &e);
}

/* All output is with the kernel. */
static void on_flushed(struct conn *c)
{
	struct lua_conn *lc = c->user;
	struct event_call e = {0};

	if (lc->has_listeners)
		enter(lc, "drain", emit_body, &e);
}

/* Pushes the cause of the end: err, why. */
static void push_end(lua_State *L, const struct conn *c)
{
	if (c->end_code)
		lua_pushstring(L, c->end_code);
	else
		lua_pushnil(L);
	lua_pushstring(L, c->end_why);
}

/* unbind(self, err, why) */
static int unbind_body(lua_State *L)
{
	struct event_call *e = lua_touserdata(L, 1);

	if (!push_method(L, e->lc, "unbind"))
		return 0;
	push_end(L, e->lc->c);
	return vm_call_script(L, 3);
}

/* Listeners of "close". */
static int emit_close_body(lua_State *L)
{
	struct event_call *e = lua_touserdata(L, 1);

	push_emit(L, e->lc, "close");
	push_end(L, e->lc->c);
	return vm_call_script(L, 4);
}

/* Keeps the addresses for those who ask after the end. */
static void keep_names(struct lua_conn *lc)
{
	if (!lc->names)
		lc->names = vm_keep(lc->vm, sizeof *lc->names);
	lc->names->peer = lc->c->peer;
	lc->names->flow = lc->c->flow;
	if (lc->c->fd >= 0 && !sock_local(lc->c->fd, &lc->names->local))
		lc->names->local.length = 0;
}

/* The one end. */
static void on_end(struct conn *c)
{
	struct lua_conn *lc = c->user;
	struct event_call e = {0};

	if (lc->connector) {
		connector_cancel(lc->connector);
		lc->connector = NULL;
	}
	if (lc->cancel_timers)
		lc->cancel_timers(lc);
	keep_names(lc);
	lc->unbinding = true;
	enter(lc, "unbind", unbind_body, &e);
	if (lc->has_listeners)
		enter(lc, "close", emit_close_body, &e);
	lc->unbinding = false;
	if (lc->listener)
		listener_release(lc->listener, &c->peer);
	if (lc->listener)
		lc->label = NULL;
	lc->listener = NULL;
	if (lc->cancel_timers) /* those that unbind has made */
		lc->cancel_timers(lc);
	c->user = NULL;
	lc->c = lc->again;
	lc->again = NULL;
	if (lc->c)
		return;
	void (*on_unbound)(struct lua_conn *, void *) = lc->on_unbound;
	lc->on_unbound = NULL; /* whoever made it is done with it: a script that connects it again does so for itself */
	if (on_unbound)
		on_unbound(lc, lc->on_unbound_data);
	release(lc);
}

static const struct conn_events lua_conn_events = {
	.on_data = on_data,
	.on_eof = on_eof,
	.on_drained = on_drained,
	.on_flushed = on_flushed,
	.on_end = on_end,
};

/* initialize(self, ...) */
struct begin_call {
	struct event_call event;
	lua_State *from;
	int args_ref, count, function_ref;
};

/* Calls initialize with its arguments. */
static int initialize_body(lua_State *L)
{
	struct begin_call *b = lua_touserdata(L, 1);

	int count = b->args_ref == LUA_NOREF ? 0 : b->count;
	luaL_checkstack(L, count + 4, "too many arguments");
	lua_rawgeti(L, LUA_REGISTRYINDEX, b->args_ref); /* before the look-up, which may be a script's and stop the server that owns them */
	int table = lua_gettop(L);
	if (!push_method(L, b->event.lc, "initialize"))
		return 0;
	for (int i = 1; i <= count; i++)
		lua_rawgeti(L, table, i);
	return vm_call_script(L, 1 + count);
}

/* Calls the function that stands for a handler or follows post_init. */
static int function_body(lua_State *L)
{
	struct begin_call *b = lua_touserdata(L, 1);

	lua_rawgeti(L, LUA_REGISTRYINDEX, b->function_ref);
	lua_rawgeti(L, LUA_REGISTRYINDEX, b->event.lc->subject.self_ref);
	return vm_call_script(L, 1);
}

/* The first callbacks of a connection; an error in one skips the rest. */
static void begin(struct lua_conn *lc, struct begin_call *b)
{
	struct vm_call *call = &b->event.call;

	b->event.lc = lc;
	*call = (struct vm_call){.body = initialize_body, .argument = b, .callback = "initialize", .subject = &lc->subject};
	if (!vm_enter(lc->vm, call))
		return;
	call->body = plain_body;
	call->callback = "post_init";
	if (!vm_enter(lc->vm, call))
		return;
	bool stopped = lc->listener && lc->listener->fd < 0; /* by what was called: it has given its function back */
	if (b->function_ref != LUA_NOREF && !stopped) {
		call->body = function_body;
		call->callback = "connection function";
		vm_enter(lc->vm, call);
	}
}

/* The same with what lies on the stack of a caller. */
void lua_conn_begin(lua_State *L, struct lua_conn *lc, int args, int count, int function)
{
	struct begin_call b = {.count = count, .args_ref = LUA_NOREF, .function_ref = LUA_NOREF};

	if (args) {
		lua_pushvalue(L, args);
		b.args_ref = vm_ref(L);
	}
	if (function) {
		lua_pushvalue(L, function);
		b.function_ref = vm_ref(L);
	}
	begin(lc, &b);
	vm_unref(lc->vm, &b.args_ref);
	vm_unref(lc->vm, &b.function_ref);
}

/* connection_completed(self) */
static void on_connected(void *data, int fd, const struct addr *peer, const char *code, const char *why)
{
	struct lua_conn *lc = data;
	struct event_call e = {0};

	lc->connector = NULL;
	if (fd < 0) {
		lc->vm->options.loop->stats->connections_failed++;
		conn_end(lc->c, code, why);
		return;
	}
	lc->vm->options.loop->stats->connections_opened++;
	conn_open(lc->c, fd, peer);
	if (lc->c->state == CONN_ENDING)
		return;
	enter(lc, "connection_completed", plain_body, &e);
	if (lc->has_listeners)
		enter(lc, "connect", emit_body, &e);
}

/* Starts to connect. */
void lua_conn_connect(struct lua_conn *lc, const char *host, uint16_t port, const struct addr *to, const struct addr *bind)
{
	struct vm_options *o = &lc->vm->options;
	struct conn *c = lc->again ? lc->again : lc->c;

	lc->outgoing = true;
	conn_set_connect_timeout(c, lc->connect_timeout_ns);
	lc->connector = host ? connector_start(o->loop, o->resolver, host, port, bind, on_connected, lc)
			     : connector_start_addr(o->loop, to, bind, on_connected, lc);
}

/* An accepted connection on its way into the VM. */
struct accept_call {
	struct vm_call call;
	const struct lua_class *class;
	const struct flow *flow;
	struct lua_conn *lc;
};

/* Makes the instance. */
static int accept_body(lua_State *L)
{
	struct accept_call *a = lua_touserdata(L, 1);

	lua_rawgeti(L, LUA_REGISTRYINDEX, a->class->meta_ref);
	a->lc = lua_conn_create(L, -1, a->flow);
	return 0;
}

/* Accepts. */
void lua_conn_accept(struct vm *vm, const struct lua_class *class, const struct flow *flow, char *handler, struct listener *l, int fd,
	const struct addr *peer, lua_CFunction accepted, void *server)
{
	struct accept_call a = {.class = class, .flow = flow};
	struct begin_call b = {.args_ref = class->args_ref, .count = class->args_count, .function_ref = class->function_ref};

	a.call = (struct vm_call){.body = accept_body, .argument = &a, .callback = "accept"};
	vm_enter(vm, &a.call);
	if (!a.lc) { /* no memory for it */
		close(fd);
		listener_release(l, peer);
		return;
	}
	a.lc->handler = handler;
	a.lc->listener = l;
	a.lc->label = l->name;
	conn_open(a.lc->c, fd, peer);
	begin(a.lc, &b);
	if (accepted && a.lc->c->state != CONN_ENDING && l->fd >= 0) { /* the callbacks may have stopped the server, and it may be gone */
		struct lua_accepted event = {.server = server, .lc = a.lc};
		struct vm_call call = {.body = accepted, .argument = &event, .callback = "accept", .subject = &a.lc->subject};
		vm_enter(vm, &call);
	}
}

/* Ends all of a VM's connections. */
void lua_conn_end_all(struct vm *vm, const char *why, bool flush)
{
	for (struct lua_conn *lc = vm->conns; lc; lc = lc->next) {
		if (flush)
			conn_finish(lc->c, NULL, why);
		else
			conn_end(lc->c, NULL, why);
	}
}

/* Gives a class's references back. */
void lua_class_free(struct vm *vm, struct lua_class *class)
{
	vm_unref(vm, &class->meta_ref);
	vm_unref(vm, &class->function_ref);
	vm_unref(vm, &class->args_ref);
}

/* em.core.set_emit(fn): the function that tells listeners of an event. */
static int l_set_emit(lua_State *L)
{
	arg_function(L, 1);
	lua_settop(L, 1);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &lua_conn_events);
	return 0;
}

/* Opens the handle's metatable; pushes em.Connection, still without methods, with the functions of the core in the table at index 1. */
int lua_conn_open(lua_State *L)
{
	struct vm *vm = vm_of(L);

	lua_newtable(L);
	vm->conn_meta = lua_topointer(L, -1);
	lua_pushcfunction(L, handle_gc);
	lua_setfield(L, -2, "__gc");
	lua_pushliteral(L, "connection handle");
	lua_setfield(L, -2, "__metatable");
	lua_rawsetp(L, LUA_REGISTRYINDEX, &handle_key);
	lua_pushcfunction(L, l_set_emit);
	lua_setfield(L, 1, "set_emit");
	lua_newtable(L);
	lua_pushvalue(L, -1);
	vm->connection_ref = luaL_ref(L, LUA_REGISTRYINDEX);
	return 1;
}
