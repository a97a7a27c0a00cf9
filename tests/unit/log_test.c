/*
 * The log: one event a line in each format, whatever is in it, and a reader that does not read.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>
#include <cmocka.h>

#include "log.h"

static char path[] = "/tmp/log-XXXXXX";
static char text[1 << 20];

/* Starts a fresh log in a file. */
static void start(enum log_level level, enum log_format format)
{
	char *why = NULL;

	log_close(); /* the same path would be the same file to log_open */
	unlink(path);
	if (!log_open(level, format, path, &why))
		fail_msg("%s", why);
}

/* What has been logged. */
static const char *logged(void)
{
	FILE *f = fopen(path, "r");

	assert_non_null(f);
	text[fread(text, 1, sizeof text - 1, f)] = '\0';
	fclose(f);
	return text;
}

/* Time, level, message, fields; further lines begin with a tab, control characters are spelled out. */
static void text_has_one_event_a_line(void **state)
{
	struct log_context context = {.listener = "tcp://h:1", .peer = "1.2.3.4:5", .handler = "a\nb", .callback = "unbind", .connection = 7};
	struct tm tm;

	(void)state;
	start(LEVEL_INFO, FORMAT_AUTO);
	log_event(LEVEL_ERROR, &context, "first %d\nsecond\x1b[0m\r\n\tthird\n", 5);
	log_info("plain");
	log_debug("not this");
	assert_non_null(strptime(logged(), "%Y-%m-%dT%H:%M:%S", &tm));
	assert_int_equal(text[19], '.');
	assert_ptr_equal(strstr(text, "Z error first 5 [listener=tcp://h:1 peer=1.2.3.4:5 handler=a\\nb callback=unbind connection=7]"),
	                 text + 23);
	assert_non_null(strstr(text, "=7]\n\tsecond\\x1b[0m\\x0d\n\t\tthird\n2"));
	assert_non_null(strstr(text, "Z info plain\n"));
	assert_null(strstr(text, "not this"));
}

/* Every line has its priority, since the journal takes lines. */
static void the_journal_gets_priorities(void **state)
{
	(void)state;
	start(LEVEL_DEBUG, FORMAT_JOURNAL);
	log_error("a\nb");
	log_warn("c");
	log_info("d");
	log_event(LEVEL_DEBUG, &(struct log_context){.source = "x.lua:1"}, "e");
	log_event(LEVEL_DEBUG, &(struct log_context){0}, "%s", "");
	assert_string_equal(logged(), "<3>a\n<3>b\n<4>c\n<6>d\n<7>e [source=x.lua:1]\n<7>\n");
}

/* What is no text, or would be heard by a terminal, is spelled out; text is not. */
static void other_bytes_are_spelled_out(void **state)
{
	(void)state;
	start(LEVEL_INFO, FORMAT_JOURNAL);
	log_info("h\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \xc2\xa0");
	log_info("\xff \xc2\x9b"
	         "2J \xc0\x80 \xe2\x82\n\xe2\x82");
	assert_string_equal(logged(), "<6>h\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \xc2\xa0\n"
	                              "<6>\\xff \\xc2\\x9b2J \\xc0\\x80 \\xe2\\x82\n<6>\\xe2\\x82\n");
}

/* JSON that a parser takes, whatever bytes are in the message. */
static void json_stays_json(void **state)
{
	struct log_context context = {.peer = "\"\\", .connection = UINT32_MAX};
	static const char *const messages[][2] = {
		{"plain", "plain"},
		{"line\nbreak\ttab \"quote\" \\", "line\nbreak\ttab \"quote\" \\"},
		{"\x01\x7f", "\x01\x7f"},
		{"h\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "h\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"},
		{"\xff\xc3", "\xef\xbf\xbd\xef\xbf\xbd"},
		{"\xc0\x80", "\xef\xbf\xbd\xef\xbf\xbd"},
		{"\xed\xa0\x80x", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdx"},
		{"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
		{"\xe0\x80", "\xef\xbf\xbd\xef\xbf\xbd"},
		{"\xf0\x9f\x98", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof messages / sizeof messages[0]; i++) {
		json_error_t error;
		json_t *json;

		start(LEVEL_INFO, FORMAT_JSON);
		log_event(LEVEL_WARN, &context, "%s", messages[i][0]);
		json = json_loads(logged(), 0, &error);
		if (!json)
			fail_msg("%s: %s", error.text, text);
		assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
		assert_string_equal(json_string_value(json_object_get(json, "message")), messages[i][1]);
		assert_string_equal(json_string_value(json_object_get(json, "level")), "warn");
		assert_string_equal(json_string_value(json_object_get(json, "peer")), "\"\\");
		assert_int_equal(json_integer_value(json_object_get(json, "connection")), UINT32_MAX);
		assert_int_equal(strlen(json_string_value(json_object_get(json, "time"))), 24);
		assert_null(json_object_get(json, "handler"));
		json_decref(json);
	}
}

/* A long message comes whole, and errno stays. */
static void long_messages_come_whole(void **state)
{
	char *message = malloc(300001);

	(void)state;
	memset(message, 'x', 300000);
	message[300000] = '\0';
	start(LEVEL_INFO, FORMAT_JOURNAL);
	errno = EXDEV;
	log_info("%s", message);
	assert_int_equal(errno, EXDEV);
	assert_int_equal(strlen(logged()), 300004);
	free(message);
}

/* After a rotation the next event is in the new file. */
static void reopening_follows_the_name(void **state)
{
	char moved[64], *why = NULL;

	(void)state;
	start(LEVEL_INFO, FORMAT_JOURNAL);
	log_info("old");
	snprintf(moved, sizeof moved, "%s.1", path);
	assert_int_equal(rename(path, moved), 0);
	log_info("still old");
	log_reopen();
	log_info("new");
	assert_string_equal(logged(), "<6>new\n");
	unlink(moved);
	assert_false(log_open(LEVEL_INFO, FORMAT_TEXT, "/nowhere/x.log", &why));
	assert_string_equal(why, "cannot open log file /nowhere/x.log: No such file or directory");
	free(why);
	log_info("goes on");
	assert_string_equal(logged(), "<6>new\n<6>goes on\n");
}

/* Names of levels, there and back. */
static void levels_have_names(void **state)
{
	enum log_level level;

	(void)state;
	for (int i = LEVEL_ERROR; i <= LEVEL_DEBUG; i++) {
		assert_true(log_level_parse(log_level_name((enum log_level)i), &level));
		assert_int_equal(level, i);
	}
	assert_false(log_level_parse("loud", &level));
	log_set_level(LEVEL_WARN);
	assert_int_equal(log_get_level(), LEVEL_WARN);
}

/* Standard error becomes a descriptor for one test; returns the old one. */
static int redirect(int fd)
{
	int saved = dup(STDERR_FILENO);
	char *why = NULL;

	dup2(fd, STDERR_FILENO);
	assert_true(log_open(LEVEL_INFO, FORMAT_JOURNAL, NULL, &why));
	return saved;
}

/* Fills a pipe or socket that nobody reads: logging goes on soon, what is lost is counted and told once somebody reads. */
static void check_stalled_reader(int reader, int writer)
{
	char message[3000], *got = malloc(4 << 20);
	struct timespec before, after;
	size_t length = 0;
	ssize_t n;
	int saved = redirect(writer);

	memset(message, 'x', sizeof message);
	message[sizeof message - 1] = '\0';
	clock_gettime(CLOCK_MONOTONIC, &before);
	for (int i = 0; i < 1000; i++)
		log_info("%s", message);
	clock_gettime(CLOCK_MONOTONIC, &after);
	fcntl(reader, F_SETFL, O_NONBLOCK);
	while ((n = read(reader, got, 4 << 20)) > 0)
		;
	log_info("again");
	while ((n = read(reader, got + length, (4 << 20) - length)) > 0)
		length += (size_t)n;
	got[length] = '\0';
	dup2(saved, STDERR_FILENO);
	close(saved);
	assert_true(after.tv_sec - before.tv_sec < 5);
	assert_non_null(strstr(got, " events were lost: they could not be written\n<6>again\n"));
	free(got);
}

static void nobody_reads_a_pipe(void **state)
{
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	check_stalled_reader(fds[0], fds[1]);
	close(fds[0]);
	close(fds[1]);
}

static void nobody_reads_a_socket(void **state)
{
	int fds[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	check_stalled_reader(fds[0], fds[1]);
	close(fds[0]);
	close(fds[1]);
}

/* A reader that is slow, but reads: it holds events up for a while only, not each of them. */
static void a_slow_reader_is_not_waited_for_each_time(void **state)
{
	int fds[2], saved;
	char message[4001];
	struct timespec before, after;

	(void)state;
	memset(message, 'x', sizeof message);
	message[sizeof message - 1] = '\0';
	assert_int_equal(pipe(fds), 0);
	pid_t reader = fork();
	if (reader == 0) {
		static char bytes[8192];
		close(fds[1]);
		while (read(fds[0], bytes, sizeof bytes) > 0)
			usleep(50000);
		_exit(0);
	}
	saved = redirect(fds[1]);
	clock_gettime(CLOCK_MONOTONIC, &before);
	for (int i = 0; i < 200; i++)
		log_info("%s", message);
	clock_gettime(CLOCK_MONOTONIC, &after);
	dup2(saved, STDERR_FILENO);
	close(saved);
	kill(reader, SIGKILL);
	waitpid(reader, NULL, 0);
	close(fds[0]);
	close(fds[1]);
	assert_true((double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) / 1e9 < 1.5);
}

/* "auto" is the journal where standard error is the one that JOURNAL_STREAM names, else text. */
static void auto_knows_the_journal(void **state)
{
	char name[64], *why = NULL;
	struct stat st;
	int fd, saved;

	(void)state;
	unlink(path);
	fd = open(path, O_RDWR | O_CREAT | O_APPEND, 0600);
	saved = redirect(fd);
	fstat(fd, &st);
	snprintf(name, sizeof name, "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
	setenv("JOURNAL_STREAM", name, 1);
	assert_true(log_open(LEVEL_INFO, FORMAT_AUTO, NULL, &why));
	log_info("a");
	setenv("JOURNAL_STREAM", "1:1", 1);
	assert_true(log_open(LEVEL_INFO, FORMAT_AUTO, NULL, &why));
	log_info("b");
	unsetenv("JOURNAL_STREAM");
	dup2(saved, STDERR_FILENO);
	close(saved);
	close(fd);
	assert_memory_equal(logged(), "<6>a\n20", 7);
	assert_non_null(strstr(text, "Z info b\n"));
}

/* Counts the wishes to be called in a second. */
static void on_wake(void *data)
{
	++*(int *)data;
}

/* Repeated events are counted, and told with what they are about; others are not held up. */
static void repeats_are_counted(void **state)
{
	struct log_context context = {.listener = "tcp://h:1", .peer = "1.2.3.4:5", .handler = "a", .source = "a.lua:1", .connection = 7};
	int wishes = 0;

	(void)state;
	start(LEVEL_INFO, FORMAT_AUTO);
	log_set_repeats(2);
	log_set_waker(on_wake, &wishes);
	for (int i = 0; i < 7; i++) {
		context.connection++;
		log_event(LEVEL_ERROR, &context, "first\nsecond");
		log_warn("other %d", i);
		log_event(i % 2 ? LEVEL_INFO : LEVEL_WARN, NULL, "level");
	}
	assert_null(strstr(logged(), "repeated"));
	assert_non_null(strstr(text, "other 6"));
	assert_int_equal(wishes, 1);
	log_tell_repeats();
	assert_non_null(strstr(logged(), "error message repeated 5 times: first [listener=tcp://h:1 handler=a source=a.lua:1]\n"));
	assert_non_null(strstr(text, "warn message repeated 2 times: level\n"));
	assert_non_null(strstr(text, "info message repeated 1 times: level\n"));
	log_tell_repeats();
	size_t length = strlen(logged());
	log_tell_repeats();
	assert_int_equal(strlen(logged()), length);

	/* kinds beyond those that are remembered push out old ones, whose counts are told then */
	for (int i = 0; i < 4; i++)
		log_info("kept");
	for (int i = 0; i < 100; i++)
		log_info("kind %d", i);
	assert_non_null(strstr(logged(), "info message repeated 2 times: kept\n"));
	assert_non_null(strstr(text, "kind 99\n"));

	/* a forked child tells nothing of its parent's */
	for (int i = 0; i < 4; i++)
		log_info("parent's");
	pid_t child = fork();
	if (child == 0) {
		log_tell_repeats();
		_exit(0);
	}
	waitpid(child, NULL, 0);
	assert_null(strstr(logged(), "times: parent's"));
	log_set_repeats(0);
	log_set_waker(NULL, NULL);
	log_tell_repeats();
	assert_non_null(strstr(logged(), "message repeated 2 times: parent's"));
}

/* A listener's own level goes before that of the log. */
static void contexts_have_levels(void **state)
{
	struct log_context context = {.level = 1 + LEVEL_DEBUG};

	(void)state;
	start(LEVEL_WARN, FORMAT_AUTO);
	log_event(LEVEL_DEBUG, &context, "told");
	context.level = 1 + LEVEL_ERROR;
	log_event(LEVEL_WARN, &context, "hidden");
	context.level = 0;
	log_event(LEVEL_INFO, &context, "hidden");
	assert_non_null(strstr(logged(), "debug told\n"));
	assert_null(strstr(text, "hidden"));
}

/* A name of its own for the file. */
static int set_up(void **state)
{
	int fd = mkstemp(path);

	(void)state;
	return fd < 0 ? -1 : close(fd);
}

/* Leaves nothing behind. */
static int tear_down(void **state)
{
	(void)state;
	log_close();
	return unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(text_has_one_event_a_line),
		cmocka_unit_test(the_journal_gets_priorities),
		cmocka_unit_test(other_bytes_are_spelled_out),
		cmocka_unit_test(json_stays_json),
		cmocka_unit_test(long_messages_come_whole),
		cmocka_unit_test(reopening_follows_the_name),
		cmocka_unit_test(levels_have_names),
		cmocka_unit_test(nobody_reads_a_pipe),
		cmocka_unit_test(a_slow_reader_is_not_waited_for_each_time),
		cmocka_unit_test(nobody_reads_a_socket),
		cmocka_unit_test(auto_knows_the_journal),
		cmocka_unit_test(repeats_are_counted),
		cmocka_unit_test(contexts_have_levels),
	};

	return cmocka_run_group_tests_name("log", tests, set_up, tear_down);
}
