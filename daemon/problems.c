/*
 * Lists of mistakes, and suggestions by edit distance.
 */
#include "problems.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"

#define LONGEST_NAME 40 /* longer names get no suggestion */

/* Takes over a line. */
static void add_line(struct problems *p, char *line)
{
	p->lines = mem_realloc(p->lines, (p->count + 1) * sizeof *p->lines);
	p->lines[p->count++] = line;
}

/* Adds a message. */
void problems_add(struct problems *p, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	add_line(p, mem_vprintf(format, arguments));
	va_end(arguments);
}

/* Adds a message about a place. */
void problems_add_at(struct problems *p, const char *file, int line, const char *format, ...)
{
	va_list arguments;
	char *message;

	va_start(arguments, format);
	message = mem_vprintf(format, arguments);
	va_end(arguments);
	if (file && line > 0)
		problems_add(p, "%s:%d: %s", file, line, message);
	else if (file)
		problems_add(p, "%s: %s", file, message);
	else
		problems_add(p, "%s", message);
	free(message);
}

/* Frees all of it; the list is empty afterwards. */
void problems_clear(struct problems *p)
{
	for (size_t i = 0; i < p->count; i++)
		free(p->lines[i]);
	free(p->lines);
	*p = (struct problems){0};
}

/* All of them in one text. */
char *problems_join(const struct problems *p)
{
	char *text = mem_strdup("");

	for (size_t i = 0; i < p->count; i++) {
		char *longer = mem_printf("%s%s%s", text, i > 0 ? "; " : "", p->lines[i]);

		free(text);
		text = longer;
	}
	return text;
}

/* The smaller of two. */
static size_t smaller(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* How many letters must be added, dropped, changed or swapped with their neighbour to make one name of the other. */
static size_t edit_distance(const char *a, const char *b)
{
	size_t rows[LONGEST_NAME + 1][LONGEST_NAME + 1];
	size_t length_a = strlen(a), length_b = strlen(b);

	if (length_a > LONGEST_NAME || length_b > LONGEST_NAME)
		return LONGEST_NAME;
	for (size_t i = 0; i <= length_a; i++) {
		for (size_t j = 0; j <= length_b; j++) {
			if (i == 0 || j == 0) {
				rows[i][j] = i + j;
				continue;
			}
			rows[i][j] = smaller(smaller(rows[i - 1][j], rows[i][j - 1]) + 1, rows[i - 1][j - 1] + (a[i - 1] != b[j - 1]));
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
				rows[i][j] = smaller(rows[i][j], rows[i - 2][j - 2] + 1);
		}
	}
	return rows[length_a][length_b];
}

/* Looks whether a name is nearer than the best so far: near is a third of its letters, but three at most. */
void suggestion_consider(struct suggestion *s, const char *name)
{
	size_t distance = edit_distance(s->wanted, name), limit = smaller(3, (strlen(name) + 2) / 3);

	if (distance <= limit && (!s->best || distance < s->distance)) {
		s->best = name;
		s->distance = distance;
	}
}

/* The suggestion in words. */
const char *suggestion_text(const struct suggestion *s, char text[SUGGESTION_SIZE])
{
	text[0] = '\0';
	if (s->best)
		snprintf(text, SUGGESTION_SIZE, " (did you mean '%s'?)", s->best);
	return text;
}
