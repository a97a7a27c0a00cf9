/*
 * Watches on files (inotify) and on processes (pidfd). Each watch is its own, also where several are on one file.
 */
#ifndef REACTORD_WATCH_H
#define REACTORD_WATCH_H

#include <stdbool.h>
#include <sys/types.h>

#include "loop.h"

struct watches; /* a loop's; its inotify descriptor is opened with the first watch on a file */
struct file_watch;
struct process_watch;

enum watch_event {
	WATCH_MODIFIED, /* the file's bytes, or a folder's entry; also when events were lost */
	WATCH_MOVED,    /* it has another name now; the watch goes along */
	WATCH_DELETED,  /* nothing will come any more: the path is gone, or stands for another file */
};

/* How a process has ended. */
struct watch_status {
	bool known;    /* only our own children tell */
	bool signaled; /* killed by a signal, whose number it is; else its exit status */
	int number;
};

struct watches *watches_new(struct loop *loop) __attribute__((warn_unused_result));
void watches_free(struct watches *watches); /* there must be none left */

/* Watches a file or folder; NULL with errno. name: of the entry in a folder, else NULL. on_event may stop any watch. */
struct file_watch *watch_file(struct watches *watches, const char *path,
                              void (*on_event)(void *data, enum watch_event event, const char *name), void *data)
	__attribute__((warn_unused_result));
void watch_file_stop(struct file_watch *w);

/* Watches a process for its end; NULL with errno (ESRCH). on_exit comes once. Nothing is reaped. */
struct process_watch *watch_process(struct watches *watches, pid_t pid, void (*on_exit)(void *data, const struct watch_status *status),
                                    void *data) __attribute__((warn_unused_result));
void watch_process_stop(struct process_watch *w);

/* Tells of a child that has just been reaped, so that its watches learn how it ended. */
void watches_reaped(struct watches *watches, pid_t pid, bool signaled, int number);

#endif
