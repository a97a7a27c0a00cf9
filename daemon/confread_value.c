/*
 * From a value in a Lua state to plain data. Userdata are not reported here: in a configuration they are stand-ins for unknown names,
 * which have been.
 */
#include "confread_value.h"

#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

static void read_value(struct value_reader *vr, lua_State *L, int index, struct value *v, int depth);

/* Takes room for so many bytes. */
void value_charge(struct value_reader *vr, lua_State *L, size_t bytes)
{
	if (bytes > *vr->room)
		vr->on_full(L);
	*vr->room -= bytes;
}

/* Orders the fields of a table that are not items of a list: Lua's own order changes from run to run. */
static int compare_fields(const void *a, const void *b)
{
	const struct value *x = &((const struct field *)a)->key, *y = &((const struct field *)b)->key;

	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	switch (x->kind) {
	case VALUE_STRING: return strcmp(x->string.bytes, y->string.bytes);
	case VALUE_INTEGER: return x->integer < y->integer ? -1 : x->integer > y->integer;
	case VALUE_NUMBER: return x->number < y->number ? -1 : x->number > y->number;
	default: return x->boolean - y->boolean;
	}
}

/* Whether a table may be read: neither one that contains itself nor one too deep. */
static bool may_descend(struct value_reader *vr, lua_State *L, int index, int depth)
{
	const void *table = lua_topointer(L, index);

	for (int i = 0; i < depth; i++) {
		if (vr->ancestors[i] == table) {
			vr->on_mistake(L, vr->key, "a table that contains itself is not plain data");
			return false;
		}
	}
	if (depth == DEPTH_LIMIT) {
		vr->on_mistake(L, vr->key, "tables are nested more than 32 levels deep");
		return false;
	}
	vr->ancestors[depth] = table;
	return true;
}

/* Whether the key on the stack is that of an item of a list of so many. */
static bool is_item(lua_State *L, int index, lua_Integer items)
{
	return lua_isinteger(L, index) && lua_tointeger(L, index) >= 1 && lua_tointeger(L, index) <= items;
}

/* Reads a table: the items of the list first, then the rest by key. */
static void read_table(struct value_reader *vr, lua_State *L, int index, struct value *v, int depth)
{
	lua_Integer items = (lua_Integer)lua_rawlen(L, index);

	*v = (struct value){.kind = VALUE_TABLE};
	if (!may_descend(vr, L, index, depth))
		return;
	luaL_checkstack(L, 8, NULL);
	for (lua_Integer i = 1; i <= items; i++) {
		lua_rawgeti(L, index, i);
		read_value(vr, L, lua_gettop(L), &value_add(v, (struct value){.kind = VALUE_INTEGER, .integer = i})->value, depth + 1);
		lua_pop(L, 1);
	}
	for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1)) {
		int type = lua_type(L, -2);
		struct value key;

		if (is_item(L, -2, items))
			continue;
		if (depth == 0)
			vr->key = type == LUA_TSTRING ? lua_tostring(L, -2) : NULL;
		if (type != LUA_TSTRING && type != LUA_TNUMBER && type != LUA_TBOOLEAN) {
			vr->on_mistake(L, NULL, "a key must be a text, a number or a boolean");
			continue;
		}
		read_value(vr, L, lua_gettop(L) - 1, &key, depth + 1);
		read_value(vr, L, lua_gettop(L), &value_add(v, key)->value, depth + 1);
	}
	if (depth == 0)
		vr->key = NULL;
	if (v->table.count > (size_t)items)
		qsort(v->table.fields + items, v->table.count - (size_t)items, sizeof *v->table.fields, compare_fields);
}

/* Reads a value inside so many tables. */
static void read_value(struct value_reader *vr, lua_State *L, int index, struct value *v, int depth)
{
	size_t length;
	const char *bytes;

	*v = (struct value){.kind = VALUE_NIL};
	value_charge(vr, L, sizeof *v + (lua_type(L, index) == LUA_TSTRING ? lua_rawlen(L, index) : 0));
	switch (lua_type(L, index)) {
	case LUA_TNIL:
	case LUA_TUSERDATA: break;
	case LUA_TBOOLEAN: *v = (struct value){.kind = VALUE_BOOLEAN, .boolean = lua_toboolean(L, index)}; break;
	case LUA_TNUMBER:
		if (lua_isinteger(L, index))
			*v = (struct value){.kind = VALUE_INTEGER, .integer = lua_tointeger(L, index)};
		else
			*v = (struct value){.kind = VALUE_NUMBER, .number = lua_tonumber(L, index)};
		break;
	case LUA_TSTRING:
		bytes = lua_tolstring(L, index, &length);
		value_string(v, bytes, length);
		break;
	case LUA_TTABLE: read_table(vr, L, index, v, depth); break;
	default: vr->on_mistake(L, vr->key, "a function is not plain data");
	}
}

/* Reads a value. */
void value_read(struct value_reader *vr, lua_State *L, int index, struct value *v)
{
	vr->key = NULL;
	read_value(vr, L, index, v, 0);
}
