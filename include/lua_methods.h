/*
 * The methods of em.Connection.
 */
#ifndef REACTORD_LUA_METHODS_H
#define REACTORD_LUA_METHODS_H

#include <lua.h>

/* Puts the methods into the table on top of the stack. */
void lua_methods_open(lua_State *L);

#endif
