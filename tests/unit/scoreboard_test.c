/* Tests of scoreboard.c: rows that survive their processes, series by label and callback, bounds, lag. */
#include "scoreboard.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define SECOND 1000000000u

/* The sum of a histogram's buckets. */
static uint64_t total(const struct histogram *h)
{
	uint64_t n = 0;

	for (size_t i = 0; i <= SCORE_BUCKETS; i++)
		n += h->buckets[i];
	return n;
}

/* What a child has counted is there after its death; its successor counts on, with gauges at 0. */
static void test_survives(void **state)
{
	struct scoreboard *board = scoreboard_new(2);
	struct score *score = &board->scores[1];
	int status;

	(void)state;
	for (int round = 1; round <= 2; round++) {
		pid_t child = fork();
		if (child == 0) {
			struct scorer *s = scorer_new(score);
			if (score->stats.connections)
				_exit(1);
			score->stats.connections = 7;
			score->stats.bytes_in += 100;
			scorer_callback(s, scorer_label(s, "tcp://127.0.0.1:1"), "receive_data", 20000);
			_exit(0); /* without a word */
		}
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_int_equal(status, 0);
		assert_int_equal(score->pid, child);
		assert_int_equal(score->stats.connections, 7);
		assert_int_equal(score->stats.bytes_in, 100 * round);
		assert_int_equal(score->series_count, 1);
		assert_int_equal(score->series[0].time.buckets[1], round);
	}
	assert_int_equal(board->scores[0].pid, 0);
	assert_ptr_equal(scoreboard_of(score), board);
	scoreboard_free(board);
}

/* Equal names are one series, wherever the name stands; the limits of buckets belong to them. */
static void test_series(void **state)
{
	struct scoreboard *board = scoreboard_new(1);
	struct score *score = board->scores;
	struct scorer *s = scorer_new(score);
	char copy[] = "unbind";
	unsigned a = scorer_label(s, "tcp://a"), b = scorer_label(s, "tcp://b");

	(void)state;
	assert_int_equal(scorer_label(s, "tcp://a"), a);
	assert_int_not_equal(a, b);
	assert_string_equal(score->labels[SCORE_SCRIPT], "script");
	scorer_callback(s, a, "unbind", 10000);
	scorer_callback(s, a, copy, 10001);
	scorer_callback(s, b, "unbind", 20 * (uint64_t)SECOND);
	scorer_callback(s, a, "post_init", 0);
	assert_int_equal(score->series_count, 3);
	assert_int_equal(score->series[0].time.buckets[0], 1);
	assert_int_equal(score->series[0].time.buckets[1], 1);
	assert_int_equal(score->series[0].time.sum_ns, 20001);
	assert_int_equal(score->series[1].time.buckets[SCORE_BUCKETS], 1);
	assert_int_equal(total(&score->series[2].time), 1);
	scorer_free(s);
	scoreboard_free(board);
}

/* Too many labels and series: the rest is one, and nothing is lost. */
static void test_bounds(void **state)
{
	struct scoreboard *board = scoreboard_new(1);
	struct score *score = board->scores;
	struct scorer *s = scorer_new(score);
	static char names[100][24];
	uint64_t sum = 0;
	char text[400];

	(void)state;
	for (int i = 0; i < 100; i++)
		snprintf(names[i], sizeof names[i], "callback%d", i);
	for (int i = 0; i < 300; i++) {
		memset(text, 'x', sizeof text); /* longer than a label may be */
		text[sizeof text - 1] = '\0';
		snprintf(text, 20, "tcp://%d", i);
		text[strlen(text)] = 'x';
		unsigned label = scorer_label(s, text);
		assert_true(label < SCORE_LABELS);
		assert_int_equal(scorer_label(s, text), label);
		for (int n = 0; n < 100; n++)
			scorer_callback(s, label, names[n], 1);
	}
	assert_int_equal(score->label_count, SCORE_LABELS);
	assert_int_equal(score->series_count, SCORE_SERIES);
	assert_string_equal(score->labels[score->series[SCORE_SERIES - 1].label], "other");
	assert_string_equal(score->series[SCORE_SERIES - 1].callback, "other");
	for (unsigned i = 0; i < score->series_count; i++)
		sum += total(&score->series[i].time);
	assert_int_equal(sum, 300 * 100);
	scorer_free(s);
	scoreboard_free(board);
}

/* A long turn is remembered for ten seconds at least and twenty at most; one that still runs is seen. */
static void test_lag(void **state)
{
	struct scoreboard *board = scoreboard_new(1);
	struct score *score = board->scores;
	struct scorer *s = scorer_new(score);
	uint64_t now = 1000 * (uint64_t)SECOND;

	(void)state;
	assert_int_equal(score_lag(score, now), 0);
	scorer_turn(s, now, 5000);
	scorer_turn(s, now + SECOND, 100);
	assert_int_equal(score_lag(score, now + SECOND), 5000);
	scorer_turn(s, now + 11 * (uint64_t)SECOND, 100);
	assert_int_equal(score_lag(score, now + 11 * (uint64_t)SECOND), 5000);
	scorer_turn(s, now + 22 * (uint64_t)SECOND, 300);
	assert_int_equal(score_lag(score, now + 22 * (uint64_t)SECOND), 300);
	assert_int_equal(score_lag(score, now + 60 * (uint64_t)SECOND), 0);
	score->turn_began_ns = now + 60 * (uint64_t)SECOND;
	assert_int_equal(score_lag(score, now + 63 * (uint64_t)SECOND), 3 * (uint64_t)SECOND);
	assert_int_equal(total(&score->turns), 4);
	scorer_free(s);
	assert_int_equal(score->turn_began_ns, 0);
	scoreboard_free(board);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_survives),
		cmocka_unit_test(test_series),
		cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_lag),
	};

	return cmocka_run_group_tests_name("scoreboard", tests, NULL, NULL);
}
