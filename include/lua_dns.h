/*
 * Names for scripts: look-ups whose outcome is a function's call. em.dns.resolve makes deferrables of them.
 */
#ifndef REACTORD_LUA_DNS_H
#define REACTORD_LUA_DNS_H

#include "lua_vm.h"

/* Puts resolve into the core's table at index 1. */
void lua_dns_open(lua_State *L);

/* Gives up a VM's look-ups; nobody is called. */
void lua_dns_cancel_all(struct vm *vm);

#endif
