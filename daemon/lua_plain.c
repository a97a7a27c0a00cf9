/* Plain data as bytes: see lua_plain.h. */
#include "lua_plain.h"

#include <ctype.h>
#include <msgpack.h>
#include <stdlib.h>
#include <string.h>

#include "lua_arg.h"
#include "mem.h"

#define SHOWN_KEY 40 /* bytes of a key that a reason shows */

/* A value being encoded. */
struct encoder {
	lua_State *L;
	msgpack_packer packer;
	const void *around[ARG_MAX_DEPTH]; /* the tables that the present value is in */
	char *where;                       /* after a failure: the path to what is not plain, behind the value's name */
	const char *what;                  /* ... and what is wrong with it */
};

/* The packer's output. */
static int append(void *data, const char *bytes, size_t length)
{
	struct plain *to = data;

	if (length > PLAIN_MAX_BYTES - to->length)
		return -1;
	if (length > to->room - to->length) {
		to->room = to->room * 2 > to->length + length ? to->room * 2 : to->length + length + 64;
		to->bytes = mem_realloc(to->bytes, to->room);
	}
	memcpy(to->bytes + to->length, bytes, length);
	to->length += length;
	return 0;
}

/* Notes what is wrong with the present value. */
static bool refuse(struct encoder *e, const char *what)
{
	e->where = mem_strdup("");
	e->what = what;
	return false;
}

/* The result of a packer's function: what it cannot take is too much. */
static bool packed(struct encoder *e, int result)
{
	return result == 0 ? true : refuse(e, "is too much: encoded it takes more than 1 MiB");
}

/* Puts the key at index in front of the path, as one would write it in Lua. */
static void add_step(struct encoder *e, int index)
{
	lua_State *L = e->L;
	char *rest = e->where, step[SHOWN_KEY + 8];
	size_t length, at = 0;

	if (lua_type(L, index) == LUA_TSTRING) {
		const char *key = lua_tolstring(L, index, &length);
		bool is_name = length && !isdigit((unsigned char)*key);
		for (; at < length && at < SHOWN_KEY; at++) {
			bool is_word = isalnum((unsigned char)key[at]) || key[at] == '_';
			is_name &= is_word;
			step[at] = isprint((unsigned char)key[at]) ? key[at] : '?';
		}
		step[at] = '\0';
		const char *more = at < length ? "..." : "";
		e->where = is_name ? mem_printf(".%s%s%s", step, more, rest) : mem_printf("[\"%s%s\"]%s", step, more, rest);
	} else if (lua_isinteger(L, index)) {
		e->where = mem_printf("[%lld]%s", (long long)lua_tointeger(L, index), rest);
	} else if (lua_type(L, index) == LUA_TNUMBER) {
		e->where = mem_printf("[%.14g]%s", lua_tonumber(L, index), rest);
	} else {
		e->where = mem_printf("[%s]%s", lua_toboolean(L, index) ? "true" : "false", rest);
	}
	free(rest);
}

/* Counts the entries of the table at index. Are their keys 1 to n, and is there one? */
static bool is_array(lua_State *L, int index, size_t *count)
{
	lua_Unsigned length = lua_rawlen(L, index);
	bool array = length > 0;

	*count = 0;
	lua_pushnil(L);
	while (lua_next(L, index)) {
		array = array && lua_isinteger(L, -2) && (lua_Unsigned)lua_tointeger(L, -2) - 1 < length;
		(*count)++;
		lua_pop(L, 1);
	}
	return array && *count == length;
}

static bool encode(struct encoder *e, int index, size_t level);

/* Encodes the fields of the table at index: its values alone, or each behind its key. */
static bool encode_fields(struct encoder *e, int index, size_t level, bool array, size_t count)
{
	lua_State *L = e->L;

	for (size_t i = 1; array && i <= count; i++) {
		lua_rawgeti(L, index, (lua_Integer)i);
		if (!encode(e, lua_gettop(L), level)) {
			lua_pushinteger(L, (lua_Integer)i);
			add_step(e, -1);
			lua_pop(L, 2);
			return false;
		}
		lua_pop(L, 1);
	}
	if (array)
		return true;
	lua_pushnil(L);
	while (lua_next(L, index)) {
		int key = lua_gettop(L) - 1, kind = lua_type(L, key);
		if (kind != LUA_TSTRING && kind != LUA_TNUMBER && kind != LUA_TBOOLEAN) {
			lua_pop(L, 2);
			return refuse(e, "has a key that is neither string, number nor boolean");
		}
		if (!encode(e, key, level) || !encode(e, key + 1, level)) {
			add_step(e, key);
			lua_pop(L, 2);
			return false;
		}
		lua_pop(L, 1);
	}
	return true;
}

/* Encodes a table. */
static bool encode_table(struct encoder *e, int index, size_t level)
{
	const void *self = lua_topointer(e->L, index);
	size_t count;

	for (size_t i = 0; i < level; i++)
		if (e->around[i] == self)
			return refuse(e, "contains itself");
	if (level >= ARG_MAX_DEPTH || !lua_checkstack(e->L, 8))
		return refuse(e, "is nested too deeply (32 levels of tables at most)");
	e->around[level] = self;
	bool array = is_array(e->L, index, &count);
	int result = array ? msgpack_pack_array(&e->packer, count) : msgpack_pack_map(&e->packer, count);
	return packed(e, result) && encode_fields(e, index, level + 1, array, count);
}

/* Encodes the value at index (absolute), which so many tables are around. */
static bool encode(struct encoder *e, int index, size_t level)
{
	lua_State *L = e->L;
	msgpack_packer *packer = &e->packer;

	switch (lua_type(L, index)) {
	case LUA_TNONE:
	case LUA_TNIL: return packed(e, msgpack_pack_nil(packer));
	case LUA_TBOOLEAN: return packed(e, lua_toboolean(L, index) ? msgpack_pack_true(packer) : msgpack_pack_false(packer));
	case LUA_TNUMBER:
		return packed(e, lua_isinteger(L, index) ? msgpack_pack_int64(packer, lua_tointeger(L, index))
		                                         : msgpack_pack_double(packer, lua_tonumber(L, index)));
	case LUA_TSTRING: {
		size_t length;
		const char *bytes = lua_tolstring(L, index, &length);
		return packed(e, msgpack_pack_str_with_body(packer, bytes, length));
	}
	case LUA_TTABLE: return encode_table(e, index, level);
	case LUA_TFUNCTION: return refuse(e, "is a function, which is not plain data");
	case LUA_TTHREAD: return refuse(e, "is a coroutine, which is not plain data");
	default: return refuse(e, "is a userdata, which is not plain data");
	}
}

/* Encodes. */
bool plain_encode(lua_State *L, int index, const char *name, struct plain *to, char **why)
{
	struct encoder e = {.L = L};

	*to = (struct plain){0};
	msgpack_packer_init(&e.packer, to, append);
	if (lua_checkstack(L, 8) && encode(&e, lua_absindex(L, index), 0))
		return true;
	*why = e.what ? mem_printf("%s%s %s", name, e.where, e.what) : mem_strdup("stack overflow");
	free(e.where);
	free(to->bytes);
	*to = (struct plain){0};
	return false;
}

/* Encodes an argument. */
void plain_check(lua_State *L, int index, const char *name, struct plain *to)
{
	char *why, text[512];

	if (plain_encode(L, index, name, to, &why))
		return;
	strncpy(text, why, sizeof text - 1)[sizeof text - 1] = '\0';
	free(why);
	luaL_argerror(L, index, text);
}

/* Pushes a decoded value. */
static void push_object(lua_State *L, const msgpack_object *o)
{
	luaL_checkstack(L, 4, "plain data");
	switch (o->type) {
	case MSGPACK_OBJECT_BOOLEAN: lua_pushboolean(L, o->via.boolean); break;
	case MSGPACK_OBJECT_POSITIVE_INTEGER: lua_pushinteger(L, (lua_Integer)o->via.u64); break;
	case MSGPACK_OBJECT_NEGATIVE_INTEGER: lua_pushinteger(L, o->via.i64); break;
	case MSGPACK_OBJECT_FLOAT32:
	case MSGPACK_OBJECT_FLOAT64: lua_pushnumber(L, o->via.f64); break;
	case MSGPACK_OBJECT_STR: lua_pushlstring(L, o->via.str.ptr, o->via.str.size); break;
	case MSGPACK_OBJECT_ARRAY:
		lua_createtable(L, (int)o->via.array.size, 0);
		for (uint32_t i = 0; i < o->via.array.size; i++) {
			push_object(L, &o->via.array.ptr[i]);
			lua_rawseti(L, -2, (lua_Integer)i + 1);
		}
		break;
	case MSGPACK_OBJECT_MAP:
		lua_createtable(L, 0, (int)o->via.map.size);
		for (uint32_t i = 0; i < o->via.map.size; i++) {
			push_object(L, &o->via.map.ptr[i].key);
			push_object(L, &o->via.map.ptr[i].val);
			lua_rawset(L, -3);
		}
		break;
	case MSGPACK_OBJECT_NIL: lua_pushnil(L); break;
	default: luaL_error(L, "damaged data: it is no plain data");
	}
}

/* The part of decoding that may raise. */
static int push_body(lua_State *L)
{
	push_object(L, lua_touserdata(L, 1));
	return 1;
}

/* Decodes, and lets go of the tree in any case. False: an error object is pushed instead. */
static bool decode(lua_State *L, const char *bytes, size_t length)
{
	msgpack_unpacked tree;
	size_t read = 0;

	msgpack_unpacked_init(&tree);
	msgpack_unpack_return result = msgpack_unpack_next(&tree, bytes, length, &read);
	if (result == MSGPACK_UNPACK_NOMEM_ERROR)
		mem_exhausted();
	if (result != MSGPACK_UNPACK_SUCCESS || read != length)
		tree.data.type = MSGPACK_OBJECT_EXT; /* which we never make */
	lua_pushcfunction(L, push_body);
	lua_pushlightuserdata(L, &tree.data);
	int status = lua_pcall(L, 1, 1, 0);
	msgpack_unpacked_destroy(&tree);
	return status == LUA_OK;
}

/* Pushes. */
void plain_push(lua_State *L, const char *bytes, size_t length)
{
	luaL_checkstack(L, 4, "plain data");
	if (!decode(L, bytes, length))
		lua_error(L);
}

/* Pushes and frees. */
void plain_push_taken(lua_State *L, char *bytes, size_t length)
{
	bool has_room = lua_checkstack(L, 4), good = has_room && decode(L, bytes, length);

	free(bytes);
	if (!has_room)
		luaL_error(L, "stack overflow");
	if (!good)
		lua_error(L);
}
