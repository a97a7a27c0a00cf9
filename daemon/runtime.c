/* What a process runs on: see runtime.h. */
#include "runtime.h"

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "mem.h"
#include "timer.h"

#define REPEATS_NS 1000000000u
#define FINISH_NS 5000000000u /* for the last turns: only scripts can take time in them */

/* The folder of the shipped handlers: beside the binary in a checkout, else where `make install` put it. */
static char *find_library(void)
{
	char exe[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", exe, sizeof exe - 1);

	if (length > 0) {
		exe[length] = '\0';
		for (int up = 0; up < 3; up++) { /* build/reactord, build/asan/reactord */
			char *slash = strrchr(exe, '/');
			if (!slash)
				break;
			*slash = '\0';
			char *folder = mem_printf("%s/handlers", exe), *mark = mem_printf("%s/em/init.lua", folder);
			bool found = access(mark, R_OK) == 0;
			free(mark);
			if (found)
				return folder;
			free(folder);
		}
	}
	return mem_strdup(REACTORD_LIBDIR);
}

/* As many descriptors as the system lets us have. Returns the limit of before, which children get. */
static rlim_t raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return 1024;
	rlim_t before = limit.rlim_cur;
	if (limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &limit);
	}
	return before;
}

/* SIGPIPE has a handler that does nothing, instead of being ignored: programs that scripts start do not inherit that. */
static void on_pipe(int signo)
{
	(void)signo;
}

/* The log counts repeated events: it is to tell how many in a second. */
static void wake_repeats(void *data)
{
	struct runtime *r = data;

	timer_start(r->loop, &r->repeats, REPEATS_NS);
}

/* That second is over. */
static void on_repeats(void *data)
{
	(void)data;
	log_tell_repeats();
}

/* Makes the parts in their order. */
bool runtime_open(struct runtime *r, const struct config *config, struct score *score, struct activation *activation, char **why)
{
	*r = (struct runtime){.score = score, .stats = &score->stats};
	signal(SIGPIPE, on_pipe);
	r->activation = activation;
	r->descriptor_limit = raise_descriptor_limit();
	mallopt(M_MMAP_THRESHOLD, 4 << 20); /* strings of the size of a read come and go: neither map nor trim for each */
	mallopt(M_TRIM_THRESHOLD, 16 << 20);
	mallopt(M_TOP_PAD, 1 << 20);
	r->library_dir = find_library();
	r->loop = loop_new(score);
	if (!r->loop || !timers_open(r->loop)) {
		*why = mem_printf("cannot start the event loop: %s", errno_text(errno));
		runtime_close(r);
		return false;
	}
	r->loop->activation = r->activation;
	timer_init(&r->repeats, on_repeats, r);
	log_set_waker(wake_repeats, r);
	r->conns = conns_new(r->loop, SIZE_MAX);
	r->watches = watches_new(r->loop);
	r->resolver = resolver_new(r->loop);
	r->processes = processes_new(r->loop, r->descriptor_limit, r->watches);
	r->channels = channels_new(r->loop);
	r->store = store_new(config->shared_size);
	r->tls = tls_contexts_new();
	r->guard = guard_new(vm_on_slow, vm_on_overrun);
	if (!r->guard) {
		*why = mem_printf("cannot make the timer for callback_time: %s", errno_text(errno));
		runtime_close(r);
		return false;
	}
	runtime_configure(r, config);
	return true;
}

/* Takes over limits. */
void runtime_configure(struct runtime *r, const struct config *config)
{
	char *servers = NULL;

	for (size_t i = 0; i < config->nameservers.count; i++) {
		char *longer = mem_printf("%s%s%s", servers ? servers : "", servers ? "," : "", config->nameservers.items[i]);
		free(servers);
		servers = longer;
	}
	resolver_set_servers(r->resolver, servers);
	free(servers);
	r->conns->max_queued = config->max_queued;
	channels_set_limit(r->channels, config->channel_queue);
	guard_set_limits(r->guard, config->slow_callback_ns, config->callback_time_ns);
}

/* Takes the parts down. */
void runtime_close(struct runtime *r)
{
	log_set_waker(NULL, NULL);
	log_tell_repeats();
	guard_free(r->guard);
	resolver_free(r->resolver);
	processes_free(r->processes);
	channels_free(r->channels);
	store_free(r->store);
	tls_contexts_free(r->tls);
	watches_free(r->watches);
	conns_free(r->conns);
	if (r->loop && r->loop->timers) {
		timer_stop(r->loop, &r->repeats);
		timers_close(r->loop);
	}
	loop_free(r->loop);
	activation_free(r->activation);
	free(r->library_dir);
	*r = (struct runtime){.score = r->score, .stats = r->stats};
}

/* The part of a VM's options that the runtime knows. */
struct vm_options runtime_vm_options(struct runtime *r, const struct config *config, const struct vm_host *host, void *host_data)
{
	return (struct vm_options){
		.loop = r->loop,
		.conns = r->conns,
		.watches = r->watches,
		.resolver = r->resolver,
		.processes = r->processes,
		.channels = r->channels,
		.store = r->store,
		.guard = r->guard,
		.tls = r->tls,
		.host = host,
		.host_data = host_data,
		.config = config,
		.library_dir = r->library_dir,
	};
}

/* Is a connection left in a state before that one? */
static bool any_before(const struct conns *conns, enum conn_state state)
{
	for (const struct conn *c = conns->all; c; c = c->next)
		if (c->state < state)
			return true;
	return false;
}

/* It is enough that the loop has woken up. */
static void on_limit(void *data)
{
	(void)data;
}

/* Turns, at least once, while a connection is in a state before that one, and no longer than the limit. */
static void turn_until(struct runtime *r, enum conn_state state, uint64_t limit_ns)
{
	uint64_t end = loop_clock() + limit_ns;
	struct timer limit;

	timer_init(&limit, on_limit, NULL);
	timer_start_at(r->loop, &limit, end);
	loop_wake(r->loop);
	do {
		loop_turn(r->loop);
	} while (any_before(r->conns, state) && loop_clock() < end);
	timer_stop(r->loop, &limit);
}

/* The turns in which output is sent. */
void runtime_flush(struct runtime *r, uint64_t limit_ns)
{
	turn_until(r, CONN_LINGERING, limit_ns);
}

/* The last turns. */
void runtime_finish(struct runtime *r)
{
	turn_until(r, CONN_ENDING + 1, FINISH_NS);
}
