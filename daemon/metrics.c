/*
 * Metrics: see metrics.h. What processes can add up is added up; what says something about one alone has a label "process". A histogram is
 * added up too, over the processes that have a series of its names.
 */
#include "metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log_line.h"
#include "mem.h"

/* A series of all processes on its way out. */
struct sum {
	const char *label, *callback;
	struct histogram time;
};

/* Says what follows. */
static void head(FILE *to, const char *name, const char *type, const char *help)
{
	fprintf(to, "# HELP reactord_%s %s\n# TYPE reactord_%s %s\n", name, help, name, type);
}

/* The rows of the table of counters. */
static void write_stats(FILE *to, const struct scoreboard *board)
{
	for (size_t i = 0; i < stats_row_count; i++) {
		const struct stats_row *row = &stats_rows[i];
		char *name = mem_printf("%s%s", row->name, row->gauge ? "" : "_total");
		head(to, name, row->gauge ? "gauge" : "counter", row->help);
		fprintf(to, "reactord_%s %llu\n", name, (unsigned long long)scoreboard_total(board, row));
		free(name);
	}
}

/* What one process says, as a number. */
typedef double process_value(const struct score *score, uint64_t now_ns);

static double value_start(const struct score *score, uint64_t now_ns)
{
	(void)now_ns;
	return (double)score->started_s;
}

static double value_generation(const struct score *score, uint64_t now_ns)
{
	(void)now_ns;
	return (double)score->generation;
}

static double value_connections(const struct score *score, uint64_t now_ns)
{
	(void)now_ns;
	return (double)score->stats.connections;
}

static double value_lag(const struct score *score, uint64_t now_ns)
{
	return (double)score_lag(score, now_ns) / 1e9;
}

static const struct {
	const char *name, *help;
	process_value *value;
} process_rows[] = {
	{"process_start_time_seconds", "when the process began, since 1970", value_start},
	{"process_generation", "generation of handlers that serves new connections", value_generation},
	{"process_connections", "connections open now", value_connections},
	{"loop_lag_seconds", "longest turn of the loop in the last 10 to 20 seconds, or the one that runs", value_lag},
};

/* What each process says of itself. */
static void write_processes(FILE *to, const struct scoreboard *board, uint64_t now_ns)
{
	for (size_t i = 0; i < sizeof process_rows / sizeof *process_rows; i++) {
		head(to, process_rows[i].name, "gauge", process_rows[i].help);
		for (size_t p = 0; p < board->count; p++)
			if (board->scores[p].pid)
				fprintf(to, "reactord_%s{process=\"%zu\"} %.10g\n", process_rows[i].name, p + 1,
				        process_rows[i].value(&board->scores[p], now_ns));
	}
}

/* A label's text as the format wants it. A reader refuses all metrics for a byte that is not UTF-8: it is spelled out. */
static void write_escaped(FILE *to, const char *text)
{
	for (size_t length; *text; text += length ? length : 1) {
		length = log_line_utf8(text);
		if (!length)
			fprintf(to, "\\\\x%02x", (unsigned char)*text);
		else if (*text == '\n')
			fputs("\\n", to);
		else
			fprintf(to, "%s%.*s", *text == '"' || *text == '\\' ? "\\" : "", (int)length, text);
	}
}

/* Adds one histogram to another. The sum is read first: a time that is counted meanwhile is in the buckets at most. */
static void add(struct histogram *to, const struct histogram *from)
{
	to->sum_ns += from->sum_ns;
	for (size_t i = 0; i <= SCORE_BUCKETS; i++)
		to->buckets[i] += from->buckets[i];
}

/* Names of a series in braces; more is set where a bucket's limit follows. */
static void write_labels(FILE *to, const struct sum *s, bool more)
{
	if (!s->label && !more)
		return;
	fputc('{', to);
	if (s->label) {
		fputs("listener=\"", to);
		write_escaped(to, s->label);
		fputs("\",callback=\"", to);
		write_escaped(to, s->callback);
		fputs(more ? "\"," : "\"}", to);
	}
}

/* One histogram; without a label it has no names. */
static void write_histogram(FILE *to, const char *name, const struct sum *s)
{
	uint64_t count = 0;

	for (size_t i = 0; i <= SCORE_BUCKETS; i++) {
		count += s->time.buckets[i];
		fprintf(to, "reactord_%s_bucket", name);
		write_labels(to, s, true);
		if (i < SCORE_BUCKETS)
			fprintf(to, "le=\"%g\"} %llu\n", (double)score_limits_ns[i] / 1e9, (unsigned long long)count);
		else
			fprintf(to, "le=\"+Inf\"} %llu\n", (unsigned long long)count);
	}
	fprintf(to, "reactord_%s_sum", name);
	write_labels(to, s, false);
	fprintf(to, " %.9f\nreactord_%s_count", (double)s->time.sum_ns / 1e9, name);
	write_labels(to, s, false);
	fprintf(to, " %llu\n", (unsigned long long)count);
}

/* Orders series by their names. */
static int compare(const void *a, const void *b)
{
	const struct sum *x = a, *y = b;
	int order = strcmp(x->label, y->label);

	return order ? order : strcmp(x->callback, y->callback);
}

/* Times of callbacks, equal names of all processes together. */
static void write_callbacks(FILE *to, const struct scoreboard *board)
{
	struct sum *sums = mem_zalloc((board->count * SCORE_SERIES + 1) * sizeof *sums);
	size_t count = 0;

	for (size_t p = 0; p < board->count; p++) {
		const struct score *score = &board->scores[p];
		unsigned n = __atomic_load_n(&score->series_count, __ATOMIC_ACQUIRE);
		for (unsigned i = 0; i < n; i++) {
			const struct series *s = &score->series[i];
			sums[count++] = (struct sum){.label = score->labels[s->label], .callback = s->callback, .time = s->time};
		}
	}
	qsort(sums, count, sizeof *sums, compare);
	head(to, "callback_seconds", "histogram", "time in callbacks of scripts, by the listener or connect block and the callback");
	for (size_t i = 0; i < count; i++) {
		if (i + 1 < count && compare(&sums[i], &sums[i + 1]) == 0)
			add(&sums[i + 1].time, &sums[i].time);
		else
			write_histogram(to, "callback_seconds", &sums[i]);
	}
	free(sums);
}

/* Times of the loop. */
static void write_loop(FILE *to, const struct scoreboard *board)
{
	struct sum turns = {0}, timers = {0};

	for (size_t p = 0; p < board->count; p++) {
		add(&turns.time, &board->scores[p].turns);
		add(&timers.time, &board->scores[p].timers);
	}
	head(to, "loop_turn_seconds", "histogram", "time from the end of waiting for events to the next");
	write_histogram(to, "loop_turn_seconds", &turns);
	head(to, "timer_lateness_seconds", "histogram", "how late timers fire");
	write_histogram(to, "timer_lateness_seconds", &timers);
}

/* The whole text. */
char *metrics_text(const struct scoreboard *board, uint64_t now_ns)
{
	char *text = NULL;
	size_t size = 0;
	FILE *to = open_memstream(&text, &size);

	if (!to)
		mem_exhausted();
	head(to, "build_info", "gauge", "the program; always 1");
	fprintf(to, "reactord_build_info{version=\"%s\"} 1\n", VERSION);
	head(to, "processes", "gauge", "reactor processes");
	fprintf(to, "reactord_processes %zu\n", board->count);
	write_stats(to, board);
	write_processes(to, board, now_ns);
	write_loop(to, board);
	write_callbacks(to, board);
	if (fclose(to) != 0)
		mem_exhausted();
	return text;
}
