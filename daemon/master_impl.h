/*
 * What the master's files have in common: master.c starts, leads and stops the processes, master_reload.c has the two halves of a reload,
 * master_upgrade.c leaves everything to another daemon, master_control.c answers the control socket.
 */
#ifndef REACTORD_MASTER_IMPL_H
#define REACTORD_MASTER_IMPL_H

#include <sys/resource.h>
#include <sys/types.h>

#include "control.h"
#include "generation.h"
#include "inquiry.h"
#include "pidfile.h"
#include "ports.h"
#include "seats.h"
#include "settings.h"
#include "upgrade.h"
#include "watchdog.h"

enum master_state { STARTING, SERVING, STOPPING };

/* A reload that is under way. */
struct attempt {
	enum { IDLE, PREPARING, COMMITTING } stage;
	struct shared_config *config;
	struct sources *sources; /* of all processes together */
	struct port **open;
	struct problems problems;
	struct timer limit;
	struct control_request *askers; /* who wait for its outcome; those who ask while it runs wait for the next one's */
};

struct master {
	const struct service_options *options;
	pid_t pid;
	struct scoreboard *board;
	struct score *score; /* the master's own */
	struct loop *loop;
	struct activation *activation;
	struct ports ports;
	struct pidfile pid_file;
	char *store;              /* name of em.shared's; the processes open it */
	int store_hold;           /* keeps it, where it was the daemon's before; -1 */
	struct tls_secret secret; /* of TLS tickets */
	struct seats seats;
	enum master_state state;
	struct shared_config *config; /* what all serve by */
	struct sources *sources;      /* and with */
	uint64_t number;              /* of that generation */
	struct attempt attempt;
	bool reload_asked, upgrade_asked, failed, told_ready;
	struct problems problems; /* why it could not start */
	int status;
	struct timer stop_limit;
	struct watchdog watchdog;
	struct sig *watches[6];
	struct upgrade upgrade;
	struct legacy *leaving;                                   /* what is to be left, while processes are asked for their part; else NULL */
	rlim_t descriptor_limit;                                  /* as we had it */
	bool replaced;                                            /* by another daemon, which has our sockets */
	struct control *control;                                  /* NULL: none */
	struct control_request *reloaders, *stoppers, *upgraders; /* who waits for a reload, for the end, for a new daemon */
	struct inquiries inquiries;                               /* what processes are to answer */
	struct timer progress;                                    /* tells stoppers how it goes */
	json_int_t told_left;                                     /* what it has told last */
};

/* --- master.c --- */

/* All processes end at once; or drain and end (seconds; < 0: as configured). */
void master_stop_now(struct master *m);
void master_drain(struct master *m, double drain_s);

/* What was to be another daemon's is ours again. */
void master_keep_all(struct master *m);

/* --- master_reload.c --- */

/* Adds a problem that is not among them yet; adds those that a process has answered, true if there were none. */
void master_add_once(struct problems *problems, const char *text);
bool master_read_answer(const struct bus_message *message, struct problems *problems);

/* After what time a process hangs; 0: it may. */
uint64_t master_hang_limit(const struct config *config);

/* How many processes are to answer. */
unsigned master_awaited(const struct master *m);

/* Begins a reload; goes on with it, as one answer less is due, or none; forgets what is being prepared, if anything is. */
void master_reload(struct master *m);
void master_go_on(struct master *m);
void master_abort(struct master *m);
uint64_t master_answer_limit(const struct master *m); /* how long a process may take to answer an order */
void master_on_limit(void *data);                     /* the attempt's timer's, and an upgrade's that asks processes */

/* --- master_upgrade.c --- */

/* Asks the processes what they leave; takes an answer; starts the other daemon when all have answered. */
void master_upgrade(struct master *m);
void master_on_left(struct master *m, struct seat *seat, const struct bus_message *message);
void master_go_on_upgrading(struct master *m);

/* --- master_control.c --- */

void master_on_ask(void *data, struct control_request *q);                                /* the control socket's */
bool master_send_request(void *data, unsigned process, const char *bytes, size_t length); /* the inquiries' */
void master_on_progress(void *data);                                                      /* the progress timer's */

#endif
