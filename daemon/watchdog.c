/* The service manager's watchdog: see watchdog.h. */
#include "watchdog.h"

#include "notify.h"

/* A turn of the loop: half the time is over. */
static void on_time(void *data)
{
	struct watchdog *w = data;

	notify_watchdog();
	timer_start(w->loop, &w->timer, w->every_ns);
}

/* Begins to tell. */
void watchdog_start(struct watchdog *w, struct loop *loop)
{
	*w = (struct watchdog){.loop = loop, .every_ns = notify_watchdog_ns() / 2};
	timer_init(&w->timer, on_time, w);
	if (w->every_ns)
		on_time(w);
}

/* Ends it. */
void watchdog_stop(struct watchdog *w)
{
	if (w->loop)
		timer_stop(w->loop, &w->timer);
}
