/*
 * The first and the last things that a daemon does, with one process or many: open what takes rights and give the rights up; say that it
 * serves; say what is left at the end.
 */
#ifndef REACTORD_STARTUP_H
#define REACTORD_STARTUP_H

#include <stdbool.h>

#include "control.h"
#include "pidfile.h"
#include "ports.h"
#include "settings.h"
#include "stats.h"

/* Opens the log, reads the configuration, and opens the log that it asks for. NULL when anything is wrong; it has been told then. */
struct config *startup_configure(const struct service_options *options) __attribute__((warn_unused_result));

/* Opens the ports, which accept nothing yet, and the control socket, if there is to be one (*control stays NULL else), owns and writes the
 * pid file, and becomes the configured user. Goes on after mistakes in order to find them all; false when rights could not be given up, so that nothing more may be tried. */
bool startup_open(struct ports *ports, const struct config *config, struct pidfile *pid_file, struct control_host host,
                  struct control **control, struct problems *problems) __attribute__((warn_unused_result));

/* Takes the place of a process before, if there is one: writes the pid file, tells it that all is ready, and waits for it to step
 * back. */
bool startup_announce(const struct service_options *options, const struct pidfile *pid_file, struct ports *ports, struct control *control,
                      struct problems *problems) __attribute__((warn_unused_result));

/* Tells whoever started us that we serve, and lets go of the terminal. */
void startup_tell_ready(const struct service_options *options, const struct config *config, uint64_t generation);

/* Lets go of the terminal. */
void startup_detach(void);

/* Tells the process before of all problems, which says them in its log. Without one: writes them to the log, and also to standard error if the log is a file: whoever has started us looks there. */
void startup_tell_failed(const struct service_options *options, const struct problems *problems, bool to_file);

/* Writes the last line of the log: all counters. What is left over must be nothing. */
void startup_tell_stopped(const struct stats *stats);

#endif
