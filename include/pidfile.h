/*
 * The file that holds the daemon's process id.
 */
#ifndef REACTORD_PIDFILE_H
#define REACTORD_PIDFILE_H

#include <stdbool.h>

/* Writes our pid (0644). False with a reason (caller frees), also when the file names a process that is alive. */
bool pidfile_write(const char *path, char **why) __attribute__((warn_unused_result));

/* Removes it, if it is still ours. */
void pidfile_remove(const char *path);

#endif
