/*
 * TLS for scripts: start_tls and what a connection tells of its session.
 */
#ifndef REACTORD_LUA_TLS_H
#define REACTORD_LUA_TLS_H

#include <lua.h>

/* Puts the methods into em.Connection and the functions into the core's table at index 1. */
void lua_tls_open(lua_State *L);

#endif
