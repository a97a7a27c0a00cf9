/* Named channels between processes: see channel_hub.h. */
#include "channel_hub.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "mem.h"

/* A process. */
struct member {
	struct channel_hub *hub;
	struct bus *bus;
	uint64_t missed; /* messages that did not go to it, and of which it does not know yet */
	struct member *prev, *next;
};

struct channel_hub {
	struct member *members;
};

/* Makes one. */
struct channel_hub *channel_hub_new(void)
{
	return mem_zalloc(sizeof(struct channel_hub));
}

/* Frees it. */
void channel_hub_free(struct channel_hub *hub)
{
	free(hub);
}

/* Tells a process how many messages it has missed. */
static void tell_missed(struct member *to)
{
	char bytes[1 + sizeof to->missed] = {0};

	memcpy(bytes + 1, &to->missed, sizeof to->missed);
	if (bus_send(to->bus, BUS_CHANNEL, bytes, sizeof bytes, NULL, 0))
		to->missed = 0;
}

/* Passes a message on. */
static void on_message(void *data, const struct bus_message *message)
{
	struct member *from = data;

	for (struct member *to = from->hub->members; to; to = to->next) {
		if (to == from)
			continue;
		if (!bus_send(to->bus, BUS_CHANNEL, message->bytes, message->length, NULL, 0))
			to->missed++;
		else if (to->missed)
			tell_missed(to);
	}
}

/* Takes a process in. */
void channel_hub_join(struct channel_hub *hub, struct bus *bus)
{
	struct member *m = mem_zalloc(sizeof *m);

	m->hub = hub;
	m->bus = bus;
	DL_APPEND(hub->members, m);
	bus_on(bus, BUS_CHANNEL, on_message, m);
}

/* Leaves a process out. */
void channel_hub_leave(struct channel_hub *hub, struct bus *bus)
{
	struct member *m = hub->members;

	while (m && m->bus != bus)
		m = m->next;
	if (!m)
		return;
	bus_on(bus, BUS_CHANNEL, NULL, NULL);
	DL_DELETE(hub->members, m);
	free(m);
}
