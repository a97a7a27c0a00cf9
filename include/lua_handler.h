/*
 * Handlers: from a class table, a name, a function or nil to what connections are made of.
 */
#ifndef REACTORD_LUA_HANDLER_H
#define REACTORD_LUA_HANDLER_H

#include "config.h"
#include "lua_conn.h"
#include "lua_vm.h"
#include "value.h"

/* Pushes two values for the handler at index: the metatable of its instances, and the function to call with each or nil. Raises for
 * anything that is no handler and for a name that cannot be loaded. */
void lua_handler_resolve(lua_State *L, int index);

/* The name of the handler at index, kept as long as the VM; NULL where it is given otherwise. May raise. */
char *lua_handler_name(lua_State *L, int index);

/* Puts a handler (at index) and the arguments from first to last (stack indices) into a class. */
void lua_handler_class(lua_State *L, int index, int first, int last, struct lua_class *class);

/* From C, by name or file and with arguments as plain data: loads the file unless it is loaded. False with a reason that names the handler
 * and file:line (caller frees). *name is the handler's name, owned by the VM. */
bool lua_handler_load(struct vm *vm, const char *handler, const struct value *args, struct lua_class *class, char **name, char **why)
	__attribute__((warn_unused_result));

/* Calls the Lua function at the top of the stack with a chunk's text alone: load for handlers and scripts. Pushes the chunk, or raises. */
void lua_handler_load_file(lua_State *L, const char *path);

/* Warns of fields of a handler that look like misspelt callbacks. */
void lua_handler_open(lua_State *L);

#endif
