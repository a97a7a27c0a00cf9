/* Relays: see relay.h. */
#include "relay.h"

#include <stdlib.h>

#include "mem.h"

struct relay {
	struct conn *from, *to;
	size_t bufsize; /* bytes */
	uint64_t left;  /* bytes still to pass on; UINT64_MAX: no limit */
	const struct relay_events *events;
};

/* Takes a relay away. */
static void withdraw(struct relay *r)
{
	r->from->relay = NULL;
	r->to->feeder = NULL;
	conn_hold(r->from, false);
	free(r);
}

/* Stops the source where the target has enough, and starts it again when half of that has gone. */
static void balance(struct relay *r)
{
	if (r->to->queued >= r->bufsize)
		conn_hold(r->from, true);
	else if (r->from->held && r->to->queued <= r->bufsize / 2)
		conn_hold(r->from, false);
}

/* How much may be read: what there is room for, no more than is to be passed on, and no tiny pieces. */
static size_t input_size(const struct conn *c)
{
	const struct relay *r = c->relay;
	size_t queued = r->to->queued, most = r->to->flow.max_outbound;
	size_t size = r->bufsize > queued + RELAY_PIECE ? r->bufsize - queued : RELAY_PIECE;

	if (size > LOOP_BUFFER_SIZE)
		size = LOOP_BUFFER_SIZE;
	if (most > queued && size > most - queued)
		size = most - queued;
	return size < r->left ? size : (size_t)r->left;
}

/* Bytes from the source. */
static size_t on_input(struct conn *c, const char *bytes, size_t length)
{
	struct relay *r = c->relay;
	const struct relay_events *events = r->events;

	if (length > r->left)
		length = (size_t)r->left;
	if (conn_pass(r->to, bytes, length) >= SEND_CLOSED) {
		withdraw(r);
		events->on_target_end(c);
		return 0;
	}
	c->relayed += length;
	c->conns->loop->stats->bytes_relayed += length;
	if (r->left != UINT64_MAX)
		r->left -= length;
	if (r->left) {
		balance(r);
	} else {
		withdraw(r);
		events->on_complete(c);
	}
	return length;
}

/* The source's end goes on to the target; the source stays for what comes the other way, and to hear of the target's end. */
static void on_input_eof(struct conn *c)
{
	c->eof_relayed = true;
	conn_shut(c->relay->to);
}

/* The target's output has been seen to. A source that waits for it is not idle. */
static void on_wrote(struct conn *c, bool moved)
{
	struct relay *r = c->feeder;

	if (moved && r->from->held)
		r->from->last_io_ns = loop_now(c->conns->loop);
	balance(r);
}

/* Source or target has ended. */
static void on_ended(struct conn *c)
{
	struct relay *fed = c->feeder;

	if (c->relay) {
		if (c->relay == fed)
			fed = NULL;
		withdraw(c->relay);
	}
	if (fed) {
		const struct relay_events *events = fed->events;
		struct conn *from = fed->from;
		withdraw(fed);
		if (from->state != CONN_ENDING && from->user)
			events->on_target_end(from);
	}
}

static const struct conn_tap relay_tap = {
	.input = on_input,
	.input_size = input_size,
	.input_eof = on_input_eof,
	.wrote = on_wrote,
	.ended = on_ended,
};

/* Puts a relay in place. */
bool relay_start(struct conn *from, struct conn *to, size_t bufsize, uint64_t length, const struct relay_events *events, const char **code,
                 const char **why)
{
	if (!conn_usable(from)) {
		*code = "ENOTCONN";
		*why = "closed";
		return false;
	}
	if (from->watch_only || from->transport || to->watch_only || to->transport) {
		*code = "EOPNOTSUPP";
		*why = "not on a datagram socket or a watch";
		return false;
	}
	if (!conn_usable(to) || to->write_error) {
		*code = "ENOTCONN";
		*why = "the target is closed";
		return false;
	}
	if (from->transport || to->transport || from->watch_only || to->watch_only) {
		*code = "EOPNOTSUPP";
		*why = "not on a datagram socket or a watch";
		return false;
	}
	if (to->shut_asked) {
		*code = "EPIPE";
		*why = "the target is closed for writing";
		return false;
	}
	if (to->feeder && to->feeder->from != from) {
		*code = "EBUSY";
		*why = "the target is fed by another connection";
		return false;
	}
	if (from->relay)
		withdraw(from->relay);
	struct relay *r = mem_zalloc(sizeof *r);
	r->from = from;
	r->to = to;
	r->bufsize = bufsize ? bufsize : to->flow.high_water;
	if (r->bufsize > to->flow.max_outbound)
		r->bufsize = to->flow.max_outbound;
	r->left = length ? length : UINT64_MAX;
	r->events = events;
	from->tap = to->tap = &relay_tap;
	from->relay = to->feeder = r;
	from->relayed = 0;
	balance(r);
	if (from->eof)
		on_input_eof(from);
	return true;
}

/* Takes it away. */
void relay_stop(struct conn *from)
{
	if (from->relay)
		withdraw(from->relay);
}
