/* Child processes of scripts: see lua_process.h. */
#include "lua_process.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "lua_arg.h"
#include "lua_conn.h"
#include "lua_handler.h"
#include "lua_signal.h"
#include "mem.h"
#include "problems.h"

#define MAX_ARGS 250 /* of a handler */

/* A child on its way: freed with its userdata, however the function ends. */
struct launch {
	struct process_spec spec;
	struct process *p; /* started, and not yet a connection's */
};

static const char launch_key; /* its address is the registry key of the launches' metatable */

/* Frees it; a child that nobody will know of ends. */
static int launch_gc(lua_State *L)
{
	struct launch *launch = lua_touserdata(L, 1);

	process_spec_clear(&launch->spec);
	if (launch->p)
		process_abandon(launch->p);
	launch->p = NULL;
	return 0;
}

/* The string on top of the stack, which what names and must not have a NUL; raises otherwise. */
static const char *top_string(lua_State *L, int argument, const char *what)
{
	size_t length;
	const char *text = lua_tolstring(L, -1, &length);

	if (!text)
		luaL_argerror(L, argument, lua_pushfstring(L, "%s must be a string, not %s", what, luaL_typename(L, -1)));
	else if (strlen(text) != length)
		luaL_argerror(L, argument, lua_pushfstring(L, "%s contains a NUL", what));
	return text;
}

/* Reads the command at index: a line to be split, or a table of its words. */
static void read_command(lua_State *L, int index, struct process_spec *spec)
{
	const char *why;

	if (!lua_istable(L, index)) {
		luaL_checkstring(L, index);
		lua_pushvalue(L, index);
		if (!process_spec_split(spec, top_string(L, index, "the command"), &why))
			luaL_argerror(L, index, why);
		lua_pop(L, 1);
		return;
	}
	lua_Integer count = luaL_len(L, index);
	luaL_argcheck(L, count > 0, index, "the command is empty");
	for (lua_Integer i = 1; i <= count; i++) {
		lua_rawgeti(L, index, i);
		const char *what = lua_pushfstring(L, "word %I of the command", (LUAI_UACINT)i);
		lua_insert(L, -2);
		process_spec_add(spec, top_string(L, index, what));
		lua_pop(L, 2);
	}
}

/* Reads the table on top of the stack: variables to be set, or with false removed. */
static void read_env(lua_State *L, int argument, struct process_spec *spec)
{
	int table = lua_gettop(L);

	lua_pushnil(L);
	while (lua_next(L, table)) {
		if (lua_type(L, -2) != LUA_TSTRING)
			luaL_argerror(L, argument, "the names in env must be strings");
		const char *name = lua_tostring(L, -2);
		if (!*name || strchr(name, '=') || strlen(name) != lua_rawlen(L, -2))
			luaL_argerror(L, argument, lua_pushfstring(L, "'%s' cannot be the name of a variable", name));
		if (lua_isboolean(L, -1) && !lua_toboolean(L, -1)) {
			process_spec_env(spec, name, NULL);
			lua_pop(L, 1);
			continue;
		}
		const char *what = lua_pushfstring(L, "env.%s", name);
		lua_insert(L, -2);
		process_spec_env(spec, name, top_string(L, argument, what));
		lua_pop(L, 2);
	}
}

/* Reads where standard error goes from the top of the stack. */
static enum process_stderr read_stderr(lua_State *L, int argument)
{
	static const char *const names[] = {"inherit", "merge", "separate"};
	const char *name = top_string(L, argument, "stderr");

	for (int i = 0; i < 3; i++)
		if (strcmp(names[i], name) == 0)
			return (enum process_stderr)i;
	luaL_argerror(L, argument, "stderr must be \"inherit\", \"merge\" or \"separate\"");
	return PROCESS_STDERR_INHERIT;
}

/* Takes over one option, whose name is below its value on the stack. */
static void read_option(lua_State *L, int argument, const char *name, struct process_spec *spec, const char **user)
{
	if (strcmp(name, "cwd") == 0) {
		spec->cwd = mem_strdup(top_string(L, argument, name));
	} else if (strcmp(name, "user") == 0) {
		*user = top_string(L, argument, name);
	} else if (strcmp(name, "stderr") == 0) {
		spec->err = read_stderr(L, argument);
	} else if (strcmp(name, "env") == 0) {
		if (!lua_istable(L, -1))
			luaL_argerror(L, argument, "env must be a table");
		read_env(L, argument, spec);
	} else if (!lua_istable(L, -1)) {
		luaL_argerror(L, argument, "args must be a table");
	}
}

/* Reads the table of options at index. user: what the option of that name says, anchored in the table. */
static void read_options(lua_State *L, int index, struct process_spec *spec, const char **user)
{
	static const char *const names[] = {"args", "cwd", "env", "stderr", "user"};
	char near[SUGGESTION_SIZE];

	lua_pushnil(L);
	while (lua_next(L, index)) {
		struct suggestion s = {.wanted = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : ""};
		bool known = false;
		for (size_t i = 0; i < sizeof names / sizeof *names && !known; i++) {
			known = strcmp(names[i], s.wanted) == 0;
			suggestion_consider(&s, names[i]);
		}
		if (!known)
			luaL_argerror(L, index, lua_pushfstring(L, "unknown option '%s'%s", luaL_tolstring(L, -2, NULL), suggestion_text(&s, near)));
		int top = lua_gettop(L);
		read_option(L, index, s.wanted, spec, user);
		lua_settop(L, top - 1);
	}
}

/* Pushes the table of a handler's arguments from the options at index; how many, and where (0: none). */
static int push_args(lua_State *L, int index, int *table)
{
	*table = 0;
	if (lua_isnil(L, index) || lua_getfield(L, index, "args") != LUA_TTABLE)
		return 0;
	*table = lua_gettop(L);
	lua_Integer count = luaL_len(L, *table);
	luaL_argcheck(L, count >= 0 && count <= MAX_ARGS, index, "args has too many entries");
	return (int)count;
}

/*
 * popen(command, handler[, options]): a connection whose peer is a child process. Options: args (a table, for initialize), env (variables
 * beside ours; false removes one), cwd, user, stderr ("inherit", "merge", "separate": to receive_stderr). A program that cannot be executed
 * returns nil, message, code.
 */
static int l_popen(lua_State *L)
{
	struct vm *vm = vm_of(L);
	const char *user = NULL;
	char *why = NULL;
	int args = 0, count = 0;

	lua_settop(L, 3);
	if (!arg_may_open(L))
		return 3;
	struct launch *launch = lua_newuserdatauv(L, sizeof *launch, 0);
	memset(launch, 0, sizeof *launch);
	lua_rawgetp(L, LUA_REGISTRYINDEX, &launch_key);
	lua_setmetatable(L, -2);
	read_command(L, 1, &launch->spec);
	if (!lua_isnil(L, 3)) {
		luaL_checktype(L, 3, LUA_TTABLE);
		read_options(L, 3, &launch->spec, &user);
	}
	lua_handler_resolve(L, 2);
	int function = lua_gettop(L), meta = function - 1;
	count = push_args(L, 3, &args);
	if (user && !privs_identity(user, NULL, &launch->spec.identity, &why)) {
		arg_failure(L, "ENOENT", "popen: %s", why);
		free(why);
		return 3;
	}
	launch->spec.as_user = user != NULL;
	launch->p = process_start(vm->options.processes, &launch->spec, &why);
	if (!launch->p) {
		int error = errno;
		arg_failure(L, errno_code(error), "popen: %s", why);
		free(why);
		return 3;
	}
	struct flow flow;
	flow_defaults(&flow);
	struct lua_conn *lc = lua_conn_create(L, meta, &flow);
	int self = lua_gettop(L);
	struct process *p = launch->p;
	launch->p = NULL;
	lc->child = mem_zalloc(sizeof *lc->child);
	char *label = mem_printf("exec:%s", launch->spec.argv[0]);
	lua_conn_set_label(lc, label);
	free(label);
	lua_conn_attach(lc, p);
	lua_conn_begin(L, lc, args, count, lua_isnil(L, function) ? 0 : function);
	lua_pushvalue(L, self);
	return 1;
}

/* get_pid(): also after the end; nil for what is no child's connection. */
static int l_get_pid(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);

	if (lc->child)
		lua_pushinteger(L, lc->child->pid);
	else
		lua_pushnil(L);
	return 1;
}

/* get_status(): {exited = n} or {signaled = n}; nil before that is known. */
static int l_get_status(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);

	if (!lc->child || lc->child->status.how == PROCESS_RUNNING || lc->child->status.how == PROCESS_LOST) {
		lua_pushnil(L);
		return 1;
	}
	lua_createtable(L, 0, 1);
	lua_pushinteger(L, lc->child->status.number);
	lua_setfield(L, -2, lc->child->status.how == PROCESS_EXITED ? "exited" : "signaled");
	return 1;
}

/* kill([signal]): sends the child a signal, by name or number; TERM by default. */
static int l_kill(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);
	int signo = SIGTERM;

	if (lua_type(L, 2) == LUA_TNUMBER)
		signo = (int)arg_integer(L, 2, 1, NSIG - 1);
	else if (!lua_isnoneornil(L, 2))
		signo = lua_signal_check(L, 2);
	if (!lc->c)
		return arg_failure(L, "ENOTCONN", "closed");
	if (!lc->child)
		return arg_failure(L, "ECHILD", "not the connection of a child process");
	if (!lc->child->process)
		return arg_failure_errno(L, ESRCH);
	if (process_kill(lc->child->process, signo) < 0)
		return arg_failure_errno(L, errno);
	lua_pushboolean(L, true);
	return 1;
}

static const luaL_Reg methods[] = {
	{"get_pid", l_get_pid},
	{"get_status", l_get_status},
	{"kill", l_kill},
	{NULL, NULL},
};

/* Registers all of it. */
void lua_process_open(lua_State *L)
{
	lua_pushcfunction(L, l_popen);
	lua_setfield(L, 1, "popen");
	lua_rawgeti(L, LUA_REGISTRYINDEX, vm_of(L)->connection_ref);
	luaL_setfuncs(L, methods, 0);
	lua_createtable(L, 0, 1);
	lua_pushcfunction(L, launch_gc);
	lua_setfield(L, -2, "__gc");
	lua_rawsetp(L, LUA_REGISTRYINDEX, &launch_key);
	lua_pop(L, 1);
}
