/*
 * Loading files of Lua: text only, and through the sources of the VM's generation.
 */
#ifndef REACTORD_LUA_SOURCE_H
#define REACTORD_LUA_SOURCE_H

#include <lua.h>
#include <stdbool.h>

/* Like luaL_loadfilex with mode "t". What loads with the handlers is kept in the VM's sources, and taken from there if it is in them. */
int lua_source_load(lua_State *L, const char *path) __attribute__((warn_unused_result));

/* Is there such a file, on the disk or among the VM's sources? */
bool lua_source_exists(lua_State *L, const char *path);

/* Pushes the path of the module of that name among the VM's sources, by the templates of package.path: false and nothing if there is
 * none. */
bool lua_source_search(lua_State *L, const char *name, const char *templates);

#endif
