/*
 * The upgrade of a running daemon: a new process of the binary that is now where ours was gets our listeners (legacy.h), makes itself ready and
 * says so over a link; from our answer on it serves, and we drain. Until then nothing has changed for anybody: if it fails, crashes or takes
 * too long, it is gone and we serve on.
 *
 * The link is a pair of SOCK_SEQPACKET sockets. New to old: "R" ready, or "F" and a reason, any number of them. Old to new: "C", serve.
 */
#ifndef REACTORD_UPGRADE_H
#define REACTORD_UPGRADE_H

#include <stdbool.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "legacy.h"
#include "loop.h"
#include "problems.h"
#include "timer.h"
#include "tls.h"

/* How this process was started, to be done again. */
struct upgrade_self {
	char *path;  /* of the binary, absolute; a newer file may be there by now */
	char **argv; /* NULL-terminated copies */
};

/* Notes it, before anybody changes the arguments or the working directory. */
struct upgrade_self *upgrade_self_new(char *const *argv) __attribute__((warn_unused_result));
void upgrade_self_free(struct upgrade_self *self);

/* --- the old process --- */

/* An upgrade that is under way, or that came to something: the new process's end is still waited for then. Zeroed before the first use. */
struct upgrade {
	struct loop *loop;
	pid_t pid; /* 0: there is none */
	int link, pidfd;
	struct event *on_message, *on_exit;
	struct timer limit;
	bool taken_over, timed_out, ended;
	struct problems reasons; /* why it has failed */
	/* Called once for each start. taken_over: the new process serves. Else it is gone, and another upgrade may be started. */
	void (*on_done)(struct upgrade *u, bool taken_over);
	void *data;
};

/* Starts a new process and waits for it, limit_ns at most; legacy is taken over. descriptor_limit: the soft RLIMIT_NOFILE that it gets, as we had
 * it. The log, the service manager and the counters are told what becomes of it. One that is under way already goes on; the new wish is refused
 * without on_done. */
void upgrade_start(struct upgrade *u, struct loop *loop, const struct upgrade_self *self, struct legacy *legacy, rlim_t descriptor_limit,
                   uint64_t limit_ns);

/* Leaves the secret of TLS tickets; takes the one that was left, false if there is none. With it clients go on with their sessions. */
void upgrade_leave_secret(struct legacy *legacy, const struct tls_secret *secret);
bool upgrade_take_secret(const struct legacy *legacy, struct tls_secret *secret);

bool upgrade_under_way(const struct upgrade *u);

/* Sends the process that has taken over a signal. */
void upgrade_pass_on(const struct upgrade *u, int signo);

/* Ends one that is under way, without on_done; of one that came to something the new process stays. For the end of this process. */
void upgrade_cancel(struct upgrade *u);

/* Forgets it, in a forked child: it is the parent's. */
void upgrade_abandon(struct upgrade *u);

/* --- the new process --- */

/* Says that we are ready to serve and waits for the word to do so; also when the old process has died. Without a legacy it is true at once.
 * False with a reason (caller frees). */
bool upgrade_announce(struct legacy *legacy, char **why) __attribute__((warn_unused_result));

/* Tells the old process why we cannot serve; false if there is none to be told. */
bool upgrade_refuse(struct legacy *legacy, const struct problems *problems);

#endif
