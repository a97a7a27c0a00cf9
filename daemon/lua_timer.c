/*
 * Timers of scripts: a userdata each, held by a reference while it waits or runs. The function is its first uservalue.
 */
#include "lua_timer.h"

#include <string.h>

#include "lua_arg.h"
#include "lua_conn.h"
#include "timer.h"

static const char timer_key; /* its address is the registry key of the timers' metatable */

struct lua_timer {
	struct timer t;
	struct vm *vm;
	struct lua_conn *owner; /* NULL: nobody's */
	uint64_t interval_ns;
	int self_ref; /* LUA_NOREF: neither waits nor runs */
	bool periodic, fixed_rate;
	bool running, cancelled;                       /* its function runs; it was cancelled there */
	bool orphaned;                                 /* its connection has ended: it cannot start again */
	struct lua_timer *previous, *next;             /* the VM's */
	struct lua_timer *owner_previous, *owner_next; /* its connection's */
};

/* Enters the lists; the reference is there already. */
static void link_in(struct lua_timer *t)
{
	struct vm *vm = t->vm;

	t->previous = t->owner_previous = NULL;
	t->next = vm->timers;
	if (t->next)
		t->next->previous = t;
	vm->timers = t;
	vm->timer_count++;
	vm->options.loop->stats->timers++;
	if (!t->owner)
		return;
	t->owner_next = t->owner->timers;
	if (t->owner_next)
		t->owner_next->owner_previous = t;
	t->owner->timers = t;
}

/* Leaves its connection's list. */
static void leave_owner(struct lua_timer *t)
{
	if (!t->owner)
		return;
	if (t->owner_previous)
		t->owner_previous->owner_next = t->owner_next;
	else
		t->owner->timers = t->owner_next;
	if (t->owner_next)
		t->owner_next->owner_previous = t->owner_previous;
	t->owner_previous = t->owner_next = NULL;
}

/* Leaves the lists and gives the reference back: the userdata may be collected from now on. */
static void let_go(struct lua_timer *t)
{
	struct vm *vm = t->vm;

	if (t->self_ref == LUA_NOREF)
		return;
	timer_stop(vm->options.loop, &t->t);
	if (t->previous)
		t->previous->next = t->next;
	else
		vm->timers = t->next;
	if (t->next)
		t->next->previous = t->previous;
	leave_owner(t);
	vm->timer_count--;
	vm->options.loop->stats->timers--;
	vm_unref(vm, &t->self_ref);
}

/* Ends a timer; one whose function runs goes when that has returned. */
static void cancel(struct lua_timer *t)
{
	timer_stop(t->vm->options.loop, &t->t);
	t->cancelled = true;
	if (!t->running)
		let_go(t);
}

/* Calls the function, with the connection if it belongs to one. */
static int fire_body(lua_State *L)
{
	struct lua_timer *t = lua_touserdata(L, 1);

	lua_rawgeti(L, LUA_REGISTRYINDEX, t->self_ref);
	lua_getiuservalue(L, -1, 1);
	if (!t->owner)
		return vm_call_script(L, 0);
	lua_rawgeti(L, LUA_REGISTRYINDEX, t->owner->subject.self_ref);
	return vm_call_script(L, 1);
}

/* Is the timer's function running, and the timer not waiting at the same time? */
static bool only_runs(const struct lua_timer *t)
{
	return t && t->running && !timer_waiting(&t->t);
}

/* It is time. A periodic timer starts anew after its function, whether or not that has failed. */
static void on_fire(void *data)
{
	struct lua_timer *t = data;
	struct loop *loop = t->vm->options.loop;
	uint64_t due = t->t.due_ns;
	struct vm_call call = {.body = fire_body, .argument = t, .callback = "timer", .subject = t->owner ? &t->owner->subject : NULL};

	t->running = true;
	t->vm->firing = t;
	vm_enter(t->vm, &call);
	t->vm->firing = NULL;
	t->running = false;
	if (t->cancelled || (!t->periodic && !timer_waiting(&t->t))) {
		let_go(t);
	} else if (t->periodic && !timer_waiting(&t->t)) {
		if (!t->fixed_rate || !t->interval_ns) {
			timer_start(loop, &t->t, t->interval_ns);
		} else {
			uint64_t now = loop_clock();
			due += t->interval_ns;
			if (due < now) /* skip the beats that were missed */
				due += (now - due + t->interval_ns - 1) / t->interval_ns * t->interval_ns;
			timer_start_at(loop, &t->t, due);
		}
	}
}

/* The timer at index. */
static struct lua_timer *check_timer(lua_State *L, int index)
{
	struct lua_timer *t = NULL;

	if (lua_getmetatable(L, index)) {
		lua_rawgetp(L, LUA_REGISTRYINDEX, &timer_key);
		if (lua_rawequal(L, -1, -2))
			t = lua_touserdata(L, index);
		lua_pop(L, 2);
	}
	if (!t)
		luaL_typeerror(L, index, "timer");
	return t;
}

/* Ends the timers of a connection that ends; none of them points to it afterwards. */
static void cancel_owned(struct lua_conn *lc)
{
	while (lc->timers) {
		struct lua_timer *t = lc->timers;
		leave_owner(t);
		t->owner = NULL;
		t->orphaned = true;
		cancel(t);
	}
}

/* Makes a timer from seconds and function at index and index + 1; pushes it. */
static int add(lua_State *L, int index, bool periodic, bool fixed_rate, struct lua_conn *owner)
{
	struct vm *vm = vm_of(L);
	uint64_t ns = arg_seconds(L, index);

	arg_function(L, index + 1);
	vm_check_alive(L);
	struct lua_timer *t = lua_newuserdatauv(L, sizeof *t, owner ? 2 : 1);
	memset(t, 0, sizeof *t);
	t->vm = vm;
	t->owner = owner;
	t->interval_ns = ns;
	t->periodic = periodic;
	t->fixed_rate = fixed_rate;
	t->self_ref = LUA_NOREF;
	timer_init(&t->t, on_fire, t);
	lua_pushvalue(L, index + 1);
	lua_setiuservalue(L, -2, 1);
	if (owner) { /* the timer keeps its connection's handle from being collected before it */
		lua_rawgeti(L, LUA_REGISTRYINDEX, owner->handle_ref);
		lua_setiuservalue(L, -2, 2);
	}
	lua_rawgetp(L, LUA_REGISTRYINDEX, &timer_key);
	lua_setmetatable(L, -2);
	lua_pushvalue(L, -1);
	t->self_ref = vm_ref(L);
	if (owner)
		owner->cancel_timers = cancel_owned;
	link_in(t);
	timer_start(vm->options.loop, &t->t, ns);
	return 1;
}

/* add_timer(s, fn) */
static int l_add_timer(lua_State *L)
{
	return add(L, 1, false, false, NULL);
}

/* add_periodic_timer(s, fn[, {fixed_rate = false}]) */
static int l_add_periodic_timer(lua_State *L)
{
	bool fixed_rate = false;

	if (!lua_isnoneornil(L, 3)) {
		static const char *const names[] = {"fixed_rate", NULL};
		arg_options(L, 3, names);
		lua_getfield(L, 3, "fixed_rate");
		luaL_argcheck(L, lua_isnil(L, -1) || lua_isboolean(L, -1), 3, "fixed_rate must be true or false");
		fixed_rate = lua_toboolean(L, -1);
		lua_pop(L, 1);
	}
	return add(L, 1, true, fixed_rate, NULL);
}

/* What a timer of a connection that has ended would be. */
static struct lua_conn *check_owner(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);

	return lc->c && !lc->unbinding ? lc : NULL;
}

/* conn:add_timer(s, fn) */
static int l_conn_add_timer(lua_State *L)
{
	struct lua_conn *owner = check_owner(L);

	return owner ? add(L, 2, false, false, owner) : arg_failure(L, "ENOTCONN", "closed");
}

/* conn:add_periodic_timer(s, fn) */
static int l_conn_add_periodic_timer(lua_State *L)
{
	struct lua_conn *owner = check_owner(L);

	return owner ? add(L, 2, true, false, owner) : arg_failure(L, "ENOTCONN", "closed");
}

/* timer:cancel(), em.cancel_timer(timer) */
static int l_cancel(lua_State *L)
{
	cancel(check_timer(L, 1));
	return 0;
}

/* timer:restart([s]): from now; also after it has fired or was cancelled. */
static int l_restart(lua_State *L)
{
	struct lua_timer *t = check_timer(L, 1);

	if (!lua_isnoneornil(L, 2))
		t->interval_ns = arg_seconds(L, 2);
	if (t->orphaned || (t->owner && (!t->owner->c || t->owner->unbinding)))
		return arg_failure(L, "ENOTCONN", "closed");
	vm_check_alive(L);
	if (t->self_ref == LUA_NOREF) {
		lua_pushvalue(L, 1);
		t->self_ref = vm_ref(L);
		link_in(t);
	}
	t->cancelled = false;
	timer_start(t->vm->options.loop, &t->t, t->interval_ns);
	lua_settop(L, 1);
	return 1;
}

/* timer:interval([s]): asks, or sets from the next start on. */
static int l_interval(lua_State *L)
{
	struct lua_timer *t = check_timer(L, 1);

	if (!lua_isnoneornil(L, 2))
		t->interval_ns = arg_seconds(L, 2);
	arg_push_seconds(L, t->interval_ns);
	return 1;
}

/* get_timer_count(): those that wait; the one whose function runs does not. */
static int l_get_timer_count(lua_State *L)
{
	struct vm *vm = vm_of(L);

	lua_pushinteger(L, (lua_Integer)vm->timer_count - only_runs(vm->firing));
	return 1;
}

/* current_time(): seconds of the monotonic clock, the same throughout a turn. */
static int l_current_time(lua_State *L)
{
	arg_push_seconds(L, loop_now(vm_of(L)->options.loop));
	return 1;
}

/* Cancels a VM's timers. */
void lua_timer_cancel_all(struct vm *vm, bool owned_too)
{
	struct lua_timer *t, *next;

	for (t = vm->timers; t; t = next) {
		next = t->next;
		if (owned_too || !t->owner)
			cancel(t);
	}
}

static const luaL_Reg functions[] = {
	{"add_timer", l_add_timer},
	{"Timer", l_add_timer},
	{"add_periodic_timer", l_add_periodic_timer},
	{"PeriodicTimer", l_add_periodic_timer},
	{"cancel_timer", l_cancel},
	{"get_timer_count", l_get_timer_count},
	{"current_time", l_current_time},
	{NULL, NULL},
};

static const luaL_Reg timer_methods[] = {
	{"cancel", l_cancel},
	{"restart", l_restart},
	{"interval", l_interval},
	{NULL, NULL},
};

static const luaL_Reg connection_methods[] = {
	{"add_timer", l_conn_add_timer},
	{"add_periodic_timer", l_conn_add_periodic_timer},
	{NULL, NULL},
};

/* Registers all of it. */
void lua_timer_open(lua_State *L)
{
	lua_pushvalue(L, 1);
	luaL_setfuncs(L, functions, 0);
	lua_rawgeti(L, LUA_REGISTRYINDEX, vm_of(L)->connection_ref);
	luaL_setfuncs(L, connection_methods, 0);
	lua_newtable(L);
	luaL_newlib(L, timer_methods);
	lua_setfield(L, -2, "__index");
	lua_pushliteral(L, "timer");
	lua_setfield(L, -2, "__name");
	lua_pushliteral(L, "timer");
	lua_setfield(L, -2, "__metatable");
	lua_rawsetp(L, LUA_REGISTRYINDEX, &timer_key);
	lua_pop(L, 2);
}
