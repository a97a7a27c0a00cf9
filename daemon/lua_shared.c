/* em.shared: see lua_shared.h. A transaction of the store never has Lua in it: what goes in is encoded before, what comes out is copied. */
#include "lua_shared.h"

#include <errno.h>
#include <msgpack.h>
#include <stdlib.h>
#include <string.h>

#include "conn.h"
#include "lua_arg.h"
#include "lua_plain.h"
#include "store.h"

static const char object_key; /* its address is the key of the objects' metatable in the registry */

/* em.shared(name) */
struct shared_object {
	size_t length;
	char name[];
};

/* The object at index 1. While handlers load it can do nothing: a reload that is refused must have had no effect. */
static struct shared_object *check_object(lua_State *L)
{
	struct shared_object *o = NULL;

	if (lua_getmetatable(L, 1)) {
		lua_rawgetp(L, LUA_REGISTRYINDEX, &object_key);
		if (lua_rawequal(L, -1, -2))
			o = lua_touserdata(L, 1);
		lua_pop(L, 2);
	}
	if (!o)
		luaL_typeerror(L, 1, "shared data");
	vm_check_open(L);
	return o;
}

/* The object at index 1 and the key at index 2. */
static struct store_place check_place(lua_State *L)
{
	struct shared_object *o = check_object(L);
	struct store_place at = {.name = o->name, .name_length = o->length};

	at.key = luaL_checklstring(L, 2, &at.key_length);
	luaL_argcheck(L, at.key_length > 0 && at.key_length <= STORE_MAX_KEY, 2, "a key has 1 to 255 bytes");
	return at;
}

/* What the store refuses. */
static int failure(lua_State *L, int result)
{
	return arg_failure(L, errno_code(store_errno(result)), "%s", store_text(result));
}

/* shared(name) */
static int l_shared(lua_State *L)
{
	size_t length;
	const char *name = luaL_checklstring(L, 1, &length);

	luaL_argcheck(L, length > 0 && length <= STORE_MAX_NAME, 1, "a name has 1 to 255 bytes");
	struct shared_object *o = lua_newuserdatauv(L, sizeof *o + length, 0);
	o->length = length;
	memcpy(o->name, name, length);
	lua_rawgetp(L, LUA_REGISTRYINDEX, &object_key);
	lua_setmetatable(L, -2);
	return 1;
}

/* shared:get(key) */
static int l_get(lua_State *L)
{
	struct store_place at = check_place(L);
	struct store_value value;
	int result = store_get(vm_of(L)->options.store, &at, &value);

	if (result == ENOENT) {
		lua_pushnil(L);
		return 1;
	}
	if (result)
		return failure(L, result);
	plain_push_taken(L, value.bytes, value.length);
	return 1;
}

/* shared:delete(key): was there one? */
static int l_delete(lua_State *L)
{
	struct store_place at = check_place(L);
	int result = store_delete(vm_of(L)->options.store, &at);

	if (result && result != ENOENT)
		return failure(L, result);
	lua_pushboolean(L, result == 0);
	return 1;
}

/* Sets a value: with absent only where there is none. */
static int set(lua_State *L, bool absent)
{
	struct store_place at = check_place(L);
	uint64_t ttl_ns = 0;
	struct plain value;

	if (!lua_isnoneornil(L, 4)) {
		ttl_ns = arg_seconds(L, 4);
		luaL_argcheck(L, ttl_ns > 0, 4, "seconds must be more than 0");
	}
	plain_check(L, 3, "value", &value);
	int result = store_set(vm_of(L)->options.store, &at, value.bytes, value.length, ttl_ns, absent);
	free(value.bytes);
	if (result && result != EEXIST)
		return failure(L, result);
	lua_pushboolean(L, result == 0);
	return 1;
}

/* shared:set(key, value[, ttl]) */
static int l_set(lua_State *L)
{
	luaL_checkany(L, 3);
	if (!lua_isnil(L, 3))
		return set(L, false);
	int count = l_delete(L);
	if (count > 1)
		return count;
	lua_pushboolean(L, true);
	return 1;
}

/* shared:add(key, value[, ttl]): false where there is one. */
static int l_add(lua_State *L)
{
	luaL_argcheck(L, !lua_isnoneornil(L, 3), 3, "a value expected");
	return set(L, true);
}

/* A number, as a value has it. */
struct number {
	bool is_integer;
	lua_Integer integer;
	lua_Number number;
};

/* Two numbers on their way into the store: what to add, and to what if there is nothing. Afterwards the sum. */
struct addition {
	struct number by, initial, sum;
};

/* The number at index, or what stands for none. */
static struct number check_number(lua_State *L, int index, lua_Integer none)
{
	struct number n = {.is_integer = true, .integer = none};

	if (lua_isnoneornil(L, index))
		return n;
	luaL_checktype(L, index, LUA_TNUMBER);
	n.is_integer = lua_isinteger(L, index);
	if (n.is_integer)
		n.integer = lua_tointeger(L, index);
	else
		n.number = lua_tonumber(L, index);
	return n;
}

/* As Lua adds: integers wrap around. */
static struct number sum(const struct number *a, const struct number *b)
{
	if (a->is_integer && b->is_integer)
		return (struct number){.is_integer = true, .integer = (lua_Integer)((lua_Unsigned)a->integer + (lua_Unsigned)b->integer)};
	return (struct number){.number =
	                           (a->is_integer ? (lua_Number)a->integer : a->number) + (b->is_integer ? (lua_Number)b->integer : b->number)};
}

/* Where a new value is made. */
struct small {
	char *bytes;
	size_t length;
};

/* Its packer's output. */
static int append(void *data, const char *bytes, size_t length)
{
	struct small *to = data;

	if (length > STORE_SMALL - to->length)
		return -1;
	memcpy(to->bytes + to->length, bytes, length);
	to->length += length;
	return 0;
}

/* Adds to an encoded number. */
static int change(void *data, const char *old, size_t old_length, char new[STORE_SMALL], size_t *new_length)
{
	struct addition *a = data;
	struct number from = a->initial;
	struct small to = {.bytes = new};
	msgpack_packer packer;

	if (old) {
		msgpack_unpacked value;
		size_t read = 0;
		msgpack_unpacked_init(&value);
		bool good = old_length <= STORE_SMALL && msgpack_unpack_next(&value, old, old_length, &read) == MSGPACK_UNPACK_SUCCESS;
		switch (good ? value.data.type : MSGPACK_OBJECT_NIL) {
		case MSGPACK_OBJECT_POSITIVE_INTEGER:
		case MSGPACK_OBJECT_NEGATIVE_INTEGER: from = (struct number){.is_integer = true, .integer = value.data.via.i64}; break;
		case MSGPACK_OBJECT_FLOAT64: from = (struct number){.number = value.data.via.f64}; break;
		default: good = false;
		}
		msgpack_unpacked_destroy(&value);
		if (!good)
			return EINVAL;
	}
	a->sum = sum(&from, &a->by);
	msgpack_packer_init(&packer, &to, append);
	if (a->sum.is_integer ? msgpack_pack_int64(&packer, a->sum.integer) : msgpack_pack_double(&packer, a->sum.number))
		return EINVAL;
	*new_length = to.length;
	return 0;
}

/* shared:incr(key[, by[, initial]]) */
static int l_incr(lua_State *L)
{
	struct store_place at = check_place(L);
	struct addition a = {.by = check_number(L, 3, 1), .initial = check_number(L, 4, 0)};
	int result = store_change(vm_of(L)->options.store, &at, change, &a);

	if (result == EINVAL)
		return arg_failure(L, "EINVAL", "the value is not a number");
	if (result)
		return failure(L, result);
	if (a.sum.is_integer)
		lua_pushinteger(L, a.sum.integer);
	else
		lua_pushnumber(L, a.sum.number);
	return 1;
}

/* shared:keys() */
static int l_keys(lua_State *L)
{
	struct shared_object *o = check_object(L);
	char key[STORE_MAX_KEY];
	size_t length = 0;
	int result;

	lua_newtable(L);
	for (lua_Integer i = 1; (result = store_next(vm_of(L)->options.store, o->name, o->length, key, &length)) == 0; i++) {
		lua_pushlstring(L, key, length);
		lua_rawseti(L, -2, i);
	}
	return result == ENOENT ? 1 : failure(L, result);
}

static const luaL_Reg methods[] = {
	{"get", l_get}, {"set", l_set}, {"add", l_add}, {"incr", l_incr}, {"delete", l_delete}, {"keys", l_keys}, {NULL, NULL},
};

/* Registers all of it. */
void lua_shared_open(lua_State *L)
{
	lua_pushcfunction(L, l_shared);
	lua_setfield(L, 1, "shared");
	lua_newtable(L);
	luaL_newlib(L, methods);
	lua_setfield(L, -2, "__index");
	lua_pushliteral(L, "shared data");
	lua_setfield(L, -2, "__name");
	lua_pushliteral(L, "shared data");
	lua_setfield(L, -2, "__metatable");
	lua_rawsetp(L, LUA_REGISTRYINDEX, &object_key);
}
