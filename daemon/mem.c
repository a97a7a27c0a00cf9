/*
 * Allocation that cannot return NULL. Uses nothing of ours, so that everything may use it.
 */
#include "mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Ends the process: there is no memory left, and none is needed to say so. */
void mem_exhausted(void)
{
	static const char text[] = "reactord: out of memory\n";

	(void)!write(STDERR_FILENO, text, sizeof text - 1);
	abort();
}

/* Like malloc. */
void *mem_alloc(size_t size)
{
	void *p = malloc(size > 0 ? size : 1);

	if (!p)
		mem_exhausted();
	return p;
}

/* Like calloc of one item. */
void *mem_zalloc(size_t size)
{
	void *p = calloc(1, size > 0 ? size : 1);

	if (!p)
		mem_exhausted();
	return p;
}

/* Like realloc, but a size of 0 keeps a block. */
void *mem_realloc(void *old, size_t size)
{
	void *p = realloc(old, size > 0 ? size : 1);

	if (!p)
		mem_exhausted();
	return p;
}

/* Like strdup. */
char *mem_strdup(const char *text)
{
	return mem_strndup(text, strlen(text));
}

/* Copies length bytes, NULs included, and puts a NUL behind them. */
char *mem_strndup(const char *text, size_t length)
{
	char *copy = mem_alloc(length + 1);

	memcpy(copy, text, length);
	copy[length] = '\0';
	return copy;
}

/* A formatted string. */
char *mem_printf(const char *format, ...)
{
	va_list arguments;
	char *text;

	va_start(arguments, format);
	text = mem_vprintf(format, arguments);
	va_end(arguments);
	return text;
}

/* A formatted string from an argument list. */
char *mem_vprintf(const char *format, va_list arguments)
{
	char *text;

	if (vasprintf(&text, format, arguments) < 0)
		mem_exhausted();
	return text;
}
