/*
 * Arguments and results of Lua-callable functions. Two conventions, one helper each: a wrong argument raises and names itself; what
 * the world refuses returns nil, message, code.
 */
#ifndef REACTORD_LUA_ARG_H
#define REACTORD_LUA_ARG_H

#include <lauxlib.h>
#include <lua.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "addr.h"
#include "value.h"

#define ARG_MAX_DEPTH 32 /* levels of tables in plain data */

/* Seconds (a number >= 0, at most a thousand years) to nanoseconds, and back. */
uint64_t arg_seconds(lua_State *L, int index);
void arg_push_seconds(lua_State *L, uint64_t ns);

/* A whole number within limits. */
lua_Integer arg_integer(lua_State *L, int index, lua_Integer low, lua_Integer high);

/* A function or callable object. */
void arg_function(lua_State *L, int index);

/* A table of options that has no other names than these (ending with NULL). */
void arg_options(lua_State *L, int index, const char *const *names);

/* A port, 0 (if allowed) to 65535. */
uint16_t arg_port(lua_State *L, int index, bool zero);

/* Returns nil, message, code; code must be static. The value is the number of results. */
int arg_failure(lua_State *L, const char *code, const char *format, ...);
int arg_failure_errno(lua_State *L, int error);

/* May the script open something? Raises while handler files load. False, after pushing the three results for that, when all that the VM has
 * is being ended: what unbinds open anew would go on for ever. */
bool arg_may_open(lua_State *L);

/* Pushes an address as host and port (unix: path); nil if it is unknown. Returns the number of values. */
int arg_push_addr(lua_State *L, const struct addr *a);

/* Plain data out of a C value; may raise for want of memory. */
void arg_push_value(lua_State *L, const struct value *v);

/* Plain data into a C value: false with a reason in *why (static) when it is not plain; v is nil then. Raises nothing. */
bool arg_read_value(lua_State *L, int index, struct value *v, const char **why) __attribute__((warn_unused_result));

#endif
