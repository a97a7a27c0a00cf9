/*
 * A VM put together: libraries, the module em, running scripts, stopping.
 */
#ifndef REACTORD_LUA_CORE_H
#define REACTORD_LUA_CORE_H

#include "lua_vm.h"

/* A VM with everything in it. NULL with a reason (caller frees). */
struct vm *core_new(const struct vm_options *options, char **why) __attribute__((warn_unused_result));

/* Starts a script's body; errors are reported like a callback's. */
void core_run_script(struct vm *vm, const char *path, int count, char **arguments);

/* Goes on behind em.run in a body that waits there. */
void core_resume_script(struct vm *vm);

/* Does anything in the VM still wait for something? Its connections, servers, timers, next-ticks. */
bool core_busy(const struct vm *vm);

/* Calls the shutdown hooks, last in first out, each once. */
void core_call_hooks(struct vm *vm);

/* Ends servers and timers, and drops next-ticks; connections end with that reason, after flushing if flush is set. From now on, until
 * core_resume_script, the VM opens nothing. */
void core_shutdown(struct vm *vm, const char *why, bool flush);

#endif
