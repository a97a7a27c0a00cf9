/*
 * Watches: see watch.h. The kernel knows one inotify watch for each file, whatever its paths are; ours hang on that in a list. One that is
 * stopped while events are told is freed afterwards.
 */
#include "watch.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uthash.h>

#include "mem.h"

#define READ_SIZE 16384 /* bytes of events that one pass takes at most */

/* In a folder: entries; on the thing itself: that it moves and goes. Attributes: the count of names falls to 0 while it is still open. */
#define EVENTS (IN_MODIFY | IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_ATTRIB | IN_MOVE_SELF | IN_DELETE_SELF)

/* One of the kernel's watches. */
struct inode {
	int wd; /* -1: the kernel has dropped it */
	struct file_watch *first;
	UT_hash_handle hh;
};

struct file_watch {
	struct watches *watches;
	struct inode *inode;
	char *path;
	dev_t device; /* what path stood for */
	ino_t number;
	bool moved;   /* path stands for it no more */
	bool over;    /* stopped, or told of its end */
	bool stopped; /* its user is done with it */
	void (*on_event)(void *data, enum watch_event event, const char *name);
	void *data;
	struct file_watch *previous, *next; /* on the same inode */
	struct file_watch *next_dead;
};

struct process_watch {
	struct watches *watches;
	struct event *event;
	int fd; /* the process */
	pid_t pid;
	struct watch_status status; /* known once somebody has reaped it */
	void (*on_exit)(void *data, const struct watch_status *status);
	void *data;
	struct process_watch *previous, *next; /* of the loop's */
};

struct watches {
	struct loop *loop;
	struct event *event;
	int fd;               /* inotify; -1: not needed yet */
	struct inode *inodes; /* uthash, by wd */
	bool telling;         /* events are being told: nothing is freed */
	struct file_watch *dead;
	struct process_watch *processes;
	char *buffer; /* READ_SIZE bytes */
};

/* The watches of a loop. */
struct watches *watches_new(struct loop *loop)
{
	struct watches *ws = mem_zalloc(sizeof *ws);

	ws->loop = loop;
	ws->fd = -1;
	return ws;
}

/* Frees an empty set. */
void watches_free(struct watches *ws)
{
	if (!ws)
		return;
	if (ws->fd >= 0) {
		event_free(ws->event);
		close(ws->fd);
	}
	free(ws->buffer);
	free(ws);
}

/* Frees a watch that was stopped, and the inode that nobody watches any more. */
static void file_watch_free(struct file_watch *w)
{
	struct inode *inode = w->inode;

	if (w->previous)
		w->previous->next = w->next;
	else
		inode->first = w->next;
	if (w->next)
		w->next->previous = w->previous;
	if (!inode->first) {
		if (inode->wd >= 0) {
			(void)inotify_rm_watch(w->watches->fd, inode->wd);
			HASH_DEL(w->watches->inodes, inode);
		}
		free(inode);
	}
	free(w->path);
	free(w);
}

/* Tells one watch. */
static void tell(struct file_watch *w, enum watch_event event, const char *name)
{
	if (w->over)
		return;
	w->over = event == WATCH_DELETED;
	w->moved = w->moved || event == WATCH_MOVED;
	w->on_event(w->data, event, name);
}

/* Does the path stand for what is watched no more? After a move nobody can tell. */
static bool is_gone(const struct file_watch *w)
{
	struct stat st;

	if (w->moved)
		return false;
	if (stat(w->path, &st) < 0)
		return errno == ENOENT || errno == ENOTDIR;
	return st.st_dev != w->device || st.st_ino != w->number;
}

/* Tells the watches of an inode what the kernel has told of it. */
static void tell_inode(struct inode *inode, uint32_t mask, const char *name)
{
	for (struct file_watch *w = inode->first; w; w = w->next) {
		if (mask & (IN_DELETE_SELF | IN_UNMOUNT | IN_IGNORED))
			tell(w, WATCH_DELETED, NULL);
		else if (mask & IN_MOVE_SELF)
			tell(w, WATCH_MOVED, NULL);
		else if (!(mask & IN_ATTRIB))
			tell(w, WATCH_MODIFIED, name);
		else if (!name && !w->over && is_gone(w))
			tell(w, WATCH_DELETED, NULL);
	}
}

/* Events were lost: everything may have changed. */
static void tell_all(struct watches *ws)
{
	for (struct inode *inode = ws->inodes; inode; inode = inode->hh.next)
		for (struct file_watch *w = inode->first; w; w = w->next) {
			tell(w, WATCH_MODIFIED, NULL);
			if (!w->over && is_gone(w))
				tell(w, WATCH_DELETED, NULL);
		}
}

/* The kernel has events. */
static void on_inotify(evutil_socket_t fd, short what, void *data)
{
	struct watches *ws = data;
	ssize_t length = read(fd, ws->buffer, READ_SIZE);
	struct file_watch *w;

	(void)what;
	ws->telling = true;
	for (ssize_t at = 0; at < length;) {
		const struct inotify_event *e = (const struct inotify_event *)(ws->buffer + at);
		struct inode *inode;
		at += (ssize_t)(sizeof *e + e->len);
		if (e->mask & IN_Q_OVERFLOW) {
			tell_all(ws);
			continue;
		}
		HASH_FIND_INT(ws->inodes, &e->wd, inode);
		if (!inode)
			continue; /* stopped while this was under way */
		tell_inode(inode, e->mask, e->len ? e->name : NULL);
		if (e->mask & IN_IGNORED) { /* the kernel has let go of it */
			HASH_DEL(ws->inodes, inode);
			inode->wd = -1;
		}
	}
	ws->telling = false;
	while ((w = ws->dead)) {
		ws->dead = w->next_dead;
		file_watch_free(w);
	}
}

/* Opens inotify. */
static bool open_inotify(struct watches *ws)
{
	ws->fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	if (ws->fd < 0)
		return false;
	ws->buffer = mem_alloc(READ_SIZE);
	ws->event = event_new(ws->loop->base, ws->fd, EV_READ | EV_PERSIST, on_inotify, ws);
	if (!ws->event || event_add(ws->event, NULL) < 0)
		abort(); /* want of memory */
	return true;
}

/* Watches a file. */
struct file_watch *watch_file(struct watches *ws, const char *path, void (*on_event)(void *data, enum watch_event event, const char *name),
                              void *data)
{
	struct stat st;
	struct inode *inode;

	if (ws->fd < 0 && !open_inotify(ws))
		return NULL;
	int wd = inotify_add_watch(ws->fd, path, EVENTS);
	if (wd < 0)
		return NULL;
	HASH_FIND_INT(ws->inodes, &wd, inode);
	if (stat(path, &st) < 0) { /* gone meanwhile */
		int saved = errno;
		if (!inode)
			(void)inotify_rm_watch(ws->fd, wd);
		errno = saved;
		return NULL;
	}
	if (!inode) {
		inode = mem_zalloc(sizeof *inode);
		inode->wd = wd;
		HASH_ADD_INT(ws->inodes, wd, inode);
	}
	struct file_watch *w = mem_zalloc(sizeof *w);
	*w = (struct file_watch){.watches = ws, .inode = inode, .path = mem_strdup(path), .device = st.st_dev, .number = st.st_ino};
	w->on_event = on_event;
	w->data = data;
	w->next = inode->first;
	if (w->next)
		w->next->previous = w;
	inode->first = w;
	return w;
}

/* Ends a watch on a file. */
void watch_file_stop(struct file_watch *w)
{
	w->over = true;
	if (w->stopped)
		return;
	w->stopped = true;
	if (!w->watches->telling) {
		file_watch_free(w);
		return;
	}
	w->next_dead = w->watches->dead;
	w->watches->dead = w;
}

/* The process has ended. */
static void on_pidfd(evutil_socket_t fd, short what, void *data)
{
	struct process_watch *w = data;
	siginfo_t info = {0};

	(void)what;
	event_del(w->event);
	if (!w->status.known && waitid(P_PIDFD, (id_t)fd, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid)
		w->status = (struct watch_status){.known = true, .signaled = info.si_code != CLD_EXITED, .number = info.si_status};
	w->on_exit(w->data, &w->status);
}

/* A child of ours has been reaped: its watches may come later in the same turn and could not ask any more. */
void watches_reaped(struct watches *ws, pid_t pid, bool signaled, int number)
{
	for (struct process_watch *w = ws->processes; w; w = w->next)
		if (w->pid == pid && !w->status.known)
			w->status = (struct watch_status){.known = true, .signaled = signaled, .number = number};
}

/* Watches a process. */
struct process_watch *watch_process(struct watches *ws, pid_t pid, void (*on_exit)(void *data, const struct watch_status *status),
                                    void *data)
{
	int fd = pidfd_open(pid, 0);

	if (fd < 0)
		return NULL;
	struct process_watch *w = mem_zalloc(sizeof *w);
	*w = (struct process_watch){.watches = ws, .fd = fd, .pid = pid, .on_exit = on_exit, .data = data, .next = ws->processes};
	if (w->next)
		w->next->previous = w;
	ws->processes = w;
	w->event = event_new(ws->loop->base, fd, EV_READ | EV_PERSIST, on_pidfd, w);
	if (!w->event || event_add(w->event, NULL) < 0)
		abort(); /* want of memory */
	return w;
}

/* Ends a watch on a process. */
void watch_process_stop(struct process_watch *w)
{
	if (w->previous)
		w->previous->next = w->next;
	else
		w->watches->processes = w->next;
	if (w->next)
		w->next->previous = w->previous;
	event_free(w->event);
	close(w->fd);
	free(w);
}
