/*
 * Messages between processes: their order and sizes, descriptors, limits, and ends of all sorts.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "bus.h"

#define LIMIT (8u << 20)

static struct score score;
static struct loop *loop;
static struct bus *a, *b;
static unsigned ends; /* on_end calls of either */

/* What b was told last, and how often. */
static struct {
	unsigned count;
	enum bus_kind kind;
	size_t length, fd_count;
	char text[64];
	unsigned sum;
	int kept; /* a descriptor that was kept, or -1 */
	bool keep, free_bus;
} told;

static void on_end(void *data)
{
	(void)data;
	ends++;
}

static void on_message(void *data, const struct bus_message *m)
{
	(void)data;
	told.count++;
	told.kind = m->kind;
	told.length = m->length;
	told.fd_count = m->fd_count;
	assert_int_equal(m->bytes[m->length], 0);
	snprintf(told.text, sizeof told.text, "%.40s", m->bytes);
	told.sum = 0;
	for (size_t i = 0; i < m->length; i++)
		told.sum = told.sum * 31 + (unsigned char)m->bytes[i];
	if (told.keep && m->fd_count) {
		told.kept = m->fds[0];
		m->fds[0] = -1;
	}
	if (told.free_bus) {
		bus_free(b);
		b = NULL;
	}
}

/* Turns until b was told that often; false when nothing comes any more. */
static bool turn_until(unsigned count)
{
	for (int i = 0; i < 2000 && told.count < count; i++) {
		loop_wake(loop);
		loop_turn(loop);
	}
	return told.count >= count;
}

static void turn(int times)
{
	for (int i = 0; i < times; i++) {
		loop_wake(loop);
		loop_turn(loop);
	}
}

static int set_up(void **state)
{
	int fds[2];

	(void)state;
	memset(&told, 0, sizeof told);
	told.kept = -1;
	ends = 0;
	loop = loop_new(&score);
	if (!loop || !bus_pair(fds))
		return -1;
	a = bus_new(loop, fds[0], LIMIT, on_end, NULL);
	b = bus_new(loop, fds[1], LIMIT, on_end, NULL);
	for (int kind = 0; kind < BUS_KINDS; kind++)
		if (kind != BUS_ORDERS)
			bus_on(b, (enum bus_kind)kind, on_message, NULL);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	bus_free(a);
	bus_free(b);
	if (told.kept >= 0)
		close(told.kept);
	loop_free(loop);
	return 0;
}

/* How many descriptors are open. */
static int open_count(void)
{
	int count = 0;

	for (int fd = 0; fd < 1024; fd++) {
		int copy = dup(fd);
		if (copy >= 0) {
			close(copy);
			count++;
		}
	}
	return count;
}

/* Empty, short, and many. */
static void messages_come_whole_and_in_order(void **state)
{
	(void)state;
	assert_true(bus_send(a, BUS_COMMIT, NULL, 0, NULL, 0));
	assert_true(turn_until(1));
	assert_int_equal(told.kind, BUS_COMMIT);
	assert_int_equal(told.length, 0);
	for (int i = 0; i < 500; i++) {
		char text[16];
		int length = snprintf(text, sizeof text, "m%d", i);
		assert_true(bus_send(a, BUS_CHANNEL, text, (size_t)length, NULL, 0));
	}
	for (unsigned i = 2; i < 502 && turn_until(i);)
		i = told.count + 1;
	assert_int_equal(told.count, 501);
	assert_string_equal(told.text, "m499");
	assert_int_equal(bus_queued(a), 0);
}

/* Larger than any socket's buffer, back to back with a small one. */
static void a_large_message_is_one(void **state)
{
	size_t size = 2u << 20;
	char *large = malloc(size);
	unsigned sum = 0;

	(void)state;
	for (size_t i = 0; i < size; i++) {
		large[i] = (char)(i * 7 + i / 251);
		sum = sum * 31 + (unsigned char)large[i];
	}
	assert_true(bus_send(a, BUS_CHANNEL, large, size, NULL, 0));
	assert_true(turn_until(1));
	assert_int_equal(told.length, size);
	assert_int_equal(told.sum, sum);
	assert_true(bus_send(a, BUS_CHANNEL, large, size, NULL, 0));
	assert_true(bus_send(a, BUS_CONTROL_REQUEST, "small", 5, NULL, 0));
	assert_true(turn_until(3));
	assert_string_equal(told.text, "small");
	free(large);
}

/* Descriptors come with their message, and are closed unless kept. */
static void descriptors_travel(void **state)
{
	int pipes[2], fds[3];
	char c = 0;

	(void)state;
	assert_int_equal(pipe(pipes), 0);
	for (int i = 0; i < 3; i++)
		fds[i] = pipes[1];
	int before = open_count();
	assert_true(bus_send(a, BUS_CHANNEL, "none", 4, NULL, 0));
	assert_true(bus_send(a, BUS_PORT, "three", 5, fds, 3));
	assert_true(bus_send(a, BUS_PORT, "one", 3, fds, 1));
	assert_true(bus_send(a, BUS_CHANNEL, "none", 4, NULL, 0));
	told.keep = true;
	assert_true(turn_until(2));
	turn(10);
	assert_int_equal(told.count, 4);
	assert_int_equal(told.fd_count, 0);
	assert_int_equal(write(told.kept, "x", 1), 1);
	assert_int_equal(read(pipes[0], &c, 1), 1);
	assert_int_equal(c, 'x');
	close(told.kept);
	told.kept = -1;
	told.keep = false;
	int leaked = 1; /* the first of the two that were kept */
	assert_int_equal(open_count(), before + leaked);
	close(pipes[0]);
	close(pipes[1]);
}

/* Over the limit nothing is taken but orders; a message beyond all measure never is. */
static void the_queue_is_bounded(void **state)
{
	char *block = calloc(1, 1u << 20);
	unsigned taken = 0;

	(void)state;
	while (taken < 20 && bus_send(a, BUS_CHANNEL, block, 1u << 20, NULL, 0))
		taken++;
	assert_int_equal(taken, 7); /* of 8 MiB, with headers */
	assert_true(bus_send(a, BUS_STOP, block, 1u << 20, NULL, 0));
	assert_true(turn_until(8));
	assert_int_equal(told.kind, BUS_STOP);
	assert_true(bus_send(a, BUS_CHANNEL, block, 1u << 20, NULL, 0));
	free(block);
	block = calloc(1, BUS_MESSAGE_MAX + 1);
	assert_false(bus_send(a, BUS_STOP, block, BUS_MESSAGE_MAX + 1, NULL, 0));
	free(block);
}

/* What was sent before the end is delivered before it; afterwards nothing can be sent. */
static void the_end_comes_last(void **state)
{
	(void)state;
	assert_true(bus_send(a, BUS_STOPPING, "last words", 10, NULL, 0));
	assert_true(bus_flush(a, 1000));
	bus_free(a);
	a = NULL;
	turn(10);
	assert_int_equal(told.count, 1);
	assert_string_equal(told.text, "last words");
	assert_int_equal(ends, 1);
	assert_false(bus_send(b, BUS_STOP, NULL, 0, NULL, 0));
}

/* Sending to an end that is gone is no accident. */
static void a_queue_to_nobody_is_dropped(void **state)
{
	char *block = calloc(1, 1u << 20);

	(void)state;
	bus_free(b);
	b = NULL;
	bool taken = bus_send(a, BUS_CHANNEL, block, 1u << 20, NULL, 0);
	turn(10);
	assert_true(taken);
	assert_int_equal(ends, 1);
	assert_int_equal(bus_queued(a), 0);
	free(block);
}

/* Freed by its own callback, with more to come. */
static void it_may_be_freed_in_a_callback(void **state)
{
	(void)state;
	told.free_bus = true;
	assert_true(bus_send(a, BUS_STOP, "1", 1, NULL, 0));
	assert_true(bus_send(a, BUS_STOP, "2", 1, NULL, 0));
	turn(10);
	assert_int_equal(told.count, 1);
	assert_int_equal(ends, 1); /* a's */
}

/* A peer that speaks nonsense ends the link. */
static void nonsense_ends_it(void **state)
{
	int fds[2];

	(void)state;
	assert_true(bus_pair(fds));
	struct bus *c = bus_new(loop, fds[0], LIMIT, on_end, NULL);
	assert_int_equal(write(fds[1], "\xff\xff\xff\xff\xff\xff\xff\xff", 8), 8);
	turn(5);
	assert_int_equal(ends, 1);
	bus_free(c);
	close(fds[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(messages_come_whole_and_in_order, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_large_message_is_one, set_up, tear_down),
		cmocka_unit_test_setup_teardown(descriptors_travel, set_up, tear_down),
		cmocka_unit_test_setup_teardown(the_queue_is_bounded, set_up, tear_down),
		cmocka_unit_test_setup_teardown(the_end_comes_last, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_queue_to_nobody_is_dropped, set_up, tear_down),
		cmocka_unit_test_setup_teardown(it_may_be_freed_in_a_callback, set_up, tear_down),
		cmocka_unit_test_setup_teardown(nonsense_ends_it, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
