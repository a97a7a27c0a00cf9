/*
 * Named channels without Lua: who hears what in which order, in one process and by a hub in several; bounds and what is lost.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "channel.h"
#include "channel_hub.h"
#include "mem.h"

#define PROCESSES 3
#define LIMIT (1u << 20) /* of each bus */

static struct score score;
static struct loop *loop;
static struct channels *processes[PROCESSES];
static struct bus *ends[PROCESSES], *hub_ends[PROCESSES];
static struct channel_hub *hub;

/* One who listens, and all that was heard. */
struct ear {
	struct channel_listener listener;
	struct channels *at;
	char text[256];
	unsigned count;
	bool leaves; /* after the first */
};

static void hear(struct channel_listener *l, const struct channel_message *m)
{
	struct ear *e = (struct ear *)l;
	size_t used = strlen(e->text);

	e->count++;
	snprintf(e->text + used, sizeof e->text - used, "%.*s ", m->length < 20 ? (int)m->length : 20, m->bytes);
	if (e->leaves)
		channels_leave(e->at, l);
}

/* Begins to listen. */
static void join(struct ear *e, struct channels *at, const char *name)
{
	*e = (struct ear){.at = at, .listener = {.owner = e, .on_message = hear}, .leaves = e->leaves};
	channels_join(at, name, strlen(name), &e->listener);
}

/* Pushes a text. */
static bool push(struct channels *at, const char *name, const char *text)
{
	return channels_push(at, name, strlen(name), mem_strdup(text), strlen(text));
}

static void turn(int times)
{
	for (int i = 0; i < times; i++) {
		loop_wake(loop);
		loop_turn(loop);
	}
}

static void on_bus_end(void *data)
{
	(void)data;
}

static int set_up(void **state)
{
	(void)state;
	memset(&score, 0, sizeof score);
	loop = loop_new(&score);
	for (int i = 0; i < PROCESSES; i++)
		processes[i] = channels_new(loop);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	for (int i = 0; i < PROCESSES; i++) {
		channels_link(processes[i], NULL);
		if (hub)
			channel_hub_leave(hub, hub_ends[i]);
		bus_free(ends[i]);
		bus_free(hub_ends[i]);
		ends[i] = hub_ends[i] = NULL;
		channels_free(processes[i]);
	}
	channel_hub_free(hub);
	hub = NULL;
	loop_free(loop);
	return 0;
}

/* Links all processes by a hub. */
static void link_all(void)
{
	hub = channel_hub_new();
	for (int i = 0; i < PROCESSES; i++) {
		int fds[2];
		assert_true(bus_pair(fds));
		ends[i] = bus_new(loop, fds[0], LIMIT, on_bus_end, NULL);
		hub_ends[i] = bus_new(loop, fds[1], LIMIT, on_bus_end, NULL);
		channels_link(processes[i], ends[i]);
		channel_hub_join(hub, hub_ends[i]);
	}
}

static void test_order(void **state)
{
	struct ear a = {0}, b = {.leaves = true}, late = {0};

	(void)state;
	join(&a, processes[0], "x");
	join(&b, processes[0], "x");
	assert_true(push(processes[0], "x", "1"));
	assert_true(push(processes[0], "y", "-"));
	assert_true(push(processes[0], "x", "2"));
	assert_int_equal(a.count, 0); /* never from within the push */
	assert_true(channels_pending(processes[0]));
	assert_ptr_equal(channels_find(processes[0], "x", 1, &b), &b.listener);
	turn(1);
	assert_string_equal(a.text, "1 2 ");
	assert_string_equal(b.text, "1 ");
	assert_false(channels_pending(processes[0]));
	assert_null(channels_find(processes[0], "x", 1, &b));
	join(&late, processes[0], "x");
	assert_true(push(processes[0], "x", "3"));
	channels_leave(processes[0], &a.listener);
	turn(1);
	assert_string_equal(a.text, "1 2 ");
	assert_string_equal(late.text, "3 ");
	channels_leave(processes[0], &late.listener);
	assert_true(push(processes[0], "x", "4"));
	assert_false(channels_pending(processes[0])); /* for nobody */
	assert_int_equal(score.stats.messages_pushed, 5);
	assert_int_equal(score.stats.messages_queued, 0);
}

static void test_bound(void **state)
{
	struct ear a = {0};
	char text[1001];

	(void)state;
	memset(text, 'x', 1000);
	text[1000] = '\0';
	channels_set_limit(processes[0], 5000);
	join(&a, processes[0], "x");
	int count = 0;
	while (push(processes[0], "x", text))
		count++;
	assert_int_equal(count, 4);
	assert_int_equal(score.stats.messages_refused, 1);
	turn(1);
	assert_int_equal(a.count, 4);
	channels_set_limit(processes[0], 1);
	assert_true(push(processes[0], "x", text)); /* one fits in any case */
	assert_false(push(processes[0], "x", ""));
	turn(1);
	assert_int_equal(a.count, 5);
	channels_leave(processes[0], &a.listener);
}

static void test_processes(void **state)
{
	struct ear ears[PROCESSES] = {0}, other = {0};

	(void)state;
	link_all();
	for (int i = 0; i < PROCESSES; i++)
		join(&ears[i], processes[i], "x");
	join(&other, processes[2], "other");
	for (int i = 0; i < 5; i++) {
		char text[2] = {(char)('0' + i), '\0'};
		assert_true(push(processes[0], "x", text));
	}
	assert_true(push(processes[1], "other", "o"));
	turn(6);
	for (int i = 0; i < PROCESSES; i++)
		assert_string_equal(ears[i].text, "0 1 2 3 4 ");
	assert_string_equal(other.text, "o ");
	for (int i = 0; i < PROCESSES; i++)
		channels_leave(processes[i], &ears[i].listener);
	channels_leave(processes[2], &other.listener);
	assert_true(push(processes[0], "x", "nobody"));
	turn(6);
	assert_int_equal(score.stats.messages_queued, 0);
}

/* A process that does not read: the hub's queue to it fills up. What is lost is told when there is room again, and the others miss nothing. */
static void test_slow(void **state)
{
	struct ear ears[PROCESSES] = {0};
	char *text = mem_zalloc(100001);
	unsigned pushed = 0;

	(void)state;
	link_all();
	memset(text, 'x', 100000);
	for (int i = 0; i < PROCESSES; i++)
		join(&ears[i], processes[i], "x");
	/* Process 2 is busy: its end of the bus is replaced by one that nobody reads from. */
	int fds[2];
	assert_true(bus_pair(fds));
	channel_hub_leave(hub, hub_ends[2]);
	bus_free(hub_ends[2]);
	hub_ends[2] = bus_new(loop, fds[1], LIMIT, on_bus_end, NULL);
	channel_hub_join(hub, hub_ends[2]);
	channels_link(processes[2], NULL);
	bus_free(ends[2]);
	ends[2] = NULL;
	for (int i = 0; i < 50; i++) {
		pushed += push(processes[0], "x", text);
		turn(8);
	}
	assert_int_equal(pushed, 50);
	assert_int_equal(ears[0].count, 50);
	assert_int_equal(ears[1].count, 50);
	assert_true(bus_queued(hub_ends[2]) <= LIMIT);
	assert_int_equal(ears[2].count, 0);
	/* It wakes up. */
	ends[2] = bus_new(loop, fds[0], LIMIT, on_bus_end, NULL);
	channels_link(processes[2], ends[2]);
	turn(200);
	assert_in_range(ears[2].count, 10, 20);
	assert_int_equal(score.stats.messages_missed, 0);
	assert_true(push(processes[1], "x", "again"));
	turn(8);
	assert_int_equal(score.stats.messages_missed, 51 - ears[2].count);
	assert_int_equal(ears[0].count, 51);
	for (int i = 0; i < PROCESSES; i++)
		channels_leave(processes[i], &ears[i].listener);
	free(text);
}

/* The pusher's own way to the hub is full: it is told. */
static void test_full(void **state)
{
	struct ear a = {0};
	char *text = mem_zalloc(100001);
	int count = 0;

	(void)state;
	link_all();
	memset(text, 'x', 100000);
	join(&a, processes[0], "x");
	while (push(processes[0], "x", text))
		assert_true(++count < 100);
	assert_int_equal(count, LIMIT / 100000);
	assert_int_equal(score.stats.messages_refused, 1);
	turn(100);
	assert_int_equal(a.count, count); /* the one that was refused reached nobody here either */
	assert_true(push(processes[0], "x", text));
	turn(1);
	channels_leave(processes[0], &a.listener);
	free(text);
}

/* What comes in from others has a bound too. */
static void test_flood(void **state)
{
	struct ear a = {0};
	char text[1001];

	(void)state;
	memset(text, 'x', 1000);
	text[1000] = '\0';
	link_all();
	join(&a, processes[1], "x");
	channels_set_limit(processes[1], 10000);
	for (int i = 0; i < 30; i++)
		assert_true(push(processes[0], "x", text));
	turn(10);
	assert_int_equal(a.count + score.stats.messages_missed, 30);
	assert_true(score.stats.messages_missed > 0);
	channels_leave(processes[1], &a.listener);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_order, set_up, tear_down),     cmocka_unit_test_setup_teardown(test_bound, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_processes, set_up, tear_down), cmocka_unit_test_setup_teardown(test_slow, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_full, set_up, tear_down),      cmocka_unit_test_setup_teardown(test_flood, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
