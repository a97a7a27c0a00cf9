/*
 * Descriptors that come from outside: a script's or a parent's. They are made fit for the loop without harm to others that share them:
 * a terminal, or a pipe that is a standard descriptor, is opened anew instead of being made non-blocking for everybody.
 */
#ifndef REACTORD_ADOPT_H
#define REACTORD_ADOPT_H

#include <stdbool.h>

struct adopted {
	int fd;        /* to work with: non-blocking, but for a terminal that cannot be opened anew */
	int origin;    /* the one that was given; the same, or another for the same file */
	int flags;     /* what origin's status flags were, -1: they are unchanged */
	bool pollable; /* else epoll refuses it: a regular file or /dev/null, always ready */
	bool can_read, can_write;
};

/* Takes a descriptor over; false with errno: EBADF, EISDIR. */
bool adopt_open(struct adopted *a, int fd) __attribute__((warn_unused_result));

/* Closes it, but never a standard descriptor (0 to 2), which gets its flags back. */
void adopt_close(struct adopted *a);

/* Gives it back open, as it was given, and returns its number. */
int adopt_release(struct adopted *a);

/* Does epoll take it? */
bool adopt_pollable(int fd);

#endif
