/*
 * Listeners and outgoing connections of scripts, and what the config's listen and connect blocks share with them.
 */
#ifndef REACTORD_LUA_NET_H
#define REACTORD_LUA_NET_H

#include "lua_conn.h"

/* What a listener makes of its connections; its listener's user. */
struct lua_acceptor {
	struct vm *vm;
	struct lua_class class;
	struct flow flow;
	struct tls_context *tls; /* NULL: plain; a use of it */
	char *handler;           /* name for the log, or NULL */
	lua_CFunction accepted;  /* after post_init, or NULL */
	void *server;
};

/* A listener's on_accept. */
void lua_net_on_accept(struct listener *l, int fd, const struct addr *peer);

/* Puts the functions into the core's table at index 1. */
void lua_net_open(lua_State *L);

/* Starts the connection of a connect block; NULL when it could not even be made (logged). */
struct lua_conn *lua_net_connect(struct vm *vm, const struct connect_conf *conf, const struct lua_class *class, struct tls_context *tls,
                                 char *handler);

/* Ends a VM's own servers. With an heir their listeners wait, without accepting, for its start_server on the same addresses. */
void lua_net_close_servers(struct vm *vm, struct vm *heir);

/* Leaves the listening sockets of a VM to the next process, or takes that back. */
void lua_net_leave(struct vm *vm, struct legacy *legacy);
void lua_net_keep(struct vm *vm);

/* Closes what an heir has not claimed. */
void lua_net_drop_inheritance(struct vm *vm);

#endif
