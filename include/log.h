/*
 * The log of the process: one line an event, on standard error or in a file, as text, with journal priorities, or as JSON.
 * The only mutable static state of the program lives in log.c. errno is the same after each call as before.
 */
#ifndef REACTORD_LOG_H
#define REACTORD_LOG_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum log_level { LEVEL_ERROR, LEVEL_WARN, LEVEL_INFO, LEVEL_DEBUG };

/* What "auto" stands for: "journal" where standard error is the journal (JOURNAL_STREAM names its device and inode), else text. */
enum log_format { FORMAT_AUTO, FORMAT_TEXT, FORMAT_JOURNAL, FORMAT_JSON };

/* Where a line comes from; any member may be NULL (connection: 0). Borrowed for the call only. */
struct log_context {
	const char *listener; /* URL of the listener or connect block */
	const char *peer;     /* "host:port" or a path */
	const char *handler;  /* name of the handler */
	const char *callback; /* name of the callback that was running */
	const char *source;   /* "file.lua:LINE" of the script */
	uint64_t connection;  /* the connection's signature */
	int level;            /* what is logged of it: 1 + an enum log_level; 0: what is logged of all */
};

/* Opens the log as asked. path NULL: standard error; a file that is open already stays open. On failure the log stays as it was, *why
 * is the caller's to free. */
bool log_open(enum log_level level, enum log_format format, const char *path, char **why) __attribute__((warn_unused_result));

/* Opens the log file again under its name (after a rotation); a failure is logged to the file that is still open. */
void log_reopen(void);
void log_close(void);

/* Makes a user the owner of the log file, before the process becomes that user. */
void log_give(uid_t uid, gid_t gid);

/* Events that are the same but for peer and connection, beyond that many in a second, are only counted; 0 (as at first): all are written. The
 * counts are told ("message repeated 9 times: …") by log_tell_repeats, which wake asks to be called a second later; at the latest with the next
 * event after that, and where the log changes or ends. */
void log_set_repeats(unsigned most);
void log_set_waker(void (*wake)(void *data), void *data); /* NULL: nobody */
void log_tell_repeats(void);

/* Which of several processes this is: every line says so from now on; 0: the only one. */
void log_set_process(unsigned process);

void log_set_level(enum log_level level);
enum log_level log_get_level(void);
const char *log_level_name(enum log_level level);
bool log_level_parse(const char *name, enum log_level *level) __attribute__((warn_unused_result));

/* Writes one event, or counts it. Line breaks in the message (tracebacks) stay within the one event in every format. */
void log_event(enum log_level level, const struct log_context *context, const char *format, ...) __attribute__((format(printf, 3, 4)));

#define log_error(...) log_event(LEVEL_ERROR, NULL, __VA_ARGS__)
#define log_warn(...) log_event(LEVEL_WARN, NULL, __VA_ARGS__)
#define log_info(...) log_event(LEVEL_INFO, NULL, __VA_ARGS__)
#define log_debug(...) log_event(LEVEL_DEBUG, NULL, __VA_ARGS__)

#endif
