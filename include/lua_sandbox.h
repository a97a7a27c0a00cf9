/*
 * The standard libraries as handlers get them: what would stop the loop or the daemon, or crash it, is left out or bounded.
 */
#ifndef REACTORD_LUA_SANDBOX_H
#define REACTORD_LUA_SANDBOX_H

#include <stdbool.h>

#include "lua_vm.h"

/* Opens the libraries. restricted: the daemon's handlers; else all of them but for bytecode. */
void lua_sandbox_open(lua_State *L, bool restricted);

#endif
