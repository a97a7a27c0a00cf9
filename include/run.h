/*
 * `reactord run SCRIPT`: a script inside the loop, to its end.
 */
#ifndef REACTORD_RUN_H
#define REACTORD_RUN_H

#include "config.h"

/* Runs the script with its arguments; the result is the exit status. */
int run_script(const struct config *config, const char *path, int count, char **arguments) __attribute__((warn_unused_result));

#endif
