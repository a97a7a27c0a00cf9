/*
 * Relays: the bytes that come in on one connection go out on another without entering Lua. One way each; two of them make a pipe. As a relay
 * takes plain bytes and gives plain bytes, either side may have TLS.
 *
 * Back-pressure: when bufsize bytes or more wait in the target's output, the source stops reading until half of them have gone. The
 * queue exceeds bufsize by less than RELAY_PIECE. The source's end is passed on as a half-close, and the source goes on for its other direction.
 */
#ifndef REACTORD_RELAY_H
#define REACTORD_RELAY_H

#include <stddef.h>
#include <stdint.h>

#include "conn.h"

#define RELAY_PIECE 16384 /* bytes that are worth a read, however little room there is */

/* What a source's user is told. The relay is gone already; another one may be started. */
struct relay_events {
	void (*on_target_end)(struct conn *from); /* the target has ended, or takes no more */
	void (*on_complete)(struct conn *from);   /* all of length has been passed on */
};

/* Passes on what comes in on from, in the place of a relay that it may already have. bufsize: bytes, 0: the target's high-water mark;
 * length: bytes to pass on, 0: no limit. events are borrowed. False with a static text and a code such as "EBUSY" (the target is fed
 * by another source). from and to may be the same, and either may still be connecting. */
bool relay_start(struct conn *from, struct conn *to, size_t bufsize, uint64_t length, const struct relay_events *events, const char **code,
                 const char **why) __attribute__((warn_unused_result));

/* What comes in goes to the user again. Nothing happens where there is no relay. */
void relay_stop(struct conn *from);

#endif
