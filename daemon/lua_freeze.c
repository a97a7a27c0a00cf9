/*
 * Shared tables that no handler may change: see lua_freeze.h. A frozen table is empty but for what was added to it since; its metatable leads
 * to a table with its fields, so that an assignment to one of these meets __newindex.
 */
#include "lua_freeze.h"

#include <lauxlib.h>
#include <stdbool.h>
#include <string.h>

#include "lua_vm.h"

static const char frozen_key; /* its address is a key in the metatables of frozen tables: the table of fields */

/* Pushes the fields of the table at index; false if it is not frozen (nothing is pushed then). */
static bool push_fields(lua_State *L, int index)
{
	if (!lua_istable(L, index) || !lua_getmetatable(L, index))
		return false;
	if (lua_rawgetp(L, -1, &frozen_key) == LUA_TTABLE) {
		lua_remove(L, -2);
		return true;
	}
	lua_pop(L, 2);
	return false;
}

/* __newindex: adds what is new. Upvalue: the fields. */
static int l_newindex(lua_State *L)
{
	lua_settop(L, 3);
	lua_pushvalue(L, 2);
	if (!lua_isnil(L, 2) && lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL)
		return luaL_error(L, "'%s' is shared by all handlers and cannot be changed", luaL_tolstring(L, 2, NULL));
	lua_settop(L, 3);
	lua_rawset(L, 1); /* raises for nil and NaN */
	return 0;
}

/* __pairs: goes through a copy of all. Upvalues: the fields, next. */
static int l_pairs(lua_State *L)
{
	lua_settop(L, 1);
	lua_pushvalue(L, lua_upvalueindex(2));
	lua_newtable(L);
	for (int from = 1; from >= 0; from--) {
		lua_pushvalue(L, from ? lua_upvalueindex(1) : 1);
		lua_pushnil(L);
		while (lua_next(L, -2)) {
			lua_pushvalue(L, -2);
			lua_insert(L, -2);
			lua_rawset(L, 3);
		}
		lua_settop(L, 3);
	}
	lua_pushnil(L);
	return 3;
}

/* rawset(table, key, value), which an assignment to what is frozen stays. Upvalue: Lua's. */
static int l_rawset(lua_State *L)
{
	luaL_checktype(L, 1, LUA_TTABLE);
	luaL_checkany(L, 2);
	luaL_checkany(L, 3);
	lua_settop(L, 3);
	if (push_fields(L, 1)) {
		lua_pop(L, 1);
		lua_settable(L, 1);
	} else {
		lua_rawset(L, 1);
	}
	lua_settop(L, 1);
	return 1;
}

/* rawget(table, key), which finds what is frozen. */
static int l_rawget(lua_State *L)
{
	luaL_checktype(L, 1, LUA_TTABLE);
	luaL_checkany(L, 2);
	lua_settop(L, 2);
	lua_pushvalue(L, 2);
	if (lua_rawget(L, 1) == LUA_TNIL && push_fields(L, 1)) {
		lua_pushvalue(L, 2);
		lua_rawget(L, -2);
	}
	return 1;
}

/* Is the key on top of the stack one of those names? */
static bool is_among(lua_State *L, const char *const *names)
{
	for (; names && *names; names++)
		if (lua_type(L, -1) == LUA_TSTRING && strcmp(lua_tostring(L, -1), *names) == 0)
			return true;
	return false;
}

/* Freezes a table. */
void lua_freeze(lua_State *L, const char *const *but)
{
	int table = lua_gettop(L), next = table + 1, fields = table + 2;

	luaL_checkstack(L, 8, "freeze");
	lua_getglobal(L, "next"); /* before it may be gone */
	lua_newtable(L);
	lua_pushnil(L);
	while (lua_next(L, table)) {
		lua_pushvalue(L, -2);
		bool open = is_among(L, but);
		lua_insert(L, -2);
		if (open)
			lua_pop(L, 2);
		else
			lua_rawset(L, fields);
	}
	lua_pushnil(L);
	while (lua_next(L, fields)) { /* a field may be cleared during a traversal of the other table */
		lua_pop(L, 1);
		lua_pushvalue(L, -1);
		lua_pushnil(L);
		lua_rawset(L, table);
	}
	lua_createtable(L, 0, 5);
	lua_pushvalue(L, fields);
	lua_setfield(L, -2, "__index");
	lua_pushvalue(L, fields);
	lua_pushcclosure(L, l_newindex, 1);
	lua_setfield(L, -2, "__newindex");
	lua_pushvalue(L, fields);
	lua_pushvalue(L, next);
	lua_pushcclosure(L, l_pairs, 2);
	lua_setfield(L, -2, "__pairs");
	lua_pushliteral(L, "shared");
	lua_setfield(L, -2, "__metatable");
	lua_pushvalue(L, fields);
	lua_rawsetp(L, -2, &frozen_key);
	lua_setmetatable(L, table);
	lua_settop(L, table);
}

/* Freezes the table on top of the stack with the plain tables in it, unless it has a metatable; pops it. */
static void freeze_deep(lua_State *L, int levels)
{
	/* where one looks for modules is everybody's own business; require reads its searchers raw */
	static const char *const but[] = {"path", "cpath", "searchers", "preload", NULL};
	static const char *const later[] = {"loaded", "_G", NULL};
	int table = lua_gettop(L);

	luaL_checkstack(L, 8, "freeze");
	if (lua_getmetatable(L, table)) {
		lua_settop(L, table - 1);
		return;
	}
	lua_pushnil(L);
	while (levels > 0 && lua_next(L, table)) {
		lua_pushvalue(L, -2);
		bool in = !is_among(L, but) && !is_among(L, later);
		lua_pop(L, 1);
		if (in && lua_istable(L, -1) && !lua_rawequal(L, -1, table))
			freeze_deep(L, levels - 1);
		else
			lua_pop(L, 1);
	}
	lua_settop(L, table);
	lua_freeze(L, but);
	lua_settop(L, table - 1);
}

/* Freezes all that is shared. */
void lua_freeze_all(lua_State *L)
{
	lua_pushliteral(L, ""); /* what all strings share: nobody's to get at */
	lua_getmetatable(L, -1);
	lua_pushliteral(L, "string");
	lua_setfield(L, -2, "__metatable");
	lua_settop(L, -3);
	lua_register(L, "rawset", l_rawset);
	lua_register(L, "rawget", l_rawget);
	luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
	int loaded = lua_gettop(L);
	lua_pushnil(L);
	while (lua_next(L, loaded)) {
		lua_pushglobaltable(L);
		bool globals = lua_rawequal(L, -1, -2);
		lua_pop(L, 1);
		if (lua_istable(L, -1) && !globals)
			freeze_deep(L, 2);
		else
			lua_pop(L, 1);
	}
	lua_freeze(L, NULL);
	lua_pop(L, 1);
	lua_pushglobaltable(L);
	lua_freeze(L, NULL);
	lua_pop(L, 1);
}
