/*
 * A script's life: its body runs, then the loop turns until em.stop, or, if the body has not called em.run, until nothing is left to
 * wait for. em.run's caller goes on after the stop, and may start the loop again.
 */
#include "run.h"

#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lua_conn.h"
#include "lua_core.h"
#include "lua_signal.h"
#include "mem.h"
#include "runtime.h"
#include "sig.h"

struct run {
	struct runtime runtime;
	struct vm *vm;
	bool stop;      /* asked for */
	bool stopping;  /* under way */
	bool ended;     /* by a signal or an error: em.run's caller does not go on */
	double drain_s; /* time for queued output */
	int status;
};

/* em.stop */
static void on_stop(struct vm *vm, double drain_s, int status)
{
	struct run *run = vm->options.host_data;

	run->stop = true;
	if (drain_s >= 0)
		run->drain_s = drain_s;
	if (status >= 0 && !run->ended)
		run->status = status;
	loop_wake(run->runtime.loop);
}

/* The script's memory is full: a script has no second generation. */
static void on_exhausted(struct vm *vm)
{
	struct run *run = vm->options.host_data;

	log_error("memory_limit reached: the run ends");
	run->stop = run->ended = true;
	run->status = 1;
}

/* An error that nobody handles. */
static void on_uncaught(struct vm *vm)
{
	struct run *run = vm->options.host_data;

	run->stop = run->ended = true;
	run->status = 1;
	loop_wake(run->runtime.loop);
}

/* Is a stop asked for or under way? */
static bool is_stopping(struct vm *vm)
{
	struct run *run = vm->options.host_data;

	return run->stop || run->stopping;
}

static const struct vm_host host = {
	.on_stop = on_stop,
	.on_exhausted = on_exhausted,
	.on_uncaught = on_uncaught,
	.stopping = is_stopping,
};

/* HUP, INT, TERM */
static void on_signal(int signo, void *data)
{
	struct run *run = data;

	if (run->vm && lua_signal_deliver(run->vm, signo))
		return;
	run->stop = run->ended = true;
	run->drain_s = 0;
	if (run->stopping) /* what a stop that drains still waits for */
		lua_conn_end_all(run->vm, "stopped", false);
}

/* Does the script wait for anything? */
static bool waits(const struct run *run)
{
	return run->vm->in_run || core_busy(run->vm);
}

/* The stop: hooks, then everything ends, what is queued within the drain time. */
static void stop(struct run *run)
{
	run->stopping = true;
	core_call_hooks(run->vm);
	core_shutdown(run->vm, "stopped", run->drain_s > 0);
	if (run->drain_s > 0)
		runtime_flush(&run->runtime, (uint64_t)(run->drain_s * 1e9));
	lua_conn_end_all(run->vm, "stopped", false);
	runtime_finish(&run->runtime);
	core_shutdown(run->vm, "stopped", false); /* what unbind has made */
	runtime_finish(&run->runtime);
	run->stop = run->stopping = false;
	run->drain_s = 0;
}

/* Runs a script. */
int run_script(const struct config *config, const char *path, int count, char **arguments)
{
	static const int signals[] = {SIGHUP, SIGINT, SIGTERM};
	struct sig *watches[3];
	struct run run = {0};
	char *why = NULL, *copy = mem_strdup(path);

	setvbuf(stdout, NULL, _IOLBF, 0);
	struct scoreboard *board = scoreboard_new(1);
	if (!board || !runtime_open(&run.runtime, config, board->scores, activation_new(NULL), &why)) {
		log_error("%s", why ? why : errno_text(errno));
		scoreboard_free(board);
		free(why);
		free(copy);
		return 1;
	}
	for (size_t i = 0; i < 3; i++)
		watches[i] = sig_watch(run.runtime.loop, signals[i], on_signal, &run);

	struct vm_options options = runtime_vm_options(&run.runtime, config, &host, &run);
	options.script_dir = dirname(copy);
	options.is_script = true;
	run.vm = core_new(&options, &why);
	if (run.vm) {
		vm_start(run.vm);
		core_run_script(run.vm, path, count, arguments);
		for (;;) {
			while (!run.stop && waits(&run))
				loop_turn(run.runtime.loop);
			stop(&run);
			if (run.ended || !run.vm->in_run)
				break;
			core_resume_script(run.vm);
		}
		vm_free(run.vm);
	} else {
		log_error("%s", why);
		free(why);
		run.status = 1;
	}
	for (size_t i = 0; i < 3; i++) {
		sig_hold(signals[i]);
		sig_unwatch(watches[i]);
	}
	runtime_close(&run.runtime);
	scoreboard_free(board);
	free(copy);
	fflush(stdout);
	return run.status;
}
