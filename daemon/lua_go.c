/*
 * Coroutines of em.go: see lua_go.h. A task is a userdata, held by a reference until its coroutine has ended. Who waits in it is woken by
 * whatever it waits for, which puts it into a queue that the turn's end empties. What a failed or cancelled one has to close is closed in a
 * callback of its own.
 */
#include "lua_go.h"

#include <string.h>
#include <utlist.h>

#include "lua_arg.h"
#include "lua_conn.h"

static const char task_key;    /* its address is the registry key of the tasks' metatable */
static const char receive_key; /* ... of the function that keeps bytes for who reads */
static const char over_key;    /* ... of the one that is told of the end of them */

enum { CO = 1, FAIL, STATE, ERROR, USER_VALUES = ERROR }; /* uservalues of a task */

/* That a coroutine has read from a connection. */
struct lua_reading {
	struct lua_task *task;
	struct lua_conn *lc;
	struct lua_reading *prev, *next;               /* the task's */
	struct lua_reading *conn_previous, *conn_next; /* the connection's */
};

struct lua_task {
	struct vm *vm;
	lua_State *co;          /* NULL once it has ended */
	struct lua_conn *owner; /* NULL: nobody */
	int self_ref;
	const char *name;   /* of its callbacks */
	const char *why;    /* it was cancelled, NULL: it was not */
	bool waiting;       /* for being woken */
	bool ready;         /* in the queue */
	bool failed;        /* what it has to close is still open */
	bool spent;         /* failed by an error of the time limit's hook: hooks are off, nothing more is run in it */
	bool closing;       /* what it has to close is being closed */
	struct timer sleep; /* em.sleep's */
	struct lua_reading *readings;
	struct lua_task *prev, *next;                 /* the VM's */
	struct lua_task *owner_previous, *owner_next; /* its owner's */
	struct lua_task *queue_previous, *queue_next; /* of those that are ready */
};

static const struct lua_conn_coroutines hooks;

/* Lets the peer's end count when the last of those who read has ended. */
static void settle_eof(struct lua_conn *lc)
{
	if (!lc->eof_waits || lc->readings)
		return;
	lc->eof_waits = false;
	if (lc->c && lc->c->state == CONN_OPEN)
		lua_conn_end_input(lc);
}

/* Forgets that a coroutine has read from a connection. */
static void drop_reading(struct lua_reading *r)
{
	struct lua_conn *lc = r->lc;

	DL_DELETE(r->task->readings, r);
	DL_DELETE2(lc->readings, r, conn_previous, conn_next);
	vm_drop(r);
	settle_eof(lc);
}

/* Sleeps no longer. */
static void stop_sleep(struct lua_task *t)
{
	if (!timer_waiting(&t->sleep))
		return;
	timer_stop(t->vm->options.loop, &t->sleep);
	t->vm->sleeping--;
}

/* Leaves the queue. */
static void unqueue(struct lua_task *t)
{
	if (!t->ready)
		return;
	DL_DELETE2(t->vm->ready, t, queue_previous, queue_next);
	t->vm->ready_count--;
	t->ready = false;
}

/* The end of a task: nothing holds it any more, nor does it hold anything. */
static void release(struct lua_task *t)
{
	struct vm *vm = t->vm;

	unqueue(t);
	stop_sleep(t);
	while (t->readings)
		drop_reading(t->readings);
	DL_DELETE(vm->tasks, t);
	if (t->owner) {
		DL_DELETE2(t->owner->tasks, t, owner_previous, owner_next);
		t->owner = NULL;
	}
	if (vm->body_task == t) {
		vm->body_task = NULL;
		vm->body = NULL;
		vm->in_run = vm->waiting = false;
	}
	t->co = NULL;
	lua_rawgeti(vm->L, LUA_REGISTRYINDEX, t->self_ref);
	for (int i = 1; i <= USER_VALUES; i++) {
		lua_pushnil(vm->L);
		lua_setiuservalue(vm->L, -2, i);
	}
	lua_pop(vm->L, 1);
	vm_unref(vm, &t->self_ref);
}

/* Whose callbacks a task's are. */
static struct vm_subject *subject_of(const struct lua_task *t)
{
	return t->owner ? &t->owner->subject : NULL;
}

static void run_queue(struct vm *vm);

/* The turn's step. */
static void on_turn(void *data)
{
	struct vm *vm = data;

	run_queue(vm);
	if (vm->ready)
		loop_wake(vm->options.loop);
}

/* Queues a task. */
static void queue(struct lua_task *t)
{
	struct vm *vm = t->vm;

	if (!vm->go.run) {
		vm->go = (struct loop_hook){.run = on_turn, .data = vm};
		loop_hook_add(vm->options.loop, STAGE_TICK, &vm->go);
	}
	DL_APPEND2(vm->ready, t, queue_previous, queue_next);
	vm->ready_count++;
	t->ready = true;
	loop_wake(vm->options.loop);
}

/* Has a task that waits go on. False if it does not wait. */
static bool wake(struct lua_task *t)
{
	if (!t->co || !t->waiting || t->ready)
		return false;
	queue(t);
	return true;
}

/* It has slept enough. */
static void on_slept(void *data)
{
	struct lua_task *t = data;

	t->vm->sleeping--;
	(void)wake(t);
}

/* Pushes what a coroutine has failed by with its traceback, and sees to what is to be closed there later. */
static void fail(lua_State *L, struct lua_task *t, int status)
{
	struct vm *vm = t->vm;

	t->failed = true;
	t->spent = vm->overrun && status != LUA_YIELD;
	t->waiting = false;
	stop_sleep(t);
	queue(t);
	if (vm->body_task == t)
		vm->in_run = vm->waiting = false;
	if (status != LUA_YIELD)
		lua_xmove(t->co, L, 1);
	else if (vm->overrun)
		lua_pushfstring(L, "%s stopped: it ran longer than callback_time", t->name);
	else
		lua_pushliteral(L, "attempt to yield from outside a coroutine");
	lua_rawgeti(L, LUA_REGISTRYINDEX, t->self_ref);
	lua_pushvalue(L, -2);
	lua_setiuservalue(L, -2, ERROR);
	lua_pop(L, 1);
	vm_error_text(L);
	luaL_traceback(L, t->co, lua_tostring(L, -1), 0);
}

/* Runs a task up to where it waits, or ends. False if it has failed: the message is on top of the stack then. */
static bool run(lua_State *L, struct lua_task *t, int arguments)
{
	struct vm *vm = t->vm;
	struct lua_task *before = vm->task;
	lua_State *co = t->co;
	int results = 0;

	if (t == vm->body_task)
		vm->waiting = false;
	t->waiting = false;
	vm->task = t;
	int status = vm_resume(L, co, arguments, &results);
	vm->task = before;
	if (status == LUA_OK) {
		release(t);
		return true;
	}
	if (status == LUA_YIELD && !vm->overrun && (t->waiting || (t == vm->body_task && vm->waiting))) {
		lua_pop(co, results);
		return true;
	}
	fail(L, t, status);
	return false;
}

/* A piece of a task as a callback. */
static int run_body(lua_State *L)
{
	return run(L, lua_touserdata(L, 1), 0) ? 0 : lua_error(L);
}

/* Closes what a task has to close. What it has failed by was told already. */
static int close_body(lua_State *L)
{
	struct lua_task *t = lua_touserdata(L, 1), *before = t->vm->task;

	if (t->why) {
		lua_rawgeti(L, LUA_REGISTRYINDEX, t->self_ref);
		lua_pushstring(L, t->why);
		lua_setiuservalue(L, -2, ERROR);
	}
	if (t->spent)
		return 0;
	t->vm->task = t;
	int status = vm_reset(L, t->co);
	t->vm->task = before;
	if (status == LUA_OK || t->failed)
		return 0;
	lua_xmove(t->co, L, 1);
	return lua_error(L);
}

/* fail(state, error): tells who waits for its results. */
static int fail_body(lua_State *L)
{
	struct lua_task *t = lua_touserdata(L, 1);

	lua_rawgeti(L, LUA_REGISTRYINDEX, t->self_ref);
	if (lua_getiuservalue(L, 2, FAIL) == LUA_TNIL)
		return 0;
	lua_getiuservalue(L, 2, STATE);
	lua_getiuservalue(L, 2, ERROR);
	return vm_call_script(L, 2);
}

/* Ends a task that has failed, or one that waits: why says what for (static). */
static void end(struct lua_task *t, const char *why)
{
	struct vm_call call = {.body = close_body, .argument = t, .callback = t->name, .subject = subject_of(t)};

	unqueue(t);
	stop_sleep(t);
	t->waiting = false;
	t->closing = true;
	if (!t->failed)
		t->why = why;
	vm_enter(t->vm, &call);
	call.body = fail_body;
	vm_enter(t->vm, &call);
	release(t);
}

/* Runs those that are ready now; others become ready meanwhile. */
static void run_queue(struct vm *vm)
{
	for (size_t left = vm->ready_count; left && vm->ready; left--) {
		struct lua_task *t = vm->ready;
		if (t->failed) {
			end(t, NULL);
			continue;
		}
		struct vm_call call = {.body = run_body, .argument = t, .callback = t->name, .subject = subject_of(t)};
		unqueue(t);
		vm_enter(vm, &call);
	}
}

/* Makes a task of the coroutine at index, with what is to be called if it fails; pushes it. */
static struct lua_task *make(lua_State *L, int co, const char *name)
{
	struct vm *vm = vm_of(L);
	struct lua_task *t = lua_newuserdatauv(L, sizeof *t, USER_VALUES);

	memset(t, 0, sizeof *t);
	t->vm = vm;
	t->name = name;
	t->co = lua_tothread(L, co);
	timer_init(&t->sleep, on_slept, t);
	lua_rawgetp(L, LUA_REGISTRYINDEX, &task_key);
	lua_setmetatable(L, -2);
	lua_pushvalue(L, co);
	lua_setiuservalue(L, -2, CO);
	lua_pushvalue(L, -1);
	t->self_ref = vm_ref(L);
	DL_APPEND(vm->tasks, t);
	return t;
}

/* Gives a task its owner, if a callback of a connection runs that is not its last one. */
static void set_owner(struct lua_task *t)
{
	struct lua_conn *lc = t->vm->call ? (struct lua_conn *)t->vm->call->subject : NULL; /* subjects are connections */

	if (!lc || !lc->c || lc->unbinding)
		return;
	t->owner = lc;
	DL_APPEND2(lc->tasks, t, owner_previous, owner_next);
	lc->coroutines = &hooks;
}

/* go(body, fail, state, ...): runs body(state, ...) in a coroutine. If that fails or is ended, fail(state, error) is called. */
static int l_go(lua_State *L)
{
	struct vm *vm = vm_of(L);
	int arguments = lua_gettop(L) - 2;

	vm_check_open(L);
	vm_check_alive(L);
	if (vm->cancelling)
		return luaL_error(L, "no coroutine can be started any more");
	luaL_checktype(L, 1, LUA_TFUNCTION);
	luaL_checktype(L, 2, LUA_TFUNCTION);
	luaL_checkany(L, 3);
	lua_State *co = lua_newthread(L);
	luaL_argcheck(L, lua_checkstack(co, arguments + 1), 4, "too many arguments");
	int thread = lua_gettop(L);
	struct lua_task *t = make(L, thread, "coroutine");
	lua_pushvalue(L, 2);
	lua_setiuservalue(L, -2, FAIL);
	lua_pushvalue(L, 3);
	lua_setiuservalue(L, -2, STATE);
	set_owner(t);
	lua_pushvalue(L, 1);
	lua_xmove(L, co, 1);
	for (int i = 3; i < thread; i++) {
		lua_pushvalue(L, i);
		lua_xmove(L, co, 1);
	}
	if (!run(L, t, arguments) && !vm->overrun) /* a callback that is being stopped is reported as a whole */
		vm_report(vm, subject_of(t), t->name, lua_tostring(L, -1));
	return 0;
}

/* The task at index. */
static struct lua_task *check_task(lua_State *L, int index)
{
	struct lua_task *t = NULL;

	if (lua_getmetatable(L, index)) {
		lua_rawgetp(L, LUA_REGISTRYINDEX, &task_key);
		if (lua_rawequal(L, -1, -2))
			t = lua_touserdata(L, index);
		lua_pop(L, 2);
	}
	if (!t)
		luaL_typeerror(L, index, "coroutine of em.go");
	return t;
}

/* The task that the caller is in, which may wait; raises for everybody else in the name of the function `name`. */
static struct lua_task *check_current(lua_State *L, const char *name)
{
	struct lua_task *t = vm_of(L)->task;

	if (!t)
		luaL_error(L, "%s waits, which only a coroutine of em.go can", name);
	if (t->closing)
		luaL_error(L, "%s cannot wait: the coroutine is being ended", name);
	if (L != t->co)
		luaL_error(L, "%s cannot wait inside of coroutine.wrap or coroutine.resume: call it in the function given to em.go", name);
	if (!lua_isyieldable(L))
		luaL_error(L,
		           "%s cannot wait inside of a callback, or of a C function that calls back (require, table.sort, string.gsub, tostring)",
		           name);
	return t;
}

/* current(name): the running task, which may wait; raises in the name of that function where there is none. */
static int l_current(lua_State *L)
{
	struct lua_task *t = check_current(L, luaL_checkstring(L, 1));

	lua_rawgeti(L, LUA_REGISTRYINDEX, t->self_ref);
	return 1;
}

/* suspend(): waits until somebody wakes the running task. */
static int l_suspend(lua_State *L)
{
	check_current(L, "suspend")->waiting = true;
	return lua_yield(L, 0);
}

/* wake(task): has it go on, later in this turn. False if it does not wait. */
static int l_wake(lua_State *L)
{
	lua_pushboolean(L, wake(check_task(L, 1)));
	return 1;
}

/* waits(task): does it still wait for being woken? */
static int l_waits(lua_State *L)
{
	struct lua_task *t = check_task(L, 1);

	lua_pushboolean(L, t->co && t->waiting && !t->ready);
	return 1;
}

/* sleep(s) */
static int l_sleep(lua_State *L)
{
	uint64_t ns = arg_seconds(L, 1);
	struct lua_task *t = check_current(L, "em.sleep");

	timer_start(t->vm->options.loop, &t->sleep, ns);
	t->vm->sleeping++;
	t->waiting = true;
	return lua_yield(L, 0);
}

/* reads(connection): the running task reads from it. True, or false where nothing comes any more; raises for what is no stream. */
static int l_reads(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);
	struct lua_task *t = vm_of(L)->task;
	struct lua_reading *r;

	if (!lc->c || lc->unbinding) {
		lua_pushboolean(L, false);
		return 1;
	}
	if (lc->c->transport || lc->c->watch_only)
		return luaL_error(L, "coroutines read from streams, not from datagram sockets and watches");
	lc->coroutines = &hooks;
	DL_SEARCH_SCALAR(t->readings, r, lc, lc);
	if (!r) {
		r = vm_keep(t->vm, sizeof *r);
		r->task = t;
		r->lc = lc;
		DL_APPEND(t->readings, r);
		DL_APPEND2(lc->readings, r, conn_previous, conn_next);
	}
	lua_pushboolean(L, true);
	return 1;
}

/* hold(connection, flag): stops and resumes reading for want of room. A relay does that for itself. */
static int l_hold(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);

	if (lc->c && !lc->c->relay)
		conn_hold(lc->c, lua_toboolean(L, 2));
	return 0;
}

/* set_reader(receive, over): what keeps bytes, receive(connection, bytes), and what is told of their end, over(connection, for_good, code,
 * why): for_good is false for the peer's end alone. */
static int l_set_reader(lua_State *L)
{
	arg_function(L, 1);
	arg_function(L, 2);
	lua_settop(L, 2);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &over_key);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &receive_key);
	return 0;
}

/* Pushes what keeps bytes. */
static void push_receive(lua_State *L)
{
	lua_rawgetp(L, LUA_REGISTRYINDEX, &receive_key);
}

/* An end on its way into the VM. */
struct over_call {
	struct lua_conn *lc;
	bool for_good;
};

/* over(connection, for_good, code, why) */
static int over_body(lua_State *L)
{
	struct over_call *o = lua_touserdata(L, 1);
	const struct conn *c = o->lc->c;

	lua_rawgetp(L, LUA_REGISTRYINDEX, &over_key);
	lua_rawgeti(L, LUA_REGISTRYINDEX, o->lc->subject.self_ref);
	lua_pushboolean(L, o->for_good);
	lua_pushstring(L, o->for_good ? c->end_code : NULL);
	lua_pushstring(L, o->for_good ? c->end_why : "eof");
	return vm_call_script(L, 4);
}

/* Tells those who read of an end. */
static void tell_end(struct lua_conn *lc, bool for_good)
{
	struct over_call o = {.lc = lc, .for_good = for_good};
	struct vm_call call = {.body = over_body, .argument = &o, .callback = "coroutine", .subject = &lc->subject};

	vm_enter(lc->vm, &call);
}

/* The peer's end. Whoever reads learns of it, and may answer; coroutines that do not read do not keep a connection. */
static bool on_eof(struct lua_conn *lc)
{
	tell_end(lc, false);
	return lc->readings != NULL;
}

/* The end of a connection: those who read from it get what is left, then those that are its own are ended. */
static void on_ended(struct lua_conn *lc)
{
	bool unbinding = lc->unbinding;
	const char *why = lc->c ? lc->c->end_why : "closed";

	lc->unbinding = true; /* it has ended for those who read; what is started now is nobody's */
	lc->eof_waits = false;
	if (lc->c)
		tell_end(lc, true);
	run_queue(lc->vm);
	while (lc->tasks)
		end(lc->tasks, why);
	lc->unbinding = unbinding;
	while (lc->readings)
		drop_reading(lc->readings);
}

static const struct lua_conn_coroutines hooks = {.push_receive = push_receive, .on_eof = on_eof, .on_ended = on_ended};

/* Starts a script's body. */
void lua_go_script(lua_State *L, int arguments)
{
	struct vm *vm = vm_of(L);
	struct lua_task *t = make(L, lua_gettop(L), "script");

	vm->body_task = t;
	vm->body = t->co;
	if (!run(L, t, arguments))
		lua_error(L);
}

/* Goes on with it. */
void lua_go_resume_script(lua_State *L)
{
	struct vm *vm = vm_of(L);

	if (vm->body_task && vm->waiting && !run(L, vm->body_task, 0))
		lua_error(L);
}

/* Ends those that are nobody's. */
void lua_go_cancel_all(struct vm *vm)
{
	struct lua_task *t, *next;

	vm->cancelling = true;
	DL_FOREACH_SAFE(vm->tasks, t, next)
	if (!t->owner && !(t == vm->body_task && vm->waiting))
		end(t, "stopped");
	vm->cancelling = false;
}

/* Is there something to wait for? */
bool lua_go_busy(const struct vm *vm)
{
	return vm->ready || vm->sleeping;
}

static const luaL_Reg functions[] = {
	{"go", l_go},       {"current", l_current}, {"suspend", l_suspend},       {"wake", l_wake}, {"waits", l_waits}, {"sleep", l_sleep},
	{"reads", l_reads}, {"hold", l_hold},       {"set_reader", l_set_reader}, {NULL, NULL},
};

/* Registers all of it. */
void lua_go_open(lua_State *L)
{
	lua_pushvalue(L, 1);
	luaL_setfuncs(L, functions, 0);
	lua_pop(L, 1);
	lua_createtable(L, 0, 2);
	lua_pushliteral(L, "coroutine of em.go");
	lua_setfield(L, -2, "__name");
	lua_pushliteral(L, "coroutine of em.go");
	lua_setfield(L, -2, "__metatable");
	lua_rawsetp(L, LUA_REGISTRYINDEX, &task_key);
	vm_of(L)->coroutines = &hooks;
}
