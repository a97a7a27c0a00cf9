/*
 * How the daemon comes by its configuration, at the start and at each reload, and what it does with it first: the log.
 */
#ifndef REACTORD_SETTINGS_H
#define REACTORD_SETTINGS_H

#include <stdbool.h>

#include "config.h"
#include "problems.h"

struct legacy;
struct upgrade_self;

/* What the command line has said, and how the process was started. */
struct service_options {
	const char *config_path;          /* NULL: handler on urls instead */
	const struct override *overrides; /* of the command line */
	size_t override_count;
	const char *handler; /* reactord run HANDLER -l URL: the handler's file */
	char *const *urls;
	size_t url_count;
	bool detached; /* tell ready_fd and close the terminal */
	int ready_fd;
	struct legacy *legacy;           /* what a process before has left, NULL: there was none */
	const struct upgrade_self *self; /* how to start the next one, NULL: there will be none */
};

/* Reads the configuration anew. NULL when anything is wrong; all of it is in problems. */
struct config *settings_read(const struct service_options *o, struct problems *problems) __attribute__((warn_unused_result));

/* A number that differs for configurations that differ. */
uint64_t settings_digest(const struct config *config);

/* Opens the log as a configuration says; on failure the old one stays. */
bool settings_apply_log(const struct config *config, struct problems *problems) __attribute__((warn_unused_result));

/* Writes all problems to the log, each an event. */
void settings_log_problems(const struct problems *problems, const char *lead);

#endif
