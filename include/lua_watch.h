/*
 * Descriptors, files and processes for scripts: attach, watch, detach, open_keyboard, watch_file, watch_process. What is watched
 * looks like a connection: an instance of its handler's class, counted, ended with everything else, told so by unbind.
 */
#ifndef REACTORD_LUA_WATCH_H
#define REACTORD_LUA_WATCH_H

#include "lua_conn.h"

/* Adds the methods to em.Connection and the functions to the core's table at index 1. */
void lua_watch_open(lua_State *L);

/* Checks that argument `index` is a descriptor that is open and not in use by the loop: its number, or -1 after pushing the results nil,
 * message, code (EBADF, EEXIST). */
int lua_watch_check_fd(lua_State *L, int index);

/* Ends what only watches when a newer generation has taken over. */
void lua_watch_retire(struct vm *vm);

#endif
