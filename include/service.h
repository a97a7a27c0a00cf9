/*
 * The daemon: from a configuration to listeners, connections and generations of handlers, until it is told to stop.
 */
#ifndef REACTORD_SERVICE_H
#define REACTORD_SERVICE_H

#include <stdbool.h>

#include "config.h"

/* How a configuration is come by; a reload does it again. */
struct service_options {
	const char *config_path;          /* NULL: handler on urls instead */
	const struct override *overrides; /* of the command line */
	size_t override_count;
	const char *handler; /* reactord run HANDLER -l URL: the handler's file */
	char *const *urls;
	size_t url_count;
	bool detached; /* tell ready_fd and close the terminal */
	int ready_fd;
};

/* Serves until stopped; the result is the exit status. */
int service_run(const struct service_options *options) __attribute__((warn_unused_result));

/* Checks without opening anything: config, handlers, rights. Prints every mistake. Returns the exit status. dump: print the config as JSON. */
int service_check(const struct service_options *options, bool dump) __attribute__((warn_unused_result));

#endif
