/*
 * The one door into Lua. The outermost callback runs on a coroutine of its own, because a hook that yields is the one way to end a
 * script that catches every error; callbacks entered from within a callback are plain protected calls on the running coroutine.
 */
#include "lua_vm.h"

#include <stdlib.h>
#include <string.h>

#include "mem.h"

#define COLLECT_EVERY_NS 1000000000u
#define COLLECT_AFTER (8 * 1024 * 1024) /* bytes that a small VM may allocate between two collections */
#define REPORT_RESERVE (1024 * 1024)    /* bytes over the ceiling for telling that it was met */

/* Memory of vm_keep. */
struct vm_block {
	struct vm *vm;
	struct vm_block *previous, *next;
	_Alignas(max_align_t) char bytes[];
};

static void on_collect(void *data);

static const char overrun_message[] = "callback stopped: it ran longer than callback_time";

/* Lua's allocator: counts, and refuses what would pass the ceiling. Lua then collects and tries once more. */
static void *allocate(void *data, void *old, size_t old_size, size_t size)
{
	struct vm *vm = data;
	struct stats *stats = vm->options.loop->stats;

	if (!old)
		old_size = 0; /* it is a type then */
	if (size == 0) {
		free(old);
		vm->memory -= old_size;
		stats->lua_memory -= old_size;
		return NULL;
	}
	size_t left = vm->memory < vm->memory_limit ? vm->memory_limit - vm->memory : 0;
	if (size > old_size && size - old_size > left)
		return NULL;
	void *block = realloc(old, size);
	if (block) {
		vm->memory += size - old_size;
		stats->lua_memory += size - old_size;
	}
	return block;
}

/* An error outside of every protected call is a fault of ours. */
static int on_panic(lua_State *L)
{
	log_error("internal error: unprotected error in Lua: %s", lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "?");
	return 0; /* Lua aborts */
}

/* Makes a state and lets open furnish it. */
struct vm *vm_new(const struct vm_options *options, lua_CFunction open, char **why)
{
	struct vm *vm = mem_zalloc(sizeof *vm);
	struct vm_call call = {.body = open, .argument = vm};

	vm->options = *options;
	vm->memory_limit = options->config->memory_limit;
	vm->loading = !options->is_script;
	timer_init(&vm->collect, on_collect, vm);
	vm->error_handler_ref = vm->hooks_ref = vm->ticks_ref = LUA_NOREF;
	vm->connection_ref = vm->metas_ref = vm->handlers_ref = vm->callback_ref = LUA_NOREF;
	vm->L = lua_newstate(allocate, vm);
	if (!vm->L) {
		*why = mem_strdup("memory_limit is too small for a Lua state");
		free(vm);
		return NULL;
	}
	*(struct vm **)lua_getextraspace(vm->L) = vm;
	lua_atpanic(vm->L, on_panic);
	vm->running = vm->L;
	if (!vm_try(vm, &call, why)) {
		timer_stop(options->loop, &vm->collect);
		lua_close(vm->L);
		free(vm);
		return NULL;
	}
	return vm;
}

/* Lets its next-ticks run. */
void vm_start(struct vm *vm)
{
	vm->loading = false;
	if (vm->next_tick > vm->first_tick)
		loop_wake(vm->options.loop);
}

/* Frees the state. Finalizers are scripts that may still run, without a time limit: Lua runs them with hooks off. */
void vm_free(struct vm *vm)
{
	if (!vm)
		return;
	loop_hook_remove(vm->options.loop, STAGE_TICK, &vm->tick);
	loop_hook_remove(vm->options.loop, STAGE_TICK, &vm->go);
	timer_stop(vm->options.loop, &vm->collect);
	vm->ending = true;
	lua_close(vm->L);
	free(vm->slow_traceback);
	while (vm->kept)
		vm_drop(vm->kept->bytes);
	free(vm);
}

/* Makes the traceback of the coroutine at index 1. */
static int make_traceback(lua_State *L)
{
	lua_State *co = lua_touserdata(L, 1);

	luaL_traceback(L, co, NULL, co == L ? 1 : 0);
	vm_of(L)->slow_traceback = mem_strdup(lua_tostring(L, -1));
	return 0;
}

/* Keeps the place where a slow callback is, which L runs. */
static void note_place(struct vm *vm, lua_State *L)
{
	vm->memory_limit += REPORT_RESERVE;
	lua_pushcfunction(L, make_traceback);
	lua_pushlightuserdata(L, L);
	if (lua_pcall(L, 1, 0, 0) != LUA_OK)
		lua_pop(L, 1); /* no memory, or no stack left: it is told without */
	vm->memory_limit -= REPORT_RESERVE;
}

/*
 * Notes where a callback is that has become slow, once. Ends what runs in the script: by yielding, which nothing in a script can catch, or
 * where C functions are in between by an error. Lua lets a hook yield at an instruction alone: at a call it would leave the coroutine with
 * its hooks off for ever.
 */
static void on_hook(lua_State *L, lua_Debug *debug)
{
	struct vm *vm = vm_of(L);

	if (vm->slow && !vm->slow_traceback)
		note_place(vm, L);
	if (!vm->overrun) {
		lua_sethook(L, NULL, 0, 0); /* left over in a coroutine that was stopped once and is resumed by a later callback */
	} else if (!lua_isyieldable(L)) {
		lua_pushstring(L, overrun_message);
		lua_error(L);
	} else if (debug->event == LUA_HOOKCOUNT) {
		lua_yield(L, 0);
	}
}

/* Makes the hook run at the next instruction of L, and at each one after it; at calls too, for C functions that call C functions. */
static void set_hook(lua_State *L)
{
	lua_sethook(L, on_hook, LUA_MASKCALL | LUA_MASKCOUNT, 1);
}

/* Does what runs next in L meet the hook? */
static void hook_if_wanted(struct vm *vm, lua_State *L)
{
	if (vm->overrun || (vm->slow && !vm->slow_traceback))
		set_hook(L);
}

/* From the guard's signal handler, on this thread. */
void vm_on_slow(void *subject)
{
	struct vm *vm = subject;

	vm->slow = true;
	set_hook(vm->running);
}

/* The same. */
void vm_on_overrun(void *subject)
{
	struct vm *vm = subject;

	vm->overrun = true;
	set_hook(vm->running);
}

/* Runs a coroutine and knows meanwhile that it is the one that runs. */
int vm_resume(lua_State *L, lua_State *co, int arguments, int *results)
{
	struct vm *vm = vm_of(L);
	lua_State *before = vm->running;

	vm->running = co;
	hook_if_wanted(vm, co);
	int status = lua_resume(co, L, arguments, results);
	vm->running = before;
	hook_if_wanted(vm, before);
	return status;
}

/* Closes what is pending in a coroutine that has failed, as lua_resetthread does. */
int vm_reset(lua_State *L, lua_State *co)
{
	struct vm *vm = vm_of(L);
	lua_State *before = vm->running;

	vm->running = co;
	hook_if_wanted(vm, co);
	int status = lua_resetthread(co);
	vm->running = before;
	hook_if_wanted(vm, before);
	return status;
}

/* Nothing is left to do after a script's function has returned. */
static int after_script(lua_State *L, int status, lua_KContext context)
{
	(void)L, (void)status, (void)context;
	return 0;
}

/* Calls a script so that a hook may yield across this frame. */
int vm_call_script(lua_State *L, int arguments)
{
	lua_callk(L, arguments, 0, 0, after_script);
	return 0;
}

/* Makes a text by the script's __tostring. */
static int to_string(lua_State *L)
{
	luaL_tolstring(L, 1, NULL);
	return 1;
}

/* The text of an error object. */
void vm_error_text(lua_State *L)
{
	if (lua_isstring(L, -1)) {
		lua_tostring(L, -1); /* a number becomes one */
	} else if (luaL_getmetafield(L, -1, "__tostring") != LUA_TNIL) {
		lua_pushcfunction(L, to_string);
		lua_replace(L, -2);
		lua_pushvalue(L, -2);
		if (lua_pcall(L, 1, 1, 0) == LUA_OK)
			return;
		lua_pushliteral(L, "error in error handling");
		lua_replace(L, -2);
	} else {
		lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, -1));
	}
}

/* Message handler of nested calls: adds the traceback while the stack is still there. */
static int on_nested_error(lua_State *L)
{
	vm_error_text(L);
	luaL_traceback(L, L, lua_tostring(L, -1), 1);
	return 1;
}

/* What describe_failure works on. */
struct failure {
	lua_State *co;
	int status;
	char *text;
};

/* Makes the message and traceback of a coroutine that has failed or was stopped. */
static int describe_failure(lua_State *L)
{
	struct failure *f = lua_touserdata(L, 1);
	struct vm *vm = vm_of(L);
	lua_Debug frame;

	if (f->status == LUA_YIELD) {
		lua_pushstring(L, vm->overrun ? overrun_message : "attempt to yield from outside a coroutine");
	} else {
		lua_xmove(f->co, L, 1);
		vm_error_text(L);
	}
	if (lua_getstack(f->co, 1, &frame)) /* above our own function: a script had its part in it */
		luaL_traceback(L, f->co, lua_tostring(L, -1), 0);
	f->text = mem_strdup(lua_tostring(L, -1));
	return 0;
}

/* Makes the coroutine that callbacks run on. */
static int make_callback_coroutine(lua_State *L)
{
	struct vm *vm = vm_of(L);
	lua_State *co = lua_newthread(L);
	int ref = luaL_ref(L, LUA_REGISTRYINDEX);

	luaL_unref(L, LUA_REGISTRYINDEX, vm->callback_ref);
	vm->callback_ref = ref;
	vm->callback = co;
	return 0;
}

/* A collection is through: a finalizer of an object that nobody holds, which makes the next such object. */
static int on_collected(lua_State *L)
{
	struct vm *vm = vm_of(L);

	vm->collected = true;
	if (vm->ending)
		return 0;
	lua_newuserdatauv(L, 0, 0);
	lua_getmetatable(L, 1);
	lua_setmetatable(L, -2);
	return 0;
}

/*
 * Says when the next collection begins: when memory has doubled, as in any Lua, but in a small VM not before it has allocated some MiB.
 * Most of what a small one has is the library, which each collection goes through.
 */
static void tune_collector(struct vm *vm)
{
	size_t percent = 100 + (size_t)COLLECT_AFTER * 100 / (vm->memory + 1);

	vm->collected = false;
	lua_gc(vm->L, LUA_GCINC, (int)(percent < 200 ? 200 : percent > 1000 ? 1000 : percent), 0, 0);
}

/* Makes the coroutine of a new VM. Where scripts cannot tune the collector themselves, we do. */
void vm_open_callbacks(lua_State *L)
{
	if (!vm_of(L)->options.is_script && !vm_of(L)->options.config->unsafe) {
		lua_newuserdatauv(L, 0, 0);
		lua_createtable(L, 0, 1);
		lua_pushcfunction(L, on_collected);
		lua_setfield(L, -2, "__gc");
		lua_setmetatable(L, -2);
		lua_pop(L, 1);
		tune_collector(vm_of(L));
	}
	lua_pushcfunction(L, make_callback_coroutine);
	lua_call(L, 0, 0);
}

/* Clears the callback coroutine after a failure; its pending __close are run under the same time limit. */
static void clear_callback(struct vm *vm)
{
	vm->running = vm->callback;
	lua_resetthread(vm->callback);
	vm->running = vm->L;
	lua_settop(vm->callback, 0);
}

/* Puts a new callback coroutine in the place of one that can not be used again. */
static void replace_callback(struct vm *vm)
{
	lua_pushcfunction(vm->L, make_callback_coroutine);
	if (lua_pcall(vm->L, 0, 0, 0) != LUA_OK)
		mem_exhausted(); /* despite the reserve: it is the system that has none */
}

/* Logs that a callback took long. */
static void report_slow(struct vm *vm, const struct vm_call *call, uint64_t time_ns)
{
	struct log_context context = {.callback = call->callback};
	char peer[ADDR_TEXT_SIZE];

	if (call->subject)
		call->subject->describe(call->subject, &context, peer);
	vm->options.loop->stats->callbacks_slow++;
	log_event(LEVEL_WARN, &context, "slow callback: it took %.3f s%s%s", (double)time_ns / 1e9,
	          vm->slow_traceback ? "; after slow_callback it was here\n" : "", vm->slow_traceback ? vm->slow_traceback : "");
}

/* The outermost call: on the callback coroutine. Returns the error's text (caller frees) or NULL. */
static char *enter_outer(struct vm *vm, struct vm_call *call, bool *out_of_memory)
{
	lua_State *L = vm->callback ? vm->callback : vm->L;
	struct failure f = {.co = L};
	int results = 0;
	bool is_spent = false;
	struct loop *loop = vm->options.loop;
	uint64_t began = loop_begin(loop);

	guard_enter(vm->options.guard, vm);
	vm->depth++;
	vm->running = L;
	lua_pushcfunction(L, call->body);
	lua_pushlightuserdata(L, call->argument);
	/* while the VM is being furnished there is no coroutine yet */
	f.status = L == vm->L ? lua_pcall(L, 1, 0, 0) : lua_resume(L, NULL, 1, &results);
	vm->running = vm->L;
	*out_of_memory = f.status == LUA_ERRMEM;
	if (f.status == LUA_OK) {
		lua_settop(L, 0);
	} else {
		vm->memory_limit += REPORT_RESERVE;
		guard_enter(vm->options.guard, vm); /* time of its own: it may call the script's __tostring */
		lua_pushcfunction(vm->L, describe_failure);
		lua_pushlightuserdata(vm->L, &f);
		if (L == vm->L) { /* the error object is on this very stack */
			lua_pop(L, 2);
			f.text = mem_strdup(lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "error");
			lua_settop(L, 0);
		} else {
			if (lua_pcall(vm->L, 1, 0, 0) != LUA_OK || !f.text) {
				free(f.text);
				f.text = mem_strdup(*out_of_memory ? "not enough memory" : "error in error handling");
			}
			lua_settop(vm->L, 0);
			/* An error that our hook has raised leaves a coroutine with its hooks off: what it had to close would have no limit,
			 * and is not run. After a yield Lua does not forget the message handler of an xpcall that was never left: it would
			 * take what lies in that place of the stack later for the handler of the next error. */
			is_spent = vm->overrun || f.status == LUA_YIELD;
			if (!vm->overrun || f.status == LUA_YIELD)
				clear_callback(vm);
		}
	}
	guard_leave(vm->options.guard); /* no overrun comes up behind the next line */
	if (vm->overrun || vm->slow) {
		loop->stats->callbacks_stopped += vm->overrun && f.text;
		lua_sethook(vm->L, NULL, 0, 0);
		if (vm->callback)
			lua_sethook(vm->callback, NULL, 0, 0);
		if (!vm->overrun)
			report_slow(vm, call, loop_clock() - began);
		free(vm->slow_traceback);
		vm->slow_traceback = NULL;
		vm->slow = vm->overrun = false;
	}
	if (is_spent)
		replace_callback(vm);
	if (f.status != LUA_OK)
		vm->memory_limit -= REPORT_RESERVE;
	if (vm->collected)
		tune_collector(vm);
	vm->depth--;
	if (call->callback)
		scorer_callback(loop->scorer, call->subject ? call->subject->label : SCORE_SCRIPT, call->callback, loop_clock() - began);
	return f.text;
}

/* A call from within a callback: protected on the coroutine that runs. */
static char *enter_nested(struct vm *vm, struct vm_call *call, bool *out_of_memory)
{
	lua_State *L = vm->running;
	char *text = NULL;

	if (!lua_checkstack(L, 16))
		return mem_strdup("stack overflow");
	vm->depth++;
	lua_pushcfunction(L, on_nested_error);
	lua_pushcfunction(L, call->body);
	lua_pushlightuserdata(L, call->argument);
	int status = lua_pcall(L, 1, 0, -3);
	*out_of_memory = status == LUA_ERRMEM;
	if (status != LUA_OK) {
		text = mem_strdup(lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "error in error handling");
		lua_pop(L, 1);
	}
	lua_pop(L, 1);
	vm->depth--;
	return text;
}

/* Memory ran out. If a full collection does not help, the data is alive and the host has to replace the VM. It takes long where there is
 * much, and handlers may fail often: then the next one waits a while. */
static void check_memory(struct vm *vm)
{
	if (vm->depth || vm->exhausted || timer_waiting(&vm->collect))
		return;
	timer_start(vm->options.loop, &vm->collect, COLLECT_EVERY_NS);
	vm->collect_wanted = false;
	lua_gc(vm->L, LUA_GCCOLLECT); /* not under the guard: it would stop the next callback for the time this takes */
	if (vm->memory > vm->memory_limit / 10 * 9 && vm->options.host->on_exhausted) {
		vm->exhausted = true;
		vm->options.host->on_exhausted(vm);
	}
}

/* Enough time has passed since the last full collection. */
static void on_collect(void *data)
{
	struct vm *vm = data;

	if (vm->collect_wanted)
		check_memory(vm);
}

/* Enters and hands an error's text to the caller. */
bool vm_try(struct vm *vm, struct vm_call *call, char **why)
{
	struct vm_call *before = vm->call;
	bool out_of_memory = false;

	vm->options.loop->stats->callbacks++;
	vm->call = call;
	*why = vm->depth ? enter_nested(vm, call, &out_of_memory) : enter_outer(vm, call, &out_of_memory);
	vm->call = before;
	if (out_of_memory) {
		vm->collect_wanted = true;
		check_memory(vm);
	}
	return *why == NULL;
}

/* What the error handler is called with. */
struct error_event {
	struct vm *vm;
	const char *message;
	int self_ref;
};

/* Calls em.error_handler's function. */
static int call_error_handler(lua_State *L)
{
	struct error_event *e = lua_touserdata(L, 1);

	lua_rawgeti(L, LUA_REGISTRYINDEX, e->vm->error_handler_ref);
	lua_pushstring(L, e->message);
	lua_rawgeti(L, LUA_REGISTRYINDEX, e->self_ref); /* nil for LUA_NOREF */
	return vm_call_script(L, 2);
}

/* The place at the head of a message, "file.lua:LINE", for the log's field; into text. Returns text or NULL. */
static const char *error_source(const char *message, char *text, size_t size)
{
	const char *colon = strchr(message, ':');

	while (colon && !(colon[1] >= '0' && colon[1] <= '9'))
		colon = strchr(colon + 1, ':');
	if (!colon)
		return NULL;
	size_t length = (size_t)(colon + 1 - message) + strspn(colon + 1, "0123456789");
	if (length >= size || memchr(message, '\n', length))
		return NULL;
	memcpy(text, message, length);
	text[length] = '\0';
	return text;
}

/* Logs, counts, tells the error handler, ends the subject. */
void vm_report(struct vm *vm, struct vm_subject *subject, const char *callback, const char *message)
{
	struct log_context context = {.callback = callback};
	char source[256], peer[ADDR_TEXT_SIZE];

	vm->options.loop->stats->handler_errors++;
	context.source = error_source(message, source, sizeof source);
	if (subject)
		subject->describe(subject, &context, peer);
	log_event(LEVEL_ERROR, &context, "handler error: %s", message);

	bool handled = vm->error_handler_ref != LUA_NOREF && !vm->in_error_handler;
	if (handled) {
		struct error_event event = {.vm = vm, .message = message, .self_ref = subject ? subject->self_ref : LUA_NOREF};
		struct vm_call call = {.body = call_error_handler, .argument = &event, .callback = "error_handler"};
		vm->in_error_handler = true;
		vm_enter(vm, &call);
		vm->in_error_handler = false;
	}
	if (subject)
		subject->failed(subject, message);
	else if (!handled && vm->options.host->on_uncaught)
		vm->options.host->on_uncaught(vm);
}

/* The door. */
bool vm_enter(struct vm *vm, struct vm_call *call)
{
	char *message;

	if (vm_try(vm, call, &message))
		return true;
	vm_report(vm, call->subject, call->callback, message);
	free(message);
	return false;
}

/* Nothing is opened while handlers load. */
void vm_check_open(lua_State *L)
{
	if (vm_of(L)->loading)
		luaL_error(L, "nothing can be opened while handlers load: do it in em.next_tick(fn) or em.run(fn)");
}

/* Takes a counted reference. */
int vm_ref(lua_State *L)
{
	struct vm *vm = vm_of(L);
	int ref = luaL_ref(L, LUA_REGISTRYINDEX);

	if (ref != LUA_REFNIL) {
		vm->references++;
		vm->options.loop->stats->references++;
	}
	return ref;
}

/* Gives it back; allocates nothing. */
void vm_unref(struct vm *vm, int *ref)
{
	if (*ref != LUA_NOREF && *ref != LUA_REFNIL) {
		luaL_unref(vm->L, LUA_REGISTRYINDEX, *ref);
		vm->references--;
		vm->options.loop->stats->references--;
	}
	*ref = LUA_NOREF;
}

/* Takes one function out of the queue and calls it. */
static int run_tick(lua_State *L)
{
	struct vm *vm = lua_touserdata(L, 1);

	lua_rawgeti(L, LUA_REGISTRYINDEX, vm->ticks_ref);
	lua_rawgeti(L, -1, vm->first_tick);
	lua_pushnil(L);
	lua_rawseti(L, -3, vm->first_tick++);
	return vm_call_script(L, 0);
}

/* The turn's step for next-ticks: those queued before it began. */
static void run_ticks(void *data)
{
	struct vm *vm = data;
	lua_Integer end = vm->next_tick;

	if (vm->loading)
		return;
	while (vm->first_tick < end) {
		lua_Integer at = vm->first_tick;
		struct vm_call call = {.body = run_tick, .argument = vm, .callback = "next_tick"};
		vm_enter(vm, &call);
		if (vm->first_tick == at)
			vm->first_tick++; /* it failed before it had begun */
	}
	if (vm->first_tick < vm->next_tick)
		loop_wake(vm->options.loop);
}

/* Refuses what a finalizer would start when its VM goes. */
void vm_check_alive(lua_State *L)
{
	if (vm_of(L)->ending)
		luaL_error(L, "nothing can be started any more");
}

/* Takes memory. */
void *vm_keep(struct vm *vm, size_t size)
{
	struct vm_block *b = mem_zalloc(sizeof *b + size);

	b->vm = vm;
	b->next = vm->kept;
	if (b->next)
		b->next->previous = b;
	vm->kept = b;
	return b->bytes;
}

/* Gives it back. */
void vm_drop(void *bytes)
{
	if (!bytes)
		return;

	struct vm_block *b = (struct vm_block *)((char *)bytes - offsetof(struct vm_block, bytes));
	if (b->previous)
		b->previous->next = b->next;
	else
		b->vm->kept = b->next;
	if (b->next)
		b->next->previous = b->previous;
	free(b);
}

/* Queues a function. */
void vm_next_tick(lua_State *L)
{
	struct vm *vm = vm_of(L);

	vm_check_alive(L);
	if (vm->ticks_ref == LUA_NOREF) {
		lua_newtable(L);
		vm->ticks_ref = luaL_ref(L, LUA_REGISTRYINDEX); /* the VM's own, not counted */
		vm->first_tick = vm->next_tick = 1;
		vm->tick = (struct loop_hook){.run = run_ticks, .data = vm};
		loop_hook_add(vm->options.loop, STAGE_TICK, &vm->tick);
	}
	lua_rawgeti(L, LUA_REGISTRYINDEX, vm->ticks_ref);
	lua_insert(L, -2);
	lua_rawseti(L, -2, vm->next_tick);
	lua_pop(L, 1);
	vm->next_tick++;
	loop_wake(vm->options.loop);
}
