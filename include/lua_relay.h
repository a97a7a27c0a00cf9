/*
 * Relays for scripts: proxy_incoming_to and its kin.
 */
#ifndef REACTORD_LUA_RELAY_H
#define REACTORD_LUA_RELAY_H

#include "lua_vm.h"

/* Adds the methods to em.Connection and the functions to the core's table at index 1. */
void lua_relay_open(lua_State *L);

#endif
