/*
 * Child processes. Standard input and output of a child are one socket pair, whose other end is a connection; its standard error is
 * ours, goes the same way, or has a pipe of its own. A child is finished when its output has ended and its status has arrived: only then
 * does the connection end by itself, and whatever the child had written has been read. A connection that is ended earlier closes the
 * child's input and output at once; a child that goes on all the same is sent TERM and then KILL, and the connection's on_end waits
 * until its status is there. Nothing here waits but for exec itself: a child's end is an event on its pidfd.
 */
#ifndef REACTORD_PROCESS_H
#define REACTORD_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "conn.h"
#include "loop.h"
#include "privs.h"
#include "watch.h"

#define PROCESS_TERM_NS 500000000u     /* from the end of the connection to TERM */
#define PROCESS_KILL_NS 1000000000u    /* from TERM to KILL */
#define PROCESS_ABANDON_NS 2000000000u /* from KILL to the end without a status: it cannot be killed */
#define PROCESS_ORPHAN_NS 1000000000u  /* how long output stays open that only a child's children hold */

struct process;
struct processes;

enum process_stderr { PROCESS_STDERR_INHERIT, PROCESS_STDERR_MERGE, PROCESS_STDERR_SEPARATE };

/* What to start; everything in it is owned. Start with {0}. */
struct process_spec {
	char **argv; /* NULL-terminated; at least the program, which is looked for in the child's PATH unless it has a slash */
	size_t argc;
	char **env; /* NULL-terminated, "NAME=value"; NULL: process_spec_env has not been called, the child gets ours */
	size_t env_count;
	char *cwd;    /* NULL: ours */
	bool as_user; /* becomes identity for good */
	struct identity identity;
	enum process_stderr err;
};

void process_spec_clear(struct process_spec *spec);
void process_spec_add(struct process_spec *spec, const char *argument);

/* Splits a command line as a shell does, with quotes and backslashes but without anything else that a shell knows. False with a reason
 * (static): a quote is not closed, or there is no word. */
bool process_spec_split(struct process_spec *spec, const char *text, const char **why) __attribute__((warn_unused_result));

/* Sets a variable of the child's environment, which else is ours but for what concerns us alone (systemd's); value NULL removes it. */
void process_spec_env(struct process_spec *spec, const char *name, const char *value);

/* How a child ended. */
struct process_status {
	enum { PROCESS_RUNNING, PROCESS_EXITED, PROCESS_SIGNALED, PROCESS_LOST } how; /* lost: it could not be killed */
	int number;                                                                   /* exit status, or signal */
};

/* What a child tells the user of its connection. */
struct process_events {
	void (*on_stderr)(struct conn *c, const char *bytes, size_t length); /* with PROCESS_STDERR_SEPARATE; bytes during the call */
	void (*on_exit)(struct conn *c, struct process_status status);       /* its status has arrived; before on_end */
};

/* The children of a loop. Ours get descriptor_limit as soft RLIMIT_NOFILE: what we have raised for ourselves is not for them.
 * processes_free kills those that are left. watches hears of each child's end. */
struct processes *processes_new(struct loop *loop, rlim_t descriptor_limit, struct watches *watches) __attribute__((warn_unused_result));
void processes_free(struct processes *set);

/* Starts a child: NULL with a reason (caller frees) and errno. Of ours it inherits nothing but the environment, the limits, standard
 * error where asked for: no descriptor, no signal's meaning, no blocked signal. It stays in our process group. */
struct process *process_start(struct processes *set, const struct process_spec *spec, char **why) __attribute__((warn_unused_result));

/* Gives a started child to a connection that has no descriptor yet, from now until the connection's on_end. */
void process_attach(struct process *p, struct conn *c, const struct process_events *events);

/* Kills a started child that nothing was attached to. */
void process_abandon(struct process *p);

pid_t process_pid(const struct process *p);

/* Sends a signal, surely to this child: -1 with errno, ESRCH when it has ended. */
int process_kill(struct process *p, int signo) __attribute__((warn_unused_result));

#endif
