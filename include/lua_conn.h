/*
 * Connections as scripts see them: self is a plain table, its handle (a userdata) sits in it under a key of ours.
 */
#ifndef REACTORD_LUA_CONN_H
#define REACTORD_LUA_CONN_H

#include "connector.h"
#include "listener.h"
#include "lua_vm.h"
#include "process.h"
#include "tls_filter.h"
#include "udp.h"

/* What a handler becomes when connections are made of it: references into the registry. */
struct lua_class {
	int meta_ref;     /* metatable of instances */
	int function_ref; /* called with each new connection; LUA_NOREF: none */
	int args_ref;     /* table of arguments for initialize, LUA_NOREF: none */
	int args_count;
};

/* What is still known of a connection that has ended: its addresses, and the limits for a next one. */
struct lua_conn_names {
	struct addr peer, local;
	struct flow flow;
};

/* The child process of a connection, in part even when both have ended. */
struct lua_child {
	struct process *process; /* NULL once unbound */
	pid_t pid;
	struct process_status status;
};

/* What coroutines have to do with connections. */
struct lua_conn_coroutines {
	void (*push_receive)(lua_State *L);    /* pushes receive(connection, bytes), in the place of a receive_data that is missing */
	bool (*on_eof)(struct lua_conn *lc);   /* true: it goes on until lua_conn_end_input */
	void (*on_ended)(struct lua_conn *lc); /* before its unbind; lc->c may be NULL: moved */
};

/* The handle: born without a connection, with one while it lives, without one afterwards. */
struct lua_conn {
	struct vm_subject subject; /* self_ref: the instance, LUA_NOREF once unbound */
	struct vm *vm;
	int handle_ref;                   /* registry: this handle, for as long as self_ref is held */
	struct conn *c;                   /* NULL once unbound */
	struct conn *again;               /* made by reconnect within unbind; takes c's place */
	struct connector *connector;      /* while connecting */
	struct listener *listener;        /* that accepted it, until its release */
	const char *label;                /* URL of its listener or target, for the log */
	char *own_label;                  /* the target's, from vm_keep */
	char *handler;                    /* name of its handler for the log, or NULL; borrowed for the VM's lifetime */
	struct tls_context *tls;          /* of a tls:// connection: used again by reconnect; else NULL */
	int proxy_version;                /* of the PROXY header that an outgoing connection begins with, 0: none */
	struct lua_conn_names *proxy_for; /* whose addresses it tells, NULL: its own */
	char *hostname;                   /* whom it was to be connected to, NULL: nobody by name */
	uint64_t signature;
	uint64_t connect_timeout_ns;
	struct lua_timer *timers; /* its own, cancelled at unbind */
	void (*cancel_timers)(struct lua_conn *lc);
	struct lua_subscription *subscriptions; /* to named channels, ended at unbind */
	void (*cancel_subscriptions)(struct lua_conn *lc);
	struct lua_sending *sendings; /* datagrams that wait for their destination's address, given up at unbind */
	void (*cancel_sendings)(struct lua_conn *lc);
	const struct lua_conn_coroutines *coroutines;        /* NULL: there never were any; see lua_go.c */
	struct lua_task *tasks;                              /* its own, ended before unbind */
	struct lua_reading *readings;                        /* those that read from it */
	bool eof_waits;                                      /* the peer's end is to count when they are done */
	char *listens;                                       /* URL of a datagram server as it was asked for; NULL: it is none */
	const char *end_code;                                /* of the last connection, for on_unbound */
	bool end_used;                                       /* a byte or datagram had moved on it */
	struct lua_conn_names *names;                        /* after the end */
	void (*on_unbound)(struct lua_conn *lc, void *data); /* told once, when it has ended for good; NULL: nobody */
	void *on_unbound_data;
	struct lua_child *child; /* whose input and output it is; NULL: no child's */
	uint64_t relayed;        /* after the end: bytes that its relay had passed on */
	bool outgoing, unbinding;
	bool moved;                       /* its connection is another handle's now, and cannot come back */
	bool eof_unheard;                 /* a relay has passed the peer's end on, and the handler has no receive_eof */
	bool has_listeners;               /* em.EventEmitter's are in the uservalue */
	struct lua_conn *previous, *next; /* all of the VM's */
};

/* Furnishes the VM with em.Connection; pushes it. */
int lua_conn_open(lua_State *L);

/* The handle of the instance at index, which raises where there is none. */
struct lua_conn *lua_conn_check(lua_State *L, int index);

/* The handle of a value, NULL if it is no connection. */
struct lua_conn *lua_conn_test(lua_State *L, int index);

/* A new instance of the class whose metatable lies at meta (a stack index), pushed; its handle has a connection without descriptor. */
struct lua_conn *lua_conn_create(lua_State *L, int meta, const struct flow *flow);

/* The same without a connection, held as for one. Lets go of it, which has none, be it for want of one or because it was moved. */
struct lua_conn *lua_conn_make(lua_State *L, int meta, uint64_t signature);
void lua_conn_let_go(struct lua_conn *lc);

/* Moves the connection from one handle to another that has none and may be in another VM: bytes, limits, names, and who hears of its end go
 * along, timers and listeners do not. Neither may wait to connect, or stand for more than a stream (a watch, datagrams, a child). */
void lua_conn_move(struct lua_conn *from, struct lua_conn *to);

/* Makes it a TLS connection to that host, now and after each reconnect. */
void lua_conn_use_tls(struct lua_conn *lc, struct tls_context *tls, const char *hostname);
/* Keeps the instance at a stack index (absolute) and its handle lc from being collected until the end of a connection; may raise. */
void lua_conn_hold(lua_State *L, struct lua_conn *lc, int instance);

/* Names the target of an outgoing connection for the log (copied). */
void lua_conn_set_label(struct lua_conn *lc, const char *label);

/* Gives a handle that is in its unbind, or past it and held by self_ref again, a new connection without descriptor. */
void lua_conn_revive(struct lua_conn *lc, const struct flow *flow);

/* Calls initialize with the table of arguments at args (0: none), post_init, and function (0: none); errors end the connection. */
void lua_conn_begin(lua_State *L, struct lua_conn *lc, int args, int count, int function);

/* Pushes what send_data returns for that answer: true, false, or nil, message, code. The value is the number of results. */
int lua_conn_push_sent(lua_State *L, enum send_result result);

/* Pushes self and its method of that name; false if there is none (nothing is pushed then). */
bool lua_conn_push_method(lua_State *L, struct lua_conn *lc, const char *name);
/* Calls the callback of that name, which takes no arguments. False where the handler has none, or after an error. */
bool lua_conn_call(struct lua_conn *lc, const char *callback);

/* What the peer's end comes to, where the handler does not care: ours. */
void lua_conn_end_input(struct lua_conn *lc);

/* Keeps the addresses of its connection for those who ask later. */
void lua_conn_keep_names(struct lua_conn *lc);

/* Pushes em's emit(object, event, ...). */
void lua_conn_push_emit(lua_State *L);

/* Starts to connect to host and port or (host NULL) to a Unix path. */
void lua_conn_connect(struct lua_conn *lc, const char *host, uint16_t port, const struct addr *to, const struct addr *bind);

/* Hands a started child to a handle, whose memory for it is there already: from now on it is a connection with the child. */
void lua_conn_attach(struct lua_conn *lc, struct process *p);

/* What the body `accepted` below gets. */
struct lua_accepted {
	void *server;
	struct lua_conn *lc;
};

/* What datagram sockets tell. */
extern const struct udp_events lua_conn_udp_events;

/* What TLS tells of connections. */
extern const struct tls_events lua_conn_tls_events;

/* Accepts for a class: makes the instance and runs its first callbacks; then the body accepted, unless it is NULL. */
void lua_conn_accept(struct vm *vm, const struct lua_class *class, const struct flow *flow, char *handler, struct listener *l, int fd,
                     const struct addr *peer, struct tls_context *tls, lua_CFunction accepted, void *server);

/* Ends every connection of a VM: orderly, after flushing what is queued if flush is set. */
void lua_conn_end_all(struct vm *vm, const char *why, bool flush);

void lua_class_free(struct vm *vm, struct lua_class *class);

#endif
