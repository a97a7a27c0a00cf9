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
#include "preface.h"
#include "sockfile.h"
#include "timer.h"

#define LISTENER_BATCH 64               /* connections accepted in one pass at most */
#define LISTENER_HEADER_NS 10000000000u /* for a PROXY header, where TLS has no limit of its own */
#define LISTENER_RETRY_NS 100000000u    /* wait after an accept that failed for want of descriptors or memory */

struct address_count;
struct activation_socket;
struct legacy;

struct listener {
	struct loop *loop;
	struct stats *stats;              /* where it and what it accepts are counted: the loop's, or by listener_count another's */
	struct listener *previous, *next; /* all of the loop's */
	struct event *event;
	int fd; /* -1 once closed */
	struct addr local;
	char *url;                                 /* as configured, in its canonical spelling */
	char *name;                                /* the same with the port that the system picked */
	struct sockfile file;                      /* of a Unix socket that it has made, or has taken over */
	bool inherited;                            /* of a process before, with what that has set: until listener_update, which makes it ours */
	int backlog, mode;                         /* as configured; mode < 0: not at all */
	bool retired;                              /* accepts no more */
	bool left;                                 /* to the next process, which has the file now */
	unsigned label;                            /* its number in the scoreboard */
	uint64_t max_connections, max_per_address; /* 0: no limit */
	int log_level;                             /* of its own events, as in struct log_context */
	uint64_t live;                             /* accepted and not yet released */
	struct address_count *addresses;           /* uthash */
	bool paused;                               /* by its user */
	bool starved;                              /* waits for retry */
	bool watched;                              /* accepting */
	bool busy;                                 /* in its batch: must not be freed */
	bool datagrams;                            /* nothing to accept: it keeps the socket for those who receive on a duplicate of it */
	int batch;                                 /* connections accepted in one pass at most */
	struct timer retry;
	uint64_t told_ns;                                                       /* when the log last heard of starvation */
	void (*on_accept)(struct listener *l, int fd, const struct addr *peer); /* takes fd over */
	void *user;
	struct network *proxies; /* from where connections come with a PROXY header, and from nowhere else; none: without one */
	size_t proxy_count;
	struct prefaces prefaces;        /* those that have not said it yet; they are among the live */
	const struct proxyproto *header; /* during on_accept: what it said, or NULL */
	struct activation_socket *given; /* what it works on a duplicate of, NULL: a socket of its own */
};

/* Opens a listener as its block says, or takes a socket that the process was started with (fd://). NULL with errno and the reason in *why (caller frees): "listen tcp://…: Address already in use". */
struct listener *listener_open(struct loop *loop, const struct listen_conf *conf,
                               void (*on_accept)(struct listener *l, int fd, const struct addr *peer), void *user, char **why)
	__attribute__((warn_unused_result));

/* The same on a descriptor that listens already, which becomes the listener's; only conf's limits count, its URL is a name. */
struct listener *listener_adopt(struct loop *loop, const struct listen_conf *conf, int fd,
                                void (*on_accept)(struct listener *l, int fd, const struct addr *peer), void *user, char **why)
	__attribute__((warn_unused_result));
/* Binds (and for streams listens) as a block says: the descriptor, and in *file the file of a Unix socket; or -1 with errno and the reason in *why (caller frees). */
int listener_bind(const struct listen_conf *conf, struct sockfile *file, char **why) __attribute__((warn_unused_result));

/* Takes over the options that may change while it is open: limits, backlog, permissions. */
void listener_update(struct listener *l, const struct listen_conf *conf);

/* Leaves the socket to the next process, with its file, which will not be removed then; or takes that back. Whatever a process was started with is
 * left by activation_leave. */
void listener_leave(struct listener *l, struct legacy *legacy);
void listener_keep(struct listener *l);

/* Takes a socket that a process before has left for good: from here on its file goes with it. listener_update does it, too. */
void listener_own(struct listener *l);

/* Accepts no more. False while PROXY headers are waited for, whose connections listener_close would cut off. */
bool listener_retire(struct listener *l);

/* Gives the file of a Unix socket to a user, so that it may be removed and changed after rights were given up. */
void listener_give(struct listener *l, uid_t uid, gid_t gid);

/* Counts it there instead, from now on. */
void listener_count(struct listener *l, struct stats *stats);

/* The file stays when it closes: another process has it. */
void listener_leave_file(struct listener *l);

void listener_pause(struct listener *l);
void listener_resume(struct listener *l);

/* During on_accept: whom a connection from that peer stands for, by its PROXY header. */
const struct addr *listener_client(const struct listener *l, const struct addr *peer);

/* One accepted connection has ended; peer is whom it stood for. */
void listener_release(struct listener *l, const struct addr *peer);

/* Closes the socket and removes its file; the struct goes with the last accepted connection. */
void listener_close(struct listener *l);

#endif
