/*
 * A Lua state of one generation of handlers, and the one door into it. Whatever may raise an error runs behind vm_enter; outside of
 * it only pushes that allocate nothing are allowed. Memory of the state is counted and has a ceiling.
 */
#ifndef REACTORD_LUA_VM_H
#define REACTORD_LUA_VM_H

#include <lauxlib.h>
#include <lua.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config.h"
#include "conn.h"
#include "guard.h"
#include "log.h"
#include "loop.h"
#include "resolver.h"
#include "timer.h"
#include "tls.h"

struct channels;
struct sources;
struct processes;
struct vm;
struct vm_block;
struct lua_conn;
struct lua_server;
struct lua_signal;
struct lua_subscription;
struct lua_timer;
struct watches;
struct socket_inheritance;
struct store;
struct lua_lookup;
struct lua_task;
struct lua_conn_coroutines;

/* Whose callback an error was raised in; the first member of what it stands for. */
struct vm_subject {
	int self_ref;   /* registry: what em.error_handler gets as its second argument */
	unsigned label; /* what its callbacks are counted under, see scoreboard.h */
	/* Fills in what is known; peer is room for the address's text. */
	void (*describe)(struct vm_subject *s, struct log_context *context, char peer[ADDR_TEXT_SIZE]);
	void (*failed)(struct vm_subject *s, const char *message); /* ends it because of the error */
};

/* What a VM asks of whoever runs it. */
struct vm_host {
	void (*on_stop)(struct vm *vm, double drain_s, int status); /* a script called em.stop; each < 0: not given */
	void (*on_exhausted)(struct vm *vm);                        /* its memory is full of live data */
	void (*on_uncaught)(struct vm *vm); /* an error that belongs to no connection, without an error handler; NULL: log only */
	bool (*stopping)(struct vm *vm);    /* is the process on its way out? */
};

struct vm_options {
	struct loop *loop;
	struct conns *conns;
	struct watches *watches;
	struct resolver *resolver;
	struct processes *processes;
	struct channels *channels;
	struct store *store;
	struct guard *guard;
	struct tls_contexts *tls;
	const struct vm_host *host;
	void *host_data;
	const struct config *config; /* limits, folders, paths; borrowed while the VM lives */
	const char *script_dir;      /* searched first by require; NULL: none */
	const char *library_dir;     /* the shipped handlers and em/ */
	bool is_script;              /* reactord run: print writes to standard output, nothing is "loading" */
	uint64_t generation;
	struct sources *sources; /* the texts of its files, filled while handlers load; borrowed; NULL: every file is read when it is wanted */
};

struct vm {
	lua_State *L;        /* the main thread: errors are reported on it */
	lua_State *callback; /* the coroutine that callbacks run on, so that a hook can end them by yielding */
	int callback_ref;    /* keeps it */
	lua_State *running;  /* the coroutine that runs now, for the time limit's hook */
	lua_State *body;     /* a script's body while it has not ended, NULL in the daemon */
	bool in_run;         /* the body is in em.run */
	bool waiting;        /* ... suspended until the loop has stopped */
	struct vm_options options;
	unsigned depth;              /* callbacks entered and not left */
	struct vm_call *call;        /* the one that runs, NULL: none */
	volatile bool overrun;       /* the running callback has used up its time and must end */
	volatile bool slow;          /* it has taken longer than slow_callback */
	char *slow_traceback;        /* where it was then, as soon as that is known */
	size_t memory, memory_limit; /* bytes */
	bool collected;              /* a collection is through */
	bool exhausted;              /* told the host */
	bool collect_wanted;         /* memory ran out since the last full collection */
	struct timer collect;        /* until when there is no other one */
	bool loading;                /* handler files load: nothing may be opened */
	bool retired;                /* a newer generation has taken over */
	bool closing;                /* what it has open is being ended: nothing is opened any more */
	bool ending;                 /* the state is being closed */
	bool in_error_handler;
	int error_handler_ref, hooks_ref;
	int ticks_ref; /* array of functions, from first_tick up to next_tick - 1 */
	lua_Integer first_tick, next_tick;
	struct loop_hook tick;  /* runs them */
	uint64_t references;    /* registry references held */
	struct vm_block *kept;  /* memory that goes with the VM */
	struct lua_conn *conns; /* all of this VM's */
	struct lua_server *servers;
	struct lua_timer *timers;
	struct lua_signal *signals;
	struct lua_subscription *subscriptions; /* of named channels: uthash, by id */
	uint64_t last_subscription;             /* id */
	struct lua_timer *firing;               /* the one whose function runs, NULL: none */
	size_t conn_count, server_count, timer_count;
	const void *conn_meta;                        /* identity of the handle's metatable, see lua_conn.c */
	int connection_ref;                           /* em.Connection */
	int metas_ref;                                /* class -> metatable of its instances */
	int handlers_ref;                             /* name -> handler */
	struct inheritance *inherited;                /* listeners of the generation before, see lua_net.c */
	struct socket_inheritance *inherited_sockets; /* and its datagram sockets, see lua_udp.c */
	struct lua_lookup *lookups;                   /* of names, under way, see lua_dns.c */
	const struct lua_conn_coroutines *coroutines; /* what they want to know of connections, see lua_conn.h */
	struct lua_task *tasks, *ready;               /* coroutines of em.go, see lua_go.c; those that go on in this turn */
	struct lua_task *task;                        /* the one that runs, NULL: none */
	struct lua_task *body_task;                   /* body's */
	size_t ready_count, sleeping;
	struct loop_hook go; /* runs them */
	bool cancelling;     /* they are being ended: none may start */
};

/* The VM of a Lua thread. */
static inline struct vm *vm_of(lua_State *L)
{
	return *(struct vm **)lua_getextraspace(L);
}

/* Makes a VM and runs open in it, protected, to furnish it. NULL with a reason (caller frees). */
struct vm *vm_new(const struct vm_options *options, lua_CFunction open, char **why) __attribute__((warn_unused_result));

/* Frees a VM that has no connections, servers and timers any more. */
void vm_free(struct vm *vm);

/* Gives a new VM the coroutine that callbacks run on; the last step of furnishing it, may raise. */
void vm_open_callbacks(lua_State *L);

/* From now on its next-ticks run. */
void vm_start(struct vm *vm);

/* A call into the VM. */
struct vm_call {
	lua_CFunction body; /* gets argument as a light userdata; may raise; calls scripts by vm_call_script alone */
	void *argument;
	const char *callback;       /* its name for the log and for the scoreboard, a constant, or NULL */
	struct vm_subject *subject; /* whose it is, or NULL; body may set it later */
};

/* The one door: runs body under time and memory limits. An error is logged with its traceback, counted, handed to em.error_handler, and
 * ends the subject. False after an error. May be nested. */
bool vm_enter(struct vm *vm, struct vm_call *call);

/* The same for what has its own way with errors (loading): no report; the message and traceback are the caller's in *why. */
bool vm_try(struct vm *vm, struct vm_call *call, char **why) __attribute__((warn_unused_result));

/* Calls the function below its arguments on the stack and drops results; the last thing a body does: a hook may yield across it. */
int vm_call_script(lua_State *L, int arguments);

/* Resumes a coroutine as lua_resume does, keeping track of which one runs. */
int vm_resume(lua_State *L, lua_State *co, int arguments, int *results);

/* Closes the pending variables of a coroutine that ended with an error and returns its status, the error being on co. Not under overrun:
 * an error that the time limit's hook has raised leaves hooks off, so that there would be no limit. */
int vm_reset(lua_State *L, lua_State *co);

/* Raises while handler files load: a reload that is refused must have had no effect, so they open and change nothing outside the VM. */
void vm_check_open(lua_State *L);

/* Counted registry references: vm_ref takes the value on top of the stack (may raise). vm_unref(LUA_NOREF) does nothing. */
int vm_ref(lua_State *L);
void vm_unref(struct vm *vm, int *ref);

/* Raises when the state is being closed: what a finalizer starts then would outlive it. */
void vm_check_alive(lua_State *L);

/* Memory outside of Lua, zeroed, that goes with vm_drop, or with the VM at the latest: a finalizer may fail (for want of stack or memory)
 * and is never called again. vm_drop(NULL) does nothing. */
void *vm_keep(struct vm *vm, size_t size) __attribute__((warn_unused_result));
void vm_drop(void *bytes);

/* Queues the function on top of the stack for after this turn's I/O, and pops it. */
void vm_next_tick(lua_State *L);

/* Pushes a text for the error object on top of the stack, or makes it one; an error in the script's __tostring is told instead. */
void vm_error_text(lua_State *L);

/* Logs an error that was caught elsewhere (a listener's) as a callback's error, with all that follows from it. */
void vm_report(struct vm *vm, struct vm_subject *subject, const char *callback, const char *message);

/* The guard's on_slow and on_overrun for all VMs. */
void vm_on_slow(void *vm);
void vm_on_overrun(void *vm);

#endif
