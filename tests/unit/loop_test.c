/*
 * The turn of the loop: its stages in order, hooks that come and go while they run, a clock that stands still.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "loop.h"

static struct score score;
static struct loop *loop;
static char said[256]; /* the hooks' names in the order in which they ran */

/* A hook that says its name and then does something. */
struct speaker {
	struct loop_hook hook;
	char name;
	void (*act)(struct speaker *s);
};

static void speak(void *data)
{
	struct speaker *s = data;
	size_t length = strlen(said);

	assert_true(length + 1 < sizeof said);
	said[length] = s->name;
	said[length + 1] = '\0';
	if (s->act)
		s->act(s);
}

static struct speaker speaker(char name)
{
	return (struct speaker){.name = name};
}

static void add(enum loop_stage stage, struct speaker *s)
{
	s->hook = (struct loop_hook){.run = speak, .data = s};
	loop_hook_add(loop, stage, &s->hook);
}

static int set_up(void **state)
{
	(void)state;
	memset(&score, 0, sizeof score);
	said[0] = '\0';
	loop = loop_new(&score);
	return loop ? 0 : -1;
}

static int tear_down(void **state)
{
	(void)state;
	loop_free(loop);
	return 0;
}

/* A turn that does not sleep; what it said. */
static const char *turn(void)
{
	said[0] = '\0';
	loop_wake(loop);
	loop_turn(loop);
	return said;
}

/* Stages in their order, hooks of one in the order of adding. */
static void stages_run_in_order(void **state)
{
	struct speaker a = speaker('a'), b = speaker('b'), c = speaker('c'), d = speaker('d'), e = speaker('e');

	(void)state;
	add(STAGE_END, &e);
	add(STAGE_TICK, &c);
	add(STAGE_POLL, &a);
	add(STAGE_TICK, &d);
	add(STAGE_POLL, &b);
	assert_string_equal(turn(), "abcde");
	assert_string_equal(turn(), "abcde");
	assert_int_equal(score.stats.turns, 2);
	loop_hook_remove(loop, STAGE_TICK, &c.hook);
	loop_hook_remove(loop, STAGE_TICK, &c.hook);
	loop_hook_remove(loop, STAGE_END, &a.hook); /* is in another stage */
	assert_string_equal(turn(), "abde");
}

static struct speaker *victim;

static void remove_victim(struct speaker *s)
{
	(void)s;
	loop_hook_remove(loop, STAGE_TICK, &victim->hook);
}

/* A hook removes itself, the next one, the one before. */
static void hooks_are_removed_while_they_run(void **state)
{
	for (int which = 0; which < 4; which++) {
		struct speaker s[4] = {speaker('a'), speaker('b'), speaker('c'), speaker('d')};
		static const char *const first[] = {"abcd", "abcd", "abd", "abc"}, *const then[] = {"bcd", "acd", "abd", "abc"};
		(void)state;
		for (int i = 0; i < 4; i++)
			add(STAGE_TICK, &s[i]);
		s[1].act = remove_victim;
		victim = &s[which];
		assert_string_equal(turn(), first[which]);
		s[1].act = NULL;
		assert_string_equal(turn(), then[which]);
		for (int i = 0; i < 4; i++)
			loop_hook_remove(loop, STAGE_TICK, &s[i].hook);
		assert_string_equal(turn(), "");
	}
}

static struct speaker *newcomer;

static void add_newcomer(struct speaker *s)
{
	s->act = NULL;
	add(STAGE_TICK, newcomer);
}

/* A hook that is added by one with others behind it runs in the same turn, as the last one. */
static void hooks_are_added_while_they_run(void **state)
{
	struct speaker a = speaker('a'), b = speaker('b'), c = speaker('c');

	(void)state;
	a.act = add_newcomer;
	newcomer = &c;
	add(STAGE_TICK, &a);
	add(STAGE_TICK, &b);
	assert_string_equal(turn(), "abc");
	assert_string_equal(turn(), "abc");
}

static void wake(struct speaker *s)
{
	(void)s;
	loop_wake(loop);
}

/* What wakes the loop keeps just the next turn from sleeping. Nothing else would: there is no event. */
static void waking_lasts_for_one_turn(void **state)
{
	struct speaker a = speaker('a');

	(void)state;
	add(STAGE_END, &a);
	a.act = wake;
	loop_wake(loop);
	for (int i = 0; i < 100; i++)
		loop_turn(loop);
	assert_int_equal(score.stats.turns, 100);
	assert_true(loop->awake);
}

static uint64_t seen[3];

static void look(struct speaker *s)
{
	seen[s->name - '0'] = loop_now(loop);
	usleep(2000);
}

/* The turn's clock stands still and is never ahead of the real one. */
static void the_clock_stands_still_within_a_turn(void **state)
{
	struct speaker a = speaker('0'), b = speaker('1'), c = speaker('2');

	(void)state;
	a.act = b.act = c.act = look;
	add(STAGE_TICK, &a);
	add(STAGE_TICK, &b);
	add(STAGE_END, &c);
	uint64_t before = loop_clock();
	turn();
	assert_true(seen[0] >= before && seen[0] <= loop_clock());
	assert_true(seen[1] == seen[0] && seen[2] == seen[0]);
	uint64_t last = seen[0];
	turn();
	assert_true(seen[0] >= last + 6000000);
}

/* The clock of the system never goes back. */
static void the_real_clock_goes_on(void **state)
{
	uint64_t last = 0;

	(void)state;
	for (int i = 0; i < 10000; i++) {
		uint64_t now = loop_clock();
		assert_true(now >= last);
		last = now;
	}
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(stages_run_in_order),       TEST(hooks_are_removed_while_they_run),     TEST(hooks_are_added_while_they_run),
		TEST(waking_lasts_for_one_turn), TEST(the_clock_stands_still_within_a_turn), TEST(the_real_clock_goes_on),
	};

	return cmocka_run_group_tests_name("loop", tests, NULL, NULL);
}
