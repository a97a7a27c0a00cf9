/* Subscribers of named channels: see lua_channel.h. */
#include "lua_channel.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>
#include <utlist.h>

#include "channel.h"
#include "lua_arg.h"
#include "lua_plain.h"
#include "mem.h"

#define MAX_SUBSCRIPTIONS 1000000 /* of a VM: their memory is not Lua's */

static const char object_key; /* its address is the key of the objects' metatable in the registry */

/* One subscriber. */
struct lua_subscription {
	struct lua_channel *to;
	uint64_t id;
	uint64_t since;                                   /* hears messages of greater numbers */
	int function_ref;                                 /* LUA_NOREF: a connection's */
	struct lua_conn *who;                             /* NULL: a function */
	struct lua_subscription *prev, *next;             /* of the channel, in their order */
	struct lua_subscription *who_previous, *who_next; /* of the connection */
	UT_hash_handle hh;                                /* of the VM, by id */
};

/* The subscribers of a VM on a channel; there while there is one, or while it is being told. */
struct lua_channel {
	struct channel_listener listener;
	struct vm *vm;
	struct lua_subscription *subscriptions;
	struct lua_subscription *following; /* the one to be told next, so that any may go meanwhile */
	bool telling;
};

/* em.channel(name) */
struct channel_object {
	size_t length;
	char name[];
};

/* A message on its way into the VM. */
struct message_call {
	struct vm_call call;
	const struct channel_message *message;
	struct lua_subscription *subscription;
	int data_ref;
};

/* Ends listening where nobody is left. */
static void release(struct lua_channel *to)
{
	if (to->subscriptions || to->telling)
		return;
	channels_leave(to->vm->options.channels, &to->listener);
	free(to);
}

/* Decodes a message, once for all subscribers of the VM. */
static int decode_body(lua_State *L)
{
	struct message_call *m = lua_touserdata(L, 1);

	plain_push(L, m->message->bytes, m->message->length);
	m->data_ref = vm_ref(L);
	return 0;
}

/* fn(data) or receive_message(self, name, data) */
static int message_body(lua_State *L)
{
	struct message_call *m = lua_touserdata(L, 1);
	struct lua_subscription *s = m->subscription;

	if (!s->who) {
		lua_rawgeti(L, LUA_REGISTRYINDEX, s->function_ref);
		lua_rawgeti(L, LUA_REGISTRYINDEX, m->data_ref);
		return vm_call_script(L, 1);
	}
	if (!lua_conn_push_method(L, s->who, "receive_message"))
		return 0;
	lua_pushlstring(L, m->message->name, m->message->name_length);
	lua_rawgeti(L, LUA_REGISTRYINDEX, m->data_ref);
	return vm_call_script(L, 3);
}

/* Is that message for a subscriber? Not for one that came later, nor for a connection that is closing. */
static bool hears(const struct lua_subscription *s, const struct channel_message *m)
{
	return s->since < m->number && (!s->who || s->who->c->state <= CONN_OPEN);
}

/* Tells all subscribers of the VM. One that raises ends its connection, and nobody else's. */
static void on_message(struct channel_listener *l, const struct channel_message *message)
{
	struct lua_channel *to = (struct lua_channel *)l; /* its first member */
	struct vm *vm = to->vm;
	struct message_call m = {.message = message, .data_ref = LUA_NOREF};
	bool decoded = false;

	if (vm->loading) /* it does not serve yet; what it hears of begins when it does */
		return;
	to->telling = true;
	for (struct lua_subscription *s = to->subscriptions; s; s = to->following) {
		to->following = s->next;
		if (!hears(s, message))
			continue;
		if (!decoded) {
			m.call = (struct vm_call){.body = decode_body, .argument = &m, .callback = "channel"};
			if (!vm_enter(vm, &m.call))
				break;
			decoded = true;
		}
		m.subscription = s;
		m.call = (struct vm_call){.body = message_body, .argument = &m, .callback = "channel"};
		if (s->who) {
			m.call.callback = "receive_message";
			m.call.subject = &s->who->subject;
		}
		vm_enter(vm, &m.call);
	}
	to->following = NULL;
	to->telling = false;
	vm_unref(vm, &m.data_ref);
	release(to);
}

/* The VM's subscribers of a channel; made where there are none. */
static struct lua_channel *get(struct vm *vm, const char *name, size_t length)
{
	struct channels *channels = vm->options.channels;
	struct channel_listener *l = channels_find(channels, name, length, vm);

	if (l)
		return (struct lua_channel *)l;
	struct lua_channel *to = mem_zalloc(sizeof *to);
	to->vm = vm;
	to->listener = (struct channel_listener){.owner = vm, .on_message = on_message};
	channels_join(channels, name, length, &to->listener);
	return to;
}

/* Enters the lists of a channel and of the VM. */
static void link_in(struct lua_subscription *s, struct lua_channel *to)
{
	s->to = to;
	s->id = ++to->vm->last_subscription;
	DL_APPEND(to->subscriptions, s);
	HASH_ADD(hh, to->vm->subscriptions, id, sizeof s->id, s);
}

/* Leaves them; the channel's memory may go. */
static void unlink_from(struct lua_subscription *s)
{
	struct lua_channel *to = s->to;

	if (to->following == s)
		to->following = s->next;
	DL_DELETE(to->subscriptions, s);
	HASH_DEL(to->vm->subscriptions, s);
	release(to);
}

/* Ends one. */
static void cancel(struct lua_subscription *s)
{
	struct vm *vm = s->to->vm;

	if (s->who)
		DL_DELETE2(s->who->subscriptions, s, who_previous, who_next);
	unlink_from(s);
	vm_unref(vm, &s->function_ref);
	free(s);
}

/* A connection ends. */
static void cancel_owned(struct lua_conn *lc)
{
	while (lc->subscriptions)
		cancel(lc->subscriptions);
}

/* A connection's subscription to a channel, NULL: there is none. */
static struct lua_subscription *find_owned(struct lua_conn *lc, const char *name, size_t length)
{
	struct channel_listener *l = channels_find(lc->vm->options.channels, name, length, lc->vm);
	struct lua_subscription *s = l ? lc->subscriptions : NULL;

	while (s && &s->to->listener != l)
		s = s->who_next;
	return s;
}

/* Those of a generation that begins to serve hear what waits: those of the one before do not any more. */
void lua_channel_start(struct vm *vm)
{
	struct lua_subscription *s, *next;

	HASH_ITER(hh, vm->subscriptions, s, next)
	if (!s->who)
		s->since = channels_delivered(vm->options.channels);
}

/* Ends functions' or all. */
void lua_channel_cancel_all(struct vm *vm, bool owned_too)
{
	struct lua_subscription *s, *next;

	HASH_ITER(hh, vm->subscriptions, s, next)
	if (owned_too || !s->who)
		cancel(s);
}

/* A channel's name. */
static const char *check_name(lua_State *L, int index, size_t *length)
{
	const char *name = luaL_checklstring(L, index, length);

	luaL_argcheck(L, *length > 0 && *length <= CHANNEL_MAX_NAME, index, "a channel's name has 1 to 255 bytes");
	return name;
}

/* Can the VM have one more? If not pushes the three results for that. */
static bool has_room(lua_State *L)
{
	if (HASH_COUNT(vm_of(L)->subscriptions) < MAX_SUBSCRIPTIONS)
		return true;
	arg_failure(L, "ELIMIT", "too many subscriptions");
	return false;
}

/* Subscribes a function or a connection. */
static struct lua_subscription *add(struct vm *vm, const char *name, size_t length, int function_ref, struct lua_conn *who)
{
	struct channels *channels = vm->options.channels;
	struct lua_subscription *s = mem_zalloc(sizeof *s);

	s->since = channels_last(channels);
	s->function_ref = function_ref;
	s->who = who;
	link_in(s, get(vm, name, length));
	return s;
}

/* Subscribes a connection that is not yet. */
static struct lua_subscription *add_owned(struct lua_conn *lc, const char *name, size_t length)
{
	struct lua_subscription *s = add(lc->vm, name, length, LUA_NOREF, lc);

	DL_APPEND2(lc->subscriptions, s, who_previous, who_next);
	lc->cancel_subscriptions = cancel_owned;
	return s;
}

/* Copies them all. */
void lua_channel_copy(const struct lua_conn *from, struct lua_conn *to)
{
	for (const struct lua_subscription *s = from->subscriptions; s; s = s->who_next) {
		size_t length;
		const char *name = channel_name(&s->to->listener, &length);
		add_owned(to, name, length)->since = s->since;
	}
}

/* The object at index 1. */
static struct channel_object *check_object(lua_State *L)
{
	struct channel_object *o = NULL;

	if (lua_getmetatable(L, 1)) {
		lua_rawgetp(L, LUA_REGISTRYINDEX, &object_key);
		if (lua_rawequal(L, -1, -2))
			o = lua_touserdata(L, 1);
		lua_pop(L, 2);
	}
	if (!o)
		luaL_typeerror(L, 1, "channel");
	return o;
}

/* channel(name) */
static int l_channel(lua_State *L)
{
	size_t length;
	const char *name = check_name(L, 1, &length);
	struct channel_object *o = lua_newuserdatauv(L, sizeof *o + length, 0);

	o->length = length;
	memcpy(o->name, name, length);
	lua_rawgetp(L, LUA_REGISTRYINDEX, &object_key);
	lua_setmetatable(L, -2);
	return 1;
}

/* channel:push(data) */
static int l_push(lua_State *L)
{
	struct channel_object *o = check_object(L);
	struct plain data;

	luaL_checkany(L, 2);
	vm_check_open(L);
	plain_check(L, 2, "data", &data);
	if (!channels_push(vm_of(L)->options.channels, o->name, o->length, data.bytes, data.length))
		return arg_failure(L, "EAGAIN", "too much waits to be delivered");
	lua_pushboolean(L, true);
	return 1;
}

/* channel:subscribe(fn): an id. While handlers load it begins to hear when they serve. */
static int l_subscribe(lua_State *L)
{
	struct channel_object *o = check_object(L);
	struct vm *vm = vm_of(L);

	arg_function(L, 2);
	vm_check_alive(L);
	if (vm->closing)
		return arg_failure(L, "ECANCELED", "stopping");
	if (!has_room(L))
		return 3;
	lua_settop(L, 2);
	lua_pushinteger(L, (lua_Integer)add(vm, o->name, o->length, vm_ref(L), NULL)->id);
	return 1;
}

/* channel:unsubscribe(id): was there such a one? */
static int l_unsubscribe(lua_State *L)
{
	struct channel_object *o = check_object(L);
	uint64_t id = (uint64_t)luaL_checkinteger(L, 2);
	struct lua_subscription *s;

	HASH_FIND(hh, vm_of(L)->subscriptions, &id, sizeof id, s);
	if (s) {
		size_t length;
		const char *name = channel_name(&s->to->listener, &length);
		if (s->who || length != o->length || memcmp(name, o->name, length) != 0)
			s = NULL;
	}
	if (s)
		cancel(s);
	lua_pushboolean(L, s != NULL);
	return 1;
}

/* conn:subscribe(name) */
static int l_conn_subscribe(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);
	size_t length;
	const char *name = check_name(L, 2, &length);

	if (!lc->c || lc->unbinding)
		return arg_failure(L, "ENOTCONN", "closed");
	if (!find_owned(lc, name, length)) {
		if (!has_room(L))
			return 3;
		add_owned(lc, name, length);
	}
	lua_pushboolean(L, true);
	return 1;
}

/* conn:unsubscribe(name): was it subscribed? */
static int l_conn_unsubscribe(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);
	size_t length;
	const char *name = check_name(L, 2, &length);

	if (!lc->c || lc->unbinding)
		return arg_failure(L, "ENOTCONN", "closed");
	struct lua_subscription *s = find_owned(lc, name, length);
	if (s)
		cancel(s);
	lua_pushboolean(L, s != NULL);
	return 1;
}

static const luaL_Reg object_methods[] = {
	{"push", l_push},
	{"subscribe", l_subscribe},
	{"unsubscribe", l_unsubscribe},
	{NULL, NULL},
};

static const luaL_Reg connection_methods[] = {
	{"subscribe", l_conn_subscribe},
	{"unsubscribe", l_conn_unsubscribe},
	{NULL, NULL},
};

/* Registers all of it. */
void lua_channel_open(lua_State *L)
{
	lua_pushcfunction(L, l_channel);
	lua_setfield(L, 1, "channel");
	lua_rawgeti(L, LUA_REGISTRYINDEX, vm_of(L)->connection_ref);
	luaL_setfuncs(L, connection_methods, 0);
	lua_newtable(L);
	luaL_newlib(L, object_methods);
	lua_setfield(L, -2, "__index");
	lua_pushliteral(L, "channel");
	lua_setfield(L, -2, "__name");
	lua_pushliteral(L, "channel");
	lua_setfield(L, -2, "__metatable");
	lua_rawsetp(L, LUA_REGISTRYINDEX, &object_key);
	lua_pop(L, 1);
}
