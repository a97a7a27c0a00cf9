/*
 * Signals as events of the loop.
 */
#ifndef REACTORD_SIG_H
#define REACTORD_SIG_H

#include "loop.h"

struct sig;

/* Calls on_signal in the loop for each arrival of signo (bursts may count once). NULL with errno: not a signal, or one that cannot be
 * caught. The caller ends it with sig_unwatch. */
struct sig *sig_watch(struct loop *loop, int signo, void (*on_signal)(int signo, void *data), void *data)
	__attribute__((warn_unused_result));
void sig_unwatch(struct sig *s);

/* Lets a signal that comes from now on wait for ever: at the end of a process, where it would kill what is ending by itself. */
void sig_hold(int signo);

/* The signal that one of several processes gets when its master is gone. */
int sig_orphan(void);

#define SIG_NAME_SIZE 16

/* "HUP", "SIGHUP", "RTMIN+2", "RTMAX-1" to its number, 0 if there is none of that name; and back, without SIG. Returns name. */
int sig_number(const char *name);
const char *sig_name(int signo, char name[SIG_NAME_SIZE]);

#endif
