/* The end of many connections: see spread.h. */
#include "spread.h"

/* The time that ending so many takes. */
static uint64_t time_for(const struct spread *s, size_t count)
{
	uint64_t most = s->limit_ns / SPREAD_SHARE;

	return count < most / SPREAD_EACH_NS ? count * SPREAD_EACH_NS : most;
}

/* Time to end some, or to find out that it is still too early. Those that ended by themselves, and those that came, are allowed for. */
static void on_time(void *data)
{
	struct spread *s = data;
	uint64_t now = loop_now(s->loop), left = s->until_ns > now ? s->until_ns - now : 0;

	if (!left) {
		s->events->on_limit(s->data);
		return;
	}
	size_t count = s->events->count(s->data);
	uint64_t needed = time_for(s, count);
	if (needed < left) {
		timer_start_at(s->loop, &s->timer, s->until_ns - needed);
		return;
	}
	if (left <= SPREAD_STEP_NS) {
		s->events->end_some(s->data, count);
		timer_start_at(s->loop, &s->timer, s->until_ns);
		return;
	}
	uint64_t steps = left / SPREAD_STEP_NS;
	s->events->end_some(s->data, (size_t)((count + steps - 1) / steps));
	timer_start_at(s->loop, &s->timer, now + SPREAD_STEP_NS);
}

/* Prepares it. */
void spread_init(struct spread *s, struct loop *loop, const struct spread_events *events, void *data)
{
	*s = (struct spread){.loop = loop, .events = events, .data = data};
	timer_init(&s->timer, on_time, s);
}

/* Begins. */
void spread_start(struct spread *s, uint64_t limit_ns)
{
	s->limit_ns = limit_ns;
	s->until_ns = loop_now(s->loop) + limit_ns;
	timer_start_at(s->loop, &s->timer, s->until_ns - limit_ns / SPREAD_SHARE);
}

/* Comes to the end. */
void spread_hurry(struct spread *s)
{
	uint64_t until = loop_now(s->loop) + time_for(s, s->events->count(s->data));

	if (until >= s->until_ns)
		return;
	s->until_ns = until;
	timer_start(s->loop, &s->timer, 0);
}

/* Ends it. */
void spread_stop(struct spread *s)
{
	timer_stop(s->loop, &s->timer);
}
