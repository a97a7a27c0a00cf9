/*
 * The first of several processes: holds the listeners' sockets and accepts nothing, starts and replaces those that serve, and sees that a
 * reload is carried out by all of them or by none.
 */
#ifndef REACTORD_MASTER_H
#define REACTORD_MASTER_H

#include "settings.h"

/* Serves by that many processes until stopped; the result is the exit status. config is taken over. Does not return in the processes. */
int master_run(const struct service_options *options, struct config *config, unsigned count) __attribute__((warn_unused_result));

#endif
