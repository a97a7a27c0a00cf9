/*
 * The log of the process. Each event is put together in memory and leaves by one write, so that lines of several processes do
 * not mix. The log never stops the loop for long: a reader that does not read costs one short wait, a slow one a fifth of the time,
 * then events.
 */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/openat2.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "log_fold.h"
#include "log_line.h"
#include "mem.h"

#define PATIENCE_NS 200000000u       /* how long events may wait for a reader that was reading until now, in all, */
#define PATIENCE_SPAN_NS 1000000000u /* within such a time */

/* The log: the only mutable static state of the program. */
static struct {
	enum log_level level;
	enum log_format format; /* never FORMAT_AUTO */
	char *path;             /* NULL: standard error */
	int fd;
	bool is_socket, is_pipe;
	unsigned process;         /* 0: the only one, which goes without saying */
	bool stalled;             /* the last event found no reader: do not wait for it again */
	uint64_t patient_ns;      /* when the present span of patience began, */
	uint64_t waited_ns;       /* and how long events have waited in it */
	bool torn;                /* the last line was cut off: begin with a line break */
	uint64_t lost;            /* events dropped since the last one that was written */
	uint32_t repeats;         /* events of a kind that are written in a second; 0: all */
	struct log_fold fold;     /* counts those that are not */
	uint64_t folding_ns;      /* since when there are counts to be told, 0: there are none */
	pid_t folding_pid;        /* whose they are: a fork does not tell its parent's */
	void (*wake)(void *data); /* asks for log_tell_repeats in a second */
	void *wake_data;
} log_state = {.level = LEVEL_INFO, .format = FORMAT_TEXT, .fd = STDERR_FILENO};

static const char *const level_names[] = {"error", "warn", "info", "debug"};

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

/*
 * Opens a log file for appending; -1 with a reason (caller frees). Never waits for the reader of a FIFO. Root follows no link, at the path's
 * end or on the way, but those of the system in /dev: who may write in a folder of it could have it append to any file.
 */
static int open_file(const char *path, char **why)
{
	struct open_how how = {.flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, .mode = 0640};
	bool wary = geteuid() == 0 && strncmp(path, "/dev/", 5) != 0;
	struct stat st;
	int fd = -1;

	if (wary) {
		how.resolve = RESOLVE_NO_SYMLINKS;
		fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
	}
	if (!wary || (fd < 0 && (errno == ENOSYS || errno == EPERM)))
		fd = open(path, (int)how.flags | (wary ? O_NOFOLLOW : 0), (mode_t)how.mode);
	if (wary && fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink > 1) {
		close(fd);
		fd = -1;
		errno = EMLINK;
	}
	if (fd < 0)
		*why = mem_printf("%s%s", strerror(errno),
		                  !wary             ? ""
		                  : errno == ELOOP  ? ": there is a symbolic link in this path, which root does not follow here"
		                  : errno == EMLINK ? ": the file has several names, of which root trusts none"
		                                    : "");
	return fd;
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
	char *reason = NULL;
	int fd = same ? log_state.fd : path ? open_file(path, &reason) : STDERR_FILENO;

	if (fd < 0) {
		*why = mem_printf("cannot open log file %s: %s", path, reason);
		free(reason);
		return false;
	}
	if (!same)
		log_close();
	log_tell_repeats();
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
	char *why = NULL;

	if (log_state.path) {
		log_tell_repeats();
		fd = open_file(log_state.path, &why);
		if (fd < 0) {
			log_error("cannot reopen log file %s: %s", log_state.path, why);
			free(why);
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
	log_tell_repeats();
	log_fold_clear(&log_state.fold);
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

/* The clock of repeated events and of patience. */
static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Waits a moment for the reader; false if that has been done for long enough. What a slow reader cannot take is lost: else it would make
 * the loop as slow as itself. */
static bool wait_for_reader(void)
{
	struct pollfd pfd = {.fd = log_state.fd, .events = POLLOUT};
	uint64_t now = now_ns();

	if (now - log_state.patient_ns >= PATIENCE_SPAN_NS) {
		log_state.patient_ns = now;
		log_state.waited_ns = 0;
	}
	if (log_state.stalled || log_state.waited_ns >= PATIENCE_NS)
		return false;
	poll(&pfd, 1, 10);
	log_state.waited_ns += now_ns() - now;
	return true;
}

/* Writes all of it; false if some of it was lost. */
static bool write_all(const char *bytes, size_t length)
{
	size_t done = 0;

	while (done < length) {
		ssize_t n = write_some(bytes + done, length - done);

		if (n > 0)
			done += (size_t)n;
		else if (n < 0 && (errno == EINTR || (errno == EAGAIN && wait_for_reader())))
			continue;
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
	struct log_line line = {0};
	char message[64];
	bool written;

	if (log_state.torn)
		line = (struct log_line){.bytes = mem_strdup("\n"), .length = 1, .size = 1};
	snprintf(message, sizeof message, "log: %" PRIu64 " events were lost: they could not be written", log_state.lost);
	log_line_make(&line, log_state.format, log_state.process, LEVEL_WARN, NULL, message);
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
static void write_event(enum log_level level, const struct log_context *context, const char *message)
{
	struct log_line line = {0};

	log_line_make(&line, log_state.format, log_state.process, level, context, message);
	if ((log_state.lost == 0 || report_lost()) && write_all(line.bytes, line.length))
		log_state.lost = 0;
	else
		log_state.lost++;
	free(line.bytes);
}

/* Writes how often an event was not written. */
static void tell_repeats(struct log_fold_entry *e)
{
	struct log_context context;
	const char *about = log_fold_describe(e, &context);
	char *message = mem_printf("message repeated %" PRIu64 " times: %.*s", e->folded, (int)strcspn(about, "\n"), about);

	if (log_state.folding_pid == getpid())
		write_event(e->level, &context, message);
	free(message);
	e->folded = 0;
	e->written = 0;
}

/* Writes how often each event was not written. */
void log_tell_repeats(void)
{
	int saved = errno;
	uint64_t now = now_ns();

	for (size_t i = 0; log_state.folding_ns && i < LOG_FOLD_PLACES; i++) {
		struct log_fold_entry *e = &log_state.fold.entries[i];
		if (!e->folded)
			continue;
		tell_repeats(e);
		e->since_ns = now;
	}
	log_state.folding_ns = 0;
	errno = saved;
}

/* Sets how many are written. */
void log_set_repeats(unsigned most)
{
	log_state.repeats = most;
}

/* Sets who rings in a second. */
void log_set_waker(void (*wake)(void *data), void *data)
{
	log_state.wake = wake;
	log_state.wake_data = data;
}

/* Has the event been so often in the last second that it is only counted? */
static bool is_folded(enum log_level level, const struct log_context *context, const char *message)
{
	uint64_t now = now_ns();

	if (!log_state.repeats)
		return false;
	if (log_state.folding_ns && now - log_state.folding_ns >= LOG_FOLD_SPAN_NS)
		log_tell_repeats();
	bool admitted = log_fold_admit(&log_state.fold, level, context, message, log_state.repeats, now);
	if (log_state.fold.told.folded)
		tell_repeats(&log_state.fold.told);
	if (!admitted && !log_state.folding_ns) {
		log_state.folding_ns = now;
		log_state.folding_pid = getpid();
		if (log_state.wake)
			log_state.wake(log_state.wake_data);
	}
	return !admitted;
}

/* Writes one event, unless it repeats itself. */
void log_event(enum log_level level, const struct log_context *context, const char *format, ...)
{
	int saved = errno;
	va_list arguments;

	if (level > (context && context->level ? (enum log_level)(context->level - 1) : log_state.level))
		return;
	va_start(arguments, format);
	char *message = mem_vprintf(format, arguments);
	va_end(arguments);
	if (!is_folded(level, context, message))
		write_event(level, context, message);
	free(message);
	errno = saved;
}
