/*
 * A connection: a stream of bytes each way, from the moment somebody wants it until its one end.
 *
 *   CONNECTING --conn_open--> OPEN --conn_finish--> FLUSHING --FIN sent--> LINGERING
 *        |                     |                        |                     |
 *        +---------------------+-------conn_end---------+---------------------+--> ENDING --turn's end--> on_end, freed
 *
 * Invariants: nothing is freed but at the turn's end, so a pointer is good for the whole turn in which its connection ends.
 * on_end comes exactly once, last, never inside a call of conn's own user. What is sent waits in the bufferevent's output; the
 * turn's end writes each dirty connection once and leaves the rest to the bufferevent. Reading goes by an event of ours on the same
 * descriptor, into the loop's buffer.
 */
#ifndef REACTORD_CONN_H
#define REACTORD_CONN_H

#include <event2/event_struct.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "addr.h"
#include "adopt.h"
#include "config.h"
#include "loop.h"
#include "timer.h"

struct conn;
struct relay;
struct bufferevent;
struct evbuffer;

/* What a connection tells its user. Each may call every conn_ function on any connection. */
struct conn_events {
	void (*on_data)(struct conn *c, const char *bytes, size_t length); /* bytes are valid during the call */
	void (*on_eof)(struct conn *c);                                    /* the peer sends no more; the user decides how to go on */
	void (*on_drained)(struct conn *c);                                /* output fell to low water after conn_send had said SEND_FULL */
	void (*on_flushed)(struct conn *c);                                /* all output has been handed to the kernel; NULL: not wanted */
	/* A watched descriptor is ready (see conn_watch); NULL where there are none. */
	void (*on_ready)(struct conn *c, bool readable, bool writable);
	void (*on_end)(struct conn *c); /* see end_code, end_why; the descriptor is still open; c is freed afterwards */
};

/* What stands between the wire and the user: TLS. Each is called for its own connection alone; none frees it. */
struct conn_filter {
	void (*opened)(struct conn *c);                                  /* the descriptor is there */
	void (*input)(struct conn *c, const char *bytes, size_t length); /* from the wire; conn_deliver takes what becomes of it */
	void (*input_eof)(struct conn *c);                               /* the wire's end, while open or flushing */
	void (*encrypt)(struct conn *c);                                 /* moves plain output into the wire's, as far as it can */
	/* Our last word into the wire's output, once. While open, false: not yet; conn_wire_changed tells when to ask again. */
	bool (*finish)(struct conn *c);
	void (*resumed)(struct conn *c); /* reading goes on */
	void (*free)(struct conn *c);
};

/*
 * Output that is made when there is room for it, such as a file's. It has its place in the order of sending: what is sent after it waits
 * behind it. A part of its maker's struct, which lives until on_end.
 */
struct conn_source {
	/* Adds at most about that many bytes; makes it known with made that these were the last. Ends c where it cannot go on. */
	void (*fill)(struct conn *c, struct conn_source *s, struct evbuffer *to, size_t room);
	bool (*broken)(struct conn_source *s); /* can it not keep to what it has added? Asked when a write moves nothing */
	/* All of it is with the kernel (why NULL), or c ends with that code (NULL: orderly) and why. Once, last; frees s. */
	void (*on_end)(struct conn *c, struct conn_source *s, const char *code, const char *why);
	bool weightless;  /* what it adds takes no memory; set before it adds the first byte */
	bool begun, made; /* it was asked; it has added all */
	/* The rest is conn's. */
	bool placed;             /* last is final */
	uint64_t first, last;    /* its bytes in the count of bytes_out: from, up to */
	struct evbuffer *behind; /* sent since, until it is made; NULL: nothing */
	struct conn_source *next;
};

/* Why a connection ends whose file did not keep to its length: with EIO. */
#define CONN_CUT_SHORT "a file was cut short while it was streamed"

/* Where the plain input of a connection goes instead of to its user, and who feeds its output: relay.c. Each gets the connection that
 * something happened to. */
struct conn_tap {
	/* On a source: takes bytes and returns how many; with what is left the tap has withdrawn or another one is in place. */
	size_t (*input)(struct conn *c, const char *bytes, size_t length);
	size_t (*input_size)(const struct conn *c); /* on a source: bytes that one read may bring at most, above 0 */
	void (*input_eof)(struct conn *c);          /* on a source: the peer sends no more */
	void (*wrote)(struct conn *c, bool moved);  /* on a target: its output has been seen to; were there bytes? */
	void (*ended)(struct conn *c);              /* on either: its user has had on_end, it is about to be freed */
};

/* What moves something else than a stream between descriptor and user: datagrams. Each is called for its own connection alone. */
struct conn_transport {
	void (*readable)(struct conn *c);            /* input; where c->reading is READING_ERRORS, at most an error */
	size_t (*flush)(struct conn *c);             /* writes what it can; how many items went. Calls back about what could not go */
	bool (*pending)(const struct conn *c);       /* does anything still wait to be sent? */
	void (*watch_room)(struct conn *c, bool on); /* waits for room, which it answers by conn_transport_room */
	void (*free)(struct conn *c);
};

/*
 * Who shares in the end of a connection: process.c, for a child on the other side. Such a peer may leave without having read what we sent,
 * which is no error of the connection's; its own last bytes are read even then, and after a pause. Its end of the stream alone does not end
 * the connection: that is left to conn_end.
 */
struct conn_keeper {
	void (*on_eof)(struct conn *c);   /* after the user's on_eof */
	void (*on_pause)(struct conn *c); /* it was paused or resumed */
	bool (*on_ended)(struct conn *c); /* it was ended. true: on_end waits for conn_release, the descriptor goes now; false: keeps no more */
};

enum conn_state { CONN_CONNECTING, CONN_OPEN, CONN_FLUSHING, CONN_LINGERING, CONN_ENDING };

/* What conn_send answers. */
enum send_result {
	SEND_OK,     /* queued */
	SEND_FULL,   /* queued, above high water: wait for on_drained */
	SEND_CLOSED, /* not queued: closing or closed */
	SEND_SHUT,   /* not queued: our side was closed for writing */
	SEND_UNABLE, /* not queued: it stands for a watch and carries no bytes */
};

/* How the descriptor is watched for input. */
enum conn_reading { READING_OFF, READING_DATA, READING_ERRORS };

struct conn {
	struct conns *conns;
	const struct conn_events *events;
	void *user;                             /* the user's; NULL: nobody is to be told any more */
	struct bufferevent *bev;                /* output and write readiness */
	struct evbuffer *output;                /* bev's: bytes for the wire */
	struct evbuffer *plain;                 /* with a filter: what it has not taken yet, else NULL */
	const struct conn_filter *filter;       /* NULL: none */
	void *filter_data;                      /* the filter's */
	const struct conn_transport *transport; /* NULL: a stream */
	void *transport_data;                   /* the transport's */
	const struct conn_keeper *keeper;       /* NULL: nobody */
	void *keeper_data;                      /* the keeper's */
	const struct conn_tap *tap;             /* of relay and feeder; NULL where there never was one */
	struct relay *relay;                    /* takes its input, NULL: the user does */
	struct relay *feeder;                   /* fills its output, NULL: nobody but the user */
	uint64_t relayed;                       /* bytes that the relay has taken, since it was put in place */
	struct event read_event;
	int fd;                                /* -1 while connecting */
	struct adopted *adopted;               /* what fd is where it was adopted, else NULL */
	struct timer *always;                  /* rings while fd, which the poller refuses, is waited for; NULL: the poller tells */
	bool watch_only;                       /* no bytes: stands for a watch, on fd or on something else */
	bool notify_readable, notify_writable; /* of a watched fd: what on_ready is wanted for */
	enum conn_state state;
	enum conn_reading reading;
	bool is_socket; /* else a pipe or a terminal: read instead of recv */
	bool writing;   /* bev waits for write readiness */
	bool paused;
	bool held;             /* does not read: whoever takes its input has no room */
	bool eof_relayed;      /* a relay has passed the peer's end on: the connection goes on for its output */
	bool eof;              /* the peer's end has been seen */
	bool heard;            /* the peer has sent something for us */
	bool shut_asked, shut; /* FIN asked for; sent */
	bool filter_finished;  /* the filter has had its last word */
	bool finishing;        /* conn_finish was called */
	bool parked;           /* ended, and kept until conn_release */
	bool full;             /* above high water, on_drained is owed */
	bool dirty;            /* in the list of those to write at the turn's end */
	bool unsent;           /* the user has sent bytes that are not all with the kernel yet */
	bool lost;             /* such bytes were dropped by a write that failed */
	int write_error;       /* errno of a write that failed while input may still be waiting, 0 if none */
	struct flow flow;      /* limits; times are of the monotonic clock */
	uint64_t last_io_ns;   /* when a byte last moved */
	uint64_t opened_ns;
	uint64_t bytes_in, bytes_out;
	size_t queued;                             /* bytes in output and plain, and behind sources */
	size_t wire_queued;                        /* of them in output; with a transport: items that could be written now */
	size_t weightless;                         /* of those the ones that take no memory */
	size_t weight;                             /* bytes queued that do take memory */
	size_t behind;                             /* bytes behind sources */
	struct conn_source *sources, *last_source; /* in the order of sending, until all of each is with the kernel */
	struct conn_source *filling;               /* the first that is not made, NULL: none */
	struct timer idle;                         /* checks last_io_ns, re-arms for the rest */
	struct timer deadline;                     /* connecting, or flushing and lingering */
	const char *end_code;                      /* symbol such as "ECONNRESET", NULL for an orderly end; static */
	const char *end_why;                       /* in words */
	char *end_text;                            /* end_why where it had to be made */
	struct addr peer;                          /* length 0: unknown */
	struct addr *local;                        /* where a PROXY header says that the client connected to, NULL: ask the socket */
	struct conn *next_dirty, *next_ending;
	struct conn *previous, *next; /* all of the loop's */
};

/* All connections of a loop. */
struct conns {
	struct loop *loop;
	struct stats *stats; /* where they are counted: the loop's, unless somebody puts another in its place while there are none */
	struct conn *all;
	size_t count;
	uint64_t signatures;             /* how many conns_signature has given */
	size_t queued, max_queued;       /* unsent bytes of all of them, and their limit */
	struct conn *dirty, **dirty_end; /* lists in the order of marking */
	struct conn *ending, **ending_end;
	struct loop_hook at_end; /* flush and reap */
};

struct conns *conns_new(struct loop *loop, size_t max_queued) __attribute__((warn_unused_result));
void conns_free(struct conns *conns); /* there must be none left */

/* A number for a connection's user: never twice in a process, nor in two processes at once. */
uint64_t conns_signature(struct conns *conns);

/* A connection without a descriptor yet: output may be queued. flow is copied. */
struct conn *conn_new(struct conns *conns, const struct flow *flow, const struct conn_events *events, void *user)
	__attribute__((warn_unused_result));

/* Gives it its descriptor, which it owns from now on: it is open, input flows, what was queued is sent. peer may be NULL. */
void conn_open(struct conn *c, int fd, const struct addr *peer);

/* Whose the connection is by a PROXY header: peer and local address are copied. */
void conn_set_names(struct conn *c, const struct addr *peer, const struct addr *local);

/* The local address; false if there is none. */
bool conn_local(const struct conn *c, struct addr *a) __attribute__((warn_unused_result));

/* Puts bytes in front of all that is queued, and of what a filter will make. Before there is a descriptor. */
void conn_prepend(struct conn *c, const void *bytes, size_t length);

/* The same for a descriptor that comes from outside; a is copied. One direction alone will do. */
void conn_adopt(struct conn *c, const struct adopted *a);

/* Makes a new connection one that stands for a watch: it can be ended and tells of that, and carries no bytes. fd >= 0 is a descriptor,
 * which stays its owner's, to be watched for readiness; -1: whatever is watched is not conn's business. */
void conn_watch(struct conn *c, int fd);

/* What a watched descriptor's on_ready is called for, in each turn as long as it is ready. */
void conn_notify(struct conn *c, bool readable, bool writable);

/* Takes the descriptor out of the loop and returns it; the connection ends with "detached", what was queued is dropped. -1 with errno where
 * it cannot be had: ENOTCONN (none yet, or ended), EOPNOTSUPP (TLS or a child has a part in it). */
int conn_detach(struct conn *c) __attribute__((warn_unused_result));

/* Is the descriptor in use by the loop already? */
bool conn_fd_watched(const struct conns *conns, int fd);

/* Queues bytes (copied). Over max_outbound the connection ends with ELIMIT. */
enum send_result conn_send(struct conn *c, const void *bytes, size_t length);

/* Queues a source, which c has until its on_end; not if the answer is SEND_CLOSED or SEND_SHUT. Its bytes count as queued as far as
 * they are in the output (at most 256 KiB), but against no limit where they take no memory. While sources are left, the linger time
 * begins anew with each piece. */
enum send_result conn_send_source(struct conn *c, struct conn_source *s);
/* The same for bytes that a relay passes on: it keeps a bound of its own in the place of max_outbound, and on_drained is not owed. */
enum send_result conn_pass(struct conn *c, const void *bytes, size_t length);

/* Flushes, sends FIN, discards input until the peer's EOF, ends; no longer than the linger time. Refuses sends from now on.
 * code and why as in conn_end. */
void conn_finish(struct conn *c, const char *code, const char *why);

/* Ends at the turn's end, output is dropped. The first reason counts. code and why are static; code NULL: orderly. */
void conn_end(struct conn *c, const char *code, const char *why);
void conn_end_text(struct conn *c, const char *code, char *why); /* why is taken over */
void conn_end_errno(struct conn *c, int error);

/* Flushes, then FIN; input goes on. */
void conn_shut(struct conn *c);

/* Stops and resumes reading and writing, at once. A paused connection learns of a reset at once, of EOF when resumed. */
void conn_pause(struct conn *c);
void conn_resume(struct conn *c);

/* Stops and resumes reading alone, for whoever takes the input. Even a reset ends the connection only when all that came before it has been
 * read. */
void conn_hold(struct conn *c, bool hold);

void conn_set_idle_timeout(struct conn *c, uint64_t timeout_ns);    /* 0: none */
void conn_set_connect_timeout(struct conn *c, uint64_t timeout_ns); /* while connecting; from now; 0: none */
bool conn_set_watermarks(struct conn *c, size_t low, size_t high) __attribute__((warn_unused_result));

/* Puts a filter in, which must not have one yet. What was sent before goes out as it is. */
void conn_set_filter(struct conn *c, const struct conn_filter *filter, void *data);

/* Gives it a keeper, before it has a descriptor; the end of the keeping of one that is parked. */
void conn_keep(struct conn *c, const struct conn_keeper *keeper, void *data);
void conn_release(struct conn *c);

/* For filters: plain bytes for the user (during the call only), of which fewer are taken where the user pauses; the end of the plain stream;
 * a change of the wire's output, and its writing at once, before an end that would drop it. */
size_t conn_deliver(struct conn *c, const char *bytes, size_t length);
void conn_deliver_eof(struct conn *c);
void conn_wire_changed(struct conn *c);
void conn_flush_now(struct conn *c);

/* The errno that the socket has pending, 0 if none. The connection's end is told it too. */
int conn_error(struct conn *c);

/* Makes it the user of a transport instead of a stream; before conn_open. */
void conn_set_transport(struct conn *c, const struct conn_transport *transport, void *data);

/* For transports: what waits to be sent has changed; there is something to be done at the turn's end; there is room for output again. */
void conn_transport_queued(struct conn *c, size_t bytes, size_t items);
void conn_transport_dirty(struct conn *c);
void conn_transport_room(struct conn *c);

/* Is it still good for sending? */
static inline bool conn_usable(const struct conn *c)
{
	return c->state <= CONN_OPEN && !c->finishing;
}

/* The symbol and the text of an errno; both static. */
const char *errno_code(int error);
const char *errno_text(int error);

#endif
