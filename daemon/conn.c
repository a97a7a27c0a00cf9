/* The life of connections, from conn_new to the turn's end in which they are freed: see conn.h. */
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "conn_impl.h"
#include "mem.h"
#include "sock.h"

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
void conn_mark_dirty(struct conn *c)
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
	conn_output_init(c);
	timer_init(&c->idle, on_idle, c);
	timer_init(&c->deadline, on_deadline, c);
	c->opened_ns = c->last_io_ns = loop_now(conns->loop);
	c->next = conns->all;
	if (c->next)
		c->next->previous = c;
	conns->all = c;
	conns->count++;
	conns->stats->connections = conns->count;
	return c;
}

/* The descriptor is there and the rest of the output is all that is still wanted. */
static void start_flushing(struct conn *c)
{
	c->state = CONN_FLUSHING;
	timer_start(c->conns->loop, &c->deadline, c->flow.linger_timeout_ns);
	conn_mark_dirty(c);
	conn_rewatch(c);
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
		conn_mark_dirty(c);
	conn_rewatch(c);
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
	conn_unwatch(c);
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
	conn_account(c);
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
	conn_drop_output(c);
	if (c->watch_only)
		conn_unwatch(c); /* the descriptor's owner may close it at once */
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
	conn_mark_dirty(c);
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
	conn_rewatch(c);
	if (c->keeper)
		c->keeper->on_pause(c);
}

/* Starts them again. */
void conn_resume(struct conn *c)
{
	if (!c->paused || !conn_usable(c))
		return;
	c->paused = false;
	conn_mark_dirty(c);
	conn_rewatch(c);
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
	conn_rewatch(c);
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
	conn_mark_dirty(c);
}

/* The socket's pending error, which the kernel tells once only: the end is told it all the same. */
int conn_error(struct conn *c)
{
	if (c->write_error)
		return c->write_error;
	int error = c->fd >= 0 ? sock_error(c->fd) : 0;
	if (error) {
		conn_write_failed(c, error);
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
	conn_unwatch(c);
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
		conn_end_source(c, c->end_code, c->end_why);
	if (c->user)
		c->events->on_end(c);
	if (c->tap)
		c->tap->ended(c);
	conn_unwatch(c);
	if (c->transport)
		c->transport->free(c);
	if (c->filter) {
		c->filter->free(c);
		evbuffer_free(c->plain);
		c->plain = NULL;
		conn_account(c);
	}
	bufferevent_setcb(c->bev, NULL, NULL, NULL, NULL);
	conns->queued -= c->weight;
	conns->stats->bytes_queued = conns->queued;
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
	conns->stats->connections = conns->count;
	conns->stats->connections_closed++;
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
		conn_flush(c);
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
	conns->stats = loop->stats;
	conns->max_queued = max_queued;
	conns->dirty_end = &conns->dirty;
	conns->ending_end = &conns->ending;
	conns->at_end = (struct loop_hook){.run = at_end, .data = conns};
	loop_hook_add(loop, STAGE_END, &conns->at_end);
	return conns;
}

/* Process 2 of 3 has 2, 5, 8 and so on. */
uint64_t conns_signature(struct conns *conns)
{
	return conns->signatures++ * conns->loop->processes + conns->loop->process;
}

/* Frees an empty set. */
void conns_free(struct conns *conns)
{
	if (!conns)
		return;
	loop_hook_remove(conns->loop, STAGE_END, &conns->at_end);
	free(conns);
}
