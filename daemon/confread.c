/*
 * Reads a configuration file, which is Lua, as plain data. The file runs in a Lua state of its own that has no libraries and whose
 * globals are caught: assigning one sets an option, calling one collects a block. An unknown name yields a stand-in that takes part
 * in anything, so that reading goes on and all mistakes come out at once.
 */
#include "confread.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "confread_lines.h"
#include "confread_value.h"
#include "mem.h"

#define MEMORY_LIMIT (16u << 20)
#define TRAFFIC_LIMIT (1u << 30) /* bytes allocated in all: bounds copying, which no count of instructions shows */
#define INSTRUCTION_LIMIT 10000000
#define INSTRUCTION_STEP 100 /* the limits are looked at this often */
#define CPU_LIMIT 5          /* seconds: an instruction that compares long texts takes long */
#define MISTAKE_LIMIT 1000
#define NAME_LIMIT 4096        /* bytes of a name, pattern or the like, which messages repeat */
#define DATA_LIMIT (16u << 20) /* bytes of what is collected */
#define ITEM_COST 1024         /* of which an option or block counts as so many, which bounds their number */
#define FILE_LIMIT (1u << 20)
#define INCLUDE_LIMIT 8

/* One reading of a file and all that it includes. */
struct reader {
	struct confread *out;
	const struct confread_names *names;
	struct problems *problems;
	const char *file; /* the one being read */
	int depth;        /* of includes */
	size_t memory, traffic, instructions, room;
	clock_t began;              /* of the process's own time */
	bool stopped;               /* a limit was met: nothing further is read */
	bool reported;              /* and a problem says so */
	const char *block, *option; /* whose value is being read, for messages: one of them, the other is NULL */
	struct value_reader values;
};

/* What an unknown name yields. */
struct stand_in {
	size_t problem; /* which problem tells of it */
	bool settled;   /* the problem is worded as it will stay */
};

/* The reader of a state. */
static struct reader *reader_of(lua_State *L)
{
	return *(struct reader **)lua_getextraspace(L);
}

/* The allocator of the state: counts, and refuses over the limits. */
static void *allocate(void *context, void *old, size_t old_size, size_t size)
{
	struct reader *r = context;
	void *block;

	if (!old)
		old_size = 0;
	if (size == 0) {
		free(old);
		r->memory -= old_size;
		return NULL;
	}
	if (size > old_size && (size > MEMORY_LIMIT || r->memory - old_size + size > MEMORY_LIMIT || r->traffic + size > TRAFFIC_LIMIT))
		return NULL;
	block = realloc(old, size);
	if (!block)
		return NULL;
	r->memory += size - old_size;
	r->traffic += size;
	return block;
}

/* The line that is being run at a level of the stack: 0 in a hook, 1 in a C function that the file called. 0 if unknown. */
static int line_at(lua_State *L, int level)
{
	lua_Debug ar;

	if (!lua_getstack(L, level, &ar) || !lua_getinfo(L, "l", &ar) || ar.currentline < 0)
		return 0;
	return ar.currentline;
}

/* The line of the file from which the running C function was called. */
static int line_of(lua_State *L)
{
	return line_at(L, 1);
}

/* Ends the reading of everything. */
static void stop(lua_State *L, int line, const char *why)
{
	reader_of(L)->stopped = true;
	lua_pushfstring(L, ":%d: stopped: %s", line, why);
	lua_error(L);
}

/* Looks at the limits from time to time. */
static void on_count(lua_State *L, lua_Debug *ar)
{
	struct reader *r = reader_of(L);

	(void)ar;
	r->instructions += INSTRUCTION_STEP;
	if (r->instructions >= INSTRUCTION_LIMIT || clock() - r->began > CPU_LIMIT * CLOCKS_PER_SEC)
		stop(L, line_at(L, 0), "it runs for too long");
	if (r->problems->count > MISTAKE_LIMIT)
		stop(L, line_at(L, 0), "there are too many mistakes");
}

/* More was collected than there is room for. */
static void on_full(lua_State *L)
{
	stop(L, line_of(L), "it has too much data");
}

/* Ends the reading if the text at index is longer than any that makes sense. */
static void check_length(lua_State *L, int index)
{
	if (lua_type(L, index) == LUA_TSTRING && lua_rawlen(L, index) > NAME_LIMIT)
		stop(L, line_of(L), "it has a name that is too long");
}

/* Whether a list has a name. */
static bool listed(const char *const *list, const char *name)
{
	for (; *list; list++)
		if (strcmp(*list, name) == 0)
			return true;
	return false;
}

/* The nearest known name in words. */
static const char *suggest(const struct reader *r, const char *name, char text[SUGGESTION_SIZE])
{
	struct suggestion s = {.wanted = name};

	for (const char *const *p = r->names->options; *p; p++)
		suggestion_consider(&s, *p);
	for (const char *const *p = r->names->blocks; *p; p++)
		suggestion_consider(&s, *p);
	suggestion_consider(&s, "include");
	return suggestion_text(&s, text);
}

/* Reports what is no plain data in the value of an option or the table of a block. */
static void on_mistake(lua_State *L, const char *key, const char *why)
{
	struct reader *r = reader_of(L);

	if (r->block && key)
		problems_add_at(r->problems, r->file, line_of(L), "'%s' in %s: %s", key, r->block, why);
	else
		problems_add_at(r->problems, r->file, line_of(L), "'%s': %s", r->block ? r->block : r->option, why);
}

/* --- names ----------------------------------------------------------------------------------------------------------- */

/* Pushes a stand-in for what the newest problem tells of. */
static int push_stand_in(lua_State *L, bool settled)
{
	struct stand_in *s = lua_newuserdatauv(L, sizeof *s, 1);

	*s = (struct stand_in){.problem = reader_of(L)->problems->count - 1, .settled = settled};
	luaL_setmetatable(L, "stand-in");
	return 1;
}

/* Takes part in anything: a stand-in is the result of any operation with one. What it stands for is no block then. */
static int l_stand_in_any(lua_State *L)
{
	int index = lua_type(L, 1) == LUA_TUSERDATA ? 1 : 2;
	struct stand_in *s = lua_touserdata(L, index);

	s->settled = true;
	lua_pushvalue(L, index);
	return 1;
}

/* A stand-in is called: so it was meant as a block. Words its problem anew. */
static int l_stand_in_call(lua_State *L)
{
	struct stand_in *s = lua_touserdata(L, 1);
	struct reader *r = reader_of(L);
	char near[SUGGESTION_SIZE];

	if (!s->settled && lua_getiuservalue(L, 1, 1) == LUA_TSTRING) {
		const char *name = lua_tostring(L, -1);
		struct problems again = {0};

		if (listed(r->names->options, name))
			problems_add_at(&again, r->file, line_of(L), "'%s' is an option: write %s = …", name, name);
		else
			problems_add_at(&again, r->file, line_of(L), "unknown block '%s'%s", name, suggest(r, name, near));
		free(r->problems->lines[s->problem]);
		r->problems->lines[s->problem] = again.lines[0];
		free(again.lines);
		s->settled = true;
	}
	lua_settop(L, 1);
	return 1;
}

/* Appends an item; it stays where it is until the next one is added. */
static struct confread_item *add_item(lua_State *L, const char *block, const char *name)
{
	struct reader *r = reader_of(L);
	struct confread *out = r->out;
	struct confread_item *item;

	value_charge(&r->values, L, ITEM_COST + strlen(name));
	if ((out->count & (out->count - 1)) == 0)
		out->items = mem_realloc(out->items, (out->count > 0 ? out->count * 2 : 1) * sizeof *out->items);
	item = &out->items[out->count++];
	*item = (struct confread_item){.block = block, .name = mem_strdup(name), .file = r->file, .line = line_of(L)};
	return item;
}

/* The table of a block, the second call in: listen "url" { … }. Upvalue 1 is the item's index. */
static int l_block_table(lua_State *L)
{
	struct reader *r = reader_of(L);
	struct confread_item *item = &r->out->items[lua_tointeger(L, lua_upvalueindex(1))];

	if (item->complete) {
		problems_add_at(r->problems, r->file, line_of(L), "%s \"%s\" has two tables of options", item->block, item->name);
		return 0;
	}
	item->complete = true; /* also if it is wrong: one message is enough */
	r->block = item->block;
	if (lua_type(L, 1) == LUA_TTABLE)
		value_read(&r->values, L, 1, &item->value);
	else if (lua_type(L, 1) != LUA_TUSERDATA)
		problems_add_at(r->problems, r->file, line_of(L), "the options of %s \"%s\" must be a table: { handler = \"…\" }", item->block,
		                item->name);
	return 0;
}

/* The name of a block, the first call in: listen "url" { … }. Upvalue 1 is the block's word. */
static int l_block(lua_State *L)
{
	struct reader *r = reader_of(L);
	const char *block = lua_touserdata(L, lua_upvalueindex(1));

	lua_settop(L, 2);
	check_length(L, 1);
	if (lua_type(L, 1) != LUA_TSTRING || strlen(lua_tostring(L, 1)) != lua_rawlen(L, 1)) {
		if (lua_type(L, 1) == LUA_TUSERDATA) {
			lua_settop(L, 1);
			return 1;
		}
		problems_add_at(r->problems, r->file, line_of(L), "%s takes a name first: write %s \"…\" { handler = \"…\" }", block, block);
		return push_stand_in(L, true);
	}
	add_item(L, block, lua_tostring(L, 1));
	lua_pushinteger(L, (lua_Integer)r->out->count - 1);
	lua_pushcclosure(L, l_block_table, 1);
	if (!lua_isnil(L, 2)) { /* listen("url", { … }) is fine as well */
		lua_pushvalue(L, 2);
		lua_call(L, 1, 0);
		return 0;
	}
	return 1;
}

static void run_file(lua_State *L, const char *path);

/* The pattern of an include as glob takes it: relative to the file, in whose own path no character is special. */
static char *glob_pattern(const char *file, const char *pattern)
{
	char *literal = mem_alloc(strlen(file) * 2 + 1), *p = literal, *whole;

	for (; *file; *p++ = *file++)
		if (strchr("*?[]\\", *file))
			*p++ = '\\';
	*p = '\0';
	whole = confread_resolve(literal, pattern);
	free(literal);
	return whole;
}

/* include "conf.d/x.conf": reads the files that a pattern matches, in the order of their names. */
static int l_include(lua_State *L)
{
	struct reader *r = reader_of(L);
	const char *pattern = lua_tostring(L, 1);
	glob_t found = {0};
	char *path;

	check_length(L, 1);
	if (lua_type(L, 1) == LUA_TUSERDATA)
		return 0;
	if (lua_type(L, 1) != LUA_TSTRING) {
		problems_add_at(r->problems, r->file, line_of(L), "include takes a file name or pattern: include \"conf.d/*.conf\"");
		return 0;
	}
	if (r->depth >= INCLUDE_LIMIT) {
		problems_add_at(r->problems, r->file, line_of(L), "include \"%s\": files include each other more than %d deep", pattern,
		                INCLUDE_LIMIT);
		return 0;
	}
	if (strpbrk(pattern, "*?[")) {
		path = glob_pattern(r->file, pattern);
		if (glob(path, 0, NULL, &found) == 0)
			for (size_t i = 0; i < found.gl_pathc && !r->stopped; i++)
				run_file(L, found.gl_pathv[i]);
		globfree(&found);
	} else {
		path = confread_resolve(r->file, pattern);
		if (access(path, R_OK) == 0)
			run_file(L, path);
		else
			problems_add_at(r->problems, r->file, line_of(L), "include \"%s\": %s", pattern, strerror(errno));
	}
	free(path);
	lua_settop(L, 0);
	return r->stopped ? luaL_error(L, "stopped") : 0;
}

/* A global that is not set is read: a block, an option's value so far, or a mistake. Upvalue 1 has the options' values. */
static int l_read_name(lua_State *L)
{
	struct reader *r = reader_of(L);
	const char *name = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?";
	char near[SUGGESTION_SIZE];

	check_length(L, 2);
	lua_pushvalue(L, 2);
	if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL)
		return 1;
	if (listed(r->names->options, name))
		problems_add_at(r->problems, r->file, line_of(L), "'%s' is read before it is set", name);
	else
		problems_add_at(r->problems, r->file, line_of(L), "unknown name '%s'%s", name, suggest(r, name, near));
	push_stand_in(L, false);
	lua_pushvalue(L, 2);
	lua_setiuservalue(L, -2, 1);
	return 1;
}

/* A global is assigned: an option. Upvalue 1 has the options' values. */
static int l_set_name(lua_State *L)
{
	struct reader *r = reader_of(L);
	struct confread_item *item;
	const char *name;

	if (lua_type(L, 2) != LUA_TSTRING) {
		problems_add_at(r->problems, r->file, line_of(L), "an option has a name, not a number or such");
		return 0;
	}
	check_length(L, 2);
	name = lua_tostring(L, 2);
	if (listed(r->names->blocks, name) || strcmp(name, "include") == 0) {
		problems_add_at(r->problems, r->file, line_of(L), "'%s' is no option: write %s \"…\" without '='", name, name);
		return 0;
	}
	for (size_t i = 0; i < r->out->count; i++) {
		item = &r->out->items[i];
		if (!item->block && strcmp(item->name, name) == 0) {
			problems_add_at(r->problems, r->file, line_of(L), "'%s' is set a second time: first at %s:%d", name, item->file, item->line);
			return 0;
		}
	}
	lua_pushvalue(L, 2);
	lua_pushvalue(L, 3);
	lua_rawset(L, lua_upvalueindex(1));
	if (lua_isnil(L, 3))
		return 0; /* as if it were not there */
	item = add_item(L, NULL, name);
	item->complete = true;
	r->block = NULL;
	r->option = item->name;
	value_read(&r->values, L, 3, &item->value);
	return 0;
}

/* Fills in the state: what stand-ins do, and a table of globals that holds nothing and so sees every access. */
static int l_open(lua_State *L)
{
	static const char *const operations[] = {"__index", "__concat", "__add", "__sub", "__mul", "__div", "__idiv",
	                                         "__mod",   "__pow",    "__unm", "__len", "__lt",  "__le",  "__band",
	                                         "__bor",   "__bxor",   "__shl", "__shr", "__bnot"};
	struct reader *r = reader_of(L);

	luaL_newmetatable(L, "stand-in");
	for (size_t i = 0; i < sizeof operations / sizeof operations[0]; i++) {
		lua_pushcfunction(L, l_stand_in_any);
		lua_setfield(L, -2, operations[i]);
	}
	lua_pushcfunction(L, l_stand_in_call);
	lua_setfield(L, -2, "__call");

	lua_pushglobaltable(L);
	lua_newtable(L); /* its metatable */
	lua_newtable(L); /* what its options and blocks are */
	for (const char *const *p = r->names->blocks; *p; p++) {
		lua_pushlightuserdata(L, (void *)(uintptr_t)*p);
		lua_pushcclosure(L, l_block, 1);
		lua_setfield(L, -2, *p);
	}
	lua_pushcfunction(L, l_include);
	lua_setfield(L, -2, "include");
	lua_pushvalue(L, -1);
	lua_pushcclosure(L, l_read_name, 1);
	lua_setfield(L, -3, "__index");
	lua_pushcclosure(L, l_set_name, 1);
	lua_setfield(L, -2, "__newindex");
	lua_setmetatable(L, -2);
	return 0;
}

/* --- files ----------------------------------------------------------------------------------------------------------- */

/* Reports why a file was not read to its end. Lua's messages begin with ":LINE: ", as the chunk's name is empty. */
static void report_failure(lua_State *L, int status)
{
	struct reader *r = reader_of(L);
	const char *message = lua_tostring(L, -1);

	if (r->reported)
		return;
	if (status == LUA_ERRMEM) {
		r->stopped = true;
		message = "stopped: it needs too much memory";
	}
	r->reported = r->stopped;
	if (!message)
		message = "an error without a message";
	problems_add(r->problems, "%s:%s%s", r->file, *message == ':' ? "" : " ", *message == ':' ? message + 1 : message);
}

/* Finds the lines of the options and blocks that a file has, from its text. */
static void find_lines(struct reader *r, const char *text, size_t length)
{
	struct confread *out = r->out;
	struct source_lines *lines = source_lines_new(text, length);

	for (size_t i = 0; i < out->count; i++)
		if (out->items[i].file == r->file && !out->items[i].block) /* Lua counts an assignment where it ends */
			out->items[i].line = source_lines_find_before(lines, out->items[i].name, out->items[i].line);
	for (size_t i = 0; i < out->count; i++) {
		struct confread_item *item = &out->items[i];
		int end = INT32_MAX;

		if (item->file != r->file || item->value.kind != VALUE_TABLE)
			continue;
		for (size_t j = 0; j < out->count; j++)
			if (out->items[j].file == r->file && out->items[j].line > item->line && out->items[j].line < end)
				end = out->items[j].line;
		item->lines = mem_alloc(item->value.table.count * sizeof *item->lines);
		for (size_t j = 0; j < item->value.table.count; j++) {
			const struct value *key = &item->value.table.fields[j].key;

			item->lines[j] = item->line;
			if (key->kind == VALUE_STRING)
				item->lines[j] = source_lines_find_after(lines, key->string.bytes, item->line, end);
		}
	}
	source_lines_free(lines);
}

/* Reports the blocks of a file whose second half is missing. */
static void find_incomplete(struct reader *r)
{
	for (size_t i = 0; i < r->out->count; i++) {
		const struct confread_item *item = &r->out->items[i];

		if (item->file == r->file && !item->complete)
			problems_add_at(r->problems, r->file, item->line, "%s \"%s\" has no options table: write %s \"%s\" { handler = \"…\" }",
			                item->block, item->name, item->block, item->name);
	}
}

/* Runs a text as the file of that name. Each reading of a file has a name of its own in memory: items are told apart by it. */
static void run_text(lua_State *L, const char *path, const char *text, size_t length)
{
	struct reader *r = reader_of(L);
	const char *outer = r->file;
	int status, top = lua_gettop(L);

	r->out->files = mem_realloc(r->out->files, (r->out->file_count + 1) * sizeof *r->out->files);
	r->file = r->out->files[r->out->file_count++] = mem_strdup(path);
	r->depth++;
	if (length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) { /* a byte order mark */
		text += 3;
		length -= 3;
	}
	status = luaL_loadbufferx(L, text, length, "@", "t");
	if (status == LUA_OK)
		status = lua_pcall(L, 0, 0, 0);
	if (status != LUA_OK)
		report_failure(L, status);
	find_lines(r, text, length);
	if (status == LUA_OK)
		find_incomplete(r);
	lua_settop(L, top);
	r->depth--;
	r->file = outer;
}

/* Reads a whole file into memory; NULL with errno. */
static char *load(const char *path, size_t *length)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char *text = mem_alloc(FILE_LIMIT + 1);
	ssize_t n = fd < 0 ? -1 : 0;

	*length = 0;
	while (fd >= 0 && (n = read(fd, text + *length, FILE_LIMIT + 1 - *length)) > 0)
		*length += (size_t)n;
	if (n == 0 && *length > FILE_LIMIT) {
		errno = EFBIG;
		n = -1;
	}
	if (fd >= 0) {
		int saved = errno;

		close(fd);
		errno = saved;
	}
	if (n < 0) {
		free(text);
		return NULL;
	}
	return text;
}

/* Reads a file and runs it. */
static void run_file(lua_State *L, const char *path)
{
	size_t length;
	char *text = load(path, &length);

	if (!text) {
		problems_add(reader_of(L)->problems, "%s: %s", path, strerror(errno));
		return;
	}
	run_text(L, path, text, length);
	free(text);
}

/* Makes a state, runs the text, or else the file, in it, and forgets the state. */
static bool read_all(struct confread *out, const char *path, const char *text, size_t length, const struct confread_names *names,
                     struct problems *problems)
{
	struct reader r = {.out = out, .names = names, .problems = problems, .room = DATA_LIMIT, .began = clock()};
	size_t before = problems->count;
	lua_State *L = lua_newstate(allocate, &r);

	r.values = (struct value_reader){.room = &r.room, .on_full = on_full, .on_mistake = on_mistake};
	*out = (struct confread){0};
	*(struct reader **)lua_getextraspace(L) = &r;
	lua_pushcfunction(L, l_open);
	if (lua_pcall(L, 0, 0, 0) != LUA_OK) {
		problems_add(problems, "%s: cannot make a Lua state: %s", path, lua_tostring(L, -1));
	} else {
		lua_sethook(L, on_count, LUA_MASKCOUNT, INSTRUCTION_STEP);
		if (text)
			run_text(L, path, text, length);
		else
			run_file(L, path);
	}
	lua_close(L);
	return problems->count == before;
}

/* Reads a file and what it includes. */
bool confread_file(struct confread *out, const char *path, const struct confread_names *names, struct problems *problems)
{
	return read_all(out, path, NULL, 0, names, problems);
}

/* Reads a text as if it stood in the file of that path. */
bool confread_text(struct confread *out, const char *path, const char *text, size_t length, const struct confread_names *names,
                   struct problems *problems)
{
	return read_all(out, path, text, length, names, problems);
}

/* Frees all that was read. */
void confread_clear(struct confread *c)
{
	for (size_t i = 0; i < c->count; i++) {
		free(c->items[i].name);
		free(c->items[i].lines);
		value_clear(&c->items[i].value);
	}
	for (size_t i = 0; i < c->file_count; i++)
		free(c->files[i]);
	free(c->items);
	free(c->files);
	*c = (struct confread){0};
}

/* Puts the folder of a file before a relative path. */
char *confread_resolve(const char *file, const char *path)
{
	const char *slash = strrchr(file, '/');

	if (*path == '/' || !slash)
		return mem_strdup(path);
	return mem_printf("%.*s%s", (int)(slash + 1 - file), file, path);
}
