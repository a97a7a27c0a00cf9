/*
 * Plain data (nil, booleans, numbers, strings, tables of these) as bytes in MessagePack, the way it travels between Lua states and
 * processes. Integers stay integers, to the last bit; a table whose keys are 1 to n is an array, any other one a map; metatables stay
 * behind. What occurs twice in a value is two things afterwards.
 */
#ifndef REACTORD_LUA_PLAIN_H
#define REACTORD_LUA_PLAIN_H

#include <lua.h>
#include <stdbool.h>
#include <stddef.h>

#define PLAIN_MAX_BYTES ((size_t)1024 * 1024) /* of an encoded value; tables in it have ARG_MAX_DEPTH levels at most */

/* An encoded value; bytes are for free. */
struct plain {
	char *bytes;
	size_t length, room;
};

/* Encodes the value at index, which goes by that name in reasons. False with a reason (caller frees) when it is not plain or too much;
 * there are no bytes then. Raises nothing. */
bool plain_encode(lua_State *L, int index, const char *name, struct plain *to, char **why) __attribute__((warn_unused_result));

/* The same for an argument of a function, which raises when it is no good. */
void plain_check(lua_State *L, int index, const char *name, struct plain *to);

/* Pushes what was encoded; raises for want of memory, or where the bytes are none of ours. */
void plain_push(lua_State *L, const char *bytes, size_t length);

/* The same, and frees the bytes in any case. */
void plain_push_taken(lua_State *L, char *bytes, size_t length);

#endif
