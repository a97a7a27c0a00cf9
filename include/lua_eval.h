/*
 * Lua by hand, for whoever looks after the daemon.
 */
#ifndef REACTORD_LUA_EVAL_H
#define REACTORD_LUA_EVAL_H

#include "lua_vm.h"

/* Runs code, an expression or statements, as a callback. *result (caller frees) has its results as text, tabs between, or after an error,
 * where the answer is false, the message with its traceback. */
bool lua_eval(struct vm *vm, const char *code, char **result) __attribute__((warn_unused_result));

#endif
