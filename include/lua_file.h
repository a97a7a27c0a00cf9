/*
 * Files for scripts: send_file_data, and what stream_file_data stands on.
 */
#ifndef REACTORD_LUA_FILE_H
#define REACTORD_LUA_FILE_H

#include <lua.h>

/* Adds the method to em.Connection and stream_file to the core's table at index 1. */
void lua_file_open(lua_State *L);

#endif
