/* Commands and how their answers look: see command.h. */
#include "command.h"

#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "mem.h"
#include "problems.h"

const struct command commands[] = {
#define COMMAND(name, argument, help) {name, argument, help},
	COMMANDS(COMMAND)
#undef COMMAND
};

const size_t command_count = sizeof commands / sizeof *commands;

#define COLUMN_MAX 60 /* characters of a cell that is padded */

/* Is it a number that a connection may have? */
static bool is_id(const char *text)
{
	size_t length = strlen(text);

	return length > 0 && length <= 18 && strspn(text, "0123456789") == length;
}

/* Checks a command. */
bool command_check(const char *name, const char *argument, char **why)
{
	struct suggestion s = {.wanted = name};
	char text[SUGGESTION_SIZE];
	const struct command *c = NULL;
	enum log_level level;

	for (size_t i = 0; i < command_count; i++) {
		suggestion_consider(&s, commands[i].name);
		if (strcmp(commands[i].name, name) == 0)
			c = &commands[i];
	}
	if (!c)
		*why = mem_printf("unknown command '%s'%s", name, suggestion_text(&s, text));
	else if (c->argument && (!argument || !*argument))
		*why = mem_printf("%s wants %s", name, c->argument);
	else if (!c->argument && argument)
		*why = mem_printf("%s takes no argument, got '%s'", name, argument);
	else if (strcmp(name, "close") == 0 && !is_id(argument))
		*why = mem_printf("close wants the number of a connection, got '%s'", argument);
	else if (strcmp(name, "log-level") == 0 && !log_level_parse(argument, &level))
		*why = mem_printf("log-level wants error, warn, info or debug, got '%s'", argument);
	else
		return true;
	return false;
}

/* Bytes in the largest unit that leaves a figure before the point. */
static char *bytes_text(double n)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
	size_t unit = 0;

	while (n >= 1024 && unit + 1 < sizeof units / sizeof *units) {
		n /= 1024;
		unit++;
	}
	return mem_printf(unit && n < 100 ? "%.1f %s" : "%.0f %s", n, units[unit]);
}

/* A time in its two largest units, or a short one in its own. */
static char *seconds_text(double s)
{
	if (s < 0.0005)
		return mem_printf("%.0f us", s * 1e6);
	if (s < 1)
		return mem_printf("%.0f ms", s * 1e3);
	if (s < 60)
		return mem_printf("%.1f s", s);
	if (s < 3600)
		return mem_printf("%.0f min %02.0f s", (double)(int)(s / 60), (double)((int)s % 60));
	if (s < 86400)
		return mem_printf("%.0f h %02.0f min", (double)(int)(s / 3600), (double)((int)(s / 60) % 60));
	return mem_printf("%.0f d %02.0f h", (double)(int)(s / 86400), (double)((int)(s / 3600) % 24));
}

/* What members mean that are not simply shown. */
static const struct {
	const char *name;
	char *(*text)(double n);
} units[] = {
	{"bytes_in", bytes_text},        {"bytes_out", bytes_text},       {"queued", bytes_text}, {"lua_memory", bytes_text},
	{"uptime", seconds_text},        {"age", seconds_text},           {"idle", seconds_text}, {"lag", seconds_text},
	{"callback_time", seconds_text}, {"callback_mean", seconds_text},
};

/* A value in words; the caller owns them. Control characters could play tricks on a terminal. */
static char *cell(const char *name, const json_t *v)
{
	for (size_t i = 0; json_is_number(v) && i < sizeof units / sizeof *units; i++)
		if (strcmp(units[i].name, name) == 0)
			return units[i].text(json_number_value(v));
	if (json_is_integer(v))
		return mem_printf("%" JSON_INTEGER_FORMAT, json_integer_value(v));
	if (json_is_real(v))
		return mem_printf("%g", json_real_value(v));
	if (json_is_boolean(v))
		return mem_strdup(json_is_true(v) ? "yes" : "no");
	if (!json_is_string(v))
		return mem_strdup("-");
	char *text = mem_strdup(json_string_value(v));
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = *c == '\t' ? ' ' : '?'; /* tabs stand between the results of eval */
	return text;
}

/* Writes a row of cells; the last one is not padded. */
static void write_row(FILE *to, char **cells, const size_t *widths, const bool *right, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		int width = (int)widths[i];
		if (right[i])
			fprintf(to, "%*s", width, cells[i]);
		else if (i + 1 == count)
			fputs(cells[i], to);
		else
			fprintf(to, "%-*s", width, cells[i]);
		fputs(i + 1 == count ? "\n" : "  ", to);
		free(cells[i]);
	}
}

/* An array of objects as a table: columns are the members of the first. */
static void show_table(FILE *to, const json_t *rows)
{
	const json_t *first = json_array_get(rows, 0), *row, *v;
	size_t count = json_object_size(first), i, n, *widths = mem_zalloc((count + 1) * sizeof *widths);
	char **cells = mem_zalloc((count + 1) * sizeof *cells);
	bool *right = mem_zalloc(count + 1);
	const char *name;

	i = 0;
	json_object_foreach((json_t *)first, name, v)
	{
		right[i] = json_is_number(v);
		widths[i++] = strlen(name);
	}
	json_array_foreach(rows, n, row)
	{
		i = 0;
		json_object_foreach((json_t *)first, name, v)
		{
			char *text = cell(name, json_object_get(row, name));
			size_t width = strlen(text);
			if (width > widths[i])
				widths[i] = width < COLUMN_MAX ? width : COLUMN_MAX;
			free(text);
			i++;
		}
	}
	i = 0;
	json_object_foreach((json_t *)first, name, v)
	{
		cells[i] = mem_strdup(name);
		for (char *c = cells[i]; *c; c++)
			*c = *c == '_' ? ' ' : *c;
		i++;
	}
	write_row(to, cells, widths, right, count);
	json_array_foreach(rows, n, row)
	{
		i = 0;
		json_object_foreach((json_t *)first, name, v)
		{
			cells[i++] = cell(name, json_object_get(row, name));
		}
		write_row(to, cells, widths, right, count);
	}
	free(widths);
	free(cells);
	free(right);
}

/* An object as lines of name and value; tables in it follow below. */
static void show_object(FILE *to, const json_t *o)
{
	const char *name;
	const json_t *v;
	size_t width = 0;

	json_object_foreach((json_t *)o, name, v)
	{
		if (!json_is_array(v) && strlen(name) > width)
			width = strlen(name);
	}
	json_object_foreach((json_t *)o, name, v)
	{
		if (json_is_array(v))
			continue;
		char *text = cell(name, v);
		fprintf(to, "%s:%*s %s\n", name, (int)(width - strlen(name)), "", text);
		free(text);
	}
	json_object_foreach((json_t *)o, name, v)
	{
		if (!json_array_size(v))
			continue;
		fputc('\n', to);
		show_table(to, v);
	}
}

/* Shows an answer. */
void command_show(FILE *to, const char *name, const json_t *result)
{
	if (json_is_string(result)) {
		const char *text = json_string_value(result);
		fputs(text, to);
		if (*text && text[strlen(text) - 1] != '\n')
			fputc('\n', to);
	} else if (json_is_array(result)) {
		if (json_array_size(result))
			show_table(to, result);
		else
			fprintf(to, "no %s\n", name);
	} else if (json_is_object(result)) {
		show_object(to, result);
	}
}

/* The lines of help. */
void command_help(FILE *to)
{
	for (size_t i = 0; i < command_count; i++) {
		char *call =
			mem_printf("%s%s%s", commands[i].name, commands[i].argument ? " " : "", commands[i].argument ? commands[i].argument : "");
		fprintf(to, "  %-16s %s\n", call, commands[i].help);
		free(call);
	}
}
