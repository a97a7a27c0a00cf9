/*
 * em.channel(name) and connections' subscribe: subscribers in Lua of the channels in channel.h. A subscriber hears what was pushed after it
 * has subscribed. Functions end with their generation, connections' subscriptions with the connection.
 */
#ifndef REACTORD_LUA_CHANNEL_H
#define REACTORD_LUA_CHANNEL_H

#include "lua_conn.h"

/* Puts the functions into the core's table at index 1, and into em.Connection. */
void lua_channel_open(lua_State *L);

/* Gives a handle that has none the subscriptions of another one, in the same VM or another one. What was pushed before and is not delivered
 * yet reaches it, too: whoever calls this lets one of both go before the next delivery. */
void lua_channel_copy(const struct lua_conn *from, struct lua_conn *to);

/* A VM takes the place of another one: its functions hear what waits to be delivered, which the other's do not any more. */
void lua_channel_start(struct vm *vm);

/* Ends a VM's subscriptions: those of functions, or all. */
void lua_channel_cancel_all(struct vm *vm, bool owned_too);

#endif
