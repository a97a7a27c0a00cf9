/* Named channels of a process: see channel.h. */
#include "channel.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>
#include <utlist.h>

#include "log.h"
#include "mem.h"

#define TURN_NS 10000000u         /* time for delivering in one turn; what is left goes in the next */
#define MISSED_LOG_NS 1000000000u /* between two lines about what was lost */

/* A name that somebody listens to. */
struct channel {
	struct channel_listener *listeners;
	UT_hash_handle hh;
	size_t name_length;
	char name[];
};

struct channels {
	struct loop *loop;
	struct loop_hook tick;
	struct channel *channels; /* uthash, by name */
	struct channel_message *first, *last;
	uint64_t last_number;
	uint64_t queued, limit;  /* bytes */
	struct bus *bus;         /* to the other processes; NULL: there are none */
	uint64_t missed;         /* messages of others that found no room, not logged yet */
	uint64_t missed_told_ns; /* when the last were */
};

/* What a message counts for in the queue. */
static uint64_t weight(const struct channel_message *m)
{
	return sizeof *m + m->name_length + m->length;
}

/* The channel of that name, NULL: nobody listens to it. */
static struct channel *find(struct channels *cs, const char *name, size_t name_length)
{
	struct channel *channel;

	HASH_FIND(hh, cs->channels, name, name_length, channel);
	return channel;
}

/* Takes the first message out of the queue. */
static struct channel_message *take(struct channels *cs)
{
	struct channel_message *m = cs->first;

	cs->first = m->next;
	if (!cs->first)
		cs->last = NULL;
	cs->queued -= weight(m);
	cs->loop->stats->messages_queued--;
	return m;
}

/* Frees a message that is out of the queue. */
static void drop(struct channel_message *m)
{
	free(m->bytes);
	free(m);
}

/* The turn's step: what was queued before it began, as far as the time allows. */
static void deliver(void *data)
{
	struct channels *cs = data;
	uint64_t end = cs->last_number, begun_ns;

	if (!cs->first)
		return;
	begun_ns = loop_clock();
	while (cs->first && cs->first->number <= end && loop_clock() - begun_ns < TURN_NS) {
		struct channel_message *m = take(cs);
		struct channel *channel = find(cs, m->name, m->name_length);
		struct channel_listener *l = channel ? channel->listeners : NULL, *next;
		for (; l; l = next) {
			next = l->next; /* on_message may free l, and with the last one the channel */
			l->on_message(l, m);
		}
		drop(m);
	}
	if (cs->first)
		loop_wake(cs->loop);
}

/* Makes the process's channels. */
struct channels *channels_new(struct loop *loop)
{
	struct channels *cs = mem_zalloc(sizeof *cs);

	cs->loop = loop;
	cs->limit = UINT64_MAX;
	cs->tick = (struct loop_hook){.run = deliver, .data = cs};
	loop_hook_add(loop, STAGE_TICK, &cs->tick);
	return cs;
}

/* Frees them; nobody listens any more. */
void channels_free(struct channels *cs)
{
	if (!cs)
		return;
	loop_hook_remove(cs->loop, STAGE_TICK, &cs->tick);
	while (cs->first)
		drop(take(cs));
	free(cs);
}

/* Bounds the queue. */
void channels_set_limit(struct channels *cs, uint64_t bytes)
{
	cs->limit = bytes;
}

/* Begins to listen. */
void channels_join(struct channels *cs, const char *name, size_t name_length, struct channel_listener *l)
{
	struct channel *channel = find(cs, name, name_length);

	if (!channel) {
		channel = mem_zalloc(sizeof *channel + name_length);
		channel->name_length = name_length;
		memcpy(channel->name, name, name_length);
		HASH_ADD_KEYPTR(hh, cs->channels, channel->name, name_length, channel);
	}
	l->channel = channel;
	DL_APPEND(channel->listeners, l);
}

/* Listens no more. */
void channels_leave(struct channels *cs, struct channel_listener *l)
{
	struct channel *channel = l->channel;

	DL_DELETE(channel->listeners, l);
	l->channel = NULL;
	if (channel->listeners)
		return;
	HASH_DEL(cs->channels, channel);
	free(channel);
}

/* Finds an owner's listener: there are as many as generations. */
struct channel_listener *channels_find(struct channels *cs, const char *name, size_t name_length, const void *owner)
{
	struct channel *channel = find(cs, name, name_length);
	struct channel_listener *l = channel ? channel->listeners : NULL;

	while (l && l->owner != owner)
		l = l->next;
	return l;
}

/* Its channel's name. */
const char *channel_name(const struct channel_listener *l, size_t *length)
{
	*length = l->channel->name_length;
	return l->channel->name;
}

/* Queues a message, if anybody here listens. */
static void queue(struct channels *cs, const struct channel_message *from)
{
	if (!find(cs, from->name, from->name_length)) {
		free(from->bytes);
		return;
	}
	struct channel_message *m = mem_zalloc(sizeof *m + from->name_length);
	*m = *from;
	m->name = memcpy(m + 1, from->name, from->name_length);
	m->number = ++cs->last_number;
	if (cs->last)
		cs->last->next = m;
	else
		cs->first = m;
	cs->last = m;
	cs->queued += weight(m);
	cs->loop->stats->messages_queued++;
	loop_wake(cs->loop);
}

/* Is there room for a message? For one always, where none waits. */
static bool has_room(const struct channels *cs, const struct channel_message *m)
{
	return !cs->first || cs->queued + weight(m) <= cs->limit;
}

/* Sends a message to the other processes. */
static bool forward(struct channels *cs, const struct channel_message *m)
{
	char *bytes = mem_alloc(1 + m->name_length + m->length);

	bytes[0] = (char)m->name_length;
	memcpy(bytes + 1, m->name, m->name_length);
	memcpy(bytes + 1 + m->name_length, m->bytes, m->length);
	bool sent = bus_send(cs->bus, BUS_CHANNEL, bytes, 1 + m->name_length + m->length, NULL, 0);
	free(bytes);
	return sent;
}

/* Pushes for all processes. */
bool channels_push(struct channels *cs, const char *name, size_t name_length, char *bytes, size_t length)
{
	struct channel_message m = {.name = (char *)name, .name_length = name_length, .bytes = bytes, .length = length};

	if (!has_room(cs, &m) || (cs->bus && !forward(cs, &m))) {
		cs->loop->stats->messages_refused++;
		free(bytes);
		return false;
	}
	cs->loop->stats->messages_pushed++;
	queue(cs, &m);
	return true;
}

/* Counts messages of others that are lost for this process; says so at most once a second. */
static void miss(struct channels *cs, uint64_t count)
{
	uint64_t now_ns = loop_now(cs->loop);

	cs->loop->stats->messages_missed += count;
	cs->missed += count;
	if (cs->missed_told_ns && now_ns - cs->missed_told_ns < MISSED_LOG_NS)
		return;
	log_warn("named channels: this process is too slow, %llu message(s) of others have not reached it", (unsigned long long)cs->missed);
	cs->missed = 0;
	cs->missed_told_ns = now_ns;
}

/* Takes what another process has pushed. */
static void on_bus(void *data, const struct bus_message *message)
{
	struct channels *cs = data;
	size_t name_length = message->length ? (unsigned char)message->bytes[0] : 0, lead = 1 + name_length;
	uint64_t lost;

	if (message->length == lead + sizeof lost && !name_length) {
		memcpy(&lost, message->bytes + lead, sizeof lost);
		miss(cs, lost);
	}
	if (!name_length || message->length < lead)
		return;
	struct channel_message m = {.name = (char *)message->bytes + 1, .name_length = name_length, .length = message->length - lead};
	if (!find(cs, m.name, m.name_length))
		return;
	if (!has_room(cs, &m)) {
		miss(cs, 1);
		return;
	}
	m.bytes = memcpy(mem_alloc(m.length + 1), message->bytes + lead, m.length);
	queue(cs, &m);
}

/* Joins the other processes. */
void channels_link(struct channels *cs, struct bus *bus)
{
	if (cs->bus)
		bus_on(cs->bus, BUS_CHANNEL, NULL, NULL);
	cs->bus = bus;
	if (bus)
		bus_on(bus, BUS_CHANNEL, on_bus, cs);
}

/* The last message's number. */
uint64_t channels_last(const struct channels *cs)
{
	return cs->last_number;
}

/* The last one that is no more in the queue. */
uint64_t channels_delivered(const struct channels *cs)
{
	return cs->first ? cs->first->number - 1 : cs->last_number;
}

/* Is there something to deliver? */
bool channels_pending(const struct channels *cs)
{
	return cs->first != NULL;
}
