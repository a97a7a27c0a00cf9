/*
 * A request of the control socket to all processes: the master asks each by the bus and makes one answer of theirs.
 */
#ifndef REACTORD_INQUIRY_H
#define REACTORD_INQUIRY_H

#include "bus.h"
#include "control.h"
#include "timer.h"

#define INQUIRY_NS 5000000000u /* for the answers; a process that takes longer is left out */

/* Those that wait for answers. */
struct inquiries {
	struct loop *loop;
	unsigned count;                                                               /* processes, from 1 */
	bool (*send)(void *data, unsigned process, const char *bytes, size_t length); /* false: it is not asked, as it does not serve */
	void *data;
	uint64_t last; /* number given */
	struct inquiry *all;
};

/* Asks all that serve; q is answered in the end. */
void inquiry_start(struct inquiries *set, struct control_request *q);

/* A process has answered, or will not any more. */
void inquiry_answered(struct inquiries *set, unsigned process, const struct bus_message *message);
void inquiry_lost(struct inquiries *set, unsigned process);

/* Those that wait are answered with what there is. */
void inquiries_end(struct inquiries *set);

/* In a process: answers a message of the master. newest NULL: it does not serve yet. */
void inquiry_reply(struct bus *bus, const struct bus_message *message, struct runtime *r, struct generation *newest);

#endif
