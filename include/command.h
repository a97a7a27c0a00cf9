/*
 * The commands of the control socket, one table for those who ask and those who answer.
 */
#ifndef REACTORD_COMMAND_H
#define REACTORD_COMMAND_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

/* X(name, argument or NULL, help) */
#define COMMANDS(X)                                                                                                             \
	X("status", NULL, "what the daemon is and how it fares")                                                                    \
	X("connections", NULL, "connections, the newest first")                                                                     \
	X("listeners", NULL, "listeners, those of scripts too")                                                                     \
	X("handlers", NULL, "handlers in use, with their callbacks")                                                                \
	X("reload", NULL, "read the configuration and the handlers anew; waits, and tells every reason against it")                 \
	X("upgrade", NULL, "let a new process of the binary that is there now take over; waits, and tells every reason against it") \
	X("drain", NULL, "stop once connections have ended, or after drain_timeout; shows how many are left")                       \
	X("stop", NULL, "stop now")                                                                                                 \
	X("close", "ID", "end one connection")                                                                                      \
	X("log-level", "LEVEL", "set what is logged (error, warn, info, debug) until the next reload")                              \
	X("metrics", NULL, "all counters, in the text format of Prometheus")                                                        \
	X("eval", "CODE", "run Lua in the newest handlers' VM and show its results, where control_eval allows that")                \
	X("help", NULL, "these lines")

struct command {
	const char *name;
	const char *argument; /* what it is called, NULL: takes none */
	const char *help;
};

extern const struct command commands[];
extern const size_t command_count;

/* How a command may end; the exit status of ctl. */
enum { COMMAND_DONE = 0, COMMAND_FAILED = 1, COMMAND_USAGE = 2, COMMAND_UNREACHABLE = 3 };

/* Most rows of connections in one answer, and in one that does not say how many. */
#define COMMAND_ROWS_MAX 5000
#define COMMAND_ROWS 500

/* Is it a command with a good argument (NULL: none)? If not, *why says what is wrong with it (caller frees). */
bool command_check(const char *name, const char *argument, char **why) __attribute__((warn_unused_result));

/* Writes what a command has answered for human eyes. */
void command_show(FILE *to, const char *name, const json_t *result);

/* The lines of help. */
void command_help(FILE *to);

#endif
