/*
 * Coroutines of em.go: straight-line code that waits while the loop goes on. Each belongs to the connection in whose callback it was
 * started (not in its unbind), ends with it at the latest, and fails it by its errors; or to nobody. It runs at once up to where it
 * first waits; from then on each piece of it is a callback of its own, in the turn's step for next-ticks. The body of a script is one too.
 */
#ifndef REACTORD_LUA_GO_H
#define REACTORD_LUA_GO_H

#include "lua_vm.h"

/* Registers what em's coroutine.lua is made of in the table of the core at index 1. */
void lua_go_open(lua_State *L);

/* Runs a script's body: the coroutine on top of the stack, with function and arguments on its own. Raises what it fails by. */
void lua_go_script(lua_State *L, int arguments);

/* Goes on with the body behind em.run. Raises what it fails by. */
void lua_go_resume_script(lua_State *L);

/* Ends the coroutines that are nobody's, but not a body that waits in em.run: what they have to close is closed. */
void lua_go_cancel_all(struct vm *vm);

/* Will one of them go on by itself? */
bool lua_go_busy(const struct vm *vm);

#endif
