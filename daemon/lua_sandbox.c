/*
 * The standard libraries: see lua_sandbox.h. Coroutines are resumed through the VM in every case, so that the time limit knows which one
 * runs, and chunks are text in every case: bytecode can crash Lua.
 */
#include "lua_sandbox.h"

#include <lualib.h>
#include <string.h>

#include "lua_arg.h"
#include "lua_source.h"

#define MAX_MOVE 10000000 /* elements that table.move moves in one call: no hook can stop it */

/* Resumes co with the arguments on top of L's stack, as the standard library does. Returns the number of results, moved to L; -1 with the
 * error object on L. */
static int resume(lua_State *L, lua_State *co, int arguments)
{
	int results = 0;

	if (!lua_checkstack(co, arguments)) {
		lua_pushliteral(L, "too many arguments to resume");
		return -1;
	}
	lua_xmove(L, co, arguments);
	int status = vm_resume(L, co, arguments, &results);
	if (status == LUA_OK || status == LUA_YIELD) {
		if (!lua_checkstack(L, results + 1)) {
			lua_pop(co, results);
			lua_pushliteral(L, "too many results to resume");
			return -1;
		}
		lua_xmove(co, L, results);
		return results;
	}
	lua_xmove(co, L, 1);
	return -1;
}

/* coroutine.resume */
static int l_resume(lua_State *L)
{
	lua_State *co = lua_tothread(L, 1);

	if (!co)
		luaL_typeerror(L, 1, "coroutine");
	int results = resume(L, co, lua_gettop(L) - 1);
	lua_pushboolean(L, results >= 0);
	if (results < 0)
		results = 1;
	lua_insert(L, -(results + 1));
	return results + 1;
}

/* The function that coroutine.wrap returns. */
static int l_wrapped(lua_State *L)
{
	lua_State *co = lua_tothread(L, lua_upvalueindex(1));
	int results = resume(L, co, lua_gettop(L));

	if (results >= 0)
		return results;
	int status = lua_status(co);
	/* an error in the coroutine: its pending variables are closed */
	if (status != LUA_OK && status != LUA_YIELD && !vm_of(L)->overrun) {
		status = vm_reset(L, co);
		lua_xmove(co, L, 1);
	}
	if (status != LUA_ERRMEM && lua_type(L, -1) == LUA_TSTRING) {
		luaL_where(L, 1);
		lua_insert(L, -2);
		lua_concat(L, 2);
	}
	return lua_error(L);
}

/* coroutine.wrap */
static int l_wrap(lua_State *L)
{
	luaL_checktype(L, 1, LUA_TFUNCTION);
	lua_State *co = lua_newthread(L);
	lua_pushvalue(L, 1);
	lua_xmove(L, co, 1);
	lua_pushcclosure(L, l_wrapped, 1);
	return 1;
}

/* The message handler of xpcall: not called any more by the errors that stop a callback, which come while hooks are off. */
static int l_message_handler(lua_State *L)
{
	if (vm_of(L)->overrun)
		return 1;
	lua_pushvalue(L, lua_upvalueindex(1));
	lua_insert(L, 1);
	lua_call(L, lua_gettop(L) - 1, 1);
	return 1;
}

/* The end of xpcall: true and what the function returned, or false and what the message handler did; the boolean is at index 1. */
static int xpcall_done(lua_State *L, int status, lua_KContext context)
{
	(void)context;
	if (status == LUA_OK || status == LUA_YIELD)
		return lua_gettop(L) - 1;
	lua_pushboolean(L, false);
	lua_insert(L, -2);
	return 2;
}

/* xpcall(f, handler, ...) */
static int l_xpcall(lua_State *L)
{
	int count = lua_gettop(L) - 2;

	luaL_checktype(L, 2, LUA_TFUNCTION);
	lua_pushvalue(L, 2);
	lua_pushcclosure(L, l_message_handler, 1);
	lua_remove(L, 2);
	lua_insert(L, 1);
	lua_pushboolean(L, true);
	lua_insert(L, 2); /* handler, true, f, arguments */
	return xpcall_done(L, lua_pcallk(L, count, LUA_MULTRET, 1, 0, xpcall_done), 0);
}

/* Calls upvalue 1 with the mode argument (at index mode) forced to text. */
static int call_as_text(lua_State *L, int mode, bool has_env)
{
	if (lua_gettop(L) < mode)
		lua_settop(L, mode);
	lua_pushliteral(L, "t");
	lua_replace(L, mode);
	if (!has_env)
		lua_settop(L, mode);
	lua_pushvalue(L, lua_upvalueindex(1));
	lua_insert(L, 1);
	lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
	return lua_gettop(L);
}

/* load(chunk, name, "t", env) */
static int l_load(lua_State *L)
{
	if (!lua_isstring(L, 1))
		luaL_checktype(L, 1, LUA_TFUNCTION);
	return call_as_text(L, 3, lua_gettop(L) >= 4);
}

/* loadfile(name, "t", env) */
static int l_loadfile(lua_State *L)
{
	return call_as_text(L, 2, lua_gettop(L) >= 3);
}

/* After the chunk of dofile. */
static int dofile_done(lua_State *L, int status, lua_KContext context)
{
	(void)status, (void)context;
	return lua_gettop(L) - 1;
}

/* dofile(name) */
static int l_dofile(lua_State *L)
{
	const char *name = luaL_checkstring(L, 1);

	lua_settop(L, 1);
	if (lua_source_load(L, name) != LUA_OK)
		return lua_error(L);
	lua_callk(L, 0, LUA_MULTRET, 0, dofile_done);
	return dofile_done(L, 0, 0);
}

/* setmetatable without finalizers: one that loops would hang the collector. */
static int l_setmetatable(lua_State *L)
{
	luaL_checktype(L, 1, LUA_TTABLE);
	luaL_argexpected(L, lua_isnil(L, 2) || lua_istable(L, 2), 2, "nil or table");
	if (lua_istable(L, 2)) {
		lua_pushliteral(L, "__gc");
		lua_rawget(L, 2);
		if (!lua_isnil(L, -1))
			return luaL_argerror(L, 2, "handlers have no __gc");
		lua_pop(L, 1);
	}
	lua_pushvalue(L, lua_upvalueindex(1));
	lua_insert(L, 1);
	lua_call(L, lua_gettop(L) - 1, 1);
	return 1;
}

/* collectgarbage("count" or "step") */
static int l_collectgarbage(lua_State *L)
{
	const char *option = luaL_optstring(L, 1, "collect");

	if (strcmp(option, "count") != 0 && strcmp(option, "step") != 0)
		return luaL_argerror(L, 1, "handlers may only ask for \"count\" or \"step\"");
	lua_pushvalue(L, lua_upvalueindex(1));
	lua_pushstring(L, option);
	lua_call(L, 1, 1);
	return 1;
}

/* string.rep, which loops for ever over empty strings. */
static int l_rep(lua_State *L)
{
	size_t length, separator;

	luaL_checklstring(L, 1, &length);
	lua_Integer count = luaL_checkinteger(L, 2);
	luaL_optlstring(L, 3, "", &separator);
	if (length == 0 && separator == 0 && count > 0) {
		lua_pushliteral(L, "");
		return 1;
	}
	lua_pushvalue(L, lua_upvalueindex(1));
	lua_insert(L, 1);
	lua_call(L, lua_gettop(L) - 1, 1);
	return 1;
}

/* table.move with a bound. */
static int l_move(lua_State *L)
{
	lua_Integer from = luaL_checkinteger(L, 2), to = luaL_checkinteger(L, 3);

	if (to >= from && (lua_Unsigned)to - (lua_Unsigned)from >= MAX_MOVE)
		return luaL_argerror(L, 3, "too many elements to move");
	lua_pushvalue(L, lua_upvalueindex(1));
	lua_insert(L, 1);
	lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
	return lua_gettop(L);
}

/* The length of the sequence at index 1, for those who move its elements; __len may say whatever it likes. */
static lua_Integer sequence_length(lua_State *L)
{
	if (!lua_istable(L, 1) && luaL_getmetafield(L, 1, "__newindex") == LUA_TNIL)
		luaL_checktype(L, 1, LUA_TTABLE);
	return luaL_len(L, 1);
}

/* Refuses to move that many elements. */
static void check_move(lua_State *L, lua_Unsigned count)
{
	luaL_argcheck(L, count < MAX_MOVE, 1, "too many elements to move");
}

/* table.insert with a bound. */
static int l_insert(lua_State *L)
{
	int count = lua_gettop(L);
	lua_Integer end = (lua_Integer)((lua_Unsigned)sequence_length(L) + 1), place = end;

	if (count != 2 && count != 3)
		return luaL_error(L, "wrong number of arguments to 'insert'");
	if (count == 3) {
		place = luaL_checkinteger(L, 2);
		luaL_argcheck(L, (lua_Unsigned)place - 1u < (lua_Unsigned)end, 2, "position out of bounds");
		if (place < end)
			check_move(L, (lua_Unsigned)end - (lua_Unsigned)place);
	}
	lua_settop(L, count);
	for (lua_Integer i = end; i > place; i--) {
		lua_geti(L, 1, i - 1);
		lua_seti(L, 1, i);
	}
	lua_seti(L, 1, place);
	return 0;
}

/* table.remove with a bound. */
static int l_remove(lua_State *L)
{
	bool given = !lua_isnoneornil(L, 2);
	lua_Integer length = sequence_length(L), place = given ? luaL_checkinteger(L, 2) : length;

	if (given && place != length) {
		luaL_argcheck(L, (lua_Unsigned)place - 1u <= (lua_Unsigned)length, 2, "position out of bounds");
		if (place < length)
			check_move(L, (lua_Unsigned)length - (lua_Unsigned)place);
	}
	lua_geti(L, 1, place);
	for (; place < length; place++) {
		lua_geti(L, 1, place + 1);
		lua_seti(L, 1, place);
	}
	lua_pushnil(L);
	lua_seti(L, 1, place);
	return 1;
}

/* Replaces a field of the table on top of the stack by f, which gets the old value as its upvalue. */
static void wrap_field(lua_State *L, const char *name, lua_CFunction f)
{
	lua_getfield(L, -1, name);
	lua_pushcclosure(L, f, 1);
	lua_setfield(L, -2, name);
}

/* Takes fields of a library away. */
static void remove_fields(lua_State *L, const char *library, const char *const *names)
{
	lua_getglobal(L, library);
	for (; *names; names++) {
		lua_pushnil(L);
		lua_setfield(L, -2, *names);
	}
	lua_pop(L, 1);
}

/* What restricted handlers do without. */
static void restrict_libraries(lua_State *L)
{
	static const char *const os_names[] = {"exit", "execute", "setlocale", NULL};
	static const char *const io_names[] = {"popen", NULL};
	static const char *const string_names[] = {"dump", NULL};
	static const char *const package_names[] = {"loadlib", NULL};
	static const char *const coroutine_names[] = {"close", NULL};

	remove_fields(L, "os", os_names);
	remove_fields(L, "io", io_names);
	remove_fields(L, "string", string_names);
	remove_fields(L, "package", package_names);
	remove_fields(L, "coroutine", coroutine_names);

	lua_getglobal(L, "debug");
	lua_getfield(L, -1, "traceback");
	lua_createtable(L, 0, 1);
	lua_insert(L, -2);
	lua_setfield(L, -2, "traceback");
	lua_pushvalue(L, -1);
	lua_setglobal(L, "debug");
	luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
	lua_insert(L, -2);
	lua_setfield(L, -2, "debug");
	lua_pop(L, 2);

	luaL_getmetatable(L, LUA_FILEHANDLE);
	lua_pushliteral(L, "file"); /* what getmetatable says: its __gc is nobody's to replace */
	lua_setfield(L, -2, "__metatable");
	lua_pop(L, 1);

	lua_pushglobaltable(L);
	wrap_field(L, "setmetatable", l_setmetatable);
	wrap_field(L, "collectgarbage", l_collectgarbage);
	lua_getfield(L, -1, "string");
	wrap_field(L, "rep", l_rep);
	lua_getfield(L, -2, "table");
	wrap_field(L, "move", l_move);
	lua_pushcfunction(L, l_insert);
	lua_setfield(L, -2, "insert");
	lua_pushcfunction(L, l_remove);
	lua_setfield(L, -2, "remove");
	lua_pop(L, 3);
}

/* Opens the libraries. */
void lua_sandbox_open(lua_State *L, bool restricted)
{
	luaL_openlibs(L);
	lua_getglobal(L, "coroutine");
	lua_pushcfunction(L, l_resume);
	lua_setfield(L, -2, "resume");
	lua_pushcfunction(L, l_wrap);
	lua_setfield(L, -2, "wrap");
	lua_pop(L, 1);
	lua_pushglobaltable(L);
	wrap_field(L, "load", l_load);
	wrap_field(L, "loadfile", l_loadfile);
	lua_pushcfunction(L, l_dofile);
	lua_setfield(L, -2, "dofile");
	lua_pushcfunction(L, l_xpcall);
	lua_setfield(L, -2, "xpcall");
	lua_pop(L, 1);
	if (restricted)
		restrict_libraries(L);
}
