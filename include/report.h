/*
 * What one process answers to commands that only look, or concern one connection; and how the answers of several become one.
 */
#ifndef REACTORD_REPORT_H
#define REACTORD_REPORT_H

#include <jansson.h>

#include "generation.h"
#include "problems.h"
#include "runtime.h"
#include "scoreboard.h"

/* An answer: the exit status of ctl, and the result, or with a status above 0 an array of reasons. The caller owns result. */
struct report {
	int status;
	json_t *result;
	json_int_t more; /* of connections: the number below which to go on, 0: these were all */
};

/* The whole daemon by its scoreboard. state is "serving" or "draining"; pid the main process's, config its file or NULL. */
json_t *report_status(const struct scoreboard *board, pid_t pid, const char *state, const char *config) __attribute__((warn_unused_result));

/* All counters of the daemon. */
struct report report_metrics(const struct scoreboard *board) __attribute__((warn_unused_result));

/* The process's own answer to a request (see control.h); newest leads to the older generations. */
struct report report_answer(struct runtime *r, struct generation *newest, const char *state, const json_t *request)
	__attribute__((warn_unused_result));

/* The answers of all processes to a request made one; they are taken over. One without a result has not come. */
struct report report_merge(const json_t *request, struct report *reports, size_t count) __attribute__((warn_unused_result));

/* A report with one reason, which is taken over. */
struct report report_failure(int status, char *why) __attribute__((warn_unused_result));

/* A report with these reasons. */
struct report report_failures(const struct problems *problems) __attribute__((warn_unused_result));

/* As JSON, for the way to another process; from there false if it is none. */
json_t *report_pack(const struct report *r) __attribute__((warn_unused_result));
bool report_unpack(struct report *r, const json_t *from) __attribute__((warn_unused_result));

#endif
