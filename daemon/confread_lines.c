/*
 * Where names are assigned in the text of a configuration file: the text with comments and strings blanked, searched line by line.
 */
#include "confread_lines.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"

#define REACH 500 /* lines that are searched: more is no block that somebody wrote */

struct source_lines {
	char *text;     /* blanked, NUL-terminated, without NULs within */
	size_t *starts; /* where each line starts, and one more behind the last */
	int count;
};

/* Blanks text up to end, line breaks excepted; returns end. */
static char *blank(char *p, char *end)
{
	for (; p < end; p++)
		if (*p != '\n')
			*p = ' ';
	return end;
}

/* The end of a long bracket that starts at p ("[[…]]", "[==[…]==]"), NULL if none does. */
static char *long_bracket(char *p, char *end)
{
	size_t level = strspn(p + 1, "=");

	if (*p != '[' || p[1 + level] != '[')
		return NULL;
	for (p += 2 + level; p < end; p++)
		if (*p == ']' && strspn(p + 1, "=") == level && p[1 + level] == ']')
			return p + 2 + level;
	return end;
}

/* The end of a string in quotes that starts at p. */
static char *quoted(char *p, char *end)
{
	char quote = *p++;

	while (p < end && *p != quote && *p != '\n')
		p += *p == '\\' && p + 1 < end ? 2 : 1;
	return p < end ? p + 1 : end;
}

/* Blanks comments and strings, all but the string of a key in brackets (["name"]). */
static void blank_text(char *text, size_t length)
{
	char *p = text, *end = text + length;
	bool bracket = false; /* the last token was '[' */

	while (p < end) {
		if (p[0] == '-' && p[1] == '-') {
			char *long_end = p[2] == '[' ? long_bracket(p + 2, end) : NULL;

			p = blank(p, long_end ? long_end : p + strcspn(p, "\n"));
		} else if (*p == '[' && long_bracket(p, end)) {
			p = blank(p, long_bracket(p, end));
		} else if (*p == '"' || *p == '\'') {
			p = bracket ? quoted(p, end) : blank(p, quoted(p, end));
		} else {
			if (!isspace((unsigned char)*p))
				bracket = *p == '[';
			p++;
		}
	}
}

/* Prepares a text for searching. */
struct source_lines *source_lines_new(const char *text, size_t length)
{
	struct source_lines *s = mem_zalloc(sizeof *s);

	s->text = mem_strndup(text, length);
	for (size_t i = 0; i < length; i++)
		s->count += text[i] == '\n';
	s->starts = mem_alloc((size_t)(s->count + 2) * sizeof *s->starts);
	s->starts[0] = 0;
	s->count = 1;
	for (size_t i = 0; i < length; i++) {
		if (text[i] == '\0')
			s->text[i] = ' ';
		else if (text[i] == '\n')
			s->starts[s->count++] = i + 1;
	}
	s->starts[s->count] = length;
	blank_text(s->text, length);
	return s;
}

/* Frees it. */
void source_lines_free(struct source_lines *s)
{
	free(s->text);
	free(s->starts);
	free(s);
}

/* Whether a character may be part of a name. */
static bool in_name(char c)
{
	return isalnum((unsigned char)c) || c == '_';
}

/* Whether "name =" or ["name"] = begins on a line. */
static bool line_has(const struct source_lines *s, const char *name, int line)
{
	size_t length = strlen(name);
	const char *start = s->text + s->starts[line - 1], *end = s->text + s->starts[line];

	for (const char *p = start; length > 0 && p + length <= end; p++) {
		const char *after = p + length;

		if (strncmp(p, name, length) != 0 || in_name(*after) || (p > start && (in_name(p[-1]) || p[-1] == '.')))
			continue;
		after += strspn(after, "\"'] \t\r\n");
		if (after[0] == '=' && after[1] != '=')
			return true;
	}
	return false;
}

/* The first line on which a name is assigned. */
int source_lines_find_after(const struct source_lines *s, const char *name, int from, int to)
{
	if (from < 1)
		return from;
	for (int line = from; line <= to && line <= s->count && line - from < REACH; line++)
		if (line_has(s, name, line))
			return line;
	return from;
}

/* The last line on which a name is assigned. */
int source_lines_find_before(const struct source_lines *s, const char *name, int from)
{
	for (int line = from < s->count ? from : s->count; line >= 1 && from - line < REACH; line--)
		if (line_has(s, name, line))
			return line;
	return from;
}
