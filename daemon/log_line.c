/* How an event becomes a line, in each format. */
#include "log_line.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "mem.h"

static const int level_priorities[] = {3, 4, 6, 7}; /* syslog's */

/* Appends bytes to a line. */
static void put(struct log_line *line, const char *bytes, size_t length)
{
	if (line->size - line->length < length) {
		line->size = (line->length + length) * 2;
		line->bytes = mem_realloc(line->bytes, line->size);
	}
	memcpy(line->bytes + line->length, bytes, length);
	line->length += length;
}

/* Appends a string to a line. */
static void put_text(struct log_line *line, const char *text)
{
	put(line, text, strlen(text));
}

/* The length of the well-formed UTF-8 sequence at text, 0 if there is none. */
size_t log_line_utf8(const char *text)
{
	const unsigned char *s = (const unsigned char *)text;
	size_t length = s[0] < 0x80 ? 1 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : (s[0] & 0xf0) == 0xe0 ? 3 : s[0] >= 0xf0 && s[0] < 0xf5 ? 4 : 0;

	for (size_t i = 1; i < length; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] >= 0xa0) || (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] >= 0x90))
		return 0; /* overlong, surrogate, or beyond Unicode */
	return length;
}

/* Appends text as a JSON string. A byte that is not UTF-8 becomes U+FFFD: what peers send must not break the reader of the log. */
static void put_json(struct log_line *line, const char *text)
{
	put(line, "\"", 1);
	while (*text) {
		size_t length = log_line_utf8(text);
		char escape[8];

		if (length == 0) {
			put_text(line, "\\ufffd");
			text++;
		} else if (*text == '"' || *text == '\\') {
			put(line, "\\", 1);
			put(line, text++, 1);
		} else if (*text == '\n') {
			put_text(line, "\\n");
			text++;
		} else if ((unsigned char)*text < 0x20 || *text == 0x7f) {
			snprintf(escape, sizeof escape, "\\u%04x", (unsigned)*text++);
			put_text(line, escape);
		} else {
			put(line, text, length);
			text += length;
		}
	}
	put(line, "\"", 1);
}

/* Appends up to length bytes with control characters, those beyond ASCII too (U+0080 to U+009F), and what is not UTF-8 spelled out: a
 * peer must neither forge lines nor reach the terminal. */
static void put_plain(struct log_line *line, const char *text, size_t length)
{
	for (size_t i = 0; i < length;) {
		unsigned char byte = (unsigned char)text[i];
		size_t n = log_line_utf8(&text[i]);
		bool control = byte < 0x20 || byte == 0x7f || (byte == 0xc2 && (unsigned char)text[i + 1] < 0xa0);
		char escape[8];

		if (n > 0 && (!control || byte == '\t')) {
			put(line, &text[i], n);
			i += n;
		} else {
			snprintf(escape, sizeof escape, byte == '\n' ? "\\n" : "\\x%02x", byte);
			put_text(line, escape);
			i++;
		}
	}
}

/* The fields of a context in the order in which they are written. */
static void put_context(struct log_line *line, const struct log_context *context, unsigned process, bool json)
{
	const char *const names[] = {"listener", "peer", "handler", "callback", "source"};
	const char *const values[] = {context->listener, context->peer, context->handler, context->callback, context->source};
	const char *before = " [";
	char number[32];

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		if (!values[i])
			continue;
		put_text(line, json ? ",\"" : before);
		put_text(line, names[i]);
		put_text(line, json ? "\":" : "=");
		if (json)
			put_json(line, values[i]);
		else
			put_plain(line, values[i], strlen(values[i]));
		before = " ";
	}
	if (context->connection != 0) {
		put_text(line, json ? "," : before);
		snprintf(number, sizeof number, json ? "\"connection\":%" PRIu64 : "connection=%" PRIu64, context->connection);
		put_text(line, number);
		before = " ";
	}
	if (process != 0) {
		put_text(line, json ? "," : before);
		snprintf(number, sizeof number, json ? "\"process\":%u" : "process=%u", process);
		put_text(line, number);
		before = " ";
	}
	if (!json && before[1] == '\0')
		put(line, "]", 1);
}

/* The time of day in UTC with milliseconds. */
static void put_time(struct log_line *line)
{
	struct timespec now;
	struct tm tm;
	char text[64];
	size_t length;

	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &tm);
	length = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(text + length, sizeof text - length, ".%03dZ", (int)(now.tv_nsec / 1000000));
	put_text(line, text);
}

/* Makes the one line of an event in JSON. */
static void make_json(struct log_line *line, unsigned process, enum log_level level, const struct log_context *context, const char *message)
{
	put_text(line, "{\"time\":\"");
	put_time(line);
	put_text(line, "\",\"level\":\"");
	put_text(line, log_level_name(level));
	put_text(line, "\",\"message\":");
	put_json(line, message);
	put_context(line, context, process, true);
	put_text(line, "}\n");
}

/* Makes the text of an event. The fields end its first line; each further line of the message begins with a tab, or with the
 * priority again for the journal, which takes lines one by one. */
static void make_text(struct log_line *line, enum log_format format, unsigned process, enum log_level level,
                      const struct log_context *context, const char *message)
{
	char lead[8] = "\t";

	if (format == FORMAT_JOURNAL) {
		snprintf(lead, sizeof lead, "<%d>", level_priorities[level]);
		put_text(line, lead);
	} else {
		put_time(line);
		put(line, " ", 1);
		put_text(line, log_level_name(level));
		put(line, " ", 1);
	}
	for (bool first = true;; first = false) {
		size_t length = strcspn(message, "\n");

		put_plain(line, message, length);
		if (first)
			put_context(line, context, process, false);
		put(line, "\n", 1);
		message += length;
		if (*message == '\0' || *++message == '\0')
			break;
		put_text(line, lead);
	}
}

/* Makes the line of an event. */
void log_line_make(struct log_line *line, enum log_format format, unsigned process, enum log_level level, const struct log_context *context,
                   const char *message)
{
	static const struct log_context none;

	if (!context)
		context = &none;
	if (format == FORMAT_JSON)
		make_json(line, process, level, context, message);
	else
		make_text(line, format, process, level, context, message);
}
