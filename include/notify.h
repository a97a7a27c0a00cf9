/*
 * Words with the service manager: readiness, reload, status, stop.
 */
#ifndef REACTORD_NOTIFY_H
#define REACTORD_NOTIFY_H

#include <stdint.h>
#include <sys/types.h>

/* Each does nothing where no service manager listens (NOTIFY_SOCKET). status is a line for `systemctl status`. */
void notify_ready(const char *status);
void notify_reloading(void);
void notify_upgrading(void);
void notify_main_pid(pid_t pid); /* that process is the service now, and serves; after this we are not listened to any more */
void notify_stopping(const char *status);

/* The watchdog: how long it waits for a word, 0: there is none; that word. */
uint64_t notify_watchdog_ns(void);
void notify_watchdog(void);

#endif
