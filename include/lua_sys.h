/*
 * What scripts have of the system: the log, print, identifiers.
 */
#ifndef REACTORD_LUA_SYS_H
#define REACTORD_LUA_SYS_H

#include "lua_vm.h"

/* Puts the functions into the core's table at index 1, and print into the globals. */
void lua_sys_open(lua_State *L);

#endif
