/*
 * The life of a connection in Lua: made, begun, told of data, ended. The instance is held by a registry reference from its creation
 * to its unbind and by nothing of ours afterwards. Each event is one entry into the VM; its body finds the method by a plain
 * look-up, so that self.receive_data = f switches states.
 */
#include "lua_conn.h"

#include <openssl/pem.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lua_arg.h"
#include "mem.h"
#include "proxyproto.h"
#include "sock.h"

static const char handle_key; /* its address is the key of the handle in an instance */

/* One event on its way into the VM. */
struct event_call {
	struct vm_call call; /* first: the body's argument leads back here */
	struct lua_conn *lc;
	const char *bytes; /* on_data */
	size_t length;
	bool missing;                  /* the handler has no such method */
	bool kept;                     /* ... then coroutines want the bytes */
	const char *code, *why, *host; /* on_send_error */
	uint16_t port;
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
	free(lc->hostname);
	free(lc->proxy_for);
	free(lc->listens);
	free(lc->child);
	tls_context_unref(lc->tls);
	lc->names = NULL;
	lc->label = lc->own_label = NULL;
	lc->hostname = NULL;
	lc->proxy_for = NULL;
	lc->listens = NULL;
	lc->child = NULL;
	lc->tls = NULL;
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
	context->level = lc->c ? lc->c->flow.log_level : lc->names ? lc->names->flow.log_level : 0;
}

/* An error in one of its callbacks ends it. */
static void fail(struct vm_subject *s, const char *message)
{
	struct lua_conn *lc = (struct lua_conn *)s;

	if (lc->c)
		conn_end_text(lc->c, "EHANDLER", mem_printf("handler error: %.*s", (int)strcspn(message, "\n"), message));
}

/* Makes an instance without a connection. */
struct lua_conn *lua_conn_make(lua_State *L, int meta, uint64_t signature)
{
	struct vm *vm = vm_of(L);

	meta = lua_absindex(L, meta);
	lua_createtable(L, 0, 4);
	struct lua_conn *lc = lua_newuserdatauv(L, sizeof *lc, 0);
	memset(lc, 0, sizeof *lc);
	lc->subject = (struct vm_subject){.self_ref = LUA_NOREF, .describe = describe, .failed = fail};
	lc->handle_ref = LUA_NOREF;
	lc->vm = vm;
	lc->signature = signature;
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
	return lc;
}

/* Makes an instance with a connection. Whatever may raise comes before that exists. */
struct lua_conn *lua_conn_create(lua_State *L, int meta, const struct flow *flow)
{
	struct lua_conn *lc = lua_conn_make(L, meta, conns_signature(vm_of(L)->options.conns));

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

/* Enters the list of its VM. */
static void link_in(struct lua_conn *lc)
{
	struct vm *vm = lc->vm;

	lc->previous = NULL;
	lc->next = vm->conns;
	if (lc->next)
		lc->next->previous = lc;
	vm->conns = lc;
	vm->conn_count++;
}

/* Leaves it. */
static void unlink_from(struct lua_conn *lc)
{
	struct vm *vm = lc->vm;

	if (lc->previous)
		lc->previous->next = lc->next;
	else
		vm->conns = lc->next;
	if (lc->next)
		lc->next->previous = lc->previous;
	vm->conn_count--;
}

/* Gives a handle a connection: its first, or the one that takes the place of one that ends or has ended. */
void lua_conn_revive(struct lua_conn *lc, const struct flow *flow)
{
	struct vm *vm = lc->vm;
	struct conn *c = conn_new(vm->options.conns, flow, &lua_conn_events, lc);

	if (lc->tls)
		(void)!tls_start(c, lc->tls, lc->hostname, &lua_conn_tls_events);
	if (lc->c) {
		lc->again = c;
		return;
	}
	lc->c = c;
	if (vm->task) /* whoever made it may want to read from it */
		lc->coroutines = vm->coroutines;
	link_in(lc);
}

/* Holds instance and handle no longer: lc may be collected from now on. */
void lua_conn_let_go(struct lua_conn *lc)
{
	vm_unref(lc->vm, &lc->subject.self_ref);
	luaL_unref(lc->vm->L, LUA_REGISTRYINDEX, lc->handle_ref);
}

/* The last thing of a handle's life. */
static void release(struct lua_conn *lc)
{
	unlink_from(lc);
	lua_conn_let_go(lc);
}

/* Moves the connection, with all that is known of it, to a handle that has none, be it in another VM. What belongs to the old instance
 * itself stays behind: timers and listeners. Both remain held. */
void lua_conn_move(struct lua_conn *from, struct lua_conn *to)
{
	lua_conn_keep_names(from);
	if (from->own_label)
		lua_conn_set_label(to, from->own_label);
	else
		to->label = from->label;
	to->subject.label = from->subject.label;
	to->c = from->c;
	to->c->user = to;
	to->listener = from->listener;
	to->tls = from->tls;
	to->proxy_version = from->proxy_version;
	to->proxy_for = from->proxy_for;
	to->hostname = from->hostname;
	to->connect_timeout_ns = from->connect_timeout_ns;
	to->on_unbound = from->on_unbound;
	to->on_unbound_data = from->on_unbound_data;
	to->outgoing = from->outgoing;
	to->eof_unheard = from->eof_unheard;
	to->moved = false;
	from->c = NULL;
	from->label = from->own_label; /* a listener's name goes with that */
	from->listener = NULL;
	from->tls = NULL;
	from->proxy_for = NULL;
	from->hostname = NULL;
	from->on_unbound = NULL;
	from->moved = true;
	unlink_from(from);
	link_in(to);
}

/* Pushes what send_data returns. */
int lua_conn_push_sent(lua_State *L, enum send_result result)
{
	switch (result) {
	case SEND_CLOSED: return arg_failure(L, "ENOTCONN", "closed");
	case SEND_SHUT: return arg_failure(L, "EPIPE", "closed for writing");
	case SEND_UNABLE: return arg_failure(L, "EOPNOTSUPP", "not on a datagram socket or a watch");
	default: lua_pushboolean(L, result == SEND_OK); return 1;
	}
}

/* Pushes self and the method of that name; false if there is none (nothing is pushed then). */
bool lua_conn_push_method(lua_State *L, struct lua_conn *lc, const char *name)
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

	if (lua_conn_push_method(L, e->lc, e->call.callback))
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

/* A callback without arguments. */
bool lua_conn_call(struct lua_conn *lc, const char *callback)
{
	struct event_call e = {0};

	return enter(lc, callback, plain_body, &e) && !e.missing;
}

/* Pushes what was received: bytes, or a datagram with its sender. Returns the number of values. */
static int push_data(lua_State *L, const struct event_call *e)
{
	const struct conn *c = e->lc->c;

	lua_pushlstring(L, e->bytes, e->length);
	return c->transport ? 1 + arg_push_addr(L, &c->peer) : 1;
}

/* receive_data(self, data[, host, port]), receive_stderr(self, data) */
static int data_body(lua_State *L)
{
	struct event_call *e = lua_touserdata(L, 1);

	if (!lua_conn_push_method(L, e->lc, e->call.callback)) {
		if (!e->kept)
			return 0;
		e->lc->coroutines->push_receive(L);
		lua_rawgeti(L, LUA_REGISTRYINDEX, e->lc->subject.self_ref);
	}
	return vm_call_script(L, 1 + push_data(L, e));
}

/* Listeners of "data". */
static int emit_data_body(lua_State *L)
{
	struct event_call *e = lua_touserdata(L, 1);

	push_emit(L, e->lc, "data");
	return vm_call_script(L, 2 + push_data(L, e));
}

/* Bytes have arrived. */
static void on_data(struct conn *c, const char *bytes, size_t length)
{
	struct lua_conn *lc = c->user;
	struct event_call e = {.bytes = bytes, .length = length, .kept = lc->coroutines && !c->transport};

	enter(lc, "receive_data", data_body, &e);
	if (lc->has_listeners && c->state == CONN_OPEN)
		enter(lc, "data", emit_data_body, &e);
}

/* The peer's end is ours. */
void lua_conn_end_input(struct lua_conn *lc)
{
	if (lc->child)
		conn_shut(lc->c);
	else
		conn_finish(lc->c, NULL, "eof");
}

/* The peer has ended its side. Unless the handler wants to know, so do we; a child may still go on. */
static void on_eof(struct conn *c)
{
	struct lua_conn *lc = c->user;
	struct event_call e = {0};

	bool waits = lc->coroutines && lc->coroutines->on_eof(lc);
	if (!enter(lc, "receive_eof", plain_body, &e) || !e.missing)
		return;
	if (c->eof_relayed)
		lc->eof_unheard = true;
	else if (waits)
		lc->eof_waits = true;
	else
		lua_conn_end_input(lc);
}

/* There is room for output again. */
static void on_drained(struct conn *c)
{
	struct event_call e = {0};

	struct lua_conn *lc = c->user;

	enter(lc, "drained", plain_body, &e);
	if (lc->has_listeners && c->state == CONN_OPEN) /* em's own: IOStreamer's */
		enter(lc, "drained", emit_body, &e);
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

	if (!lua_conn_push_method(L, e->lc, "unbind"))
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
void lua_conn_keep_names(struct lua_conn *lc)
{
	if (!lc->names)
		lc->names = vm_keep(lc->vm, sizeof *lc->names);
	lc->names->peer = lc->c->peer;
	lc->names->flow = lc->c->flow;
	if (lc->c->fd >= 0 && !lc->c->watch_only && !conn_local(lc->c, &lc->names->local))
		lc->names->local.length = 0;
}

/* The one end. */
static void on_end(struct conn *c)
{
	struct lua_conn *lc = c->user;
	struct event_call e = {0};

	if (lc->child)
		lc->child->process = NULL;
	if (lc->connector) {
		connector_cancel(lc->connector);
		lc->connector = NULL;
	}
	if (lc->cancel_timers)
		lc->cancel_timers(lc);
	if (lc->cancel_subscriptions)
		lc->cancel_subscriptions(lc);
	if (lc->cancel_sendings)
		lc->cancel_sendings(lc);
	lua_conn_keep_names(lc);
	if (lc->coroutines)
		lc->coroutines->on_ended(lc);
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
	if (lc->cancel_subscriptions) /* none may outlive it */
		lc->cancel_subscriptions(lc);
	c->user = NULL;
	lc->end_code = c->end_code;
	lc->end_used = c->bytes_in || c->bytes_out || c->last_io_ns != c->opened_ns;
	lc->relayed = c->relayed;
	lc->eof_unheard = false;
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

/* notify_readable(self), notify_writable(self). On the instance these names are the methods that ask for them, unless the script has put
 * functions of its own there: the callbacks are the class's. */
static int ready_body(lua_State *L)
{
	struct event_call *e = lua_touserdata(L, 1);
	const char *name = e->call.callback;

	lua_rawgeti(L, LUA_REGISTRYINDEX, e->lc->subject.self_ref);
	lua_rawgeti(L, LUA_REGISTRYINDEX, e->lc->vm->connection_ref);
	lua_getfield(L, -1, name); /* self, Connection, method; Connection may be frozen, see lua_freeze.h: empty, but for its metatable */
	lua_getfield(L, -3, name);
	if (lua_rawequal(L, -1, -2) && luaL_getmetafield(L, 2, "__index") != LUA_TNIL) {
		if (lua_isfunction(L, -1)) {
			lua_pushvalue(L, 2);
			lua_pushstring(L, name);
			lua_call(L, 2, 1);
		} else {
			lua_getfield(L, -1, name);
		}
	}
	if (lua_isnil(L, -1) || lua_rawequal(L, -1, 4)) {
		e->missing = true;
		return 0;
	}
	lua_pushvalue(L, 2);
	return vm_call_script(L, 1);
}

/* A watched descriptor is ready. Without a callback that would take it, being told again and again is pointless. */
static void on_ready(struct conn *c, bool readable, bool writable)
{
	struct lua_conn *lc = c->user;
	struct event_call e = {0};

	if (readable && enter(lc, "notify_readable", ready_body, &e) && e.missing)
		conn_notify(c, false, c->notify_writable);
	if (!writable || c->state == CONN_ENDING || !c->notify_writable)
		return;
	e.missing = false;
	if (enter(lc, "notify_writable", ready_body, &e) && e.missing)
		conn_notify(c, c->notify_readable, false);
}

static const struct conn_events lua_conn_events = {
	.on_ready = on_ready,
	.on_data = on_data,
	.on_eof = on_eof,
	.on_drained = on_drained,
	.on_flushed = on_flushed,
	.on_end = on_end,
};

/* send_error(self, message, code, host, port) */
static int send_error_body(lua_State *L)
{
	struct event_call *e = lua_touserdata(L, 1);

	if (!lua_conn_push_method(L, e->lc, "send_error"))
		return 0;
	lua_pushstring(L, e->why);
	lua_pushstring(L, e->code);
	lua_pushstring(L, e->host);
	lua_pushinteger(L, e->port);
	return vm_call_script(L, 5);
}

/* A datagram did not go or did not arrive. */
static void on_send_error(struct conn *c, const char *code, const char *why, const char *host, uint16_t port)
{
	struct event_call e = {.code = code, .why = why, .host = host, .port = port};

	enter(c->user, "send_error", send_error_body, &e);
}

const struct udp_events lua_conn_udp_events = {.on_datagram = on_data, .on_send_error = on_send_error};

/* Bytes of a child's standard error. */
static void on_stderr(struct conn *c, const char *bytes, size_t length)
{
	struct event_call e = {.bytes = bytes, .length = length};

	enter(c->user, "receive_stderr", data_body, &e);
}

/* A child's status: kept for whoever asks. What the process module knows of the child may go from now on. */
static void on_exit_status(struct conn *c, struct process_status status)
{
	struct lua_conn *lc = c->user;

	lc->child->status = status;
	lc->child->process = NULL;
}

static const struct process_events child_events = {.on_stderr = on_stderr, .on_exit = on_exit_status};

/* Makes it the connection of a child. */
void lua_conn_attach(struct lua_conn *lc, struct process *p)
{
	lc->child->process = p;
	lc->child->pid = process_pid(p);
	process_attach(p, lc->c, &child_events);
}

/* The handshake has ended. */
static void on_handshake(struct conn *c)
{
	struct event_call e = {0};

	enter(c->user, "ssl_handshake_completed", plain_body, &e);
}

/* A certificate on its way into the VM. */
struct verify_call {
	struct event_call event;
	const char *pem;
	size_t length;
	bool preverified;
	int depth;
	const char *reason;
	int answer;
};

/* Takes the script's answer. */
static int verify_done(lua_State *L, int status, lua_KContext context)
{
	struct verify_call *v = (struct verify_call *)context;

	(void)status;
	v->answer = lua_toboolean(L, -1);
	return 0;
}

/* ssl_verify_peer(self, pem, preverified, depth, reason) */
static int verify_body(lua_State *L)
{
	struct verify_call *v = lua_touserdata(L, 1);

	if (!lua_conn_push_method(L, v->event.lc, "ssl_verify_peer"))
		return 0;
	v->answer = 0; /* an error refuses */
	lua_pushlstring(L, v->pem, v->length);
	lua_pushboolean(L, v->preverified);
	lua_pushinteger(L, v->depth);
	lua_pushstring(L, v->reason);
	lua_callk(L, 5, 1, (lua_KContext)v, verify_done);
	return verify_done(L, LUA_OK, (lua_KContext)v);
}

/* OpenSSL has a certificate to show. */
static int on_verify(struct conn *c, X509 *certificate, bool preverified, int depth, const char *reason)
{
	struct verify_call v = {.preverified = preverified, .depth = depth, .reason = reason, .answer = -1};
	BIO *bio = BIO_new(BIO_s_mem());
	char *pem;

	if (!bio || PEM_write_bio_X509(bio, certificate) != 1) {
		BIO_free(bio);
		return 0;
	}
	v.length = (size_t)BIO_get_mem_data(bio, &pem);
	v.pem = pem;
	enter(c->user, "ssl_verify_peer", verify_body, &v.event);
	BIO_free(bio);
	return v.answer;
}

/* Looks for ssl_verify_peer. */
static int decides_body(lua_State *L)
{
	struct event_call *e = lua_touserdata(L, 1);

	e->missing = !lua_conn_push_method(L, e->lc, "ssl_verify_peer");
	return 0;
}

/* Has the handler a say about certificates? One whose look-up fails has. */
static bool decides(struct conn *c)
{
	struct event_call e = {0};

	return !enter(c->user, "ssl_verify_peer", decides_body, &e) || !e.missing;
}

const struct tls_events lua_conn_tls_events = {.decides = decides, .on_handshake = on_handshake, .on_verify = on_verify};

/* Makes it a TLS connection. */
void lua_conn_use_tls(struct lua_conn *lc, struct tls_context *tls, const char *hostname)
{
	lc->tls = tls_context_ref(tls);
	lc->hostname = hostname ? mem_strdup(hostname) : NULL;
	(void)!tls_start(lc->c, tls, hostname, &lua_conn_tls_events);
}

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
	if (!lua_conn_push_method(L, b->event.lc, "initialize"))
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

/* Begins with a PROXY header: for a client, or for ourselves. */
static void say_proxy_header(struct lua_conn *lc, int fd, const struct addr *peer)
{
	unsigned char bytes[PROXYPROTO_MAX_WRITTEN];
	struct lua_conn_names own = {.local = *peer};
	const struct lua_conn_names *names = lc->proxy_for ? lc->proxy_for : &own;

	if (!sock_local(fd, &own.peer))
		own.peer.length = 0;
	conn_prepend(lc->c, bytes, proxyproto_write(bytes, (enum proxyproto_version)lc->proxy_version, &names->peer, &names->local));
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
	if (lc->proxy_version)
		say_proxy_header(lc, fd, peer);
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
	struct listener *l;
	struct lua_conn *lc;
};

/* Makes the instance. */
static int accept_body(lua_State *L)
{
	struct accept_call *a = lua_touserdata(L, 1);

	lua_rawgeti(L, LUA_REGISTRYINDEX, a->class->meta_ref);
	a->lc = lua_conn_create(L, -1, a->flow);
	a->lc->subject.label = a->l->label;
	a->call.subject = &a->lc->subject;
	return 0;
}

/* Accepts. */
void lua_conn_accept(struct vm *vm, const struct lua_class *class, const struct flow *flow, char *handler, struct listener *l, int fd,
                     const struct addr *peer, struct tls_context *tls, lua_CFunction accepted, void *server)
{
	struct accept_call a = {.class = class, .flow = flow, .l = l};
	struct begin_call b = {.args_ref = class->args_ref, .count = class->args_count, .function_ref = class->function_ref};

	a.call = (struct vm_call){.body = accept_body, .argument = &a, .callback = "accept"};
	vm_enter(vm, &a.call);
	if (!a.lc) { /* no memory for it */
		close(fd);
		listener_release(l, listener_client(l, peer));
		return;
	}
	a.lc->handler = handler;
	a.lc->listener = l;
	a.lc->label = l->name;
	conn_open(a.lc->c, fd, peer);
	if (l->header && l->header->named)
		conn_set_names(a.lc->c, &l->header->peer, &l->header->local);
	if (tls)
		(void)!tls_start(a.lc->c, tls, NULL, &lua_conn_tls_events);
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
