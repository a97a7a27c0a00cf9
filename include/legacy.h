/*
 * What a daemon leaves to the one that takes its place: open descriptors by kind and name, and texts. They go with exec under their numbers;
 * a list of them, JSON in a file of memory, is what the variable REACTORD_LEGACY has the descriptor of. Either side may know kinds that the
 * other does not, as the two may be of different versions: what nobody takes is closed.
 */
#ifndef REACTORD_LEGACY_H
#define REACTORD_LEGACY_H

#include <stdbool.h>
#include <stddef.h>

#include "sockfile.h"

#define LEGACY_VARIABLE "REACTORD_LEGACY"

/* Kinds of descriptors. */
#define LEGACY_LISTENER "listener" /* by its URL; several may have the same */
#define LEGACY_GIVEN "given"       /* a socket that the process was started with, by its name, see activation.h */
#define LEGACY_PID_FILE "pid_file"
#define LEGACY_LINK "link" /* to the process before, see upgrade.h */

struct legacy;

/* One descriptor. */
struct legacy_entry {
	const char *kind, *name;     /* name NULL: none */
	unsigned process;            /* whose it was, 0: the daemon's */
	int fd;                      /* -1 once taken */
	const struct sockfile *file; /* of a Unix socket, or NULL */
};

/* --- leaving --- */

struct legacy *legacy_new(void) __attribute__((warn_unused_result));
void legacy_free(struct legacy *l); /* closes what was received and not taken, and nothing that was to be left */

/* Adds a descriptor, which must stay open until the new process runs, unless it is there already; or a text. */
void legacy_leave(struct legacy *l, const char *kind, const char *name, int fd, const struct sockfile *file);

/* Adds a listener of one of several processes, which closes its duplicate with the legacy. process: from 1. */
void legacy_give(struct legacy *l, unsigned process, const char *name, int fd, const struct sockfile *file);

void legacy_leave_text(struct legacy *l, const char *name, const char *text);

/* A descriptor of the list, to be passed like those in it; -1 with errno. */
int legacy_write(const struct legacy *l) __attribute__((warn_unused_result));

/* --- receiving --- */

/* What this process was left, NULL if it was started in the usual way. Takes the variable out of the environment. */
struct legacy *legacy_receive(void) __attribute__((warn_unused_result));

/* Takes one, the first of that kind and name (NULL: any): it is the caller's then, and so is its file (file NULL: the caller wants none).
 * -1: there is none, or no legacy at all (l NULL). */
int legacy_take(struct legacy *l, const char *kind, const char *name, struct sockfile *file) __attribute__((warn_unused_result));

/* Is one there to be taken? */
bool legacy_has(const struct legacy *l, const char *kind, const char *name);

/* A text, NULL if there is none. */
const char *legacy_text(const struct legacy *l, const char *name);

/* All entries, for those who do not know what they look for; NULL behind the last. */
const struct legacy_entry *legacy_at(const struct legacy *l, size_t index);

/* Closes what nobody has taken, removes the files, and logs it. With several processes that is for each of them to do with its own: the master
 * only closes. */
void legacy_drop(struct legacy *l, bool is_master);

/* In a process that a master has forked: keeps those listeners that this one of so many processes may take, and nothing else. */
void legacy_select(struct legacy *l, unsigned process, unsigned count);

#endif
