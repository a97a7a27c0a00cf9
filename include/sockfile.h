/*
 * The file of a Unix listener: made so that of several daemons that want the same path one gets it, changed and removed only while it is
 * still the one that was made. Who listens there is its owner, and a file that nobody listens on is a dead server's, which is replaced. To
 * look and to replace are two steps: both are done under a lock on the folder, which is held for that moment only.
 */
#ifndef REACTORD_SOCKFILE_H
#define REACTORD_SOCKFILE_H

#include <stdbool.h>
#include <sys/types.h>

#include "addr.h"

#define SOCKFILE_WAIT_MS 500 /* for the folder's lock, which nobody holds for longer than a few system calls */

struct sockfile {
	char *path; /* NULL: there is none, as in the abstract name space */
	dev_t device;
	ino_t inode;
};

/* A socket that listens on a Unix address; *f becomes its file. mode: permissions from the first moment on, -1 by umask. -1 with errno and a
 * reason (caller frees): EADDRINUSE "in use by process N", EEXIST for what is no socket, EBUSY when the folder stays locked. */
int sockfile_listen(struct sockfile *f, const struct addr *a, int backlog, int mode, char **why) __attribute__((warn_unused_result));

/* Changes the file's permissions or its owner, if it is still that file; -1 with errno, 0 also when it is gone. */
int sockfile_change_mode(const struct sockfile *f, mode_t mode) __attribute__((warn_unused_result));
int sockfile_give(const struct sockfile *f, uid_t uid, gid_t gid) __attribute__((warn_unused_result));

/* Removes the file, if it is still that one, and forgets it. To be called before the socket is closed: until then no other daemon takes the
 * path. -1 with errno when it is left behind. */
int sockfile_remove(struct sockfile *f) __attribute__((warn_unused_result));

/* Forgets it: it is somebody else's now. */
void sockfile_forget(struct sockfile *f);

#endif
