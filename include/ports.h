/*
 * The open listeners of a configuration, and how those of the next one are made of them: what stays is not touched, what is new is
 * opened before anything is decided, what is gone is closed afterwards.
 */
#ifndef REACTORD_PORTS_H
#define REACTORD_PORTS_H

#include <stdbool.h>
#include <sys/types.h>

#include "config.h"
#include "listener.h"
#include "problems.h"

/* The listeners of a block: one. A master has one for each of its processes, where they can share the address, and there may be more where a
 * daemon before had more processes. */
struct port {
	struct listener **sockets;
	size_t count;
	bool current; /* among ports' own, not only opened for what may become so */
	struct port *next;
};

struct ports {
	struct loop *loop;
	void (*on_accept)(struct listener *l, int fd, const struct addr *peer); /* NULL: they are held for others, and accept nothing */
	unsigned slots;                                                         /* how many processes they are held for; 0: they are our own */
	struct port *all;                                                       /* in the configuration's order */
	struct handed *handed;    /* sockets that the master has handed down and nobody has taken yet */
	bool from_master, silent; /* all but fd:// come from there; the log does not hear of them */
};

/* The ports for a configuration, one a block: those open already, the others opened, an entry NULL where that failed. New ones accept nothing yet.
 * rights_gone: we have given up our rights, which is why a port may be refused. The caller frees the array. */
struct port **ports_open(struct ports *p, const struct config *config, bool rights_gone, struct problems *problems)
	__attribute__((warn_unused_result));

/* Closes those that ports_open has opened newly, and frees the array. */
void ports_abort(struct port **open, size_t count);

/* Makes them the current ones, closes all others, and frees the array. updated: they take over the blocks' options. */
void ports_commit(struct ports *p, const struct config *config, struct port **open, bool updated);

/* Gives socket files to a user, so that they may be removed and changed after rights were given up. */
void ports_give(struct ports *p, uid_t uid, gid_t gid);

/* Leaves the sockets to the next process, or takes that back. */
void ports_leave(const struct ports *p, struct legacy *legacy);
void ports_keep(struct ports *p);

/* Takes those of a process before over for good. */
void ports_own(struct ports *p);

/* Accepts no more. False while PROXY headers are waited for, whose connections ports_close would cut off. */
bool ports_retire(struct ports *p);

void ports_resume(struct ports *p);
void ports_log(const struct ports *p); /* "listening on …", for each */

/* Closes all; leave_files: those of Unix sockets stay, they are another process's. */
void ports_close(struct ports *p, bool leave_files);

/* For a master: how many blocks before that one have the same URL; the descriptor of a port for a process (from 1), which stays the port's;
 * duplicates of all of them for a process that begins, but for those of fd:// blocks, which it has anyway. config is the current one. */
size_t ports_before(const struct config *config, size_t block);
int ports_socket(const struct port *port, unsigned process);
struct handed *ports_share(const struct ports *p, const struct config *config, unsigned process) __attribute__((warn_unused_result));

/* A socket from the master, for the block of that URL before which so many others have it; taken over. -1: it got lost on the way. Those that
 * no ports_open has taken are closed by ports_drop_handed. */
void ports_hand(struct ports *p, const char *url, size_t occurrence, int fd);
void ports_drop_handed(struct ports *p);

#endif
