/*
 * Connections on a socketpair: sending, the orders of flushing and closing, back-pressure, pausing, and the one end of each.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "conn.h"

#define MS 1000000u

static struct score score;
static struct loop *loop;
static struct conns *conns;

/* The user of a connection: notes what it is told, and acts then. */
struct user {
	struct conn *c;
	int peer;     /* the other end's descriptor */
	char in[256]; /* what has come in */
	size_t length, total;
	int eofs, drains, flushes, ends;
	char code[32], why[64];
	void (*on_data)(struct user *u);
	void (*on_eof)(struct user *u);
	void (*on_drained)(struct user *u);
	void (*on_end)(struct user *u);
};

static void on_data(struct conn *c, const char *bytes, size_t length)
{
	struct user *u = c->user;

	assert_int_equal(u->ends, 0);
	u->total += length;
	for (size_t i = 0; i < length && u->length + 1 < sizeof u->in; i++)
		u->in[u->length++] = bytes[i];
	if (u->on_data)
		u->on_data(u);
}

static void on_eof(struct conn *c)
{
	struct user *u = c->user;

	u->eofs++;
	if (u->on_eof)
		u->on_eof(u);
	else
		conn_finish(c, NULL, "eof");
}

static void on_drained(struct conn *c)
{
	struct user *u = c->user;

	u->drains++;
	if (u->on_drained)
		u->on_drained(u);
}

static void on_flushed(struct conn *c)
{
	struct user *u = c->user;

	u->flushes++;
}

static void on_end(struct conn *c)
{
	struct user *u = c->user;

	assert_int_equal(c->state, CONN_ENDING);
	assert_true(c->fd < 0 || fcntl(c->fd, F_GETFD) >= 0); /* still open */
	u->ends++;
	snprintf(u->code, sizeof u->code, "%s", c->end_code ? c->end_code : "");
	snprintf(u->why, sizeof u->why, "%s", c->end_why);
	if (u->on_end)
		u->on_end(u);
	u->c = NULL;
}

static const struct conn_events events = {
	.on_data = on_data, .on_eof = on_eof, .on_drained = on_drained, .on_flushed = on_flushed, .on_end = on_end};

static const struct flow flow = {
	.linger_timeout_ns = 1000ull * MS, .low_water = 1000, .high_water = 10000, .max_outbound = 10000000, .keepalive = -1};

/* A connection that is open, on one end of a socketpair. */
static void user_open(struct user *u)
{
	int ends[2];

	memset(u, 0, sizeof *u);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
	u->peer = ends[1];
	u->c = conn_new(conns, &flow, &events, u);
	conn_open(u->c, ends[0], NULL);
}

static int set_up(void **state)
{
	(void)state;
	signal(SIGPIPE, SIG_IGN);
	memset(&score, 0, sizeof score);
	loop = loop_new(&score);
	if (!loop || !timers_open(loop))
		return -1;
	conns = conns_new(loop, 100000000);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	for (struct conn *c = conns->all; c; c = c->next)
		c->user = NULL; /* it was the test's own variable */
	while (conns->all) {
		conn_end(conns->all, NULL, "test");
		loop_turn(loop);
	}
	assert_int_equal(conns->count, 0);
	assert_int_equal(conns->queued, 0);
	assert_int_equal(score.stats.bytes_queued, 0);
	conns_free(conns);
	timers_close(loop);
	loop_free(loop);
	return 0;
}

/* Turns that do not sleep. */
static void turns(int count)
{
	while (count--) {
		loop_wake(loop);
		loop_turn(loop);
	}
}

/* Turns until a number has been reached, which may take real time. */
static void turns_until(const int *number, int wanted)
{
	for (int i = 0; *number < wanted; i++) {
		assert_true(i < 5000);
		turns(1);
		if (i > 20)
			usleep(1000);
	}
}

/* What the peer has got, as text; "EOF" at the end behind it. */
static const char *peer_reads(struct user *u)
{
	static char text[100000];
	size_t length = 0;
	ssize_t n;

	while ((n = read(u->peer, text + length, sizeof text - 10 - length)) > 0)
		length += (size_t)n;
	strcpy(text + length, n == 0 ? "EOF" : n < 0 && errno != EAGAIN ? "ERROR" : "");
	return text;
}

/* How many bytes the peer gets out of its socket now. */
static size_t peer_drains(struct user *u)
{
	static char bytes[65536];
	size_t total = 0;
	ssize_t n;

	while ((n = read(u->peer, bytes, sizeof bytes)) > 0)
		total += (size_t)n;
	return total;
}

static char big[1000000];

/* Nothing leaves before the turn's end; then all of it by one write. */
static void sends_are_gathered(void **state)
{
	struct user u;

	(void)state;
	user_open(&u);
	assert_int_equal(conn_send(u.c, "one ", 4), SEND_OK);
	assert_int_equal(conn_send(u.c, "two", 3), SEND_OK);
	assert_int_equal(conn_send(u.c, "", 0), SEND_OK);
	assert_int_equal(u.c->queued, 7);
	assert_string_equal(peer_reads(&u), "");
	turns(1);
	assert_string_equal(peer_reads(&u), "one two");
	assert_int_equal(u.c->queued, 0);
	assert_int_equal(u.flushes, 1);
	assert_int_equal(u.c->bytes_out, 7);
	assert_int_equal(score.stats.bytes_out, 7);
	close(u.peer);
}

/* What comes in, and the peer's end. */
static void input_comes_in_order_then_eof(void **state)
{
	struct user u;

	(void)state;
	user_open(&u);
	assert_int_equal(write(u.peer, "hello", 5), 5);
	turns(1);
	assert_string_equal(u.in, "hello");
	assert_int_equal(write(u.peer, " world", 6), 6);
	close(u.peer);
	turns_until(&u.ends, 1);
	assert_string_equal(u.in, "hello world");
	assert_int_equal(u.eofs, 1);
	assert_int_equal(u.ends, 1);
	assert_string_equal(u.code, "");
	assert_string_equal(u.why, "eof");
	assert_int_equal(score.stats.bytes_in, 11);
}

/* Output that waits is dropped by an end, and the first reason counts. */
static void an_end_drops_output_and_comes_once(void **state)
{
	struct user u;

	(void)state;
	user_open(&u);
	conn_send(u.c, "lost", 4);
	conn_end(u.c, "ECODE", "first");
	conn_end(u.c, NULL, "second");
	conn_end_text(u.c, NULL, strdup("third"));
	conn_end_errno(u.c, EPIPE);
	conn_finish(u.c, NULL, "fourth");
	assert_int_equal(conn_send(u.c, "x", 1), SEND_CLOSED);
	assert_int_equal(u.ends, 0); /* never within a call of ours */
	turns(1);
	assert_int_equal(u.ends, 1);
	assert_string_equal(u.code, "ECODE");
	assert_string_equal(u.why, "first");
	assert_string_equal(peer_reads(&u), "EOF");
	assert_int_equal(conns->count, 0);
	close(u.peer);
}

/* Close after writing: all output, FIN, the peer's EOF, the end; input is discarded meanwhile. */
static void finishing_sends_everything_first(void **state)
{
	struct user u;

	(void)state;
	user_open(&u);
	conn_send(u.c, big, 9000);
	conn_finish(u.c, NULL, "closed");
	assert_int_equal(conn_send(u.c, "x", 1), SEND_CLOSED);
	turns(2);
	assert_int_equal(u.ends, 0);
	assert_int_equal(u.c->state, CONN_LINGERING);
	assert_int_equal(peer_drains(&u), 9000);
	assert_int_equal(read(u.peer, big, 1), 0);
	assert_int_equal(write(u.peer, "late", 4), 4);
	turns(2);
	assert_int_equal(u.total, 0);
	close(u.peer);
	turns_until(&u.ends, 1);
	assert_string_equal(u.why, "closed");
	assert_string_equal(u.code, "");
}

/* ... and an end that comes meanwhile is the one that counts. */
static void an_end_cuts_finishing_short(void **state)
{
	struct user u;

	(void)state;
	user_open(&u);
	for (int i = 0; i < 9; i++)
		conn_send(u.c, big, sizeof big);
	conn_finish(u.c, NULL, "closed");
	turns(3);
	assert_int_equal(u.c->state, CONN_FLUSHING);
	conn_end(u.c, "ECUT", "cut");
	turns(1);
	assert_int_equal(u.ends, 1);
	assert_string_equal(u.why, "cut");
	close(u.peer);
}

/* A peer that does not read, or reads and does not close, holds a close after writing no longer than the linger time. */
static void finishing_has_a_limit(void **state)
{
	struct user u[2];

	(void)state;
	for (int i = 0; i < 2; i++) {
		user_open(&u[i]);
		u[i].c->flow.linger_timeout_ns = 20 * MS;
		for (int k = 0; k < (i ? 1 : 9); k++)
			conn_send(u[i].c, big, i ? 100 : sizeof big);
		conn_finish(u[i].c, NULL, "closed");
	}
	turns_until(&u[0].ends, 1);
	turns_until(&u[1].ends, 1);
	for (int i = 0; i < 2; i++) {
		assert_string_equal(u[i].code, "ETIMEDOUT");
		assert_string_equal(u[i].why, "linger timeout");
		close(u[i].peer);
	}
}

/* Half-close: FIN behind the output, input goes on, no more sends. */
static void half_closed_it_still_reads(void **state)
{
	struct user u;

	(void)state;
	user_open(&u);
	conn_send(u.c, "bye", 3);
	conn_shut(u.c);
	conn_shut(u.c);
	assert_int_equal(conn_send(u.c, "x", 1), SEND_SHUT);
	turns(1);
	assert_string_equal(peer_reads(&u), "byeEOF");
	assert_int_equal(write(u.peer, "more", 4), 4);
	turns(1);
	assert_string_equal(u.in, "more");
	assert_int_equal(u.ends, 0);
	close(u.peer);
	turns_until(&u.ends, 1);
	assert_string_equal(u.why, "eof");
}

/* Back-pressure: full above high water, drained at low water, once. */
static void it_says_full_and_drained(void **state)
{
	struct user u;
	size_t got = 0;

	(void)state;
	user_open(&u);
	assert_int_equal(conn_send(u.c, big, 10000), SEND_OK);
	assert_int_equal(conn_send(u.c, big, 1), SEND_FULL);
	assert_int_equal(conn_send(u.c, "", 0), SEND_FULL);
	assert_int_equal(conn_send(u.c, big, sizeof big), SEND_FULL);
	turns(3);
	assert_int_equal(u.drains, 0);
	for (int i = 0; i < 1000 && u.drains == 0; i++) {
		got += peer_drains(&u);
		turns(1);
		assert_true(u.drains == 0 || u.c->queued <= 1000);
	}
	assert_int_equal(u.drains, 1);
	for (int i = 0; i < 10; i++) {
		got += peer_drains(&u);
		turns(1);
	}
	assert_int_equal(got, sizeof big + 10001);
	assert_int_equal(u.drains, 1);
	assert_int_equal(u.flushes, 1);
	assert_int_equal(conn_send(u.c, "x", 1), SEND_OK);
	close(u.peer);
}

/* Over max_outbound it ends. */
static void output_has_a_limit(void **state)
{
	struct user u;

	(void)state;
	user_open(&u);
	for (int i = 0; i < 10; i++)
		assert_int_equal(conn_send(u.c, big, sizeof big), SEND_FULL);
	assert_int_equal(conn_send(u.c, "x", 1), SEND_CLOSED);
	turns(1);
	assert_string_equal(u.code, "ELIMIT");
	assert_string_equal(u.why, "outbound limit");
	assert_int_equal(score.stats.limits_met, 1);
	close(u.peer);
}

/* Over the limit of all together the one with the longest queue ends, whoever sent last. */
static void the_longest_queue_ends_first(void **state)
{
	struct user u[3];

	(void)state;
	for (int i = 0; i < 3; i++)
		user_open(&u[i]);
	conns->max_queued = 2000000;
	conn_send(u[0].c, big, 500000);
	conn_send(u[1].c, big, sizeof big);
	assert_int_equal(conn_send(u[2].c, big, 600000), SEND_FULL);
	assert_int_equal(u[1].c->state, CONN_ENDING);
	turns(1);
	assert_int_equal(u[1].ends, 1);
	assert_string_equal(u[1].code, "ELIMIT");
	assert_int_equal(u[0].ends + u[2].ends, 0);
	for (int i = 0; i < 3; i++)
		close(u[i].peer);
}

/* Paused nothing goes in or out; resumed all does. EOF is learnt of on resume. */
static void pausing_stops_both_ways(void **state)
{
	struct user u;

	(void)state;
	user_open(&u);
	conn_pause(u.c);
	conn_send(u.c, "out", 3);
	assert_int_equal(write(u.peer, "in", 2), 2);
	shutdown(u.peer, SHUT_WR);
	turns(5);
	assert_int_equal(u.length, 0);
	assert_int_equal(u.eofs, 0);
	assert_string_equal(peer_reads(&u), "");
	conn_resume(u.c);
	turns(3);
	assert_string_equal(u.in, "in");
	assert_int_equal(u.eofs, 1);
	assert_string_equal(peer_reads(&u), "outEOF");
	close(u.peer);
	turns_until(&u.ends, 1);
}

/* Before it is open output is queued; it leaves when the descriptor is there. */
static void output_waits_for_the_descriptor(void **state)
{
	struct user u = {0};
	int ends[2];

	(void)state;
	u.c = conn_new(conns, &flow, &events, &u);
	assert_int_equal(conn_send(u.c, "early", 5), SEND_OK);
	turns(1);
	assert_int_equal(u.c->queued, 5);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
	u.peer = ends[1];
	conn_open(u.c, ends[0], NULL);
	turns(1);
	assert_string_equal(peer_reads(&u), "early");
	conn_finish(u.c, NULL, "closed");
	close(u.peer);
	turns_until(&u.ends, 1);
}

/* The same with a close after writing that was asked for meanwhile; and with an end, for which the descriptor comes too late. */
static void a_close_waits_for_the_descriptor(void **state)
{
	(void)state;
	for (int which = 0; which < 3; which++) {
		struct user u = {0};
		int ends[2];
		u.c = conn_new(conns, &flow, &events, &u);
		if (which != 1)
			conn_send(u.c, "early", 5);
		if (which == 2)
			conn_end(u.c, NULL, "closed");
		else
			conn_finish(u.c, NULL, "closed");
		assert_int_equal(u.c->state, which == 0 ? CONN_CONNECTING : CONN_ENDING);
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
		u.peer = ends[1];
		conn_open(u.c, ends[0], NULL);
		turns(2);
		assert_string_equal(peer_reads(&u), which == 0 ? "earlyEOF" : "EOF");
		close(u.peer);
		turns_until(&u.ends, 1);
		assert_string_equal(u.why, "closed");
	}
}

/* A peer that is gone while we write: what it had sent is read, then the end says why. */
static void a_failed_write_ends_it(void **state)
{
	struct user u;

	(void)state;
	user_open(&u);
	assert_int_equal(write(u.peer, "last words", 10), 10);
	close(u.peer);
	conn_send(u.c, "x", 1);
	turns_until(&u.ends, 1);
	assert_string_equal(u.in, "last words");
	assert_string_equal(u.code, "EPIPE");
	assert_int_equal(u.ends, 1);
}

/* Nobody moves a byte for too long. A byte in between puts it off. */
static void idleness_has_a_limit(void **state)
{
	struct user u;

	(void)state;
	user_open(&u);
	uint64_t begin = loop_clock();
	conn_set_idle_timeout(u.c, 30 * MS);
	usleep(15000);
	assert_int_equal(write(u.peer, "x", 1), 1);
	turns_until(&u.ends, 1);
	assert_true(loop_clock() - begin >= 45 * MS);
	assert_string_equal(u.code, "ETIMEDOUT");
	assert_string_equal(u.why, "idle timeout");
	close(u.peer);

	user_open(&u);
	conn_set_idle_timeout(u.c, MS);
	conn_set_idle_timeout(u.c, 0);
	usleep(3000);
	turns(3);
	assert_int_equal(u.ends, 0);
	close(u.peer);
}

/* Connecting has a limit of its own. */
static void connecting_has_a_limit(void **state)
{
	struct user u = {0};

	(void)state;
	u.c = conn_new(conns, &flow, &events, &u);
	conn_set_connect_timeout(u.c, MS);
	turns_until(&u.ends, 1);
	assert_string_equal(u.code, "ETIMEDOUT");
	assert_string_equal(u.why, "connect timeout");
}

static struct user *second;

static void send_in_end(struct user *u)
{
	assert_int_equal(conn_send(u->c, "x", 1), SEND_CLOSED);
	conn_end(u->c, NULL, "again");
	conn_finish(u->c, NULL, "again");
	conn_shut(u->c);
	conn_pause(u->c);
	conn_resume(u->c);
	conn_set_idle_timeout(u->c, MS);
	if (second && second->c) {
		conn_send(second->c, "from the other's end", 20);
		conn_end(second->c, NULL, "other");
	}
}

/* In its end a connection may be asked for anything, and may send to and end others, also such as are dirty and end in the same turn. */
static void anything_may_be_done_within_an_end(void **state)
{
	struct user u, v;

	(void)state;
	for (int round = 0; round < 3; round++) {
		user_open(&u);
		user_open(&v);
		u.on_end = send_in_end;
		second = &v;
		if (round == 1)
			conn_send(v.c, "dirty", 5);
		conn_end(u.c, NULL, "first");
		if (round == 2)
			conn_end(v.c, NULL, "same turn");
		turns(3);
		assert_int_equal(u.ends, 1);
		assert_int_equal(v.ends, 1);
		assert_string_equal(u.why, "first");
		assert_string_equal(v.why, round == 2 ? "same turn" : "other");
		close(u.peer);
		close(v.peer);
	}
	second = NULL;
}

static void end_in_data(struct user *u)
{
	conn_send(u->c, "answer", 6);
	conn_end(u->c, NULL, "in data");
}

static void finish_in_data(struct user *u)
{
	conn_send(u->c, "answer", 6);
	conn_finish(u->c, NULL, "in data");
}

static void finish_in_drained(struct user *u)
{
	conn_finish(u->c, NULL, "in drained");
}

static void end_in_drained(struct user *u)
{
	conn_end(u->c, NULL, "in drained");
}

/* Closed in each callback it is told of its one end and of nothing else. */
static void it_may_be_closed_in_every_callback(void **state)
{
	struct user u;

	(void)state;
	user_open(&u);
	u.on_data = end_in_data;
	assert_int_equal(write(u.peer, "a", 1), 1);
	turns(3);
	assert_int_equal(u.ends, 1);
	assert_int_equal(u.total, 1);
	assert_string_equal(peer_reads(&u), "EOF");
	close(u.peer);

	user_open(&u);
	u.on_data = finish_in_data;
	assert_int_equal(write(u.peer, "a", 1), 1);
	turns(1);
	assert_int_equal(write(u.peer, "b", 1), 1);
	turns(3);
	assert_string_equal(peer_reads(&u), "answerEOF");
	close(u.peer);
	turns_until(&u.ends, 1);
	assert_string_equal(u.why, "in data");
	assert_int_equal(u.total, 1);

	user_open(&u);
	u.on_eof = end_in_data;
	close(u.peer);
	turns_until(&u.ends, 1);
	assert_int_equal(u.eofs, 1);

	for (int i = 0; i < 2; i++) {
		user_open(&u);
		u.on_drained = i ? end_in_drained : finish_in_drained;
		conn_send(u.c, big, 50000);
		for (int k = 0; k < 10; k++) {
			turns(1);
			(void)peer_drains(&u);
		}
		assert_int_equal(u.drains, 1);
		close(u.peer);
		turns_until(&u.ends, 1);
		assert_string_equal(u.why, "in drained");
		assert_string_equal(u.code, "");
	}
}

/* Whose user is gone tells nobody, reads on to the end, and goes. */
static void without_a_user_it_ends_quietly(void **state)
{
	struct user u;

	(void)state;
	user_open(&u);
	u.c->user = NULL;
	assert_int_equal(write(u.peer, "x", 1), 1);
	turns(2);
	close(u.peer);
	turns(5);
	assert_int_equal(conns->count, 0);
	assert_int_equal(u.ends, 0);
}

/* A pipe is read and written as well. */
static void pipes_will_do(void **state)
{
	struct user u = {0};
	int ends[2];

	(void)state;
	assert_int_equal(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
	u.peer = ends[1];
	u.c = conn_new(conns, &flow, &events, &u);
	conn_open(u.c, ends[0], NULL);
	assert_int_equal(write(u.peer, "through a pipe", 14), 14);
	turns(1);
	assert_string_equal(u.in, "through a pipe");
	close(u.peer);
	turns_until(&u.ends, 1);
	assert_string_equal(u.why, "eof");

	u = (struct user){0};
	assert_int_equal(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
	u.peer = ends[0];
	u.c = conn_new(conns, &flow, &events, &u);
	conn_open(u.c, ends[1], NULL);
	conn_send(u.c, "out", 3);
	conn_finish(u.c, NULL, "closed");
	turns_until(&u.ends, 1);
	assert_string_equal(peer_reads(&u), "outEOF");
	close(u.peer);
}

/* Water marks: low above high, and high above the limit, are refused. */
static void watermarks_are_checked(void **state)
{
	struct user u;

	(void)state;
	user_open(&u);
	assert_false(conn_set_watermarks(u.c, 2, 1));
	assert_false(conn_set_watermarks(u.c, 0, 10000001));
	assert_true(conn_set_watermarks(u.c, 0, 0));
	assert_int_equal(conn_send(u.c, "x", 1), SEND_FULL);
	turns(1);
	assert_int_equal(u.drains, 1);
	assert_true(conn_set_watermarks(u.c, 10000000, 10000000));
	close(u.peer);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(sends_are_gathered),
		TEST(input_comes_in_order_then_eof),
		TEST(an_end_drops_output_and_comes_once),
		TEST(finishing_sends_everything_first),
		TEST(an_end_cuts_finishing_short),
		TEST(finishing_has_a_limit),
		TEST(half_closed_it_still_reads),
		TEST(it_says_full_and_drained),
		TEST(output_has_a_limit),
		TEST(the_longest_queue_ends_first),
		TEST(pausing_stops_both_ways),
		TEST(output_waits_for_the_descriptor),
		TEST(a_close_waits_for_the_descriptor),
		TEST(a_failed_write_ends_it),
		TEST(idleness_has_a_limit),
		TEST(connecting_has_a_limit),
		TEST(anything_may_be_done_within_an_end),
		TEST(it_may_be_closed_in_every_callback),
		TEST(without_a_user_it_ends_quietly),
		TEST(pipes_will_do),
		TEST(watermarks_are_checked),
	};

	return cmocka_run_group_tests_name("conn", tests, NULL, NULL);
}
