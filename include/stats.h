/*
 * The counters of a process, one table for everything that reads them.
 */
#ifndef REACTORD_STATS_H
#define REACTORD_STATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * X(name, kind, help): a counter only grows, a gauge is a level; those of several processes are added up. A common counter or a common
 * level is of things that all processes do or have together: they count the same.
 */
#define STATS(X)                                                                                                    \
	X(connections_accepted, counter, "connections accepted")                                                        \
	X(connections_opened, counter, "outgoing connections established")                                              \
	X(connections_failed, counter, "outgoing connections that could not be established")                            \
	X(connections_closed, counter, "connections ended, for whatever reason")                                        \
	X(connections_refused, counter, "connections closed at once by a limit")                                        \
	X(tls_handshakes, counter, "TLS handshakes completed")                                                          \
	X(tls_failures, counter, "connections ended by TLS")                                                            \
	X(proxy_headers_refused, counter, "connections closed for want of a proper PROXY header from a proxy we trust") \
	X(connections, gauge, "connections open now")                                                                   \
	X(listeners, level, "listeners open now")                                                                       \
	X(timers, gauge, "timers of scripts that wait now")                                                             \
	X(references, gauge, "values that the daemon holds for scripts now")                                            \
	X(children, gauge, "child processes alive now, or whose connection still is")                                   \
	X(children_started, counter, "child processes started")                                                         \
	X(generations, level, "generations of handlers alive now")                                                      \
	X(handovers, counter, "connections handed over to new code")                                                    \
	X(handovers_failed, counter, "connections that stayed on old code because their hand-over failed")              \
	X(bytes_in, counter, "bytes received")                                                                          \
	X(bytes_out, counter, "bytes sent")                                                                             \
	X(bytes_relayed, counter, "bytes passed on by relays")                                                          \
	X(datagrams_in, counter, "datagrams received")                                                                  \
	X(datagrams_out, counter, "datagrams sent")                                                                     \
	X(datagrams_failed, counter, "datagrams that could not be sent or delivered")                                   \
	X(datagrams_dropped, counter, "of them those that met a full queue")                                            \
	X(bytes_queued, gauge, "bytes waiting to be sent")                                                              \
	X(messages_pushed, counter, "messages pushed on named channels")                                                \
	X(messages_refused, counter, "messages for which named channels had no room")                                   \
	X(messages_missed, counter, "messages of other processes that this one was too slow for")                       \
	X(messages_queued, gauge, "messages on named channels that wait to be delivered")                               \
	X(lua_memory, gauge, "bytes that scripts have in use now")                                                      \
	X(callbacks, counter, "callbacks entered")                                                                      \
	X(handler_errors, counter, "errors raised in callbacks")                                                        \
	X(callbacks_stopped, counter, "callbacks stopped for running too long")                                         \
	X(callbacks_slow, counter, "callbacks that took longer than slow_callback")                                     \
	X(limits_met, counter, "connections ended by a limit on their output")                                          \
	X(memory_replacements, counter, "generations replaced because their memory ran out")                            \
	X(accept_pauses, counter, "pauses of accepting for want of descriptors")                                        \
	X(reloads, common, "reloads carried out")                                                                       \
	X(reloads_refused, common, "reloads refused")                                                                   \
	X(upgrades, common, "upgrades carried out, over all processes that have followed each other")                   \
	X(upgrades_refused, common, "upgrades refused")                                                                 \
	X(turns, counter, "turns of the loop")

struct stats {
#define STATS_MEMBER(name, kind, help) uint64_t name;
	STATS(STATS_MEMBER)
#undef STATS_MEMBER
};

/* One row of the table for readers that go through all of them. */
struct stats_row {
	const char *name;
	const char *help;
	bool gauge;
	bool common;   /* the same in all processes: not to be added up */
	size_t offset; /* of the uint64_t in struct stats */
};

extern const struct stats_row stats_rows[];
extern const size_t stats_row_count;

#endif
