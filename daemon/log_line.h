/* Events as text, with journal priorities, or as JSON: for log.c. */
#ifndef REACTORD_LOG_LINE_H
#define REACTORD_LOG_LINE_H

#include "log.h"

/* A line under construction, at first all zero; the bytes are the owner's to free. */
struct log_line {
	char *bytes;
	size_t length, size;
};

/* Appends the line or lines of an event, with its line break. format is never FORMAT_AUTO; process 0: not named; context may
 * be NULL. */
void log_line_make(struct log_line *line, enum log_format format, unsigned process, enum log_level level, const struct log_context *context,
                   const char *message);

/* The length of the well-formed UTF-8 sequence at text, which ends with a NUL; 0 if there is none. */
size_t log_line_utf8(const char *text);

#endif
