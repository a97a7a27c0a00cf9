/* Signals as events: see sig.h. */
#include "sig.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"

struct sig {
	struct event *event;
	int signo;
	void (*on_signal)(int signo, void *data);
	void *data;
};

/* libevent's callback. */
static void on_event(evutil_socket_t signo, short what, void *data)
{
	struct sig *s = data;

	(void)signo, (void)what;
	s->on_signal(s->signo, s->data);
}

/* Watches one signal. */
struct sig *sig_watch(struct loop *loop, int signo, void (*on_signal)(int signo, void *data), void *data)
{
	if (signo <= 0 || signo >= NSIG || signo == SIGKILL || signo == SIGSTOP) {
		errno = EINVAL;
		return NULL;
	}
	struct sig *s = mem_zalloc(sizeof *s);
	s->signo = signo;
	s->on_signal = on_signal;
	s->data = data;
	s->event = evsignal_new(loop->base, signo, on_event, s);
	if (!s->event || event_add(s->event, NULL) < 0) {
		int saved = errno ? errno : EINVAL;
		sig_unwatch(s);
		errno = saved;
		return NULL;
	}
	return s;
}

/* Ends a watch; the signal has its former meaning again. */
void sig_unwatch(struct sig *s)
{
	if (!s)
		return;
	if (s->event)
		event_free(s->event);
	free(s);
}

/* A real-time signal by its distance from the first or last one; 0: it is none. */
static int real_time_number(const char *name)
{
	bool from_last = strncmp(name, "RTMAX", 5) == 0;
	long distance = 0;
	char *end = (char *)name + 5;

	if (!from_last && strncmp(name, "RTMIN", 5) != 0)
		return 0;
	if (*end == (from_last ? '-' : '+') && end[1] >= '0' && end[1] <= '9')
		distance = strtol(end + 1, &end, 10);
	if (*end || distance > SIGRTMAX - SIGRTMIN)
		return 0;
	return from_last ? SIGRTMAX - (int)distance : SIGRTMIN + (int)distance;
}

/* The name of a signal. */
const char *sig_name(int signo, char name[SIG_NAME_SIZE])
{
	const char *known = sigabbrev_np(signo);

	if (known)
		snprintf(name, SIG_NAME_SIZE, "%s", known);
	else if (signo >= SIGRTMIN && signo <= SIGRTMAX)
		snprintf(name, SIG_NAME_SIZE, "RTMIN+%d", signo - SIGRTMIN);
	else
		snprintf(name, SIG_NAME_SIZE, "%d", signo);
	return name;
}

/* Blocks a signal. */
void sig_hold(int signo)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signo);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

/* One that nobody else uses; guard.h has the one before. */
int sig_orphan(void)
{
	return SIGRTMIN + 2;
}

/* Looks a name up in the C library's table. */
int sig_number(const char *name)
{
	if (strncmp(name, "SIG", 3) == 0)
		name += 3;
	for (int signo = 1; signo < NSIG; signo++) {
		const char *known = sigabbrev_np(signo);
		if (known && strcmp(known, name) == 0)
			return signo;
	}
	return real_time_number(name);
}
