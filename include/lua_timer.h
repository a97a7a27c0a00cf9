/*
 * Timers of scripts.
 */
#ifndef REACTORD_LUA_TIMER_H
#define REACTORD_LUA_TIMER_H

#include "lua_vm.h"

/* Puts the functions into the core's table at index 1 and the methods into em.Connection. */
void lua_timer_open(lua_State *L);

/* Cancels a VM's timers: all, or those that belong to no connection. */
void lua_timer_cancel_all(struct vm *vm, bool owned_too);

#endif
