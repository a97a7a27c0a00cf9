/* Connections: see conn.h. */
#include "conn.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem.h"
#include "sock.h"

#define MAX_WRITE (1024 * 1024) /* bytes that one connection may hand to the kernel in one pass */

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

static void on_readable(evutil_socket_t fd, short what, void *data);

/*
 * Makes libevent watch what c's state calls for. Data is watched level-triggered. A connection that may not read is watched
 * edge-triggered for errors alone, and not beside a level-triggered write event: libevent takes no mixture on one descriptor.
 * Writing is watched for what the turn's end has left over.
 */
static void watch(struct conn *c)
{
	bool write = !c->paused && c->queued && !c->dirty && c->fd >= 0 && !c->write_error && c->state < CONN_LINGERING;
	enum conn_reading read = READING_OFF;

	if (c->fd < 0 || c->state == CONN_CONNECTING || c->state == CONN_ENDING)
		read = READING_OFF;
	else if (!c->paused && !c->eof)
		read = READING_DATA;
	else if (!write && c->is_socket)
		read = READING_ERRORS;

	if (!write && c->writing)
		bufferevent_disable(c->bev, EV_WRITE);
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
		bufferevent_enable(c->bev, EV_WRITE);
	c->writing = write;
}

/* Sends FIN once, when it was asked for and all is written. With both sides closed nothing is left to happen. */
static void send_fin(struct conn *c)
{
	if (c->shut || c->queued)
		return;
	c->shut = true;
	shutdown(c->fd, SHUT_WR);
	if (c->state == CONN_FLUSHING) {
		c->state = CONN_LINGERING;
		if (c->eof || !c->is_socket)
			conn_end(c, c->end_code, c->end_why);
	} else if (c->eof) {
		conn_end(c, NULL, "eof");
	}
}

/* Accounts for what a write took away, and does what waits for it. */
static void wrote(struct conn *c)
{
	size_t left = evbuffer_get_length(c->output), n = c->queued - left;
	struct conns *conns = c->conns;

	c->queued = left;
	if (n) {
		conns->queued -= n;
		c->bytes_out += n;
		conns->loop->stats->bytes_out += n;
		conns->loop->stats->bytes_queued = conns->queued;
		c->last_io_ns = loop_now(conns->loop);
	}
	if (c->state == CONN_ENDING)
		return;
	if (c->shut_asked)
		send_fin(c);
	if (c->full && left <= c->flow.low_water && c->state == CONN_OPEN) {
		c->full = false;
		if (c->user)
			c->events->on_drained(c);
	}
	if (n && !c->queued && c->state == CONN_OPEN && c->user && c->events->on_flushed)
		c->events->on_flushed(c);
}

/* Drops what waits to be sent. */
static void drop_output(struct conn *c)
{
	evbuffer_unfreeze(c->output, 1);
	evbuffer_drain(c->output, c->queued);
	c->conns->queued -= c->queued;
	c->conns->loop->stats->bytes_queued = c->conns->queued;
	c->queued = 0;
}

/*
 * A write failed: nothing more can be sent. What the peer had sent before may still wait to be read, so the end is left to the reader,
 * which meets it at once; a connection that does not read ends here. So does one that the kernel had no memory for: its peer is well and
 * might never end.
 */
static void write_failed(struct conn *c, int error)
{
	drop_output(c);
	if (c->state == CONN_ENDING)
		return;
	if (c->reading != READING_DATA || c->state != CONN_OPEN || error == ENOBUFS || error == ENOMEM) {
		conn_end_errno(c, error);
		return;
	}
	c->write_error = error;
	watch(c);
}

/* The turn's end for one dirty connection: one write. */
static void flush(struct conn *c)
{
	if (c->state == CONN_ENDING || c->paused || c->writing || c->fd < 0 || c->write_error)
		return;
	if (c->queued) {
		evbuffer_unfreeze(c->output, 1); /* a bufferevent freezes the start of its output */
		int n = evbuffer_write(c->output, c->fd), error = errno;
		evbuffer_freeze(c->output, 1);
		if (n < 0 && error != EAGAIN && error != EINTR) {
			write_failed(c, error);
			return;
		}
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
	if (c->state != CONN_ENDING)
		watch(c);
}

/* The bufferevent met an error in writing. */
static void on_bev_event(struct bufferevent *bev, short what, void *data)
{
	int error = errno;

	(void)bev;
	if (what & (BEV_EVENT_ERROR | BEV_EVENT_EOF))
		write_failed(data, error ? error : EPIPE);
}

/* The peer's end of the stream. */
static void got_eof(struct conn *c)
{
	c->eof = true;
	if (c->write_error) {
		conn_end_errno(c, c->write_error);
	} else if (c->state == CONN_LINGERING) {
		conn_end(c, c->end_code, c->end_why);
	} else {
		watch(c);
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

/* Input, or an error on a connection that may not read. One read a pass: the others get their turn. */
static void on_readable(evutil_socket_t fd, short what, void *data)
{
	struct conn *c = data;
	struct loop *loop = c->conns->loop;

	(void)what;
	if (c->state == CONN_ENDING)
		return;
	if (c->reading == READING_ERRORS) {
		int error = sock_error(fd);
		if (error)
			conn_end_errno(c, error);
		return;
	}
	ssize_t n = c->is_socket ? recv(fd, loop->buffer, LOOP_BUFFER_SIZE, 0) : read(fd, loop->buffer, LOOP_BUFFER_SIZE);
	if (n > 0) {
		c->last_io_ns = loop_now(loop);
		c->bytes_in += (uint64_t)n;
		loop->stats->bytes_in += (uint64_t)n;
		if (c->state == CONN_OPEN && c->user)
			c->events->on_data(c, loop->buffer, (size_t)n);
	} else if (n == 0) {
		got_eof(c);
	} else if (errno != EAGAIN && errno != EINTR) {
		conn_end_errno(c, c->write_error ? c->write_error : errno);
	}
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

/* The absolute limit of connecting or of a close after writing has passed. */
static void on_deadline(void *data)
{
	struct conn *c = data;

	if (c->state == CONN_CONNECTING)
		conn_end(c, "ETIMEDOUT", "connect timeout");
	else if (c->state != CONN_ENDING)
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
	if (c->is_socket && c->peer.any.sa_family != AF_UNIX) {
		sock_nodelay(fd, c->flow.nodelay);
		if (c->flow.keepalive >= 0 && sock_keepalive(fd, true, c->flow.keepalive, c->flow.keepalive_interval, c->flow.keepalive_count) < 0) {
			conn_end_errno(c, errno);
			return;
		}
	}
	if (c->flow.idle_timeout_ns)
		conn_set_idle_timeout(c, c->flow.idle_timeout_ns);
	if (c->finishing) {
		start_flushing(c);
		return;
	}
	if (c->queued || c->shut_asked)
		mark_dirty(c);
	watch(c);
}

/* Ends the connection with the longest queue: together they hold more than the process may. */
static void enforce_max_queued(struct conns *conns)
{
	struct conn *longest = NULL;

	for (struct conn *c = conns->all; c; c = c->next)
		if (c->state != CONN_ENDING && (!longest || c->queued > longest->queued))
			longest = c;
	if (longest) {
		conns->loop->stats->limits_met++;
		conn_end(longest, "ELIMIT", "outbound limit of the process");
	}
}

/* Queues bytes for the turn's end. */
enum send_result conn_send(struct conn *c, const void *bytes, size_t length)
{
	struct conns *conns = c->conns;

	if (!conn_usable(c))
		return SEND_CLOSED;
	if (c->shut_asked)
		return SEND_SHUT;
	if (c->write_error) /* it will end as soon as its input has been read */
		return SEND_CLOSED;
	if (length == 0)
		return c->queued > c->flow.high_water ? SEND_FULL : SEND_OK;
	if (length > c->flow.max_outbound || c->queued > c->flow.max_outbound - length) {
		conns->loop->stats->limits_met++;
		conn_end(c, "ELIMIT", "outbound limit");
		return SEND_CLOSED;
	}
	if (evbuffer_add(c->output, bytes, length) < 0) {
		conn_end_errno(c, ENOMEM);
		return SEND_CLOSED;
	}
	c->queued += length;
	conns->queued += length;
	conns->loop->stats->bytes_queued = conns->queued;
	if (!c->writing)
		mark_dirty(c);
	if (conns->queued > conns->max_queued) {
		enforce_max_queued(conns);
		if (c->state == CONN_ENDING)
			return SEND_CLOSED;
	}
	if (c->queued <= c->flow.high_water)
		return SEND_OK;
	c->full = true;
	return SEND_FULL;
}

/* Close after writing. */
void conn_finish(struct conn *c, const char *code, const char *why)
{
	if (!conn_usable(c))
		return;
	if (!c->queued && (c->state == CONN_CONNECTING || c->eof)) {
		conn_end(c, code, why); /* nothing to flush, and nobody to wait for */
		return;
	}
	c->end_code = code;
	c->end_why = why;
	c->finishing = true;
	c->shut_asked = true;
	c->paused = false;
	if (c->state == CONN_OPEN)
		start_flushing(c);
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
	drop_output(c);
	c->next_ending = NULL;
	*conns->ending_end = c;
	conns->ending_end = &c->next_ending;
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
	if (!conn_usable(c) || c->shut_asked)
		return;
	c->shut_asked = true;
	mark_dirty(c);
}

/* Stops both directions. */
void conn_pause(struct conn *c)
{
	if (c->paused || !conn_usable(c))
		return;
	if (c->write_error) { /* its end was left to a reader that stops now */
		conn_end_errno(c, c->write_error);
		return;
	}
	c->paused = true;
	watch(c);
}

/* Starts them again. */
void conn_resume(struct conn *c)
{
	if (!c->paused || !conn_usable(c))
		return;
	c->paused = false;
	mark_dirty(c);
	watch(c);
}

/* The socket's pending error, which the kernel tells once only: the end is told it all the same. */
int conn_error(struct conn *c)
{
	if (c->write_error)
		return c->write_error;
	int error = c->fd >= 0 ? sock_error(c->fd) : 0;
	if (error)
		write_failed(c, error);
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

/* The end of one connection: the user's last call, then everything goes. */
static void reap(struct conn *c)
{
	struct conns *conns = c->conns;

	if (c->user)
		c->events->on_end(c);
	if (c->reading != READING_OFF)
		event_del(&c->read_event);
	bufferevent_disable(c->bev, EV_WRITE);
	bufferevent_setcb(c->bev, NULL, NULL, NULL, NULL);
	conns->queued -= c->queued;
	conns->loop->stats->bytes_queued = conns->queued;
	bufferevent_free(c->bev);
	if (c->fd >= 0)
		close(c->fd);
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
		if (c->dirty) { /* since the flush above: it is in the list of the next turn */
			c->next_ending = NULL;
			*conns->ending_end = c;
			conns->ending_end = &c->next_ending;
		} else {
			reap(c);
		}
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
