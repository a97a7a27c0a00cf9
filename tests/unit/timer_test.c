/*
 * The heap of timers: never early, in order, cancelled and restarted at any moment, in any number, against a model that is too simple
 * to be wrong.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "timer.h"

#define MS 1000000u /* nanoseconds */

static struct score score;
static struct loop *loop;

/* Timers that note the order in which they fire. */
struct probe {
	struct timer t;
	int number;
	int fired;      /* how often */
	uint64_t at_ns; /* when last */
	void (*act)(struct probe *p);
};

static int order[200000], order_count;

/* Notes it, and does what the probe is there for. */
static void on_fire(void *data)
{
	struct probe *p = data;

	assert_false(timer_waiting(&p->t));
	p->fired++;
	p->at_ns = loop_now(loop);
	if (p->at_ns < p->t.due_ns)
		fail_msg("timer %d is early", p->number);
	order[order_count++] = p->number;
	if (p->act)
		p->act(p);
}

static void probe_init(struct probe *p, int number)
{
	memset(p, 0, sizeof *p);
	p->number = number;
	timer_init(&p->t, on_fire, p);
}

static int set_up(void **state)
{
	(void)state;
	loop = loop_new(&score);
	if (!loop || !timers_open(loop))
		return -1;
	order_count = 0;
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	timers_close(loop);
	loop_free(loop);
	return 0;
}

/* Turns until that many have fired; a turn may sleep, so there must be a timer to wake it. */
static void turn_until(int count)
{
	for (int i = 0; order_count < count; i++) {
		assert_true(i < 1000000);
		loop_turn(loop);
	}
}

/* One turn that does not sleep. */
static void turn_now(void)
{
	loop_wake(loop);
	loop_turn(loop);
}

/* In the order of due times, whatever the order of starting. */
static void fire_in_order_of_due_times(void **state)
{
	static const int delays[] = {5, 1, 4, 2, 3, 0};
	struct probe p[6];

	(void)state;
	uint64_t begin = loop_clock();
	for (int i = 0; i < 6; i++) {
		probe_init(&p[i], delays[i]);
		timer_start_at(loop, &p[i].t, begin + (uint64_t)delays[i] * MS);
	}
	turn_until(6);
	for (int i = 0; i < 6; i++) {
		assert_int_equal(order[i], i);
		assert_int_equal(p[i].fired, 1);
	}
	assert_true(loop_clock() >= begin + 5 * MS);
}

/* Equal due times in the order of starting; a restart counts as one. */
static void ties_fire_in_order_of_starting(void **state)
{
	struct probe p[100];

	(void)state;
	uint64_t due = loop_clock() + MS;
	for (int i = 0; i < 100; i++) {
		probe_init(&p[i], i);
		timer_start_at(loop, &p[i].t, due);
	}
	timer_start_at(loop, &p[10].t, due);
	turn_until(100);
	for (int i = 0; i < 100; i++)
		assert_int_equal(order[i], i < 10 ? i : i < 99 ? i + 1 : 10);
}

/* Stopping takes effect at once; twice, or of one that never waited, does nothing. */
static void stopped_timers_never_fire(void **state)
{
	struct probe a, b, c;

	(void)state;
	probe_init(&a, 1);
	probe_init(&b, 2);
	probe_init(&c, 3);
	timer_stop(loop, &a.t);
	timer_start(loop, &a.t, 0);
	timer_start(loop, &b.t, MS);
	timer_start(loop, &c.t, 2 * MS);
	assert_true(timer_waiting(&a.t));
	timer_stop(loop, &a.t);
	timer_stop(loop, &a.t);
	assert_false(timer_waiting(&a.t));
	timer_stop(loop, &b.t);
	turn_until(1);
	assert_int_equal(order[0], 3);
	assert_int_equal(a.fired + b.fired, 0);
}

static struct probe *other;

static void stop_other(struct probe *p)
{
	(void)p;
	timer_stop(loop, &other->t);
}

/* One that fires stops one that is due in the same turn. */
static void a_timer_stops_another_that_is_due(void **state)
{
	struct probe a, b, c;

	(void)state;
	probe_init(&a, 1);
	probe_init(&b, 2);
	probe_init(&c, 3);
	other = &b;
	a.act = stop_other;
	uint64_t due = loop_clock();
	timer_start_at(loop, &a.t, due);
	timer_start_at(loop, &b.t, due);
	timer_start_at(loop, &c.t, due);
	turn_until(2);
	assert_int_equal(order[1], 3);
	assert_int_equal(b.fired, 0);
}

static void restart_now(struct probe *p)
{
	timer_start(loop, &p->t, 0);
}

static void restart_in_the_past(struct probe *p)
{
	timer_start_at(loop, &p->t, 1);
}

/* One that starts itself anew has to wait for the next turn, even if that is due long since; those behind it fire all the same. */
static void restarted_in_its_function_it_waits_for_the_next_turn(void **state)
{
	void (*const acts[])(struct probe *) = {restart_now, restart_in_the_past};

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct probe a, b;
		probe_init(&a, 1);
		probe_init(&b, 2);
		a.act = acts[i];
		order_count = 0;
		uint64_t due = loop_clock();
		timer_start_at(loop, &a.t, due);
		timer_start_at(loop, &b.t, due);
		turn_until(1);
		assert_int_equal(a.fired, 1);
		assert_true(timer_waiting(&a.t));
		for (int k = 0; k < 100 && !b.fired; k++)
			turn_now();
		assert_int_equal(b.fired, 1);
		for (int k = 0; k < 1000 && a.fired < 5; k++)
			turn_now();
		assert_true(a.fired >= 5);
		timer_stop(loop, &a.t);
	}
}

static void free_probe(struct probe *p)
{
	memset(&p->t, 0xee, sizeof p->t);
	free(p);
}

/* A timer may free itself in its function. */
static void a_timer_frees_itself(void **state)
{
	(void)state;
	for (int i = 0; i < 10; i++) {
		struct probe *p = malloc(sizeof *p);
		probe_init(p, i);
		p->act = free_probe;
		timer_start(loop, &p->t, 0);
	}
	turn_until(10);
}

/* An earlier timer wakes a loop that was set for a later one; a delay beyond all numbers is for ever. */
static void the_alarm_follows_the_earliest(void **state)
{
	struct probe late, soon, never;

	(void)state;
	probe_init(&late, 1);
	probe_init(&soon, 2);
	probe_init(&never, 3);
	timer_start(loop, &never.t, UINT64_MAX);
	timer_start(loop, &late.t, 3600000ull * MS);
	turn_now();
	timer_start(loop, &soon.t, MS);
	turn_until(1);
	assert_int_equal(order[0], 2);
	timer_start(loop, &late.t, MS);
	turn_until(2);
	assert_int_equal(order[1], 1);
	assert_true(timer_waiting(&never.t));
	timer_stop(loop, &never.t);
}

/* Many, started in no order, each a little later than the last one at most. */
static void a_hundred_thousand_timers(void **state)
{
	enum { COUNT = 100000 };
	struct probe *p = malloc(COUNT * sizeof *p);
	uint64_t begin = loop_clock();

	(void)state;
	for (int i = 0; i < COUNT; i++) {
		probe_init(&p[i], i);
		timer_start_at(loop, &p[i].t, begin + (uint64_t)i * 7919 % 1000 * 10000);
	}
	for (int i = 0; i < COUNT; i += 3)
		timer_stop(loop, &p[i].t);
	int expected = COUNT - (COUNT + 2) / 3;
	turn_until(expected);
	assert_int_equal(order_count, expected);
	for (int i = 1; i < order_count; i++) {
		const struct timer *a = &p[order[i - 1]].t, *b = &p[order[i]].t;
		if (a->due_ns > b->due_ns || (a->due_ns == b->due_ns && order[i - 1] > order[i]))
			fail_msg("%d fired before %d", order[i - 1], order[i]);
	}
	for (int i = 0; i < COUNT; i++)
		assert_int_equal(p[i].fired, i % 3 != 0);
	free(p);
}

/* A model: an array of due times, searched from one end to the other. */
enum { MODEL_COUNT = 200 };

static struct {
	bool waiting;
	uint64_t due_ns, sequence;
} model[MODEL_COUNT];

/* Which of the model's timers is first; -1 for none. */
static int model_first(void)
{
	int first = -1;

	for (int i = 0; i < MODEL_COUNT; i++)
		if (model[i].waiting && (first < 0 || model[i].due_ns < model[first].due_ns ||
		                         (model[i].due_ns == model[first].due_ns && model[i].sequence < model[first].sequence)))
			first = i;
	return first;
}

/* It has to be the model's first. */
static void fire_as_the_model(struct probe *p)
{
	int first = model_first();

	if (p->number != first)
		fail_msg("%d fired, the model says %d", p->number, first);
	model[first].waiting = false;
}

/* Whatever is started, restarted, stopped and left to fire: the same as in the model. */
static void random_operations_agree_with_a_model(void **state)
{
	struct probe p[MODEL_COUNT];
	uint64_t sequence = 0, base = loop_clock();
	unsigned seed = 12345;

	(void)state;
	memset(model, 0, sizeof model);
	for (int i = 0; i < MODEL_COUNT; i++) {
		probe_init(&p[i], i);
		p[i].act = fire_as_the_model;
	}
	for (int step = 0; step < 200000; step++) {
		seed = seed * 1103515245u + 12345u;
		int i = (int)((seed >> 8) % MODEL_COUNT), what = (int)((seed >> 20) % 10);
		if (what < 6) {
			uint64_t due = base + (uint64_t)(seed >> 24) * 20000;
			timer_start_at(loop, &p[i].t, due);
			model[i].waiting = true;
			model[i].due_ns = due;
			model[i].sequence = sequence++;
		} else if (what < 9) {
			timer_stop(loop, &p[i].t);
			model[i].waiting = false;
		} else if (step % 50 == 0) {
			turn_now();
			base = loop_clock();
			order_count = 0;
		}
		if (timer_waiting(&p[i].t) != model[i].waiting)
			fail_msg("step %d: timer %d waits: %d", step, i, timer_waiting(&p[i].t));
	}
	while (model_first() >= 0)
		turn_now();
	for (int i = 0; i < MODEL_COUNT; i++)
		assert_false(timer_waiting(&p[i].t));
}

/* Closing forgets those that wait. */
static void closing_forgets_what_waits(void **state)
{
	struct probe p;

	(void)state;
	probe_init(&p, 1);
	timer_start(loop, &p.t, MS);
	timers_close(loop);
	assert_false(timer_waiting(&p.t));
	assert_true(timers_open(loop));
	timer_start(loop, &p.t, MS);
	turn_until(1);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(fire_in_order_of_due_times),
		TEST(ties_fire_in_order_of_starting),
		TEST(stopped_timers_never_fire),
		TEST(a_timer_stops_another_that_is_due),
		TEST(restarted_in_its_function_it_waits_for_the_next_turn),
		TEST(a_timer_frees_itself),
		TEST(the_alarm_follows_the_earliest),
		TEST(a_hundred_thousand_timers),
		TEST(random_operations_agree_with_a_model),
		TEST(closing_forgets_what_waits),
	};

	return cmocka_run_group_tests_name("timer", tests, NULL, NULL);
}
