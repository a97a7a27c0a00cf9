/* Connections: see conn.h. */
#include "conn.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem.h"
#include "sock.h"

#define SOURCE_WINDOW (256 * 1024) /* bytes that sources may have in the output, less where high_water is lower */
#define SOURCE_LEAST 16384         /* ... but at least that */
#define MAX_WRITE (1024 * 1024)    /* bytes that one connection may hand to the kernel in one pass */

/* The symbol of an errno. */
const char *errno_code(int error)
{
	const char *name = strerrorname_np(error);

	return name ? name : "EIO";
}

/* Its text, in the C locale. */
const char *errno_text(int error)
{
	const char *text = strerrordesc_np(error);

	return text ? text : "unknown error";
}

/* Puts c into the list of those that the turn's end writes. */
static void mark_dirty(struct conn *c)
{
	if (c->dirty || c->fd < 0)
		return;
	c->dirty = true;
	c->next_dirty = NULL;
	*c->conns->dirty_end = c;
	c->conns->dirty_end = &c->next_dirty;
	loop_wake(c->conns->loop);
}

/* Puts an ended connection into the list of those that the turn's end reaps. */
static void mark_ending(struct conn *c)
{
	c->next_ending = NULL;
	*c->conns->ending_end = c;
	c->conns->ending_end = &c->next_ending;
}

static void on_readable(evutil_socket_t fd, short what, void *data);

/* The same for a descriptor that the poller refuses: it is read and written as if always ready, once in a turn. */
static void watch_always(struct conn *c)
{
	struct loop *loop = c->conns->loop;
	bool read = c->fd >= 0 && c->state != CONN_ENDING && !c->paused && !c->held && !c->eof;

	c->reading = read ? READING_DATA : READING_OFF;
	if (read && !timer_waiting(c->always))
		timer_start(loop, c->always, 0);
	else if (!read)
		timer_stop(loop, c->always);
	if (c->wire_queued && !c->paused && c->state < CONN_LINGERING)
		mark_dirty(c);
}

/* Waits for room to write, or not any more. */
static void watch_room(struct conn *c, bool on)
{
	if (c->transport)
		c->transport->watch_room(c, on);
	else if (on)
		bufferevent_enable(c->bev, EV_WRITE);
	else
		bufferevent_disable(c->bev, EV_WRITE);
}

/*
 * Makes libevent watch what c's state calls for. Data is watched level-triggered. A connection that may not read is watched
 * edge-triggered for errors alone, and not beside a level-triggered write event: libevent takes no mixture on one descriptor.
 * Writing is watched for what the turn's end has left over.
 */
static void watch(struct conn *c)
{
	bool write = !c->paused && c->wire_queued && !c->dirty && c->fd >= 0 && !c->write_error && c->state < CONN_LINGERING;
	enum conn_reading read = READING_OFF;

	if (c->watch_only)
		return;
	if (c->always) {
		watch_always(c);
		return;
	}
	if (c->fd < 0 || c->state == CONN_CONNECTING || c->state == CONN_ENDING)
		read = READING_OFF;
	else if (!c->paused && !c->held && !c->eof)
		read = READING_DATA;
	else if (!write && !c->keeper && (c->is_socket || c->adopted))
		read = READING_ERRORS;

	if (!write && c->writing)
		watch_room(c, false);
	if (read != c->reading) {
		if (c->reading != READING_OFF)
			event_del(&c->read_event);
		if (read != READING_OFF) {
			short mode = read == READING_DATA ? EV_READ | EV_PERSIST : EV_READ | EV_PERSIST | EV_ET;
			event_assign(&c->read_event, c->conns->loop->base, c->fd, mode, on_readable, c);
			if (event_add(&c->read_event, NULL) < 0) {
				c->reading = READING_OFF;
				conn_end_errno(c, errno ? errno : EIO);
				return;
			}
		}
		c->reading = read;
	}
	if (write && !c->writing)
		watch_room(c, true);
	c->writing = write;
}

/* Brings the sums in step with the buffers. */
static void account(struct conn *c)
{
	struct conns *conns = c->conns;

	c->wire_queued = evbuffer_get_length(c->output);
	size_t now = c->wire_queued + (c->plain ? evbuffer_get_length(c->plain) : 0) + c->behind;
	conns->queued = conns->queued - c->weight + (now - c->weightless);
	c->queued = now;
	c->weight = now - c->weightless;
	conns->loop->stats->bytes_queued = conns->queued;
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
		account(c);
		if (c->queued) {
			mark_dirty(c);
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
	account(c);
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
		account(c);
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
	account(c);
}

/* Ends the first source. */
static void end_source(struct conn *c, const char *code, const char *why)
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
		end_source(c, NULL, NULL);
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
		conns->loop->stats->bytes_out += n;
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
static void drop_output(struct conn *c)
{
	evbuffer_unfreeze(c->output, 1);
	evbuffer_drain(c->output, evbuffer_get_length(c->output));
	if (c->plain)
		evbuffer_drain(c->plain, evbuffer_get_length(c->plain));
	for (struct conn_source *source = c->sources; source; source = source->next)
		if (source->behind)
			evbuffer_drain(source->behind, evbuffer_get_length(source->behind));
	c->weightless = c->behind = 0;
	account(c);
}

/*
 * A write failed: nothing more can be sent. What the peer had sent before may still wait to be read, so the end is left to the reader,
 * which meets it at once; a connection that does not read ends here. So does one that the kernel had no memory for: its peer is well and
 * might never end.
 */
static void write_failed(struct conn *c, int error)
{
	c->lost = c->unsent;
	drop_output(c);
	if (c->state == CONN_ENDING)
		return;
	if (c->keeper) { /* it takes no more, and may still have something to say */
		c->shut_asked = c->shut = true;
		if (c->state == CONN_FLUSHING)
			c->state = CONN_LINGERING;
		watch(c);
		if (c->feeder)
			c->tap->wrote(c, false);
		while (c->sources)
			end_source(c, errno_code(error), errno_text(error));
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
	watch(c);
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
		watch(c);
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
		mark_dirty(c);
}

/* Brings the sums in step with a transport's queue. */
void conn_transport_queued(struct conn *c, size_t bytes, size_t items)
{
	struct conns *conns = c->conns;

	conns->queued = conns->queued - c->weight + bytes;
	c->weight = bytes;
	conns->loop->stats->bytes_queued = conns->queued;
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
static void flush(struct conn *c)
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
			write_failed(c, error);
			return;
		}
		if (n == 0 && c->sources && sources_broken(c)) /* else it is sendfile's way of saying EAGAIN */
			return;
	}
	wrote(c);
	if (c->state != CONN_ENDING)
		watch(c);
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
		watch(c);
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
			watch(c);
		return;
	}
	if (what & (BEV_EVENT_ERROR | BEV_EVENT_EOF))
		write_failed(data, error ? error : EPIPE);
}

/* Plain bytes for the relay, if there is one, and for the user. Nobody takes any more where the connection is paused meanwhile; once it
 * is closing nobody wants them, and they count as taken. */
size_t conn_deliver(struct conn *c, const char *bytes, size_t length)
{
	size_t done = 0;

	c->heard = true;
	while (done < length && c->state == CONN_OPEN && !c->finishing) {
		if (c->paused)
			return done;
		if (c->relay) {
			done += c->tap->input(c, bytes + done, length - done);
			continue;
		}
		if (c->user)
			c->events->on_data(c, bytes + done, length - done);
		break;
	}
	return length;
}

/* The peer's end of the stream. */
void conn_deliver_eof(struct conn *c)
{
	c->eof = true;
	if (c->keeper) {
		watch(c);
		if (c->state == CONN_OPEN && c->relay && !c->finishing)
			c->tap->input_eof(c);
		if (c->state == CONN_OPEN && c->user)
			c->events->on_eof(c);
		if (c->state != CONN_ENDING)
			c->keeper->on_eof(c);
	} else if (c->write_error) {
		if (c->lost)
			conn_end_errno(c, c->write_error);
		else
			conn_end(c, NULL, "eof");
	} else if (c->state == CONN_LINGERING) {
		conn_end(c, c->end_code, c->end_why);
	} else {
		watch(c);
		if (c->state == CONN_OPEN && c->relay && !c->finishing)
			c->tap->input_eof(c);
		if (c->state == CONN_OPEN) {
			if (c->user)
				c->events->on_eof(c);
			else
				conn_finish(c, NULL, "eof");
		}
		if (c->state == CONN_OPEN && c->shut)
			conn_end(c, NULL, "eof");
	}
}

/* The error of a descriptor that is not read; 0 if there is none. A pipe has no more to say than that nobody reads it. */
static int pending_error(const struct conn *c)
{
	struct pollfd poller = {.fd = c->fd};

	if (c->is_socket)
		return sock_error(c->fd);
	return poll(&poller, 1, 0) == 1 && (poller.revents & POLLERR) ? EPIPE : 0;
}

/* Input, or an error on a connection that may not read. One read a pass: the others get their turn. */
static void on_readable(evutil_socket_t fd, short what, void *data)
{
	struct conn *c = data;
	struct loop *loop = c->conns->loop;

	(void)what;
	if (c->state == CONN_ENDING)
		return;
	if (c->transport) {
		c->transport->readable(c);
		return;
	}
	if (c->reading == READING_ERRORS) {
		int error = pending_error(c);
		if (error && c->state != CONN_OPEN && !c->unsent) /* a last word that nobody waited for */
			conn_end(c, c->end_code, c->end_why);
		else if (error && c->held && !c->paused && c->state == CONN_OPEN) { /* what came before it is still to be read */
			write_failed(c, error);
			c->lost = true;
		} else if (error)
			conn_end_errno(c, error);
		return;
	}
	size_t size = c->relay && c->state == CONN_OPEN ? c->tap->input_size(c) : LOOP_BUFFER_SIZE;
	ssize_t n = c->is_socket ? recv(fd, loop->buffer, size, 0) : read(fd, loop->buffer, size);
	if (n > 0) {
		c->last_io_ns = loop_now(loop);
		c->bytes_in += (uint64_t)n;
		loop->stats->bytes_in += (uint64_t)n;
		if (c->filter && c->state != CONN_LINGERING)
			c->filter->input(c, loop->buffer, (size_t)n);
		else
			(void)conn_deliver(c, loop->buffer, (size_t)n);
	} else if (n == 0) {
		if (c->filter && c->state <= CONN_FLUSHING && !c->write_error)
			c->filter->input_eof(c);
		else
			conn_deliver_eof(c);
	} else if (errno == EIO && c->adopted && isatty(fd)) {
		conn_deliver_eof(c);                       /* a terminal's other end has gone */
	} else if (c->keeper && errno == ECONNRESET) { /* it has left something unread; all of its own has been read */
		conn_deliver_eof(c);
	} else if (errno != EAGAIN && errno != EINTR) {
		conn_end_errno(c, c->write_error ? c->write_error : errno);
	}
}

/* A watched descriptor is ready. */
static void on_ready(evutil_socket_t fd, short what, void *data)
{
	struct conn *c = data;

	(void)fd;
	if (c->state != CONN_ENDING && c->user)
		c->events->on_ready(c, (what & EV_READ) && c->notify_readable, (what & EV_WRITE) && c->notify_writable);
}

/* Time for a descriptor that is always ready. */
static void on_always(void *data)
{
	struct conn *c = data;

	if (c->state == CONN_ENDING)
		return;
	if (c->watch_only) {
		on_ready(c->fd, EV_READ | EV_WRITE, c);
		if (c->state != CONN_ENDING && (c->notify_readable || c->notify_writable) && !timer_waiting(c->always))
			timer_start(c->conns->loop, c->always, 0);
		return;
	}
	on_readable(c->fd, EV_READ, c);
	watch(c);
}

/* Remembers that the poller will not have the descriptor. */
static void set_always(struct conn *c)
{
	c->always = mem_alloc(sizeof *c->always);
	timer_init(c->always, on_always, c);
}

/* The idle limit may have passed: if a byte has moved meanwhile, wait for the rest. */
static void on_idle(void *data)
{
	struct conn *c = data;
	uint64_t due = c->last_io_ns + c->flow.idle_timeout_ns;

	if (c->flow.idle_timeout_ns == 0 || c->state == CONN_ENDING)
		return;
	if (due <= loop_now(c->conns->loop))
		conn_end(c, "ETIMEDOUT", "idle timeout");
	else
		timer_start_at(c->conns->loop, &c->idle, due);
}

/* The absolute limit of connecting, of the first byte, or of a close after writing has passed. */
static void on_deadline(void *data)
{
	struct conn *c = data;

	if (c->state == CONN_CONNECTING)
		conn_end(c, "ETIMEDOUT", "connect timeout");
	else if (c->state == CONN_OPEN && (c->paused || c->held) && !c->heard) /* it might have sent something */
		timer_start(c->conns->loop, &c->deadline, c->flow.first_byte_timeout_ns);
	else if (c->state == CONN_OPEN && !c->heard && !c->eof)
		conn_end(c, "ETIMEDOUT", "first byte timeout");
	else if (c->state == CONN_FLUSHING || c->state == CONN_LINGERING)
		conn_end(c, "ETIMEDOUT", "linger timeout");
}

/* Makes a connection that has no descriptor yet. */
struct conn *conn_new(struct conns *conns, const struct flow *flow, const struct conn_events *events, void *user)
{
	struct conn *c = mem_zalloc(sizeof *c);

	c->conns = conns;
	c->events = events;
	c->user = user;
	c->fd = -1;
	c->flow = *flow;
	c->bev = bufferevent_socket_new(conns->loop->base, -1, 0);
	if (!c->bev) /* libevent's only cause is want of memory */
		abort();
	bufferevent_disable(c->bev, EV_WRITE); /* or each append would arm the poller */
	bufferevent_setcb(c->bev, NULL, on_bev_write, on_bev_event, c);
	bufferevent_setwatermark(c->bev, EV_WRITE, SIZE_MAX, 0); /* told of every write, however much is left */
	bufferevent_set_max_single_write(c->bev, MAX_WRITE);     /* libevent's 16 KiB cost a third of the speed in bulk */
	c->output = bufferevent_get_output(c->bev);
	timer_init(&c->idle, on_idle, c);
	timer_init(&c->deadline, on_deadline, c);
	c->opened_ns = c->last_io_ns = loop_now(conns->loop);
	c->next = conns->all;
	if (c->next)
		c->next->previous = c;
	conns->all = c;
	conns->count++;
	conns->loop->stats->connections = conns->count;
	return c;
}

/* The descriptor is there and the rest of the output is all that is still wanted. */
static void start_flushing(struct conn *c)
{
	c->state = CONN_FLUSHING;
	timer_start(c->conns->loop, &c->deadline, c->flow.linger_timeout_ns);
	mark_dirty(c);
	watch(c);
}

/* The descriptor is there. */
void conn_open(struct conn *c, int fd, const struct addr *peer)
{
	struct stat st;

	c->fd = fd;
	if (c->state == CONN_ENDING)
		return; /* reaping closes it */
	c->is_socket = peer || (fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode));
	if (peer)
		c->peer = *peer;
	if (c->state == CONN_CONNECTING) {
		timer_stop(c->conns->loop, &c->deadline);
		c->state = CONN_OPEN;
	}
	c->last_io_ns = loop_now(c->conns->loop);
	bufferevent_setfd(c->bev, fd);
	if (c->is_socket && !c->transport && c->peer.any.sa_family != AF_UNIX) {
		sock_nodelay(fd, c->flow.nodelay);
		if (c->flow.keepalive >= 0 &&
		    sock_keepalive(fd, true, c->flow.keepalive, c->flow.keepalive_interval, c->flow.keepalive_count) < 0) {
			conn_end_errno(c, errno);
			return;
		}
	}
	if (c->flow.idle_timeout_ns)
		conn_set_idle_timeout(c, c->flow.idle_timeout_ns);
	if (c->flow.first_byte_timeout_ns && !c->transport)
		timer_start(c->conns->loop, &c->deadline, c->flow.first_byte_timeout_ns);
	if (c->filter)
		c->filter->opened(c);
	if (c->finishing) {
		start_flushing(c);
		return;
	}
	if (c->queued || c->shut_asked || c->filter || c->sources)
		mark_dirty(c);
	watch(c);
}

/* Names told by somebody else. */
void conn_set_names(struct conn *c, const struct addr *peer, const struct addr *local)
{
	c->peer = *peer;
	if (!c->local)
		c->local = mem_zalloc(sizeof *c->local);
	*c->local = *local;
}

/* The local address. */
bool conn_local(const struct conn *c, struct addr *a)
{
	*a = c->local ? *c->local : (struct addr){0};
	return c->local ? a->length > 0 : c->fd >= 0 && sock_local(c->fd, a);
}

/* The very first bytes. */
void conn_prepend(struct conn *c, const void *bytes, size_t length)
{
	evbuffer_unfreeze(c->output, 1);
	if (evbuffer_prepend(c->output, bytes, length) < 0)
		conn_end_errno(c, ENOMEM);
	evbuffer_freeze(c->output, 1);
	account(c);
}

/* Takes over what was adopted. */
void conn_adopt(struct conn *c, const struct adopted *a)
{
	struct addr peer;

	c->adopted = mem_alloc(sizeof *a);
	*c->adopted = *a;
	if (!a->pollable)
		set_always(c);
	if (!a->can_write)
		c->shut_asked = c->shut = true;
	if (!a->can_read)
		c->eof = true; /* there is nothing to wait for; that nobody reads any more is noticed */
	conn_open(c, a->fd, sock_peer(a->fd, &peer) ? &peer : NULL);
}

/* Makes it stand for a watch. */
void conn_watch(struct conn *c, int fd)
{
	c->watch_only = true;
	c->state = CONN_OPEN;
	c->fd = fd;
	if (fd < 0)
		return;
	event_assign(&c->read_event, c->conns->loop->base, fd, 0, on_ready, c);
	if (!adopt_pollable(fd))
		set_always(c);
	if (!sock_peer(fd, &c->peer))
		c->peer.length = 0;
}

/* Sets what is waited for. */
void conn_notify(struct conn *c, bool readable, bool writable)
{
	short what = (short)((readable ? EV_READ : 0) | (writable ? EV_WRITE : 0));

	if (c->state == CONN_ENDING || c->fd < 0 || (readable == c->notify_readable && writable == c->notify_writable))
		return;
	c->notify_readable = readable;
	c->notify_writable = writable;
	if (c->always) {
		if (what)
			timer_start(c->conns->loop, c->always, 0);
		else
			timer_stop(c->conns->loop, c->always);
		return;
	}
	event_del(&c->read_event);
	event_assign(&c->read_event, c->conns->loop->base, c->fd, what | EV_PERSIST, on_ready, c);
	if (what && event_add(&c->read_event, NULL) < 0)
		conn_end_errno(c, errno ? errno : EIO);
}

/* Takes everything of c that is on its descriptor from the loop. */
static void unwatch(struct conn *c)
{
	if (c->always)
		timer_stop(c->conns->loop, c->always);
	if (c->reading != READING_OFF && !c->always)
		event_del(&c->read_event);
	c->reading = READING_OFF;
	if (c->watch_only && c->fd >= 0)
		event_del(&c->read_event);
	watch_room(c, false);
	c->writing = false;
}

/* Lets go of the descriptor. */
int conn_detach(struct conn *c)
{
	if (c->state == CONN_ENDING || c->fd < 0) {
		errno = ENOTCONN;
		return -1;
	}
	if (c->filter || c->keeper) {
		errno = EOPNOTSUPP;
		return -1;
	}
	int fd = c->fd;
	unwatch(c);
	bufferevent_setfd(c->bev, -1);
	c->fd = -1;
	if (c->adopted) {
		fd = adopt_release(c->adopted);
		free(c->adopted);
		c->adopted = NULL;
	}
	conn_end(c, NULL, "detached");
	return fd;
}

/* An event of the loop: is it on that descriptor? */
static int has_fd(const struct event_base *base, const struct event *event, void *fd)
{
	(void)base;
	return event_get_fd(event) == *(int *)fd && !(event_get_events(event) & EV_SIGNAL);
}

/* Is the descriptor in use by the loop? */
bool conn_fd_watched(const struct conns *conns, int fd)
{
	for (const struct conn *c = conns->all; c; c = c->next)
		if ((c->fd == fd || (c->adopted && c->adopted->origin == fd)) && !(c->watch_only && c->state == CONN_ENDING))
			return true;
	return event_base_foreach_event(conns->loop->base, has_fd, &fd) != 0;
}

/* Ends the connection with the longest queue: together they hold more than the process may. */
static void enforce_max_queued(struct conns *conns)
{
	struct conn *longest = NULL;

	for (struct conn *c = conns->all; c; c = c->next)
		if (c->state != CONN_ENDING && (!longest || c->weight > longest->weight))
			longest = c;
	if (longest) {
		conns->loop->stats->limits_met++;
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
		conns->loop->stats->limits_met++;
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
	conns->loop->stats->bytes_queued = conns->queued;
	if (!c->writing)
		mark_dirty(c);
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
		mark_dirty(c);
	return c->queued > c->flow.high_water ? SEND_FULL : SEND_OK;
}

/* Close after writing. */
void conn_finish(struct conn *c, const char *code, const char *why)
{
	if (!conn_usable(c))
		return;
	bool nothing = c->transport ? !c->transport->pending(c)
	                            : !c->queued && !c->sources && !c->keeper &&
	                                  (c->state == CONN_CONNECTING || c->watch_only || (c->eof && (!c->filter || c->filter_finished)));
	if (nothing) {
		conn_end(c, code, why); /* nothing to flush, and nobody to wait for */
		return;
	}
	c->end_code = code;
	c->end_why = why;
	c->finishing = true;
	c->shut_asked = true;
	c->paused = false;
	c->held = false;
	c->eof |= c->transport != NULL; /* what still comes is for whoever has the socket next */
	if (c->state == CONN_OPEN)
		start_flushing(c);
	if (c->keeper)
		c->keeper->on_pause(c);
}

/* An orderly end has a filter's last word. It follows what the filter has made of output before, which must not be missing: the peer could
 * not read it then. What the filter has not taken yet is dropped. */
static void say_goodbye(struct conn *c)
{
	if (!c->filter || c->filter_finished || c->shut || c->write_error || c->fd < 0)
		return;
	evbuffer_drain(c->plain, evbuffer_get_length(c->plain));
	c->filter_finished = c->filter->finish(c);
	account(c);
	conn_flush_now(c);
}

/* Marks the end; all that still could call back is taken from the loop now. What was not sent goes at once, not with the rest: until
 * the turn's end it would count against the others. */
void conn_end(struct conn *c, const char *code, const char *why)
{
	struct conns *conns = c->conns;

	if (c->state == CONN_ENDING)
		return;
	c->state = CONN_ENDING;
	c->end_code = code;
	c->end_why = why;
	if (!code)
		say_goodbye(c);
	drop_output(c);
	if (c->watch_only)
		unwatch(c); /* the descriptor's owner may close it at once */
	mark_ending(c);
	timer_stop(conns->loop, &c->idle);
	timer_stop(conns->loop, &c->deadline);
	loop_wake(conns->loop);
}

/* Ends with words made for the case. */
void conn_end_text(struct conn *c, const char *code, char *why)
{
	if (c->state == CONN_ENDING) {
		free(why);
		return;
	}
	c->end_text = why;
	conn_end(c, code, why);
}

/* Ends because of a system error. */
void conn_end_errno(struct conn *c, int error)
{
	conn_end(c, errno_code(error), errno_text(error));
}

/* Half-close. */
void conn_shut(struct conn *c)
{
	if (!conn_usable(c) || c->shut_asked || c->watch_only)
		return;
	c->shut_asked = true;
	mark_dirty(c);
}

/* Stops both directions. */
void conn_pause(struct conn *c)
{
	if (c->paused || c->watch_only || !conn_usable(c))
		return;
	if (c->write_error) { /* its end was left to a reader that stops now */
		conn_end_errno(c, c->write_error);
		return;
	}
	c->paused = true;
	watch(c);
	if (c->keeper)
		c->keeper->on_pause(c);
}

/* Starts them again. */
void conn_resume(struct conn *c)
{
	if (!c->paused || !conn_usable(c))
		return;
	c->paused = false;
	mark_dirty(c);
	watch(c);
	if (c->filter)
		c->filter->resumed(c);
	if (c->keeper)
		c->keeper->on_pause(c);
}

/* Gives it a keeper. */
void conn_keep(struct conn *c, const struct conn_keeper *keeper, void *data)
{
	c->keeper = keeper;
	c->keeper_data = data;
}

/* Stops and resumes reading. */
void conn_hold(struct conn *c, bool hold)
{
	if (c->held == hold || !conn_usable(c))
		return;
	c->held = hold;
	watch(c);
}

/* Puts a filter in. */
void conn_set_filter(struct conn *c, const struct conn_filter *filter, void *data)
{
	c->filter = filter;
	c->filter_data = data;
	c->plain = evbuffer_new();
	if (!c->plain)
		abort();
	if (c->fd < 0 || c->state == CONN_ENDING)
		return;
	filter->opened(c);
	mark_dirty(c);
}

/* The filter has changed the wire's output. */
void conn_wire_changed(struct conn *c)
{
	account(c);
	if ((c->queued || c->shut_asked) && !c->writing && c->state != CONN_ENDING)
		mark_dirty(c);
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
		c->conns->loop->stats->bytes_out += (uint64_t)n;
	}
	account(c);
}

/* The socket's pending error, which the kernel tells once only: the end is told it all the same. */
int conn_error(struct conn *c)
{
	if (c->write_error)
		return c->write_error;
	int error = c->fd >= 0 ? sock_error(c->fd) : 0;
	if (error) {
		write_failed(c, error);
		c->lost = true; /* whatever it was, it is the reason of the end */
	}
	return error;
}

/* Sets the idle limit; it counts from the last byte. */
void conn_set_idle_timeout(struct conn *c, uint64_t timeout_ns)
{
	c->flow.idle_timeout_ns = timeout_ns;
	timer_stop(c->conns->loop, &c->idle);
	if (timeout_ns && (c->state == CONN_OPEN || c->state == CONN_FLUSHING))
		timer_start_at(c->conns->loop, &c->idle, c->last_io_ns + timeout_ns);
}

/* Sets the limit of connecting. */
void conn_set_connect_timeout(struct conn *c, uint64_t timeout_ns)
{
	if (c->state != CONN_CONNECTING)
		return;
	if (timeout_ns)
		timer_start(c->conns->loop, &c->deadline, timeout_ns);
	else
		timer_stop(c->conns->loop, &c->deadline);
}

/* Sets the marks of back-pressure. */
bool conn_set_watermarks(struct conn *c, size_t low, size_t high)
{
	if (low > high || high > c->flow.max_outbound)
		return false;
	c->flow.low_water = low;
	c->flow.high_water = high;
	if (c->queued > high)
		c->full = true;
	return true;
}

/* Its keeper is not done: the descriptor goes, which tells the peer, and on_end waits. */
static void park(struct conn *c)
{
	c->parked = true;
	unwatch(c);
	bufferevent_setfd(c->bev, -1);
	close(c->fd);
	c->fd = -1;
}

/* The keeper is done. */
void conn_release(struct conn *c)
{
	c->keeper = NULL;
	c->parked = false;
	mark_ending(c);
	loop_wake(c->conns->loop);
}

/* Asks the keeper of an ended connection, if there is one, whether to wait. */
static bool is_kept(struct conn *c)
{
	if (!c->keeper)
		return false;
	if (c->keeper->on_ended(c))
		return true;
	c->keeper = NULL;
	return false;
}

/* The end of one connection: the user's last call, then everything goes. */
static void reap(struct conn *c)
{
	struct conns *conns = c->conns;

	while (c->sources)
		end_source(c, c->end_code, c->end_why);
	if (c->user)
		c->events->on_end(c);
	if (c->tap)
		c->tap->ended(c);
	unwatch(c);
	if (c->transport)
		c->transport->free(c);
	if (c->filter) {
		c->filter->free(c);
		evbuffer_free(c->plain);
		c->plain = NULL;
		account(c);
	}
	bufferevent_setcb(c->bev, NULL, NULL, NULL, NULL);
	conns->queued -= c->weight;
	conns->loop->stats->bytes_queued = conns->queued;
	bufferevent_free(c->bev);
	if (c->adopted)
		adopt_close(c->adopted);
	else if (c->fd >= 0 && !c->watch_only)
		close(c->fd);
	free(c->adopted);
	free(c->always);
	if (c->previous)
		c->previous->next = c->next;
	else
		conns->all = c->next;
	if (c->next)
		c->next->previous = c->previous;
	conns->count--;
	conns->loop->stats->connections = conns->count;
	conns->loop->stats->connections_closed++;
	free(c->end_text);
	free(c->local);
	free(c);
}

/* The turn's end: writes the dirty ones, then reaps those that ended. What the callbacks add waits for the next turn. */
static void at_end(void *data)
{
	struct conns *conns = data;
	struct conn *c = conns->dirty, *next;

	conns->dirty = NULL;
	conns->dirty_end = &conns->dirty;
	for (; c; c = next) {
		next = c->next_dirty;
		c->dirty = false;
		flush(c);
	}
	c = conns->ending;
	conns->ending = NULL;
	conns->ending_end = &conns->ending;
	for (; c; c = next) {
		next = c->next_ending;
		if (c->dirty) /* since the flush above: it is in the list of the next turn */
			mark_ending(c);
		else if (is_kept(c))
			park(c);
		else
			reap(c);
	}
}

/* The connections of a loop. */
struct conns *conns_new(struct loop *loop, size_t max_queued)
{
	struct conns *conns = mem_zalloc(sizeof *conns);

	conns->loop = loop;
	conns->max_queued = max_queued;
	conns->dirty_end = &conns->dirty;
	conns->ending_end = &conns->ending;
	conns->at_end = (struct loop_hook){.run = at_end, .data = conns};
	loop_hook_add(loop, STAGE_END, &conns->at_end);
	return conns;
}

/* Frees an empty set. */
void conns_free(struct conns *conns)
{
	if (!conns)
		return;
	loop_hook_remove(conns->loop, STAGE_END, &conns->at_end);
	free(conns);
}
