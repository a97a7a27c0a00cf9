/*
 * The core of em: next-ticks, stopping, errors, scripts. The rest of the module is Lua in handlers/em/, loaded as "em"; it finds what
 * is registered here as "em.core".
 */
#include "lua_core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "channel.h"
#include "lua_arg.h"
#include "lua_channel.h"
#include "lua_conn.h"
#include "lua_dns.h"
#include "lua_file.h"
#include "lua_freeze.h"
#include "lua_go.h"
#include "lua_handler.h"
#include "lua_methods.h"
#include "lua_net.h"
#include "lua_process.h"
#include "lua_relay.h"
#include "lua_sandbox.h"
#include "lua_shared.h"
#include "lua_signal.h"
#include "lua_source.h"
#include "lua_sys.h"
#include "lua_timer.h"
#include "lua_tls.h"
#include "lua_udp.h"
#include "lua_watch.h"
#include "mem.h"

#define MAX_DRAIN 1e9       /* seconds: for ever, and still far from what overflows */
#define HOOKS_OF_HOOKS 1000 /* shutdown hooks that shutdown hooks may add: a stop has an end */

/* next_tick(fn) */
static int l_next_tick(lua_State *L)
{
	arg_function(L, 1);
	lua_settop(L, 1);
	vm_next_tick(L);
	return 0;
}

/* stop([{drain = seconds, status = n}]) */
static int l_stop(lua_State *L)
{
	struct vm *vm = vm_of(L);
	double drain = -1;
	lua_Integer status = -1;

	if (vm->loading)
		return luaL_error(L, "the process cannot be stopped while handlers load");
	if (!lua_isnoneornil(L, 1)) {
		static const char *const names[] = {"drain", "status", NULL};
		lua_settop(L, 1);
		arg_options(L, 1, names);
		if (lua_getfield(L, 1, "drain") != LUA_TNIL) {
			luaL_argcheck(L, lua_isnumber(L, 2) && lua_tonumber(L, 2) >= 0, 1, "drain must be a number of seconds");
			drain = lua_tonumber(L, 2) < MAX_DRAIN ? lua_tonumber(L, 2) : MAX_DRAIN;
		}
		if (lua_getfield(L, 1, "status") != LUA_TNIL) {
			luaL_argcheck(L, lua_isinteger(L, 3) && lua_tointeger(L, 3) >= 0 && lua_tointeger(L, 3) <= 255, 1,
			              "status must be a whole number from 0 to 255");
			status = lua_tointeger(L, 3);
		}
	}
	vm->options.host->on_stop(vm, drain, (int)status);
	return 0;
}

/* os.exit in a script: the loop stops with that status. */
static int l_exit(lua_State *L)
{
	struct vm *vm = vm_of(L);
	int status = lua_isnoneornil(L, 1) ? 0 : lua_isboolean(L, 1) ? !lua_toboolean(L, 1) : (int)arg_integer(L, 1, 0, 255);

	vm->options.host->on_stop(vm, -1, status);
	return 0;
}

/* stopping() */
static int l_stopping(lua_State *L)
{
	struct vm *vm = vm_of(L);

	lua_pushboolean(L, vm->options.host->stopping && vm->options.host->stopping(vm));
	return 1;
}

/* reactor_running(): not while handlers load, nor in a script's body outside of em.run. */
static int l_reactor_running(lua_State *L)
{
	struct vm *vm = vm_of(L);

	lua_pushboolean(L, !vm->loading && (L != vm->body || vm->in_run));
	return 1;
}

/* loading(): do handler files load? */
static int l_loading(lua_State *L)
{
	lua_pushboolean(L, vm_of(L)->loading);
	return 1;
}

/* error_handler([fn]): sets or, without fn, removes it. */
static int l_error_handler(lua_State *L)
{
	struct vm *vm = vm_of(L);
	int ref = LUA_NOREF;

	if (!lua_isnoneornil(L, 1)) {
		arg_function(L, 1);
		lua_settop(L, 1);
		ref = luaL_ref(L, LUA_REGISTRYINDEX);
	}
	luaL_unref(L, LUA_REGISTRYINDEX, vm->error_handler_ref);
	vm->error_handler_ref = ref;
	return 0;
}

/* add_shutdown_hook(fn) */
static int l_add_shutdown_hook(lua_State *L)
{
	struct vm *vm = vm_of(L);

	arg_function(L, 1);
	if (vm->hooks_ref == LUA_NOREF) {
		lua_newtable(L);
		vm->hooks_ref = luaL_ref(L, LUA_REGISTRYINDEX);
	}
	lua_rawgeti(L, LUA_REGISTRYINDEX, vm->hooks_ref);
	lua_pushvalue(L, 1);
	lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
	return 0;
}

/* Handler of protect: adds the traceback. */
static int on_error(lua_State *L)
{
	lua_settop(L, 1);
	vm_error_text(L);
	luaL_traceback(L, L, lua_tostring(L, -1), 1);
	return 1;
}

/* After the function of protect: an error is a callback's error. */
static int protect_done(lua_State *L, int status, lua_KContext context)
{
	struct vm *vm = vm_of(L);

	(void)context;
	if (status != LUA_OK && status != LUA_YIELD && !vm->overrun) { /* a callback that is being stopped is reported as a whole */
		struct lua_conn *lc = lua_conn_test(L, 1);
		struct vm_subject *whose = lc ? &lc->subject : vm->call && !lua_isuserdata(L, 1) ? vm->call->subject : NULL;
		vm_report(vm, whose, lua_tostring(L, 2), lua_tostring(L, -1));
	}
	lua_pushboolean(L, status == LUA_OK || status == LUA_YIELD);
	return 1;
}

/* protect(object, name, fn, ...): calls fn(...); an error in it is reported as that of the callback `name` of object: of a connection, of
 * a server (which goes on), or if it is the script's own of whom the running callback belongs to. True if there was none. */
static int l_protect(lua_State *L)
{
	luaL_checkstring(L, 2);
	luaL_checkany(L, 3);
	lua_pushcfunction(L, on_error);
	lua_insert(L, 3);
	int status = lua_pcallk(L, lua_gettop(L) - 4, 0, 3, 0, protect_done);
	return protect_done(L, status, 0);
}

/* waitable(): is the caller a script's body, which em.run may suspend? */
static int l_waitable(lua_State *L)
{
	struct vm *vm = vm_of(L);

	lua_pushboolean(L, L == vm->body && !vm->in_run && lua_isyieldable(L));
	return 1;
}

/* set_run(flag): the body is in em.run, or not any more. */
static int l_set_run(lua_State *L)
{
	vm_of(L)->in_run = lua_toboolean(L, 1);
	return 0;
}

/* wait_stop(): suspends the body until the loop has stopped. */
static int l_wait_stop(lua_State *L)
{
	vm_of(L)->waiting = true;
	return lua_yield(L, 0);
}

/* process(): index and count of reactor processes. */
static int l_process(lua_State *L)
{
	const struct loop *loop = vm_of(L)->options.loop;

	lua_pushinteger(L, loop->process);
	lua_pushinteger(L, loop->processes);
	return 2;
}

static const luaL_Reg functions[] = {
	{"next_tick", l_next_tick},
	{"stop", l_stop},
	{"stop_event_loop", l_stop},
	{"stopping", l_stopping},
	{"reactor_running", l_reactor_running},
	{"loading", l_loading},
	{"error_handler", l_error_handler},
	{"add_shutdown_hook", l_add_shutdown_hook},
	{"protect", l_protect},
	{"waitable", l_waitable},
	{"set_run", l_set_run},
	{"wait_stop", l_wait_stop},
	{"process", l_process},
	{NULL, NULL},
};

/* A searcher of package.searchers for Lua files, text only. */
static int l_search(lua_State *L)
{
	const char *name = luaL_checkstring(L, 1);

	lua_getglobal(L, "package");
	if (lua_getfield(L, -1, "path") != LUA_TSTRING || !lua_source_search(L, name, lua_tostring(L, -1))) {
		lua_getfield(L, 2, "searchpath");
		lua_pushvalue(L, 1);
		lua_pushvalue(L, 3);
		lua_call(L, 2, 2);
		if (lua_isnil(L, -2))
			return 1; /* where it was looked for */
		lua_pop(L, 1);
	}
	if (lua_source_load(L, lua_tostring(L, -1)) != LUA_OK)
		return luaL_error(L, "error loading module '%s': %s", name, lua_tostring(L, -1));
	lua_pushvalue(L, -2);
	return 2;
}

/* A searcher for modules in C under the path of the configuration, whatever a script has made of package.cpath. Upvalues: the searcher
 * of the standard library, package, the path. */
static int l_search_c(lua_State *L)
{
	lua_settop(L, 1);
	lua_pushliteral(L, "cpath");
	lua_pushvalue(L, lua_upvalueindex(3));
	lua_rawset(L, lua_upvalueindex(2));
	lua_pushvalue(L, lua_upvalueindex(1));
	lua_insert(L, 1);
	lua_call(L, 1, LUA_MULTRET);
	return lua_gettop(L);
}

/* Binds the searchers for modules in C (package.searchers is on top of the stack) to a path; NULL: there are none. */
static void bind_c_searchers(lua_State *L, int package, const char *cpath)
{
	for (int i = 3; i <= 4; i++) {
		if (cpath) {
			lua_rawgeti(L, -1, i);
			lua_pushvalue(L, package);
			lua_pushstring(L, cpath);
			lua_pushcclosure(L, l_search_c, 3);
		} else {
			lua_pushnil(L);
		}
		lua_rawseti(L, -2, i);
	}
}

/* Adds a folder's templates to the path being built on top of the stack. */
static void add_folder(lua_State *L, const char *folder)
{
	lua_pushfstring(L, "%s%s%s/?.lua;%s/?/init.lua", lua_tostring(L, -1), *lua_tostring(L, -1) ? ";" : "", folder, folder);
	lua_remove(L, -2);
}

/* Sets up require: the script's folder, the handlers' folders, lua_path, the library. */
static void open_package(lua_State *L)
{
	const struct vm_options *o = &vm_of(L)->options;
	const struct config *config = o->config;
	bool open = o->is_script || config->unsafe;

	lua_getglobal(L, "package");
	int package = lua_gettop(L);
	lua_pushliteral(L, "");
	if (o->script_dir)
		add_folder(L, o->script_dir);
	for (size_t i = 0; i < config->handlers.count; i++)
		add_folder(L, config->handlers.items[i]);
	if (config->lua_path) {
		lua_pushfstring(L, "%s%s%s", lua_tostring(L, -1), *lua_tostring(L, -1) ? ";" : "", config->lua_path);
		lua_remove(L, -2);
	}
	add_folder(L, o->library_dir);
	if (open) { /* a trusted script also has what Debian's packages bring */
		lua_getfield(L, package, "path");
		lua_pushfstring(L, "%s;%s", lua_tostring(L, -2), lua_tostring(L, -1));
		lua_replace(L, -3);
		lua_pop(L, 1);
	}
	lua_setfield(L, package, "path");
	if (config->lua_cpath || !open) {
		lua_pushstring(L, config->lua_cpath ? config->lua_cpath : "");
		lua_setfield(L, package, "cpath");
	}
	lua_getfield(L, package, "searchers");
	lua_pushcfunction(L, l_search);
	lua_rawseti(L, -2, 2);
	if (!open)
		bind_c_searchers(L, package, config->lua_cpath);
	lua_settop(L, package - 1);
}

/* Furnishes a new VM: the argument is the VM. */
static int open_vm(lua_State *L)
{
	struct vm *vm = lua_touserdata(L, 1);
	bool restricted = !vm->options.is_script && !vm->options.config->unsafe;

	lua_sandbox_open(L, restricted);
	open_package(L);
	lua_settop(L, 0);
	lua_newtable(L); /* em.core, at index 1 */
	luaL_setfuncs(L, functions, 0);
	lua_conn_open(L);
	lua_methods_open(L);
	lua_setfield(L, 1, "Connection");
	lua_channel_open(L);
	lua_shared_open(L);
	lua_handler_open(L);
	lua_udp_open(L);
	lua_net_open(L);
	lua_dns_open(L);
	lua_timer_open(L);
	lua_go_open(L);
	lua_signal_open(L);
	lua_process_open(L);
	lua_relay_open(L);
	lua_tls_open(L);
	lua_file_open(L);
	lua_watch_open(L);
	lua_sys_open(L);
	lua_pushliteral(L, VERSION);
	lua_setfield(L, 1, "VERSION");
	if (vm->options.is_script) {
		lua_getglobal(L, "os");
		lua_pushcfunction(L, l_exit);
		lua_setfield(L, -2, "exit");
		lua_pop(L, 1);
	}
	luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
	lua_pushvalue(L, 1);
	lua_setfield(L, -2, "em.core");
	lua_settop(L, 1);
	lua_getglobal(L, "require");
	lua_pushliteral(L, "em");
	lua_call(L, 1, 0);
	if (restricted)
		lua_freeze_all(L);
	vm_open_callbacks(L);
	return 0;
}

/* A whole VM. */
struct vm *core_new(const struct vm_options *options, char **why)
{
	return vm_new(options, open_vm, why);
}

/* A script to start. */
struct script {
	const char *path;
	int count;
	char **arguments;
};

/* Loads a script, sets arg and ..., runs its body as a coroutine. */
static int script_body(lua_State *L)
{
	struct script *s = lua_touserdata(L, 1);

	lua_createtable(L, s->count, 1);
	lua_pushstring(L, s->path);
	lua_rawseti(L, -2, 0);
	for (int i = 0; i < s->count; i++) {
		lua_pushstring(L, s->arguments[i]);
		lua_rawseti(L, -2, i + 1);
	}
	lua_setglobal(L, "arg");
	lua_State *co = lua_newthread(L);
	luaL_checkstack(co, s->count + 4, "too many arguments");
	if (luaL_loadfilex(co, s->path, "t") != LUA_OK) {
		lua_xmove(co, L, 1);
		if (strncmp(lua_tostring(L, -1), "attempt to load", 15) == 0) { /* the one reason that does not name the file */
			lua_pushfstring(L, "%s: %s", s->path, lua_tostring(L, -1));
			lua_replace(L, -2);
		}
		return lua_error(L);
	}
	for (int i = 0; i < s->count; i++)
		lua_pushstring(co, s->arguments[i]);
	lua_go_script(L, s->count);
	return 0;
}

/* Goes on with the body. */
static int resume_script_body(lua_State *L)
{
	lua_go_resume_script(L);
	return 0;
}

/* Starts a script. */
void core_run_script(struct vm *vm, const char *path, int count, char **arguments)
{
	struct script s = {.path = path, .count = count, .arguments = arguments};
	struct vm_call call = {.body = script_body, .argument = &s, .callback = "script"};

	vm_enter(vm, &call);
}

/* Continues a script. */
void core_resume_script(struct vm *vm)
{
	struct vm_call call = {.body = resume_script_body, .callback = "script"};

	vm->closing = false;
	vm_enter(vm, &call);
}

/* Is there anything to wait for? */
bool core_busy(const struct vm *vm)
{
	return vm->conn_count || vm->server_count || vm->timer_count || vm->lookups || channels_pending(vm->options.channels) ||
	       vm->first_tick < vm->next_tick || lua_go_busy(vm);
}

/* Takes the last hook and calls it; the light userdata is a flag that is cleared when there is none left. */
static int hook_body(lua_State *L)
{
	bool *more = lua_touserdata(L, 1);
	struct vm *vm = vm_of(L);

	lua_rawgeti(L, LUA_REGISTRYINDEX, vm->hooks_ref);
	lua_Integer last = (lua_Integer)lua_rawlen(L, -1);
	if (last == 0) {
		*more = false;
		return 0;
	}
	lua_rawgeti(L, -1, last);
	lua_pushnil(L);
	lua_rawseti(L, -3, last);
	return vm_call_script(L, 0);
}

/* Calls the hooks, those too that they add meanwhile, but not without end. */
void core_call_hooks(struct vm *vm)
{
	bool more = vm->hooks_ref != LUA_NOREF;
	struct vm_call call = {.body = hook_body, .argument = &more, .callback = "shutdown_hook"};

	lua_rawgeti(vm->L, LUA_REGISTRYINDEX, vm->hooks_ref);
	lua_Unsigned left = (more ? lua_rawlen(vm->L, -1) : 0) + HOOKS_OF_HOOKS;
	lua_pop(vm->L, 1);
	for (; more && left; left--)
		vm_enter(vm, &call);
	if (more)
		log_warn("shutdown hooks add hooks without end: the last of them are left out");
}

/* Ends what a VM has open. */
void core_shutdown(struct vm *vm, const char *why, bool flush)
{
	vm->closing = true;
	lua_net_close_servers(vm, NULL);
	lua_net_drop_inheritance(vm);
	lua_dns_cancel_all(vm);
	lua_conn_end_all(vm, why, flush);
	lua_channel_cancel_all(vm, true);
	lua_timer_cancel_all(vm, true);
	lua_signal_cancel_all(vm, NULL);
	lua_go_cancel_all(vm);
	vm->first_tick = vm->next_tick;
}
