/*
 * One of several processes: a service that takes the steps of its life as the master orders them by the bus. Orders and answers, with what is
 * in their messages:
 *
 *   PORT       master: a socket for a block, "N URL": before it N blocks have the same URL. The descriptor comes along
 *   PREPARE    master: build a generation from the configuration on the disk; struct member_reload
 *   SOURCE     process: a file that it has loaded for that, its path, a NUL, and its text
 *   PREPARED   process: it is ready to commit; or the reasons why not, each with a NUL behind it
 *   COMMIT     master: serve with it; ABORT: forget it
 *   COMMITTED  process: it serves
 *   STOPPING   process: em.stop; struct member_stop
 *   DRAIN      master: struct member_stop; STOP: at once
 *   REOPEN     master: the log file
 *   LEAVE      master: there is an upgrade; KEEP: nothing has come of it
 *   LEFT       process: a listener of scripts, struct member_left and two texts, the descriptor comes along; nothing: these were all
 *
 * A new process prepares without being told to, from what it has inherited.
 */
#ifndef REACTORD_MEMBER_H
#define REACTORD_MEMBER_H

#include <sys/types.h>

#include "bus.h"
#include "scoreboard.h"
#include "settings.h"
#include "sources.h"
#include "tls.h"

#define MEMBER_QUEUE (32u << 20) /* bytes that may wait in either direction of its bus */

struct member_reload {
	uint64_t generation; /* its number */
	uint64_t digest;     /* of the configuration: all processes must have read the same one */
};

struct member_stop {
	double drain_s; /* < 0: as configured */
	int status;     /* of the daemon; < 0: as it is */
	bool replaced;  /* another daemon serves */
};

/* What a script listens on; behind it come its URL and the path of its file (or nothing), each with a NUL. */
struct member_left {
	dev_t device;
	ino_t inode;
};

struct shared_config;
struct activation;
struct handed;

/* What a new process inherits. All but options, score and store are taken over. */
struct member_place {
	unsigned index, count; /* from 1 */
	int bus_fd;
	const struct service_options *options;
	struct shared_config *config;
	struct sources *sources; /* what was loaded by others before; it has the same code then */
	uint64_t generation;
	struct score *score;
	struct activation *activation;
	struct handed *handed;    /* its listeners' sockets */
	const char *store;        /* name of em.shared's */
	struct tls_secret secret; /* of TLS tickets */
};

/* Serves until the master says that it is enough, or is gone; the result is the exit status. */
int member_run(const struct member_place *place) __attribute__((warn_unused_result));

#endif
