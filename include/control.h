/*
 * The control socket: a Unix socket on which root, the daemon's user and the members of the socket's group ask for things. A request is a
 * line: plain words ("close 17"), answered by text for people and an empty line, or a JSON object ({"command": "close", "argument":
 * "17"}), answered by a line of JSON: {"exit": 0, "result": …} or {"exit": 1, "errors": ["…"]}, before which lines of progress may come:
 * {"progress": {…}}. Whoever answers is the host's business.
 */
#ifndef REACTORD_CONTROL_H
#define REACTORD_CONTROL_H

#include <jansson.h>
#include <sys/types.h>

#include "listener.h"
#include "loop.h"
#include "report.h"

#define CONTROL_CLIENTS 64           /* at once; further ones are told so */
#define CONTROL_LINE 65536           /* bytes of a request */
#define CONTROL_IDLE_NS 30000000000u /* for the next line, or for taking the answer */

struct control;

/* Somebody's question. The host has it until it has answered; who asked may have gone meanwhile. */
struct control_request {
	json_t *json;                  /* "command" is one that there is, "argument" a good one if it takes one */
	struct control_client *client; /* NULL: has gone */
	struct control_request *next;  /* the host's, for a list of those that wait */
};

/* Who answers: ask is called from the loop, and answers by control_answer once, at once or later. */
struct control_host {
	void (*ask)(void *data, struct control_request *q);
	void *data;
};

/* Opens it; NULL with a reason (caller frees), errno is set. */
struct control *control_open(struct loop *loop, const char *path, struct control_host host, char **why) __attribute__((warn_unused_result));

/* Gives the socket to a user, before rights are given up. */
void control_give(struct control *c, uid_t uid, gid_t gid);

/* Leaves the socket to the next process, or takes that back; takes the one of a process before over for good (control NULL: there is none). */
void control_leave(struct control *control, struct legacy *legacy);
void control_keep(struct control *control);
void control_own(struct control *control);

/* Nobody new can ask. Answers still go out. */
void control_shut(struct control *c);

/* Turns until every answer has gone, a second at most, and frees it; every request must have been answered. */
void control_close(struct control *c);

/* In a forked process: frees it, while the one that it was forked from goes on with it. Nothing is sent. */
void control_abandon(struct control *c);

/* Where a plain path lies by default: there, if its folder exists. */
#define CONTROL_FOLDER "/run/reactord"
#define CONTROL_PATH CONTROL_FOLDER "/control.sock"

/* Tells how it goes (taken over), and ends the request with an answer (taken over); q is gone then. */
void control_progress(struct control_request *q, json_t *progress);
void control_answer(struct control_request *q, struct report r);

/* Answers all of a list alike, and empties it. */
void control_answer_all(struct control_request **list, struct report r);

#endif
