/*
 * Datagram sockets of scripts: connections (lua_conn.h) on udp.h. Their methods refuse what only streams have with EOPNOTSUPP.
 */
#ifndef REACTORD_LUA_UDP_H
#define REACTORD_LUA_UDP_H

#include "legacy.h"
#include "lua_conn.h"

#define LUA_UDP_MAX_NAMES 256 /* names that one socket waits for at once; a datagram to one more is told as EAGAIN */

/* Adds the methods of datagram sockets to em.Connection. */
void lua_udp_open(lua_State *L);

/* Binds as conf says for the handler at index handler with the arguments after it up to last; pushes the connection, or nil, message,
 * code. Returns the number of values. */
int lua_udp_listen(lua_State *L, const struct listen_conf *conf, int handler, int last);

/* The same for a listen block, on a duplicate of its listener's descriptor; handler is its name for the log. NULL when it could not even
 * be made (logged). */
struct lua_conn *lua_udp_serve(struct vm *vm, const struct lua_class *class, const struct flow *flow, char *handler, struct listener *l);

/* Ends a VM's own sockets that were bound to a certain port. With an heir the sockets wait, with what they receive, for it to bind to the
 * same addresses. */
void lua_udp_close_servers(struct vm *vm, struct vm *heir);

/* Leaves those to the next process. */
void lua_udp_leave(const struct vm *vm, struct legacy *legacy);

/* Closes what an heir has not claimed. */
void lua_udp_drop_inheritance(struct vm *vm);

#endif
