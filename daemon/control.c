/*
 * The control socket: see control.h. Clients are connections like others, but counted apart. Of each client one line is served in a turn, and
 * the next one not before its answer has gone out: what waits for a client is an answer at most.
 */
#include "control.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "command.h"
#include "conn.h"
#include "mem.h"
#include "timer.h"

#define LINGER_NS 1000000000u
#define OUTBOUND (64u << 20) /* bytes of an answer */

struct control_client {
	struct control *control;
	struct conn *c;
	struct addr peer;
	char *input; /* lines that were not served yet */
	size_t length;
	struct control_request *request; /* waits for its answer, NULL: none */
	bool is_json;                    /* it was asked so */
	bool ended;                      /* the client sends no more */
	struct timer next;               /* serves the next line */
	struct control_client *following;
};

struct control {
	struct loop *loop;
	struct conns *conns; /* the clients, apart from those that the daemon is there for */
	struct stats stats;  /* which are not counted with them */
	struct listener *listener;
	gid_t group;
	struct control_host host;
	struct control_client *clients;
	size_t client_count;
};

static void serve(struct control_client *k);

/* May a peer ask? Besides those that the socket's permissions let in anyway nobody can be. */
static bool is_permitted(const struct control *control, int fd)
{
	struct ucred peer;
	socklen_t size = sizeof peer;
	gid_t groups[1024];

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return false;
	if (peer.uid == 0 || peer.uid == geteuid() || peer.gid == control->group)
		return true;
	size = sizeof groups;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) < 0)
		return false;
	for (size_t i = 0; i < size / sizeof *groups; i++)
		if (groups[i] == control->group)
			return true;
	return false;
}

/* Sends an object as a line. */
static void send_json(struct control_client *k, const json_t *o)
{
	char *line = json_dumps(o, JSON_COMPACT);

	if (!line)
		mem_exhausted();
	(void)conn_send(k->c, line, strlen(line));
	(void)conn_send(k->c, "\n", 1);
	free(line);
}

/* Sends what people read: the result as a table, reasons as lines. */
static void send_text(struct control_client *k, const char *command, const struct report *r)
{
	char *text = NULL;
	size_t size = 0, i;
	FILE *to = open_memstream(&text, &size);

	if (!to)
		mem_exhausted();
	if (r->status == COMMAND_DONE)
		command_show(to, command, r->result);
	for (i = 0; r->status != COMMAND_DONE && i < json_array_size(r->result); i++)
		fprintf(to, "error: %s\n", json_string_value(json_array_get(r->result, i)));
	if (r->more)
		fprintf(to, "... and older ones\n");
	fputc('\n', to);
	if (fclose(to) != 0)
		mem_exhausted();
	(void)conn_send(k->c, text, size);
	free(text);
}

/* Sends an answer. */
static void send_report(struct control_client *k, const char *command, const struct report *r)
{
	if (!k->is_json) {
		send_text(k, command, r);
		return;
	}
	json_t *o = report_pack(r);
	send_json(k, o);
	json_decref(o);
}

/* Refuses a line. */
static void refuse(struct control_client *k, char *why)
{
	struct report r = report_failure(COMMAND_USAGE, why);

	send_report(k, "", &r);
	json_decref(r.result);
}

/* Goes on with the next line in the next turn, when what was sent is on its way, or sees that there is none. */
static void go_on(struct control_client *k)
{
	if (k->request || k->c->state != CONN_OPEN || k->c->finishing)
		return;
	if (k->c->queued)
		return; /* on_flushed comes back to it */
	if (memchr(k->input, '\n', k->length) || (k->ended && k->length)) {
		timer_start(k->control->loop, &k->next, 0);
	} else if (k->ended) {
		conn_finish(k->c, NULL, "eof");
	} else {
		conn_hold(k->c, false);
	}
}

/* Hands a request to the host. */
static void ask(struct control_client *k, json_t *json)
{
	const json_t *argument = json_object_get(json, "argument");
	const char *command = json_string_value(json_object_get(json, "command"));
	char *why = NULL;

	if (!command)
		why = mem_strdup("a request wants a \"command\"");
	else if (argument && !json_is_string(argument))
		why = mem_strdup("\"argument\" must be a string");
	if (why || !command_check(command, json_string_value(argument), &why)) {
		refuse(k, why);
		json_decref(json);
		return;
	}
	struct control_request *q = mem_zalloc(sizeof *q);
	q->json = json;
	q->client = k;
	k->request = q;
	conn_set_idle_timeout(k->c, 0);
	if (strcmp(command, "help") == 0) {
		char *text = NULL;
		size_t size = 0;
		FILE *to = open_memstream(&text, &size);
		if (!to)
			mem_exhausted();
		command_help(to);
		if (fclose(to) != 0)
			mem_exhausted();
		control_answer(q, (struct report){.result = json_string(text)});
		free(text);
	} else {
		k->control->host.ask(k->control->host.data, q);
	}
}

/* A line of plain words as a request: the command, and what follows it. */
static json_t *parse_words(char *line)
{
	json_t *o = json_object();
	char *argument = line + strcspn(line, " \t");

	if (*argument) {
		*argument++ = '\0';
		argument += strspn(argument, " \t");
	}
	json_object_set_new(o, "command", json_string(line));
	if (*argument)
		json_object_set_new(o, "argument", json_string(argument));
	return o;
}

/* Serves one line, without its end. */
static void serve_line(struct control_client *k, char *line, size_t length)
{
	json_error_t error;

	while (length && strchr(" \t\r", line[length - 1]))
		line[--length] = '\0';
	size_t blank = strspn(line, " \t");
	if (blank == length)
		return;
	k->is_json = line[blank] == '{';
	if (strlen(line) != length) {
		refuse(k, mem_strdup("a request must not hold a NUL"));
		return;
	}
	line += blank;
	json_t *json = k->is_json ? json_loads(line, 0, &error) : parse_words(line);
	if (json && (!k->is_json || json_is_object(json)) && json_object_get(json, "command")) {
		ask(k, json);
	} else {
		refuse(k, json ? mem_strdup(k->is_json ? "a request wants a \"command\"" : "not UTF-8") : mem_printf("bad JSON: %s", error.text));
		json_decref(json);
	}
}

/* Serves the next line. */
static void serve(struct control_client *k)
{
	char *end = memchr(k->input, '\n', k->length);
	size_t length = end ? (size_t)(end - k->input) : k->length, taken = end ? length + 1 : length;
	char *line = mem_strndup("", 0);

	if (k->request || k->c->state != CONN_OPEN)
		taken = 0;
	if (taken) {
		line = mem_realloc(line, length + 1);
		memcpy(line, k->input, length);
		line[length] = '\0';
		memmove(k->input, k->input + taken, k->length - taken);
		k->length -= taken;
		serve_line(k, line, length);
	}
	free(line);
	go_on(k);
}

/* The timer's way to it. */
static void on_next(void *data)
{
	serve(data);
}

/* Bytes of a client; it is not read from again before they are served. */
static void on_data(struct conn *c, const char *bytes, size_t length)
{
	struct control_client *k = c->user;

	k->input = mem_realloc(k->input, k->length + length);
	memcpy(k->input + k->length, bytes, length);
	k->length += length;
	char *end = memchr(k->input, '\n', k->length);
	if ((end ? (size_t)(end - k->input) : k->length) > CONTROL_LINE) {
		refuse(k, mem_printf("a request is at most %d bytes long", CONTROL_LINE));
		conn_finish(c, NULL, "closed");
	} else if (end) {
		conn_hold(c, true);
		go_on(k);
	}
}

/* The client sends no more: what it has asked for is still answered. */
static void on_eof(struct conn *c)
{
	struct control_client *k = c->user;

	k->ended = true;
	go_on(k);
}

/* The answer has gone. */
static void on_flushed(struct conn *c)
{
	go_on(c->user);
}

/* Nothing waits for room. */
static void on_drained(struct conn *c)
{
	(void)c;
}

/* A client has gone. */
static void on_end(struct conn *c)
{
	struct control_client *k = c->user, **at = &k->control->clients;

	while (*at != k)
		at = &(*at)->following;
	*at = k->following;
	k->control->client_count--;
	if (k->request)
		k->request->client = NULL;
	timer_stop(k->control->loop, &k->next);
	listener_release(k->control->listener, &k->peer);
	c->user = NULL;
	free(k->input);
	free(k);
}

static const struct conn_events events = {
	.on_data = on_data,
	.on_eof = on_eof,
	.on_drained = on_drained,
	.on_flushed = on_flushed,
	.on_end = on_end,
};

/* Somebody has connected. */
static void on_accept(struct listener *l, int fd, const struct addr *peer)
{
	struct control *control = l->user;
	struct control_client *k = mem_zalloc(sizeof *k);
	struct flow flow;
	bool permitted = is_permitted(control, fd);

	flow_defaults(&flow);
	flow.linger_timeout_ns = LINGER_NS;
	flow.idle_timeout_ns = CONTROL_IDLE_NS;
	flow.max_outbound = OUTBOUND;
	k->control = control;
	k->peer = *peer;
	k->input = mem_strdup("");
	k->is_json = true; /* until the first line says how it wants to be answered */
	k->following = control->clients;
	control->clients = k;
	control->client_count++;
	timer_init(&k->next, on_next, k);
	k->c = conn_new(control->conns, &flow, &events, k);
	conn_open(k->c, fd, peer);
	if (k->c->state != CONN_OPEN)
		return;
	if (!permitted || control->client_count > CONTROL_CLIENTS) {
		refuse(k, mem_strdup(permitted ? "too many clients of the control socket" : "not permitted"));
		conn_finish(k->c, NULL, "closed");
	}
}

/* Opens the socket. */
struct control *control_open(struct loop *loop, const char *path, struct control_host host, char **why)
{
	struct control *control = mem_zalloc(sizeof *control);
	struct listen_conf conf;
	char *url = mem_printf("unix://%s", path), *reason = NULL;
	struct stat st;

	control->loop = loop;
	control->host = host;
	if (!config_listen(&conf, url, NULL, &reason)) {
		errno = EINVAL;
	} else {
		conf.mode = 0660;
		control->listener = listener_open(loop, &conf, on_accept, control, &reason);
		int saved = errno;
		listen_conf_clear(&conf);
		errno = saved;
	}
	free(url);
	if (!control->listener) {
		int saved = errno;
		*why = mem_printf("control %s: %s", path, reason);
		free(reason);
		free(control);
		errno = saved;
		return NULL;
	}
	listener_count(control->listener, &control->stats);
	control->group = stat(path, &st) == 0 ? st.st_gid : getegid();
	control->conns = conns_new(loop, SIZE_MAX);
	control->conns->stats = &control->stats;
	return control;
}

/* Gives it away. */
void control_give(struct control *control, uid_t uid, gid_t gid)
{
	listener_give(control->listener, uid, gid);
	control->group = gid;
}

/* Leaves it. */
void control_leave(struct control *control, struct legacy *legacy)
{
	if (control)
		listener_leave(control->listener, legacy);
}

/* Keeps it. */
void control_keep(struct control *control)
{
	if (control)
		listener_keep(control->listener);
}

/* Owns it. */
void control_own(struct control *control)
{
	if (control)
		listener_own(control->listener);
}

/* Lets nobody in any more. */
void control_shut(struct control *control)
{
	listener_pause(control->listener);
}

/* Lets the last answers go, which takes no longer than their linger time, and frees it. */
void control_close(struct control *control)
{
	if (!control)
		return;
	for (struct control_client *k = control->clients; k; k = k->following)
		conn_finish(k->c, NULL, "stopped");
	listener_close(control->listener);
	while (control->client_count) {
		loop_turn(control->loop);
	}
	conns_free(control->conns);
	free(control);
}

/* Ends what belongs to another process, here. */
void control_abandon(struct control *control)
{
	if (!control)
		return;
	listener_leave_file(control->listener);
	for (struct control_client *k = control->clients; k; k = k->following)
		conn_end(k->c, NULL, "stopped");
	listener_close(control->listener);
	control->conns->at_end.run(control->conns->at_end.data); /* the end of a turn for them alone */
	conns_free(control->conns);
	free(control);
}

/* Tells how it goes. */
void control_progress(struct control_request *q, json_t *progress)
{
	struct control_client *k = q->client;

	if (k && k->is_json) {
		json_t *o = json_pack("{s:O}", "progress", progress);
		send_json(k, o);
		json_decref(o);
	} else if (k) {
		struct report r = {.result = progress};
		send_text(k, "", &r);
	}
	json_decref(progress);
}

/* Answers. */
void control_answer(struct control_request *q, struct report r)
{
	struct control_client *k = q->client;

	if (k) {
		k->request = NULL;
		conn_set_idle_timeout(k->c, CONTROL_IDLE_NS);
		send_report(k, json_string_value(json_object_get(q->json, "command")), &r);
		go_on(k);
	}
	json_decref(r.result);
	json_decref(q->json);
	free(q);
}

/* Answers a list. */
void control_answer_all(struct control_request **list, struct report r)
{
	struct control_request *q;

	while ((q = *list)) {
		*list = q->next;
		json_incref(r.result);
		control_answer(q, r);
	}
	json_decref(r.result);
}
