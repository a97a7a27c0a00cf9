/*
 * What connects the named channels of several processes: messages that come by the bus of one go to all others, each publisher's in its
 * order. Nobody waits for a process that is slow: what does not fit into the queue of its bus is lost for it, and it is told how many.
 */
#ifndef REACTORD_CHANNEL_HUB_H
#define REACTORD_CHANNEL_HUB_H

#include "bus.h"

struct channel_hub;

struct channel_hub *channel_hub_new(void) __attribute__((warn_unused_result));

/* Frees it; nobody takes part any more. */
void channel_hub_free(struct channel_hub *hub);

/* Begins and ends to pass on what comes by a bus, and all else to it. Leaves before the bus is freed. */
void channel_hub_join(struct channel_hub *hub, struct bus *bus);
void channel_hub_leave(struct channel_hub *hub, struct bus *bus);

#endif
