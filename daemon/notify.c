/* The sd_notify protocol by libsystemd: see notify.h. */
#include "notify.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

/* The main process serves. The status may quote a script's error: only its first line, since each line is an assignment. */
void notify_ready(const char *status)
{
	sd_notifyf(0, "READY=1\nSTATUS=%.*s\nMAINPID=%ld", (int)strcspn(status, "\n"), status, (long)getpid());
}

/* Something begins that ends with notify_ready; the time lets newer managers tell this from an older message. */
static void begin(const char *status)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu\nSTATUS=%s",
	           (unsigned long long)now.tv_sec * 1000000u + (unsigned long long)now.tv_nsec / 1000u, status);
}

/* A reload begins. */
void notify_reloading(void)
{
	begin("Reloading");
}

/* An upgrade begins. */
void notify_upgrading(void)
{
	begin("Upgrading");
}

/* Another process is the main one now. NOTIFY_SOCKET goes with this, so we say no more. */
void notify_main_pid(pid_t pid)
{
	sd_notifyf(1, "READY=1\nSTATUS=Serving, generation 1\nMAINPID=%ld", (long)pid);
}

/* The time of the watchdog. WATCHDOG_PID is not asked for: after an upgrade the variables are still those of the process before. */
uint64_t notify_watchdog_ns(void)
{
	const char *text = getenv("WATCHDOG_USEC");
	unsigned long long usec = text && getenv("NOTIFY_SOCKET") ? strtoull(text, NULL, 10) : 0;

	return usec < UINT64_MAX / 1000 ? usec * 1000 : 0;
}

/* All is well. */
void notify_watchdog(void)
{
	sd_notify(0, "WATCHDOG=1");
}

/* The end has begun. */
void notify_stopping(const char *status)
{
	sd_notifyf(0, "STOPPING=1\nSTATUS=%s", status);
}
