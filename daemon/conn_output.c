/*
 * The output of connections: what was sent, its sums and limits, sources, and the writing of it. See conn.h.
 */
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conn_impl.h"
#include "mem.h"
#include "sock.h"

#define SOURCE_WINDOW (256 * 1024) /* bytes that sources may have in the output, less where high_water is lower */
#define SOURCE_LEAST 16384         /* ... but at least that */
#define MAX_WRITE (1024 * 1024)    /* bytes that one connection may hand to the kernel in one pass */

/* Waits for room to write, or not any more. */
void conn_watch_room(struct conn *c, bool on)
{
	if (c->transport)
		c->transport->watch_room(c, on);
	else if (on)
		bufferevent_enable(c->bev, EV_WRITE);
	else
		bufferevent_disable(c->bev, EV_WRITE);
}

/* Brings the sums in step with the buffers. */
void conn_account(struct conn *c)
{
	struct conns *conns = c->conns;

	c->wire_queued = evbuffer_get_length(c->output);
	size_t now = c->wire_queued + (c->plain ? evbuffer_get_length(c->plain) : 0) + c->behind;
	conns->queued = conns->queued - c->weight + (now - c->weightless);
	c->queued = now;
	c->weight = now - c->weightless;
	conns->stats->bytes_queued = conns->queued;
}

/* Sends FIN once, when it was asked for and all is written; a filter has its last word before it. Whoever waited for that goes on. With both
 * sides closed nothing is left to happen. */
static void send_fin(struct conn *c)
{
	if (c->queued || c->sources)
		return;
	if (!c->shut && c->filter && !c->filter_finished) {
		if (!c->filter->finish(c))
			return;
		c->filter_finished = true;
		conn_account(c);
		if (c->queued) {
			conn_mark_dirty(c);
			return;
		}
	}
	if (!c->shut)
		shutdown(c->fd, SHUT_WR);
	c->shut = true;
	if (c->state == CONN_FLUSHING) {
		c->state = CONN_LINGERING;
		if ((c->eof && !c->keeper) || !c->is_socket)
			conn_end(c, c->end_code, c->end_why);
	} else if (c->eof && c->state == CONN_OPEN && !c->keeper) {
		conn_end(c, NULL, "eof");
	}
}

/* Lets the filter take what was sent. */
static void encrypt(struct conn *c)
{
	if (!c->filter)
		return;
	c->filter->encrypt(c);
	conn_account(c);
	if (evbuffer_get_length(c->plain))
		return;
	for (struct conn_source *s = c->sources; s && s->made; s = s->next)
		if (!s->placed) {
			s->placed = true;
			s->last = c->bytes_out + c->wire_queued;
		}
}

/* One source has made all that it had: what was sent since follows it. */
static void source_made(struct conn *c, struct conn_source *s, struct evbuffer *to)
{
	if (!c->filter) {
		s->placed = true;
		s->last = c->bytes_out + evbuffer_get_length(c->output);
	}
	if (s->behind) {
		c->behind -= evbuffer_get_length(s->behind);
		evbuffer_add_buffer(to, s->behind);
		evbuffer_free(s->behind);
		s->behind = NULL;
	}
	c->filling = s->next;
}

/* Lets sources add to the output as far as there is room. */
static void fill(struct conn *c)
{
	size_t window = c->flow.high_water < SOURCE_WINDOW ? c->flow.high_water : SOURCE_WINDOW;
	struct evbuffer *to = c->filter ? c->plain : c->output;
	struct conn_source *s;

	if (window < SOURCE_LEAST)
		window = SOURCE_LEAST;
	while ((s = c->filling) && c->state != CONN_ENDING && !c->write_error) {
		size_t ahead = c->queued - c->behind, before = evbuffer_get_length(to);
		if (ahead > window / 2)
			break;
		if (!s->begun)
			s->first = c->bytes_out + evbuffer_get_length(c->output);
		s->fill(c, s, to, window - ahead);
		s->begun = true;
		if (c->state == CONN_ENDING)
			return;
		if (!c->filter)
			s->last = c->bytes_out + evbuffer_get_length(c->output);
		if (s->weightless)
			c->weightless += evbuffer_get_length(to) - before;
		if (s->made)
			source_made(c, s, to);
		conn_account(c);
		if (c->state == CONN_FLUSHING)
			timer_start(c->conns->loop, &c->deadline, c->flow.linger_timeout_ns);
	}
}

/* Adds what sources have and lets the filter take it. */
static void prepare(struct conn *c)
{
	if (c->filling)
		fill(c);
	if (c->state != CONN_ENDING)
		encrypt(c);
}

/* The kernel has taken bytes, up to bytes_out from `before` on: those of sources are told apart, sources that are through end. */
static void settle_sources(struct conn *c, uint64_t before)
{
	for (struct conn_source *s = c->sources; s && s->begun; s = s->next) {
		uint64_t from = s->first > before ? s->first : before, to = s->last < c->bytes_out ? s->last : c->bytes_out;
		if (s->weightless && to > from)
			c->weightless -= to - from;
		if (!s->placed || s->last > c->bytes_out)
			break;
	}
	conn_account(c);
}

/* Ends the first source. */
void conn_end_source(struct conn *c, const char *code, const char *why)
{
	struct conn_source *s = c->sources;

	c->sources = s->next;
	if (!c->sources)
		c->last_source = NULL;
	if (c->filling == s)
		c->filling = s->next;
	if (s->behind) {
		c->behind -= evbuffer_get_length(s->behind);
		evbuffer_free(s->behind);
	}
	s->on_end(c, s, code, why);
}

/* Ends the sources that are through. */
static void end_sources(struct conn *c)
{
	while (c->sources && c->sources->placed && c->sources->last <= c->bytes_out && c->state != CONN_ENDING)
		conn_end_source(c, NULL, NULL);
}

/* A write has moved nothing: ends a connection whose sources cannot give what is in the output. */
static bool sources_broken(struct conn *c)
{
	for (struct conn_source *s = c->sources; s && s->begun; s = s->next)
		if (s->broken(s)) {
			conn_end(c, "EIO", CONN_CUT_SHORT);
			return true;
		}
	return false;
}

/* Tells the user that there is room again, or that nothing waits any more. */
static void tell_room(struct conn *c, bool progress)
{
	if (c->full && c->queued <= c->flow.low_water && c->state == CONN_OPEN) {
		c->full = false;
		if (c->user)
			c->events->on_drained(c);
	}
	if (progress && !c->queued && !c->sources && c->state == CONN_OPEN && c->user && c->events->on_flushed)
		c->events->on_flushed(c);
}

/* Accounts for what a write took away, and does what waits for it. */
static void wrote(struct conn *c)
{
	size_t n = c->wire_queued - evbuffer_get_length(c->output);
	struct conns *conns = c->conns;

	if (n) {
		c->bytes_out += n;
		conns->stats->bytes_out += n;
		c->last_io_ns = loop_now(conns->loop);
	}
	settle_sources(c, c->bytes_out - n);
	if (!c->queued && !c->sources)
		c->unsent = false;
	if (c->state == CONN_ENDING)
		return;
	if (c->sources) {
		prepare(c);
		end_sources(c);
		if (c->state == CONN_ENDING)
			return;
	}
	if (c->shut_asked)
		send_fin(c);
	if (c->feeder)
		c->tap->wrote(c, n > 0);
	tell_room(c, n > 0);
}

/* Drops what waits to be sent. */
void conn_drop_output(struct conn *c)
{
	evbuffer_unfreeze(c->output, 1);
	evbuffer_drain(c->output, evbuffer_get_length(c->output));
	if (c->plain)
		evbuffer_drain(c->plain, evbuffer_get_length(c->plain));
	for (struct conn_source *source = c->sources; source; source = source->next)
		if (source->behind)
			evbuffer_drain(source->behind, evbuffer_get_length(source->behind));
	c->weightless = c->behind = 0;
	conn_account(c);
}

/*
 * A write failed: nothing more can be sent. What the peer had sent before may still wait to be read, so the end is left to the reader,
 * which meets it at once; a connection that does not read ends here. So does one that the kernel had no memory for: its peer is well and
 * might never end.
 */
void conn_write_failed(struct conn *c, int error)
{
	c->lost = c->unsent;
	conn_drop_output(c);
	if (c->state == CONN_ENDING)
		return;
	if (c->keeper) { /* it takes no more, and may still have something to say */
		c->shut_asked = c->shut = true;
		if (c->state == CONN_FLUSHING)
			c->state = CONN_LINGERING;
		conn_rewatch(c);
		if (c->feeder)
			c->tap->wrote(c, false);
		while (c->sources)
			conn_end_source(c, errno_code(error), errno_text(error));
		return;
	}
	if (c->state != CONN_OPEN && !c->lost) { /* only the filter's last word did not get through */
		conn_end(c, c->end_code, c->end_why);
		return;
	}
	if ((c->reading != READING_DATA && !c->held) || c->paused || c->state != CONN_OPEN || error == ENOBUFS || error == ENOMEM) {
		conn_end_errno(c, error);
		return;
	}
	c->write_error = error;
	conn_rewatch(c);
}

/* The same for a transport. One that is finishing ends when nothing waits any more. */
static void flush_transport(struct conn *c)
{
	size_t n = c->transport->flush(c);

	if (c->state == CONN_ENDING)
		return;
	if (c->finishing && !c->transport->pending(c)) {
		conn_end(c, c->end_code, c->end_why);
		return;
	}
	tell_room(c, n > 0);
	if (c->state != CONN_ENDING)
		conn_rewatch(c);
}

/* There is room for a transport's output. */
void conn_transport_room(struct conn *c)
{
	c->writing = false;
	if (c->state != CONN_ENDING)
		flush_transport(c);
}

/* The turn's end is wanted. */
void conn_transport_dirty(struct conn *c)
{
	if (c->state != CONN_ENDING)
		conn_mark_dirty(c);
}

/* Brings the sums in step with a transport's queue. */
void conn_transport_queued(struct conn *c, size_t bytes, size_t items)
{
	struct conns *conns = c->conns;

	conns->queued = conns->queued - c->weight + bytes;
	c->weight = bytes;
	conns->stats->bytes_queued = conns->queued;
	c->queued = bytes;
	c->wire_queued = items;
}

/* Puts a transport in the place of the stream. */
void conn_set_transport(struct conn *c, const struct conn_transport *transport, void *data)
{
	c->transport = transport;
	c->transport_data = data;
}

/* The turn's end for one dirty connection: one write. */
void conn_flush(struct conn *c)
{
	if (c->transport) {
		if (c->state != CONN_ENDING)
			flush_transport(c);
		return;
	}
	if (c->state == CONN_ENDING || c->paused || c->writing || c->fd < 0 || c->write_error)
		return;
	prepare(c);
	if (c->state == CONN_ENDING)
		return;
	if (c->wire_queued) {
		evbuffer_unfreeze(c->output, 1); /* a bufferevent freezes the start of its output */
		int n = evbuffer_write(c->output, c->fd), error = errno;
		evbuffer_freeze(c->output, 1);
		if (n < 0 && error != EAGAIN && error != EINTR) {
			conn_write_failed(c, error);
			return;
		}
		if (n == 0 && c->sources && sources_broken(c)) /* else it is sendfile's way of saying EAGAIN */
			return;
	}
	wrote(c);
	if (c->state != CONN_ENDING)
		conn_rewatch(c);
}

/* The bufferevent has written a part of what was left. */
static void on_bev_write(struct bufferevent *bev, void *data)
{
	struct conn *c = data;

	(void)bev;
	wrote(c);
	if (c->state == CONN_ENDING)
		return;
	encrypt(c);
	if (c->state != CONN_ENDING)
		conn_rewatch(c);
}

/* The bufferevent met an error in writing. */
static void on_bev_event(struct bufferevent *bev, short what, void *data)
{
	int error = errno;
	struct conn *c = data;

	(void)bev;
	if ((what & BEV_EVENT_EOF) && c->sources) { /* sendfile has moved nothing */
		c->writing = false;
		if (c->state != CONN_ENDING && !sources_broken(c))
			conn_rewatch(c);
		return;
	}
	if (what & (BEV_EVENT_ERROR | BEV_EVENT_EOF))
		conn_write_failed(data, error ? error : EPIPE);
}

/* Makes the bufferevent. */
void conn_output_init(struct conn *c)
{
	c->bev = bufferevent_socket_new(c->conns->loop->base, -1, 0);
	if (!c->bev) /* libevent's only cause is want of memory */
		abort();
	bufferevent_disable(c->bev, EV_WRITE); /* or each append would arm the poller */
	bufferevent_setcb(c->bev, NULL, on_bev_write, on_bev_event, c);
	bufferevent_setwatermark(c->bev, EV_WRITE, SIZE_MAX, 0); /* told of every write, however much is left */
	bufferevent_set_max_single_write(c->bev, MAX_WRITE);     /* libevent's 16 KiB cost a third of the speed in bulk */
	c->output = bufferevent_get_output(c->bev);
}

/* The very first bytes. */
void conn_prepend(struct conn *c, const void *bytes, size_t length)
{
	evbuffer_unfreeze(c->output, 1);
	if (evbuffer_prepend(c->output, bytes, length) < 0)
		conn_end_errno(c, ENOMEM);
	evbuffer_freeze(c->output, 1);
	conn_account(c);
}

/* Ends the connection with the longest queue: together they hold more than the process may. */
static void enforce_max_queued(struct conns *conns)
{
	struct conn *longest = NULL;

	for (struct conn *c = conns->all; c; c = c->next)
		if (c->state != CONN_ENDING && (!longest || c->weight > longest->weight))
			longest = c;
	if (longest) {
		conns->stats->limits_met++;
		conn_end(longest, "ELIMIT", "outbound limit of the process");
	}
}

/* Where bytes wait that were sent after a source that has not made all of it yet. */
static struct evbuffer *behind_sources(struct conn *c)
{
	struct conn_source *last = c->last_source;

	if (!last->behind && !(last->behind = evbuffer_new()))
		abort();
	return last->behind;
}

/* Queues bytes for the turn's end, as long as no more than most wait then. */
static enum send_result queue(struct conn *c, const void *bytes, size_t length, size_t most)
{
	struct conns *conns = c->conns;

	if (!conn_usable(c))
		return SEND_CLOSED;
	if (c->watch_only)
		return SEND_UNABLE;
	if (c->shut_asked || c->transport)
		return SEND_SHUT;
	if (c->write_error) /* it will end as soon as its input has been read */
		return SEND_CLOSED;
	if (length == 0)
		return c->queued > c->flow.high_water ? SEND_FULL : SEND_OK;
	if (length > most || c->weight > most - length) {
		conns->stats->limits_met++;
		conn_end(c, "ELIMIT", "outbound limit");
		return SEND_CLOSED;
	}
	struct evbuffer *to = c->filling ? behind_sources(c) : c->filter ? c->plain : c->output;
	if (evbuffer_add(to, bytes, length) < 0) {
		conn_end_errno(c, ENOMEM);
		return SEND_CLOSED;
	}
	c->unsent = true;
	c->queued += length;
	c->weight += length;
	if (c->filling)
		c->behind += length;
	else if (!c->filter)
		c->wire_queued += length;
	conns->queued += length;
	conns->stats->bytes_queued = conns->queued;
	if (!c->writing)
		conn_mark_dirty(c);
	if (conns->queued > conns->max_queued) {
		enforce_max_queued(conns);
		if (c->state == CONN_ENDING)
			return SEND_CLOSED;
	}
	return c->queued > c->flow.high_water ? SEND_FULL : SEND_OK;
}

/* Queues the user's bytes. */
enum send_result conn_send(struct conn *c, const void *bytes, size_t length)
{
	enum send_result result = queue(c, bytes, length, c->flow.max_outbound);

	if (result == SEND_FULL && length)
		c->full = true;
	return result;
}

/* Queues a relay's. */
enum send_result conn_pass(struct conn *c, const void *bytes, size_t length)
{
	return queue(c, bytes, length, SIZE_MAX);
}

/* Queues a source. */
enum send_result conn_send_source(struct conn *c, struct conn_source *s)
{
	if (!conn_usable(c) || c->write_error)
		return SEND_CLOSED;
	if (c->watch_only || c->transport)
		return SEND_UNABLE;
	if (c->shut_asked)
		return SEND_SHUT;
	s->next = NULL;
	if (c->last_source)
		c->last_source->next = s;
	else
		c->sources = s;
	c->last_source = s;
	c->unsent = true;
	if (!c->filling)
		c->filling = s;
	if (!c->writing)
		conn_mark_dirty(c);
	return c->queued > c->flow.high_water ? SEND_FULL : SEND_OK;
}

/* The filter has changed the wire's output. */
void conn_wire_changed(struct conn *c)
{
	conn_account(c);
	if ((c->queued || c->shut_asked) && !c->writing && c->state != CONN_ENDING)
		conn_mark_dirty(c);
}

/* One write, whatever becomes of it. */
void conn_flush_now(struct conn *c)
{
	if (c->fd < 0 || !c->wire_queued || c->write_error)
		return;
	evbuffer_unfreeze(c->output, 1);
	int n = evbuffer_write(c->output, c->fd);
	evbuffer_freeze(c->output, 1);
	if (n > 0) {
		c->bytes_out += (uint64_t)n;
		c->conns->stats->bytes_out += (uint64_t)n;
	}
	conn_account(c);
}
