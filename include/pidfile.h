/*
 * The file that holds the daemon's process id. A lock on it says that its daemon is alive, not the number in it, which may be another
 * process's by now: whoever holds the lock owns the file, and the system releases it however that process ends. The lock goes with the
 * descriptor, so a process that has inherited this owns the file too.
 */
#ifndef REACTORD_PIDFILE_H
#define REACTORD_PIDFILE_H

#include <stdbool.h>

struct pidfile {
	char *path; /* NULL: there is none */
	int fd;     /* holds the lock */
};

/* Opens, makes or takes over the file (0644) and locks it. inherited: a descriptor that holds the lock already, which becomes the pid file's
 * or, if it is of another file, is closed; -1: none. False with a reason (caller frees): "pid file x: in use by process N". */
bool pidfile_open(struct pidfile *p, const char *path, int inherited, char **why) __attribute__((warn_unused_result));

/* Writes our process id into it. False with a reason (caller frees). */
bool pidfile_write(const struct pidfile *p, char **why) __attribute__((warn_unused_result));

/* Removes the file, if it is still the one that we hold and our process id is in it, and lets go of it. Without the right to remove it, it is
 * left behind unlocked, which the next start takes over. */
void pidfile_close(struct pidfile *p);

#endif
