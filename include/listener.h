/*
 * Listening sockets: accept in batches, pause when descriptors run out or a limit is reached, resume by themselves.
 */
#ifndef REACTORD_LISTENER_H
#define REACTORD_LISTENER_H

#include <stdbool.h>
#include <sys/types.h>

#include "addr.h"
#include "config.h"
#include "loop.h"
#include "timer.h"

#define LISTENER_BATCH 64              /* connections accepted in one pass at most */
#define LISTENER_RETRY_NS 100000000u   /* wait after an accept that failed for want of descriptors or memory */

struct address_count;

struct listener {
	struct loop *loop;
	struct event *event;
	int fd;                      /* -1 once closed */
	struct addr local;
	char *url;                   /* as configured, in its canonical spelling */
	char *name;                  /* the same with the port that the system picked */
	char *unlink_path;           /* socket file to remove at the end, NULL if none */
	dev_t unlink_device;         /* which file that is: another server may have put its own there meanwhile */
	ino_t unlink_inode;
	uint64_t max_connections, max_per_address; /* 0: no limit */
	uint64_t live;               /* accepted and not yet released */
	struct address_count *addresses; /* uthash */
	bool paused;                 /* by its user */
	bool starved;                /* waits for retry */
	bool watched;                /* accepting */
	bool busy;                   /* in its batch: must not be freed */
	struct timer retry;
	uint64_t told_ns;            /* when the log last heard of starvation */
	void (*on_accept)(struct listener *l, int fd, const struct addr *peer); /* takes fd over */
	void *user;
};

/* Opens a listener as its block says. NULL with errno and the reason in *why (caller frees): "listen tcp://…: Address already in use". */
struct listener *listener_open(struct loop *loop, const struct listen_conf *conf,
	void (*on_accept)(struct listener *l, int fd, const struct addr *peer), void *user, char **why) __attribute__((warn_unused_result));

/* Takes over the options that may change while it is open: limits, backlog, permissions. */
void listener_update(struct listener *l, const struct listen_conf *conf);

/* Gives the file of a Unix socket to a user, so that it may be removed and changed after rights were given up. */
void listener_give(struct listener *l, uid_t uid, gid_t gid);

void listener_pause(struct listener *l);
void listener_resume(struct listener *l);

/* One accepted connection from that peer has ended. */
void listener_release(struct listener *l, const struct addr *peer);

/* Closes the socket and removes its file; the struct goes with the last accepted connection. */
void listener_close(struct listener *l);

#endif
