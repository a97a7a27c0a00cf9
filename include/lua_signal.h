/*
 * Signals that scripts ask for.
 */
#ifndef REACTORD_LUA_SIGNAL_H
#define REACTORD_LUA_SIGNAL_H

#include "lua_vm.h"

/* Puts the functions into the core's table at index 1. */
void lua_signal_open(lua_State *L);

/* Calls the script's function for a signal that a run watches itself (HUP, INT, TERM). False: there is none. */
bool lua_signal_deliver(struct vm *vm, int signo);

/* Ends a VM's functions. An heir (or NULL) holds the signals, without a function, until it has had the time to set one: in between they
 * would do what they do by default, which may be to end the process. */
void lua_signal_cancel_all(struct vm *vm, struct vm *heir);

/* Lets go of what was inherited and not claimed. */
void lua_signal_drop_inheritance(struct vm *vm);

/* The number of the signal whose name is at index, with or without SIG; also "RTMIN+n" and "RTMAX-n". Raises for what is none. */
int lua_signal_check(lua_State *L, int index);

#endif
