/*
 * Child processes of scripts: em.popen, and what it gives to connections.
 */
#ifndef REACTORD_LUA_PROCESS_H
#define REACTORD_LUA_PROCESS_H

#include "lua_vm.h"

/* Puts the functions into the core's table at index 1 and the methods into em.Connection. */
void lua_process_open(lua_State *L);

#endif
