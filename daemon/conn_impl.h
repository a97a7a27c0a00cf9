/*
 * What the files of conn share: conn.c has the life of a connection, conn_input.c what comes in, conn_output.c what goes out.
 */
#ifndef REACTORD_CONN_IMPL_H
#define REACTORD_CONN_IMPL_H

#include "conn.h"

/* --- conn.c */

/* Puts c into the list of those that the turn's end writes. */
void conn_mark_dirty(struct conn *c);

/* --- conn_input.c */

/* Makes the loop watch what c's state calls for: to be called after each change of that. May end c. */
void conn_rewatch(struct conn *c);

/* Takes everything of c that is on its descriptor from the loop. */
void conn_unwatch(struct conn *c);

/* --- conn_output.c */

/* Makes the bufferevent of a new connection. */
void conn_output_init(struct conn *c);

/* Waits for room to write, or not any more. */
void conn_watch_room(struct conn *c, bool on);

/* Brings the sums in step with the buffers. */
void conn_account(struct conn *c);

/* The turn's end for one dirty connection: one write. */
void conn_flush(struct conn *c);

/* Nothing can be sent any more, because of that errno. */
void conn_write_failed(struct conn *c, int error);

/* Drops what waits to be sent. */
void conn_drop_output(struct conn *c);

/* Ends the first source. */
void conn_end_source(struct conn *c, const char *code, const char *why);

#endif
