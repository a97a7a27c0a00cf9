/*
 * Configuration files as plain data: what is read, what is refused with which words, and what a hostile file can take.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "confread.h"

static const char *const options[] = {"user", "handlers", "log", "pid_file", "memory_limit", NULL};
static const char *const blocks[] = {"listen", "connect", NULL};
static const struct confread_names names = {options, blocks};

/* Reads a text as test.conf. */
static bool read_text(struct confread *c, const char *text, struct problems *p)
{
	return confread_text(c, "test.conf", text, strlen(text), &names, p);
}

/* The item of an option or of a block's name. */
static const struct confread_item *item(const struct confread *c, const char *name)
{
	for (size_t i = 0; i < c->count; i++)
		if (strcmp(c->items[i].name, name) == 0)
			return &c->items[i];
	fail_msg("no item %s", name);
	return NULL;
}

/* The line of a field. */
static int line_of(const struct confread_item *it, const char *key)
{
	for (size_t i = 0; i < it->value.table.count; i++)
		if (it->value.table.fields[i].key.kind == VALUE_STRING && strcmp(it->value.table.fields[i].key.string.bytes, key) == 0)
			return it->lines[i];
	return -1;
}

/* Options, blocks, Lua around them, and where everything stands. */
static void options_and_blocks_are_read(void **state)
{
	static const char text[] = "-- user = 'comment'\n"
							   "--[==[ user = 1\n"
							   "listen 'x' {} ]==]\n"
							   "handlers = {\n"
							   "  \"a\", 'b',\n"
							   "}\n"
							   "local port = 8000\n"
							   "for i = 1, 2 do listen('tcp://h:' .. port + i) { handler = 'e' .. i } end\n"
							   "listen \"tcp://h:1\" {\n"
							   "  args = { 1, 2.5, true, x = { 'handler = 1' } }, -- backlog = 3\n"
							   "  ['backlog'] = 5, handler\n"
							   "  = 'echo',\n"
							   "  note = [[\n"
							   "  mode = 1\n"
							   "  ]],\n"
							   "  mode = 2 == 2 }\n"
							   "pid_file = [[/run/x]]\n"
							   "user = pid_file .. '1'\n"
							   "connect('tcp://h:2', { handler = nil })\n";
	struct problems p = {0};
	struct confread c;
	const struct confread_item *it;

	(void)state;
	if (!read_text(&c, text, &p))
		fail_msg("%s", p.lines[0]);
	assert_int_equal(c.count, 7);
	it = item(&c, "handlers");
	assert_int_equal(it->line, 4);
	assert_int_equal(it->value.table.count, 2);
	assert_string_equal(it->value.table.fields[1].value.string.bytes, "b");
	assert_string_equal(value_get(&item(&c, "tcp://h:8002")->value, "handler")->string.bytes, "e2");
	assert_int_equal(item(&c, "tcp://h:8002")->line, 8);
	it = item(&c, "tcp://h:1");
	assert_string_equal(it->block, "listen");
	assert_string_equal(it->file, "test.conf");
	assert_int_equal(it->line, 9);
	assert_int_equal(line_of(it, "args"), 10);
	assert_int_equal(line_of(it, "backlog"), 11);
	assert_int_equal(line_of(it, "handler"), 11);
	assert_int_equal(line_of(it, "mode"), 16);
	assert_int_equal(value_get(&it->value, "args")->table.count, 4);
	assert_string_equal(item(&c, "user")->value.string.bytes, "/run/x1");
	assert_int_equal(item(&c, "user")->line, 18);
	assert_int_equal(item(&c, "tcp://h:2")->value.kind, VALUE_TABLE);
	confread_clear(&c);
	problems_clear(&p);
}

/* Each mistake with its message; several at once where the file goes on. */
static void mistakes_are_explained(void **state)
{
	static const struct {
		const char *text, *message, *second;
	} bad[] = {
		{"user = \n}", "test.conf:2: unexpected symbol near '}'", NULL},
		{"user = 'x", "test.conf:1: unfinished string near <eof>", NULL},
		{"\x1bLua", "test.conf: attempt to load a binary chunk (mode is 't')", NULL},
		{"\n\nlistn 'x' {}", "test.conf:3: unknown block 'listn' (did you mean 'listen'?)", NULL},
		{"listn 'x' {}\nconect 'y' {}", "test.conf:1: unknown block 'listn' (did you mean 'listen'?)",
	     "test.conf:2: unknown block 'conect' (did you mean 'connect'?)"},
		{"include_ 'x'", "test.conf:1: unknown block 'include_' (did you mean 'include'?)", NULL},
		{"print 'x'", "test.conf:1: unknown block 'print'", NULL},
		{"user = os.getenv('HOME')", "test.conf:1: unknown name 'os'", NULL},
		{"user = nme", "test.conf:1: unknown name 'nme'", NULL},
		{"user = (pid_fil .. 'x') + 1", "test.conf:1: unknown name 'pid_fil' (did you mean 'pid_file'?)", NULL},
		{"user 'x'", "test.conf:1: 'user' is an option: write user = …", NULL},
		{"pid_file = user .. 'x'", "test.conf:1: 'user' is read before it is set", NULL},
		{"user = 1\nuser = 2", "test.conf:2: 'user' is set a second time: first at test.conf:1", NULL},
		{"listen = 1", "test.conf:1: 'listen' is no option: write listen \"…\" without '='", NULL},
		{"listen 'x'", "test.conf:1: listen \"x\" has no options table: write listen \"x\" { handler = \"…\" }", NULL},
		{"listen {}", "test.conf:1: listen takes a name first: write listen \"…\" { handler = \"…\" }", NULL},
		{"listen(5) {}", "test.conf:1: listen takes a name first", NULL},
		{"listen 'a\\0b' {}", "test.conf:1: listen takes a name first", NULL},
		{"listen 'x' 'y'", "test.conf:1: the options of listen \"x\" must be a table", NULL},
		{"local l = listen 'x' l{} l{}", "test.conf:1: listen \"x\" has two tables of options", NULL},
		{"listen 'x' { a = function() end }", "test.conf:1: 'a' in listen: a function is not plain data", NULL},
		{"listen 'x' { a = { b = { listen } } }", "test.conf:1: 'a' in listen: a function is not plain data", NULL},
		{"user = function() end", "test.conf:1: 'user': a function is not plain data", NULL},
		{"local t = {} t.t = t log = t", "test.conf:1: 'log': a table that contains itself is not plain data", NULL},
		{"local t = {} for i = 1, 40 do t = {t} end log = t", "test.conf:1: 'log': tables are nested more than 32 levels deep", NULL},
		{"log = { [{}] = 1 }", "test.conf:1: 'log': a key must be a text, a number or a boolean", NULL},
		{"while true do end", "test.conf:1: stopped: it runs for too long", NULL},
		{"local s = 'x' for i = 1, 20 do s = s .. s end local a, b = s .. 'a', s .. 'b' while a < b do end",
	     "test.conf:1: stopped: it runs for too long", NULL},
		{"local s = 'x' for i = 1, 20 do s = s .. s end for i = 1, 5 do local x = _ENV[s] end",
	     "test.conf:1: stopped: it has a name that is too long", NULL},
		{"local s = 'x' for i = 1, 20 do s = s .. s end _ENV[s] = 1", "test.conf:1: stopped: it has a name that is too long", NULL},
		{"local s = 'x' for i = 1, 20 do s = s .. s end listen(s) {}", "test.conf:1: stopped: it has a name that is too long", NULL},
		{"local s = 'x' for i = 1, 20 do s = s .. s end include(s)", "test.conf:1: stopped: it has a name that is too long", NULL},
		{"local s = 'x' while true do s = s .. s end", "test.conf: stopped: it needs too much memory", NULL},
		{"local t = {'x'} for i = 1, 31 do t = {t, t} end log = t", "test.conf:1: stopped: it has too much data", NULL},
		{"for i = 1, 1e6 do listen('x' .. i) {} end", "test.conf:1: stopped: it has too much data", NULL},
		{"local x = {} x.y.z = 1", "test.conf:1: attempt to index a nil value (field 'y')", NULL},
		{"error('x')", "test.conf:1: unknown block 'error'", NULL},
		{"local s = ('x'):rep(5)", "test.conf:1: attempt to index a string value", NULL},
		{"include 'nowhere.conf'", "test.conf:1: include \"nowhere.conf\": No such file or directory", NULL},
		{"include {}", "test.conf:1: include takes a file name or pattern", NULL},
		{"_ENV[1] = 2", "test.conf:1: an option has a name", NULL},
	};

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		struct problems p = {0};
		struct confread c;

		if (read_text(&c, bad[i].text, &p))
			fail_msg("passed: %s", bad[i].text);
		if (strncmp(p.lines[0], bad[i].message, strlen(bad[i].message)) != 0)
			fail_msg("%s\ngives    %s\ninstead of %s", bad[i].text, p.lines[0], bad[i].message);
		assert_int_equal(p.count, bad[i].second ? 2 : 1);
		if (bad[i].second)
			assert_string_equal(p.lines[1], bad[i].second);
		problems_clear(&p);
		confread_clear(&c);
	}
}

/* A file of mistakes without end comes to one. */
static void mistakes_are_bounded(void **state)
{
	struct problems p = {0};
	struct confread c;

	(void)state;
	assert_false(read_text(&c, "while true do local x = nothing end", &p));
	assert_true(p.count > 100 && p.count < 20000);
	assert_string_equal(p.lines[p.count - 1], "test.conf:1: stopped: there are too many mistakes");
	problems_clear(&p);
	confread_clear(&c);
}

/* Writes a file of the test's folder. */
static void write_file(const char *folder, const char *name, const char *text)
{
	char path[512];
	FILE *f;

	snprintf(path, sizeof path, "%s/%s", folder, name);
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

/* Includes: relative to their file, sorted, each with its name; limits hold across them. */
static void includes_are_read(void **state)
{
	char folder[] = "/tmp/confread-[x]-XXXXXX", path[512], expected[1024];
	struct problems p = {0};
	struct confread c;

	(void)state;
	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof path, "%s/conf.d", folder);
	assert_int_equal(mkdir(path, 0700), 0);
	write_file(folder, "main.conf", "include 'conf.d/*.conf'\ninclude 'none/*.conf'\nuser = 'x'\n");
	write_file(folder, "conf.d/2.conf", "listen 'b' {}\n");
	write_file(folder, "conf.d/1.conf", "\n\nlisten 'a' {}\ninclude '../more.inc'");
	write_file(folder, "more.inc", "\xef\xbb\xbflisten 'm' {}\n");
	snprintf(path, sizeof path, "%s/main.conf", folder);
	if (!confread_file(&c, path, &names, &p))
		fail_msg("%s", p.lines[0]);
	assert_int_equal(c.count, 4);
	assert_string_equal(c.items[0].name, "a");
	assert_int_equal(c.items[0].line, 3);
	assert_string_equal(c.items[1].name, "m");
	assert_string_equal(c.items[2].name, "b");
	snprintf(expected, sizeof expected, "%s/conf.d/2.conf", folder);
	assert_string_equal(c.items[2].file, expected);
	assert_string_equal(c.items[3].name, "user");
	confread_clear(&c);

	write_file(folder, "conf.d/1.conf", "user = 'y'\nlisten 'a'\n}");
	write_file(folder, "conf.d/2.conf", "user = 'y'\n");
	assert_false(confread_file(&c, path, &names, &p));
	assert_int_equal(p.count, 2);
	snprintf(expected, sizeof expected, "%s/conf.d/1.conf:3: unexpected symbol near '}'", folder);
	assert_true(strstr(p.lines[0], "1.conf:3: ") != NULL);
	snprintf(expected, sizeof expected, "%s:3: 'user' is set a second time: first at %s/conf.d/2.conf:1", path, folder);
	assert_string_equal(p.lines[1], expected);
	confread_clear(&c);
	problems_clear(&p);

	write_file(folder, "main.conf", "include 'main.conf'");
	assert_false(confread_file(&c, path, &names, &p));
	assert_int_equal(p.count, 1);
	assert_non_null(strstr(p.lines[0], "files include each other more than 8 deep"));
	confread_clear(&c);
	problems_clear(&p);

	write_file(folder, "main.conf", "include 'conf.d/1.conf' user = 'not reached'");
	write_file(folder, "conf.d/1.conf", "\nwhile true do end");
	assert_false(confread_file(&c, path, &names, &p));
	assert_int_equal(p.count, 1);
	assert_non_null(strstr(p.lines[0], "1.conf:2: stopped: it runs for too long"));
	assert_int_equal(c.count, 0);
	confread_clear(&c);
	problems_clear(&p);

	snprintf(expected, sizeof expected, "rm -r '%s'", folder);
	assert_int_equal(system(expected), 0);
}

/* What is no file is said to be none. */
static void files_must_be_readable(void **state)
{
	struct problems p = {0};
	struct confread c;

	(void)state;
	assert_false(confread_file(&c, "/nowhere/x.conf", &names, &p));
	assert_string_equal(p.lines[0], "/nowhere/x.conf: No such file or directory");
	confread_clear(&c);
	assert_false(confread_file(&c, "/tmp", &names, &p));
	assert_string_equal(p.lines[1], "/tmp: Is a directory");
	confread_clear(&c);
	assert_false(confread_file(&c, "/dev/zero", &names, &p));
	assert_string_equal(p.lines[2], "/dev/zero: File too large");
	confread_clear(&c);
	problems_clear(&p);
}

/* Relative paths are relative to the folder of their file. */
static void paths_are_relative_to_the_file(void **state)
{
	static const char *const cases[][3] = {
		{"/etc/r/x.conf", "a", "/etc/r/a"},
		{"/etc/r/x.conf", "/a", "/a"},
		{"x.conf", "a/b", "a/b"},
		{"c/x.conf", "../h", "c/../h"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		char *path = confread_resolve(cases[i][0], cases[i][1]);

		assert_string_equal(path, cases[i][2]);
		free(path);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(options_and_blocks_are_read), cmocka_unit_test(mistakes_are_explained),
		cmocka_unit_test(mistakes_are_bounded),        cmocka_unit_test(includes_are_read),
		cmocka_unit_test(files_must_be_readable),      cmocka_unit_test(paths_are_relative_to_the_file),
	};

	return cmocka_run_group_tests_name("confread", tests, NULL, NULL);
}
