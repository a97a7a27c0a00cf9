/*
 * One process's service: listeners, connections and generations of handlers on one loop, and the steps of its life. Alone it takes them by
 * itself, as signals say (service_run); under a master it takes them when it is told (member.h).
 */
#ifndef REACTORD_SERVICE_H
#define REACTORD_SERVICE_H

#include <stdbool.h>

#include "control.h"
#include "generation.h"
#include "pidfile.h"
#include "ports.h"
#include "runtime.h"
#include "settings.h"
#include "spread.h"
#include "upgrade.h"

enum service_state { SERVING, DRAINING, STOPPED };

/* What would serve after a reload: made in one step, put in place in another, in which nothing can fail. */
struct prepared {
	struct shared_config *shared;
	struct generation *generation;
	struct port **open;
};

struct service {
	const struct service_options *options;
	struct runtime runtime;
	struct generation *newest; /* leads to the older ones; NULL before the first */
	uint64_t last_number;
	struct ports ports;
	enum service_state state;
	bool reload_asked, stop_asked, stop_now;
	double drain_s;          /* em.stop's; < 0: the configuration's */
	struct spread last_days; /* of a drain */
	struct loop_hook at_end;
	struct sig *watches[5];
	struct pidfile *pid_file; /* the process's, borrowed; NULL: it has none */
	struct upgrade upgrade;
	bool upgrade_asked, replaced;                             /* replaced: a new process serves now */
	struct control *control;                                  /* NULL: none */
	struct control_request *reloaders, *stoppers, *upgraders; /* who waits for a reload, for the end, for a new process */
	size_t told_left;                                         /* connections of which stoppers know that they are left */
	uint64_t told_ns;                                         /* since when */
	int status;
	struct prepared *pending; /* what may be committed some turns later, borrowed: the end forgets it; NULL: nothing */
	void (*on_stop)(struct service *s, double drain_s, int status); /* em.stop is told also to whom it may concern; NULL: to nobody */
	void *user;
};

/* Makes it: a runtime and no generation yet. The score is borrowed, activation taken over, also on failure (a reason in problems). */
bool service_open(struct service *s, const struct service_options *options, const struct config *config, struct score *score,
                  struct activation *activation, struct problems *problems) __attribute__((warn_unused_result));

/* Frees everything that is left. */
void service_close(struct service *s);

/* Builds a generation from a configuration and those sources (see sources.h) and opens the ports that it wants; false with all problems, and nothing has changed then. */
bool service_prepare(struct service *s, struct shared_config *shared, struct sources *sources, struct prepared *p,
                     struct problems *problems) __attribute__((warn_unused_result));
void service_commit(struct service *s, struct prepared *p);
void service_abort(struct prepared *p);

/* Asks it to drain and end, for that long at most (seconds; < 0: as configured), with that status; or to end at once. */
void service_ask_drain(struct service *s, double drain_s, int status);
void service_ask_stop(struct service *s);

/* Tells it that another process serves now: it drains, and leaves alone what is that one's. */
void service_ask_step_back(struct service *s);

/* Turns until it was asked to stop and everything has ended. */
void service_serve(struct service *s);

/* Serves in this process alone until stopped; the result is the exit status. config is taken over. */
int service_run(const struct service_options *options, struct config *config) __attribute__((warn_unused_result));

/* Checks without opening anything: config, handlers, rights. Prints every mistake. Returns the exit status. dump: print the config as JSON. */
int service_check(const struct service_options *options, bool dump) __attribute__((warn_unused_result));

#endif
