/*
 * em.shared(name): plain data that all processes and generations share.
 */
#ifndef REACTORD_LUA_SHARED_H
#define REACTORD_LUA_SHARED_H

#include "lua_vm.h"

/* Puts the function into the core's table at index 1. */
void lua_shared_open(lua_State *L);

#endif
