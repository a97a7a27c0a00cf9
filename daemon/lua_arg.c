/* Arguments and results: see lua_arg.h. */
#include "lua_arg.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "conn.h"
#include "lua_vm.h"

#define MAX_SECONDS 3.2e10 /* a thousand years, and still far from 2^64 nanoseconds when doubled */

/* Checks a time and converts it. */
uint64_t arg_seconds(lua_State *L, int index)
{
	lua_Number s = luaL_checknumber(L, index);

	luaL_argcheck(L, s >= 0, index, "seconds must not be negative");
	if (s > MAX_SECONDS / 2)
		s = MAX_SECONDS / 2;
	return (uint64_t)ceil(s * 1e9);
}

/* Pushes a time. */
void arg_push_seconds(lua_State *L, uint64_t ns)
{
	lua_pushnumber(L, (lua_Number)ns / 1e9);
}

/* Checks a whole number. */
lua_Integer arg_integer(lua_State *L, int index, lua_Integer low, lua_Integer high)
{
	lua_Integer n = luaL_checkinteger(L, index);

	if (n < low || n > high)
		luaL_argerror(L, index, lua_pushfstring(L, "must be from %I to %I", (LUAI_UACINT)low, (LUAI_UACINT)high));
	return n;
}

/* Checks for something that can be called. */
void arg_function(lua_State *L, int index)
{
	if (lua_isfunction(L, index))
		return;
	if (luaL_getmetafield(L, index, "__call") == LUA_TNIL)
		luaL_typeerror(L, index, "function");
	lua_pop(L, 1);
}

/* Checks the names in a table of options. */
void arg_options(lua_State *L, int index, const char *const *names)
{
	luaL_checktype(L, index, LUA_TTABLE);
	lua_pushnil(L);
	while (lua_next(L, index)) {
		const char *name = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : NULL;
		const char *const *known = names;
		while (name && *known && strcmp(*known, name) != 0)
			known++;
		if (!name || !*known)
			luaL_argerror(L, index, lua_pushfstring(L, "unknown option '%s'", luaL_tolstring(L, -2, NULL)));
		lua_pop(L, 1);
	}
}

/* Checks a port. */
uint16_t arg_port(lua_State *L, int index, bool zero)
{
	return (uint16_t)arg_integer(L, index, zero ? 0 : 1, 65535);
}

/* What an outside cause returns. */
int arg_failure(lua_State *L, const char *code, const char *format, ...)
{
	va_list arguments;

	lua_pushnil(L);
	va_start(arguments, format);
	lua_pushvfstring(L, format, arguments);
	va_end(arguments);
	lua_pushstring(L, code);
	return 3;
}

/* The same for an errno. */
int arg_failure_errno(lua_State *L, int error)
{
	return arg_failure(L, errno_code(error), "%s", errno_text(error));
}

/* The check of all that opens. */
bool arg_may_open(lua_State *L)
{
	vm_check_open(L);
	if (!vm_of(L)->closing)
		return true;
	arg_failure(L, "ECANCELED", "stopping");
	return false;
}

/* Pushes an address. */
int arg_push_addr(lua_State *L, const struct addr *a)
{
	char text[ADDR_TEXT_SIZE];

	if (!a->length || addr_host(a, text)[0] == '\0') {
		lua_pushnil(L);
		return 1;
	}
	lua_pushstring(L, text);
	if (a->any.sa_family == AF_UNIX)
		return 1;
	lua_pushinteger(L, addr_port(a));
	return 2;
}

/* Pushes plain data. */
void arg_push_value(lua_State *L, const struct value *v)
{
	luaL_checkstack(L, 4, "plain data");
	switch (v->kind) {
	case VALUE_NIL: lua_pushnil(L); break;
	case VALUE_BOOLEAN: lua_pushboolean(L, v->boolean); break;
	case VALUE_INTEGER: lua_pushinteger(L, v->integer); break;
	case VALUE_NUMBER: lua_pushnumber(L, v->number); break;
	case VALUE_STRING: lua_pushlstring(L, v->string.bytes, v->string.length); break;
	case VALUE_TABLE:
		lua_createtable(L, 0, (int)(v->table.count < 1024 ? v->table.count : 1024));
		for (size_t i = 0; i < v->table.count; i++) {
			arg_push_value(L, &v->table.fields[i].key);
			arg_push_value(L, &v->table.fields[i].value);
			lua_rawset(L, -3);
		}
		break;
	}
}

/* Reads one value; level counts the tables around it. */
static bool read_value(lua_State *L, int index, struct value *v, const char **why, int level)
{
	*v = (struct value){.kind = VALUE_NIL};
	switch (lua_type(L, index)) {
	case LUA_TNIL:
	case LUA_TNONE: return true;
	case LUA_TBOOLEAN: *v = (struct value){.kind = VALUE_BOOLEAN, .boolean = lua_toboolean(L, index)}; return true;
	case LUA_TNUMBER:
		if (lua_isinteger(L, index))
			*v = (struct value){.kind = VALUE_INTEGER, .integer = lua_tointeger(L, index)};
		else
			*v = (struct value){.kind = VALUE_NUMBER, .number = lua_tonumber(L, index)};
		return true;
	case LUA_TSTRING: {
		size_t length;
		const char *bytes = lua_tolstring(L, index, &length);
		value_string(v, bytes, length);
		return true;
	}
	case LUA_TTABLE: break;
	default: *why = "only nil, booleans, numbers, strings and tables of these are plain data"; return false;
	}
	if (level >= ARG_MAX_DEPTH || !lua_checkstack(L, 4)) {
		*why = "tables are nested too deeply (32 levels at most)";
		return false;
	}
	index = lua_absindex(L, index);
	v->kind = VALUE_TABLE;
	lua_pushnil(L);
	while (lua_next(L, index)) {
		struct value key;
		if (lua_type(L, -2) == LUA_TTABLE) {
			*why = "a table cannot be a key in plain data";
		} else if (read_value(L, -2, &key, why, level + 1)) {
			struct field *f = value_add(v, key);
			if (read_value(L, -1, &f->value, why, level + 1)) {
				lua_pop(L, 1);
				continue;
			}
		}
		lua_pop(L, 2);
		value_clear(v);
		return false;
	}
	return true;
}

/* Reads plain data. */
bool arg_read_value(lua_State *L, int index, struct value *v, const char **why)
{
	return read_value(L, index, v, why, 0);
}
