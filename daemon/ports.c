/* Listeners of the configuration: see ports.h. */
#include "ports.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "legacy.h"
#include "log.h"
#include "mem.h"
#include "sock.h"

/* A socket that waits for its block. */
struct handed {
	char *url;
	size_t occurrence;
	int fd;
	struct handed *next;
};

/* How many blocks of a configuration before that one have its URL: they may share it by reuse_port. */
size_t ports_before(const struct config *config, size_t block)
{
	size_t n = 0;

	for (size_t i = 0; i < block; i++)
		n += strcmp(config->listens[i].url_text, config->listens[block].url_text) == 0;
	return n;
}

/* The open port of a URL that has so many of its kind before it, NULL if there is none. */
static struct port *find(const struct ports *p, const char *url, size_t before)
{
	for (struct port *port = p->all; port; port = port->next)
		if (strcmp(port->sockets[0]->url, url) == 0 && before-- == 0)
			return port;
	return NULL;
}

/* The place of the socket for a block among those that were handed down; NULL is in it if there is none. */
static struct handed **find_handed(const struct ports *p, const char *url, size_t before)
{
	struct handed **at = (struct handed **)&p->handed;

	while (*at && (strcmp((*at)->url, url) != 0 || (*at)->occurrence != before))
		at = &(*at)->next;
	return at;
}

/* Takes it; -1 if there is none. */
static int take_handed(struct ports *p, const char *url, size_t before)
{
	struct handed **at = find_handed(p, url, before), *h = *at;

	if (!h)
		return -1;
	int fd = h->fd;
	*at = h->next;
	free(h->url);
	free(h);
	return fd;
}

/* The socket for a process. */
int ports_socket(const struct port *port, unsigned process)
{
	return port->sockets[port->count > 1 ? process - 1 : 0]->fd;
}

/* Sockets for a process that begins. */
struct handed *ports_share(const struct ports *p, const struct config *config, unsigned process)
{
	struct ports child = {0};
	size_t block = 0;

	for (const struct port *port = p->all; port; port = port->next, block++) {
		if (config->listens[block].url.scheme == SCHEME_FD)
			continue;
		for (size_t n = port->count == 1 ? 0 : process - 1; n < port->count; n += p->slots) { /* more than one: see is_more */
			int fd = sock_duplicate(port->sockets[n]->fd);
			if (fd >= 0)
				ports_hand(&child, port->sockets[0]->url, ports_before(config, block), fd);
		}
	}
	return child.handed;
}

/* Keeps one. */
void ports_hand(struct ports *p, const char *url, size_t before, int fd)
{
	struct handed *h = mem_zalloc(sizeof *h);

	*h = (struct handed){.url = mem_strdup(url), .occurrence = before, .fd = fd, .next = p->handed};
	p->handed = h;
}

/* Closes the rest. */
void ports_drop_handed(struct ports *p)
{
	while (p->handed) {
		struct handed *h = p->handed;
		p->handed = h->next;
		if (h->fd >= 0)
			close(h->fd);
		free(h->url);
		free(h);
	}
}

/* Closes a port and frees it. */
static void close_port(struct port *port)
{
	for (size_t i = 0; i < port->count; i++)
		listener_close(port->sockets[i]);
	free(port->sockets);
	free(port);
}

/* Can each process have a socket of its own on that address? */
static bool is_shareable(const struct listen_conf *conf)
{
	return conf->url.scheme != SCHEME_UNIX && conf->url.scheme != SCHEME_FD;
}

/* Is the address free? Sockets that share it by SO_REUSEPORT would not tell, so another daemon's could be among them. */
static bool probe(const struct ports *p, const struct listen_conf *conf, char **why)
{
	struct listen_conf alone = *conf;
	struct sockfile file;

	if (conf->reuse_port || !is_shareable(conf) || legacy_has(p->loop->legacy, LEGACY_LISTENER, conf->url_text))
		return true;
	alone.backlog = -1;
	int fd = listener_bind(&alone, &file, why);
	if (fd < 0)
		return false;
	close(fd);
	return true;
}

/* The next socket of a port that is being made; NULL with errno and a reason. */
static struct listener *open_socket(struct ports *p, const struct listen_conf *conf, size_t before, const struct port *port, char **why)
{
	struct listen_conf shared = *conf;

	if (p->from_master && conf->url.scheme != SCHEME_FD) {
		bool lost = *find_handed(p, conf->url_text, before) != NULL;
		int fd = take_handed(p, conf->url_text, before);
		if (fd >= 0)
			return listener_adopt(p->loop, conf, fd, p->on_accept, NULL, why);
		errno = lost ? EMFILE : ENOENT;
		*why = mem_printf("listen %s: %s", conf->url_text, lost ? strerrordesc_np(EMFILE) : "the master has no socket for it");
		return NULL;
	}
	if (p->slots && is_shareable(conf)) {
		shared.reuse_port = true;
		if (port->count) /* 0 picks one, which is then the others' too */
			shared.url.port = addr_port(&port->sockets[0]->local);
	}
	return listener_open(p->loop, &shared, p->on_accept, NULL, why);
}

/* Are there more sockets for a block than it wants? A daemon before may have had more processes. Who connects is in the queue of one of
 * them, and would be cut off with it. */
static bool is_more(const struct ports *p, const struct listen_conf *conf, size_t before)
{
	if (conf->reuse_port || !is_shareable(conf) || conf->url.scheme == SCHEME_UDP)
		return false;
	return p->from_master ? *find_handed(p, conf->url_text, before) != NULL : legacy_has(p->loop->legacy, LEGACY_LISTENER, conf->url_text);
}

/* Opens the port of a block; NULL with errno and a reason. */
static struct port *open_port(struct ports *p, const struct listen_conf *conf, size_t before, char **why)
{
	size_t wanted = p->slots && is_shareable(conf) ? p->slots : 1;

	if (p->slots && !before && !probe(p, conf, why))
		return NULL;
	struct port *port = mem_zalloc(sizeof *port);
	while (port->count < wanted || is_more(p, conf, before)) {
		struct listener *l = open_socket(p, conf, before, port, why);
		if (!l) {
			int saved = errno;
			close_port(port);
			errno = saved;
			return NULL;
		}
		listener_pause(l);
		port->sockets = mem_realloc(port->sockets, (port->count + 1) * sizeof(struct listener *));
		port->sockets[port->count++] = l;
	}
	return port;
}

/* Finds or opens each. */
struct port **ports_open(struct ports *p, const struct config *config, bool rights_gone, struct problems *problems)
{
	struct port **open = mem_zalloc((config->listen_count + 1) * sizeof(struct port *));

	for (size_t i = 0; i < config->listen_count; i++) {
		const struct listen_conf *conf = &config->listens[i];
		size_t before = ports_before(config, i);
		char *why = NULL;
		open[i] = find(p, conf->url_text, before);
		if (!open[i])
			open[i] = open_port(p, conf, before, &why);
		if (!open[i]) {
			bool gave_up = errno == EACCES && rights_gone;
			problems_add_at(problems, conf->file, conf->line, "%s%s", why,
			                gave_up ? ": the daemon has given up its rights, restart it" : "");
			free(why);
		}
	}
	return open;
}

/* Closes what is new. */
void ports_abort(struct port **open, size_t count)
{
	for (size_t i = 0; open && i < count; i++)
		if (open[i] && !open[i]->current)
			close_port(open[i]);
	free(open);
}

/* Puts them in their places. */
void ports_commit(struct ports *p, const struct config *config, struct port **open, bool updated)
{
	struct port *old = p->all, *next, **end = &p->all;

	for (struct port *port = old; port; port = port->next)
		port->current = false; /* those that stay are so again below */
	for (size_t i = 0; i < config->listen_count; i++) {
		struct port *port = open[i];
		bool is_old = false;
		for (struct port *o = old; o && !is_old; o = o->next)
			is_old = o == port;
		if (!is_old && !p->silent && updated)
			log_info("listening on %s", port->sockets[0]->name);
		port->current = true;
		for (size_t n = 0; n < port->count && updated; n++)
			listener_update(port->sockets[n], &config->listens[i]);
	}
	for (struct port *port = old; port; port = next) {
		next = port->next;
		if (port->current)
			continue;
		if (!p->silent)
			log_info("no longer listening on %s", port->sockets[0]->name);
		close_port(port);
	}
	for (size_t i = 0; i < config->listen_count; i++) {
		*end = open[i];
		end = &open[i]->next;
	}
	*end = NULL;
	free(open);
}

/* Gives the files away. */
void ports_give(struct ports *p, uid_t uid, gid_t gid)
{
	for (struct port *port = p->all; port; port = port->next)
		for (size_t i = 0; i < port->count; i++)
			listener_give(port->sockets[i], uid, gid);
}

/* Leaves them. */
void ports_leave(const struct ports *p, struct legacy *legacy)
{
	for (const struct port *port = p->all; port; port = port->next)
		for (size_t i = 0; i < port->count; i++)
			listener_leave(port->sockets[i], legacy);
}

/* Keeps them. */
void ports_keep(struct ports *p)
{
	for (struct port *port = p->all; port; port = port->next)
		for (size_t i = 0; i < port->count; i++)
			listener_keep(port->sockets[i]);
}

/* Owns them. */
void ports_own(struct ports *p)
{
	for (struct port *port = p->all; port; port = port->next)
		for (size_t i = 0; i < port->count; i++)
			listener_own(port->sockets[i]);
}

/* Retires them. */
bool ports_retire(struct ports *p)
{
	bool idle = true;

	for (struct port *port = p->all; port; port = port->next)
		for (size_t i = 0; i < port->count; i++)
			idle = listener_retire(port->sockets[i]) && idle;
	return idle;
}

/* Accepts. */
void ports_resume(struct ports *p)
{
	for (struct port *port = p->all; port; port = port->next)
		for (size_t i = 0; i < port->count; i++)
			listener_resume(port->sockets[i]);
}

/* Tells where we listen. */
void ports_log(const struct ports *p)
{
	for (const struct port *port = p->all; port; port = port->next)
		log_info("listening on %s", port->sockets[0]->name);
}

/* Closes all. */
void ports_close(struct ports *p, bool leave_files)
{
	for (struct port *port = p->all, *next; port; port = next) {
		next = port->next;
		for (size_t i = 0; i < port->count && leave_files; i++)
			listener_leave_file(port->sockets[i]);
		close_port(port);
	}
	p->all = NULL;
	ports_drop_handed(p);
}
