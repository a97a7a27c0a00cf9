/*
 * The log of the process. Each event is put together in memory and leaves by one write, so that lines of several processes do
 * not mix. The log never stops the loop for long: a reader that does not read costs one short wait, then events.
 */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "mem.h"

#define PATIENCE_MS 200 /* how long an event may wait for a reader that was reading until now */

/* The log: the only mutable static state of the program. */
static struct {
	enum log_level level;
	enum log_format format; /* never FORMAT_AUTO */
	char *path;             /* NULL: standard error */
	int fd;
	bool is_socket, is_pipe;
	unsigned process; /* 0: the only one, which goes without saying */
	bool stalled;  /* the last event found no reader: do not wait for it again */
	bool torn;     /* the last line was cut off: begin with a line break */
	uint64_t lost; /* events dropped since the last one that was written */
} log_state = {.level = LEVEL_INFO, .format = FORMAT_TEXT, .fd = STDERR_FILENO};

/* A line under construction. */
struct line {
	char *bytes;
	size_t length, size;
};

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static const int level_priorities[] = {3, 4, 6, 7}; /* syslog's */

/* Whether standard error is connected to the journal: systemd then says so by device and inode. */
static bool is_journal(void)
{
	const char *text = getenv("JOURNAL_STREAM");
	uintmax_t device, inode;
	struct stat st;

	if (!text || sscanf(text, "%ju:%ju", &device, &inode) != 2 || fstat(STDERR_FILENO, &st) < 0)
		return false;
	return st.st_dev == device && st.st_ino == inode;
}

/* Opens a log file for appending; -1 with errno. Never waits for the reader of a FIFO. */
static int open_file(const char *path)
{
	return open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0640);
}

/* Takes a descriptor as the log's. */
static void use(int fd)
{
	struct stat st;

	log_state.fd = fd;
	log_state.is_socket = fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
	log_state.is_pipe = !log_state.is_socket && fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode);
	log_state.stalled = log_state.torn = false;
}

/* Opens the log as asked. path NULL: standard error. */
bool log_open(enum log_level level, enum log_format format, const char *path, char **why)
{
	bool same = path && log_state.path && strcmp(path, log_state.path) == 0;
	int fd = same ? log_state.fd : path ? open_file(path) : STDERR_FILENO;

	if (fd < 0) {
		*why = mem_printf("cannot open log file %s: %s", path, strerror(errno));
		return false;
	}
	if (!same)
		log_close();
	log_state.level = level;
	log_state.format = format != FORMAT_AUTO ? format : !path && is_journal() ? FORMAT_JOURNAL : FORMAT_TEXT;
	if (same)
		return true;
	log_state.path = path ? mem_strdup(path) : NULL;
	use(fd);
	return true;
}

/* Gives the log file to a user, who can then open it again. Devices and pipes are not ours to give, nor is a file that the name only
 * links to: who may write in the folder could have chosen it. */
void log_give(uid_t uid, gid_t gid)
{
	struct stat st, named;

	if (!log_state.path || fstat(log_state.fd, &st) < 0 || !S_ISREG(st.st_mode))
		return;
	bool linked = lstat(log_state.path, &named) < 0 || named.st_dev != st.st_dev || named.st_ino != st.st_ino || st.st_nlink != 1;
	if (linked)
		log_warn("log file %s is a link: its owner stays", log_state.path);
	else if (fchown(log_state.fd, uid, gid) < 0)
		log_warn("cannot change the owner of log file %s: %s", log_state.path, strerror(errno));
}

/* Opens the log file again under its name (after a rotation). */
void log_reopen(void)
{
	int saved = errno, fd;

	if (log_state.path) {
		fd = open_file(log_state.path);
		if (fd < 0) {
			log_error("cannot reopen log file %s: %s", log_state.path, strerror(errno));
		} else {
			close(log_state.fd);
			use(fd);
		}
	}
	errno = saved;
}

/* Closes the log file; what comes later goes to standard error. */
void log_close(void)
{
	if (log_state.path)
		close(log_state.fd);
	free(log_state.path);
	log_state.path = NULL;
	use(STDERR_FILENO);
}

/* Sets which events are written: those of this level and the graver ones. */
void log_set_level(enum log_level level)
{
	log_state.level = level;
}

/* The level in force. */
enum log_level log_get_level(void)
{
	return log_state.level;
}

/* The name of a level. */
const char *log_level_name(enum log_level level)
{
	return level_names[level];
}

/* Finds a level by its name. */
bool log_level_parse(const char *name, enum log_level *level)
{
	for (size_t i = 0; i < sizeof level_names / sizeof level_names[0]; i++) {
		if (strcmp(name, level_names[i]) == 0) {
			*level = (enum log_level)i;
			return true;
		}
	}
	return false;
}

/* Appends bytes to a line. */
static void put(struct line *line, const char *bytes, size_t length)
{
	if (line->size - line->length < length) {
		line->size = (line->length + length) * 2;
		line->bytes = mem_realloc(line->bytes, line->size);
	}
	memcpy(line->bytes + line->length, bytes, length);
	line->length += length;
}

/* Appends a string to a line. */
static void put_text(struct line *line, const char *text)
{
	put(line, text, strlen(text));
}

/* The length of the well-formed UTF-8 sequence at text, 0 if there is none. */
static size_t utf8_length(const char *text)
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
static void put_json(struct line *line, const char *text)
{
	put(line, "\"", 1);
	while (*text) {
		size_t length = utf8_length(text);
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
static void put_plain(struct line *line, const char *text, size_t length)
{
	for (size_t i = 0; i < length;) {
		unsigned char byte = (unsigned char)text[i];
		size_t n = utf8_length(&text[i]);
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
static void put_context(struct line *line, const struct log_context *context, bool json)
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
	if (log_state.process != 0) {
		put_text(line, json ? "," : before);
		snprintf(number, sizeof number, json ? "\"process\":%u" : "process=%u", log_state.process);
		put_text(line, number);
		before = " ";
	}
	if (!json && before[1] == '\0')
		put(line, "]", 1);
}

/* The time of day in UTC with milliseconds. */
static void put_time(struct line *line)
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
static void make_json(struct line *line, enum log_level level, const struct log_context *context, const char *message)
{
	put_text(line, "{\"time\":\"");
	put_time(line);
	put_text(line, "\",\"level\":\"");
	put_text(line, level_names[level]);
	put_text(line, "\",\"message\":");
	put_json(line, message);
	if (context)
		put_context(line, context, true);
	put_text(line, "}\n");
}

/* Makes the text of an event. The fields end its first line; each further line of the message begins with a tab, or with the
 * priority again for the journal, which takes lines one by one. */
static void make_text(struct line *line, enum log_level level, const struct log_context *context, const char *message)
{
	char lead[8] = "\t";

	if (log_state.format == FORMAT_JOURNAL) {
		snprintf(lead, sizeof lead, "<%d>", level_priorities[level]);
		put_text(line, lead);
	} else {
		put_time(line);
		put(line, " ", 1);
		put_text(line, level_names[level]);
		put(line, " ", 1);
	}
	for (bool first = true;; first = false) {
		size_t length = strcspn(message, "\n");

		put_plain(line, message, length);
		if (first && context)
			put_context(line, context, false);
		put(line, "\n", 1);
		message += length;
		if (*message == '\0' || *++message == '\0')
			break;
		put_text(line, lead);
	}
}

/* One attempt to write. A blocking pipe takes PIPE_BUF bytes without waiting once poll calls it writable, but not always more. */
static ssize_t write_some(const char *bytes, size_t length)
{
	struct pollfd pfd = {.fd = log_state.fd, .events = POLLOUT};

	if (log_state.is_socket)
		return send(log_state.fd, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (poll(&pfd, 1, 0) == 0) {
		errno = EAGAIN;
		return -1;
	}
	if (log_state.is_pipe && length > PIPE_BUF && !(fcntl(log_state.fd, F_GETFL) & O_NONBLOCK))
		length = PIPE_BUF;
	return write(log_state.fd, bytes, length);
}

/* Writes all of it, waiting in all PATIENCE_MS at most; false if some of it was lost. */
static bool write_all(const char *bytes, size_t length)
{
	struct pollfd pfd = {.fd = log_state.fd, .events = POLLOUT};
	int waits = log_state.stalled ? 0 : PATIENCE_MS / 10;
	size_t done = 0;

	while (done < length) {
		ssize_t n = write_some(bytes + done, length - done);

		if (n > 0)
			done += (size_t)n;
		else if (n < 0 && errno == EINTR)
			continue;
		else if (n < 0 && errno == EAGAIN && waits-- > 0)
			poll(&pfd, 1, 10);
		else
			break;
	}
	if (done > 0)
		log_state.torn = bytes[done - 1] != '\n';
	log_state.stalled = done < length;
	return done == length;
}

/* Says how many events were lost, as soon as something can be written again. */
static bool report_lost(void)
{
	struct line line = {0};
	char message[64];
	bool written;

	if (log_state.torn)
		put(&line, "\n", 1);
	snprintf(message, sizeof message, "log: %" PRIu64 " events were lost: they could not be written", log_state.lost);
	if (log_state.format == FORMAT_JSON)
		make_json(&line, LEVEL_WARN, NULL, message);
	else
		make_text(&line, LEVEL_WARN, NULL, message);
	written = write_all(line.bytes, line.length);
	free(line.bytes);
	return written;
}

/* Names the process. */
void log_set_process(unsigned process)
{
	log_state.process = process;
}

/* Writes one event. */
void log_event(enum log_level level, const struct log_context *context, const char *format, ...)
{
	static const struct log_context no_context;
	int saved = errno;
	struct line line = {0};
	va_list arguments;
	char *message;

	if (level > log_state.level)
		return;
	va_start(arguments, format);
	message = mem_vprintf(format, arguments);
	va_end(arguments);
	if (!context && log_state.process)
		context = &no_context;
	if (log_state.format == FORMAT_JSON)
		make_json(&line, level, context, message);
	else
		make_text(&line, level, context, message);
	if ((log_state.lost == 0 || report_lost()) && write_all(line.bytes, line.length))
		log_state.lost = 0;
	else
		log_state.lost++;
	free(line.bytes);
	free(message);
	errno = saved;
}
