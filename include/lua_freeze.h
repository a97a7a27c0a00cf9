/*
 * Tables that all handlers of a VM share and none may change: the standard libraries, the globals among them, and em. Names may be added to
 * them, so that string.trim = … and globals of one's own work as ever; what was there stays as it is.
 */
#ifndef REACTORD_LUA_FREEZE_H
#define REACTORD_LUA_FREEZE_H

#include <lua.h>

/* Freezes what is in the table on top of the stack, but for the keys named (NULL ends them; or NULL: none); may raise. Its fields are
 * found by way of a metatable from now on, which nobody gets or changes. */
void lua_freeze(lua_State *L, const char *const *but);

/* Freezes the globals and all that is in package.loaded, with the tables in those; replaces the functions that pass metatables by. */
void lua_freeze_all(lua_State *L);

#endif
