/*
 * Named channels of a process: who listens to which, and a queue of what was pushed. What is pushed is delivered in its order, never from
 * within the push itself, but in a turn's step for what scripts have asked for. A name is known as long as somebody listens to it. Knows
 * nothing of Lua: messages are bytes, listeners are Lua states (one listener each for a channel, however many subscribers it has).
 */
#ifndef REACTORD_CHANNEL_H
#define REACTORD_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bus.h"
#include "loop.h"

#define CHANNEL_MAX_NAME 255 /* bytes */

struct channel;
struct channels;

/* What goes by a bus: a name's length in a byte, the name, the bytes. A length of 0: behind it is a uint64_t, how many did not go. */

/* What is pushed. */
struct channel_message {
	uint64_t number; /* counts what was queued in this process: a later one is greater */
	char *name, *bytes;
	size_t name_length, length;
	struct channel_message *next;
};

/* One who listens to a channel; a part of its owner's struct. */
struct channel_listener {
	void *owner;
	/* A message; the listener may leave from within, others may not. */
	void (*on_message)(struct channel_listener *l, const struct channel_message *m);
	struct channel *channel;
	struct channel_listener *prev, *next; /* of the channel */
};

struct channels *channels_new(struct loop *loop) __attribute__((warn_unused_result));
void channels_free(struct channels *cs);

/* Sets how many bytes may wait to be delivered. */
void channels_set_limit(struct channels *cs, uint64_t bytes);

/* From now on every push also goes to the other processes, by the hub (channel_hub.h) at the other end of a bus, and theirs come from there.
 * NULL: no more, which has to be said before the bus is freed. */
void channels_link(struct channels *cs, struct bus *bus);

/* Begins and ends listening. */
void channels_join(struct channels *cs, const char *name, size_t name_length, struct channel_listener *l);
void channels_leave(struct channels *cs, struct channel_listener *l);

/* The listener of that owner, NULL: it has none there. */
struct channel_listener *channels_find(struct channels *cs, const char *name, size_t name_length, const void *owner);

/* The name of the channel that l listens to. */
const char *channel_name(const struct channel_listener *l, size_t *length);

/* Pushes: takes bytes over (malloc) in any case. False where there is no room, here or on the way to the others; the message has gone nowhere
 * then. What others push and what finds no room here is lost for this process, counted and logged. */
bool channels_push(struct channels *cs, const char *name, size_t name_length, char *bytes, size_t length)
	__attribute__((warn_unused_result));

/* The number of the last message. Who joins now is to hear what has a greater one. */
uint64_t channels_last(const struct channels *cs);

/* The number of the last message that was delivered, or is being so. */
uint64_t channels_delivered(const struct channels *cs);

/* Does a message wait to be delivered? */
bool channels_pending(const struct channels *cs);

#endif
