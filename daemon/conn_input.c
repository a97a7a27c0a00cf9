/*
 * The input of connections, and all that is watched on their descriptors: readiness for reading, errors, the watches of scripts, and
 * descriptors that the poller refuses. See conn.h.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conn_impl.h"
#include "mem.h"
#include "sock.h"

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
		conn_mark_dirty(c);
}

/*
 * Makes libevent watch what c's state calls for. Data is watched level-triggered. A connection that may not read is watched
 * edge-triggered for errors alone, and not beside a level-triggered write event: libevent takes no mixture on one descriptor.
 * Writing is watched for what the turn's end has left over.
 */
void conn_rewatch(struct conn *c)
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
		conn_watch_room(c, false);
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
		conn_watch_room(c, true);
	c->writing = write;
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
		conn_rewatch(c);
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
		conn_rewatch(c);
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
			conn_write_failed(c, error);
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
		c->conns->stats->bytes_in += (uint64_t)n;
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
	conn_rewatch(c);
}

/* Remembers that the poller will not have the descriptor. */
static void set_always(struct conn *c)
{
	c->always = mem_alloc(sizeof *c->always);
	timer_init(c->always, on_always, c);
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
void conn_unwatch(struct conn *c)
{
	if (c->always)
		timer_stop(c->conns->loop, c->always);
	if (c->reading != READING_OFF && !c->always)
		event_del(&c->read_event);
	c->reading = READING_OFF;
	if (c->watch_only && c->fd >= 0)
		event_del(&c->read_event);
	conn_watch_room(c, false);
	c->writing = false;
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
