/*
 * Listeners: see listener.h. Not libevent's evconnlistener, which spins when descriptors run out and accepts without bound.
 */
#include "listener.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uthash.h>

#include "activation.h"
#include "conn.h"
#include "legacy.h"
#include "log.h"
#include "mem.h"
#include "resolver.h"
#include "sock.h"

/* How many connections one address has. */
struct address_count {
	struct in6_addr key; /* IPv4 is mapped */
	uint64_t count;
	UT_hash_handle hh;
};

/* The key of a peer's address; false for those that have none (Unix). */
static bool address_key(const struct addr *peer, struct in6_addr *key)
{
	memset(key, 0, sizeof *key);
	if (peer->any.sa_family == AF_INET6) {
		*key = peer->in6.sin6_addr;
	} else if (peer->any.sa_family == AF_INET) {
		key->s6_addr[10] = key->s6_addr[11] = 0xff;
		memcpy(&key->s6_addr[12], &peer->in.sin_addr, 4);
	} else {
		return false;
	}
	return true;
}

/* Watches or stops watching for connections, as the state calls for. */
static void watch(struct listener *l)
{
	bool full = l->max_connections && l->live >= l->max_connections;
	bool want = l->fd >= 0 && !l->datagrams && !l->paused && !l->retired && !l->starved && !full;

	if (want == l->watched)
		return;
	if (want ? event_add(l->event, NULL) < 0 : event_del(l->event) < 0)
		return;
	l->watched = want;
}

/* Time to try again. */
static void on_retry(void *data)
{
	struct listener *l = data;

	l->starved = false;
	watch(l);
}

/* No descriptor or memory for the next connection: it stays in the backlog, we try again shortly, the log hears once a second. */
static void starve(struct listener *l, int error)
{
	uint64_t now = loop_now(l->loop);

	l->starved = true;
	l->stats->accept_pauses++;
	if (!l->told_ns || now - l->told_ns >= 1000000000u) {
		l->told_ns = now;
		log_event(LEVEL_WARN, &(struct log_context){.listener = l->name, .level = l->log_level}, "accepting pauses: %s", errno_text(error));
	}
	timer_start(l->loop, &l->retry, LISTENER_RETRY_NS);
	watch(l);
}

/* Counts a newcomer, also without a limit, since a reload may bring one; false when its address has too many already. */
static bool count_address(struct listener *l, const struct addr *peer)
{
	struct in6_addr key;
	struct address_count *entry;

	if (!address_key(peer, &key))
		return true;
	HASH_FIND(hh, l->addresses, &key, sizeof key, entry);
	if (!entry) {
		entry = mem_zalloc(sizeof *entry);
		entry->key = key;
		HASH_ADD(hh, l->addresses, key, sizeof key, entry);
	}
	if (l->max_per_address && entry->count >= l->max_per_address)
		return false;
	entry->count++;
	return true;
}

/* Frees a closed listener that has no connections left. */
static void free_if_done(struct listener *l)
{
	struct address_count *entry, *next;

	if (l->fd >= 0 || l->live || l->busy)
		return;
	HASH_ITER(hh, l->addresses, entry, next)
	{
		HASH_DEL(l->addresses, entry);
		free(entry);
	}
	free(l->proxies);
	free(l->url);
	free(l->name);
	free(l);
}

/* Whom a connection stands for. */
const struct addr *listener_client(const struct listener *l, const struct addr *peer)
{
	return l->header && l->header->named ? &l->header->peer : peer;
}

/* A connection may begin, unless its address has too many. */
static void admit(struct listener *l, int fd, const struct addr *peer, const struct proxyproto *header)
{
	l->header = header;
	if (count_address(l, listener_client(l, peer))) {
		l->on_accept(l, fd, peer);
	} else {
		l->stats->connections_refused++;
		l->live--;
		close(fd);
	}
	l->header = NULL;
}

/* Does it come from a proxy that we trust? */
static bool is_proxy(const struct listener *l, const struct addr *peer)
{
	for (size_t i = 0; i < l->proxy_count; i++)
		if (network_has(&l->proxies[i], peer))
			return true;
	return false;
}

/* A PROXY header is complete. */
static void on_header(void *data, int fd, const struct addr *peer, const struct proxyproto *header)
{
	struct listener *l = data;

	l->busy = true; /* on_accept may close it */
	admit(l, fd, peer, header);
	l->busy = false;
	if (l->fd >= 0)
		watch(l);
	free_if_done(l);
}

/* It will not be. Who connects and leaves without a word only looks whether we are there. */
static void on_no_header(void *data, int fd, const struct addr *peer, const char *why)
{
	struct listener *l = data;
	char text[ADDR_TEXT_SIZE];

	close(fd);
	l->live--;
	l->stats->proxy_headers_refused += why != NULL;
	if (why)
		log_event(LEVEL_INFO, &(struct log_context){.listener = l->name, .peer = addr_format(peer, text), .level = l->log_level},
		          "PROXY header refused: %s", why);
	if (l->fd >= 0)
		watch(l);
}

/* Connections wait: accepts a batch, so that a flood leaves the others their turn. */
static void on_acceptable(evutil_socket_t fd, short what, void *data)
{
	struct listener *l = data;
	struct addr peer;

	(void)what;
	l->busy = true; /* on_accept may close it */
	for (int i = 0; i < l->batch && l->watched; i++) {
		int client = sock_accept(fd, &peer);
		if (client < 0) {
			if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO)
				continue;
			if (errno != EAGAIN)
				starve(l, errno); /* whatever it is, trying again at once would not mend it */
			break;
		}
		l->stats->connections_accepted++;
		l->live++;
		if (!l->proxy_count)
			admit(l, client, &peer, NULL);
		else if (is_proxy(l, &peer))
			preface_start(&l->prefaces, client, &peer);
		else
			on_no_header(l, client, &peer, "it is not from a trusted network");
		watch(l);
	}
	l->busy = false;
	free_if_done(l);
}

/* The address that a block names: numeric, a path, or a name of the hosts file. */
static bool find_address(const struct listen_conf *conf, struct addr *a, char **why)
{
	if (conf->url.scheme == SCHEME_UNIX) {
		if (addr_from_path(a, conf->url.path))
			return true;
	} else {
		if (addr_from_numeric(a, conf->url.host, conf->url.port) || resolver_local_name(conf->url.host, conf->url.port, a))
			return true;
		errno = EADDRNOTAVAIL;
		*why = mem_printf("listen %s: '%s' is neither an address of this machine nor a name in /etc/hosts", conf->url_text, conf->url.host);
		return false;
	}
	*why = mem_printf("listen %s: %s", conf->url_text, errno_text(errno));
	return false;
}

/* The listener's name: its URL with the port in use. */
static char *make_name(const struct listen_conf *conf, const struct addr *local)
{
	char text[ADDR_TEXT_SIZE];

	if (conf->url.scheme == SCHEME_FD)
		return mem_printf("%s://%s", local->any.sa_family == AF_UNIX ? "unix" : "tcp", addr_format(local, text));
	if (conf->url.scheme == SCHEME_UNIX)
		return mem_strdup(conf->url_text);
	return mem_printf("%s://%s", scheme_name(conf->url.scheme), addr_format(local, text));
}

/* Changes the permissions of the socket's file. */
static void change_mode(struct listener *l, mode_t mode)
{
	if (sockfile_change_mode(&l->file, mode) < 0)
		log_warn("listen %s: mode: %s", l->name, errno_text(errno));
}

/* Gives the socket's file to a user. */
void listener_give(struct listener *l, uid_t uid, gid_t gid)
{
	if (sockfile_give(&l->file, uid, gid) < 0)
		log_debug("listen %s: cannot change the owner of the socket: %s", l->name, errno_text(errno));
}

/* Binds. */
int listener_bind(const struct listen_conf *conf, struct sockfile *file, char **why)
{
	struct addr a;
	char *reason = NULL;
	int fd;

	*file = (struct sockfile){0};
	if (!find_address(conf, &a, why))
		return -1;
	switch (conf->url.scheme) {
	case SCHEME_UNIX: fd = sockfile_listen(file, &a, conf->backlog, conf->mode, &reason); break;
	case SCHEME_UDP: fd = sock_datagram(&a, conf->reuse_port); break;
	default: fd = sock_listen(&a, conf->backlog, conf->reuse_port); break;
	}
	if (fd < 0) {
		int saved = errno;
		bool low = saved == EACCES && conf->url.scheme != SCHEME_UNIX && conf->url.port < 1024;
		*why = mem_printf("listen %s: %s%s", conf->url_text, reason ? reason : errno_text(saved),
		                  low ? " (ports below 1024 take root or CAP_NET_BIND_SERVICE)" : "");
		free(reason);
		errno = saved;
	}
	return fd;
}

/* Takes one that the process was started with; -1 with errno and a reason. */
static int take_given(struct loop *loop, const struct listen_conf *conf, struct activation_socket **given, char **why)
{
	char *reason = NULL;
	int fd = activation_take(loop->activation, conf->url.path, given, &reason), saved = errno;

	if (fd < 0)
		*why = mem_printf("listen %s: %s", conf->url_text, reason);
	free(reason);
	errno = saved;
	return fd;
}

/* Takes over the networks of proxies, and how long a header may take. */
static void set_proxies(struct listener *l, const struct listen_conf *conf)
{
	free(l->proxies);
	l->proxy_count = 0;
	l->proxies = mem_zalloc((conf->proxy_protocol.count + 1) * sizeof *l->proxies);
	for (size_t i = 0; i < conf->proxy_protocol.count; i++)
		if (network_parse(&l->proxies[l->proxy_count], conf->proxy_protocol.items[i]))
			l->proxy_count++;
	l->prefaces.timeout_ns = conf->tls ? conf->tls->handshake_timeout_ns : LISTENER_HEADER_NS;
}

/* Makes a listener of a descriptor that listens, which is closed where that fails. */
static struct listener *make_listener(struct loop *loop, const struct listen_conf *conf, int fd,
                                      void (*on_accept)(struct listener *l, int fd, const struct addr *peer), void *user, char **why)
{
	struct listener *l = mem_zalloc(sizeof *l);

	l->loop = loop;
	l->stats = loop->stats;
	l->fd = fd;
	l->datagrams = conf->url.scheme == SCHEME_UDP;
	/* a socket that several processes accept on is shared one by one */
	l->batch = loop->processes > 1 && (conf->url.scheme == SCHEME_UNIX || conf->url.scheme == SCHEME_FD) ? 1 : LISTENER_BATCH;
	if (!sock_local(fd, &l->local))
		l->local.length = 0;
	l->url = mem_strdup(conf->url_text);
	l->name = make_name(conf, &l->local);
	l->backlog = conf->backlog;
	l->mode = conf->mode;
	l->label = scorer_label(loop->scorer, l->name);
	l->max_connections = conf->max_connections;
	l->max_per_address = conf->max_connections_per_address;
	l->log_level = conf->flow.log_level;
	l->on_accept = on_accept;
	l->user = user;
	l->prefaces = (struct prefaces){.loop = loop, .on_header = on_header, .on_failure = on_no_header, .data = l};
	set_proxies(l, conf);
	timer_init(&l->retry, on_retry, l);
	l->stats->listeners++;
	l->next = loop->listeners;
	if (l->next)
		l->next->previous = l;
	loop->listeners = l;
	l->event = event_new(loop->base, fd, EV_READ | EV_PERSIST, on_acceptable, l);
	if (!l->event)
		abort();
	watch(l);
	if (!l->watched && !l->datagrams) {
		int saved = errno ? errno : EIO;
		*why = mem_printf("listen %s: %s", conf->url_text, errno_text(saved));
		listener_close(l);
		errno = saved;
		return NULL;
	}
	return l;
}

/* Opens a listener. */
struct listener *listener_open(struct loop *loop, const struct listen_conf *conf,
                               void (*on_accept)(struct listener *l, int fd, const struct addr *peer), void *user, char **why)
{
	struct activation_socket *given = NULL;
	struct sockfile file = {0};
	int fd = legacy_take(loop->legacy, LEGACY_LISTENER, conf->url_text, &file);
	bool inherited = fd >= 0;

	if (inherited && conf->reuse_port) /* for those that are to come to its side */
		sock_reuse_port(fd);
	if (!inherited)
		fd = conf->url.scheme == SCHEME_FD ? take_given(loop, conf, &given, why) : listener_bind(conf, &file, why);
	if (fd < 0)
		return NULL;
	struct listener *l = make_listener(loop, conf, fd, on_accept, user, why);
	if (l) {
		l->given = given;
		l->file = file;
		l->inherited = inherited;
		return l;
	}
	(void)!sockfile_remove(&file);
	if (given)
		given->taken = false;
	return NULL;
}

/* Takes a descriptor over. */
struct listener *listener_adopt(struct loop *loop, const struct listen_conf *conf, int fd,
                                void (*on_accept)(struct listener *l, int fd, const struct addr *peer), void *user, char **why)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
		int saved = errno;
		*why = mem_printf("listen %s: %s", conf->url_text, errno_text(saved));
		errno = saved;
		return NULL;
	}
	return make_listener(loop, conf, fd, on_accept, user, why);
}

/* Leaves the socket's file to somebody else. */
void listener_leave_file(struct listener *l)
{
	sockfile_forget(&l->file);
}

/* Owns it. Whoever connects is told by the kernel who has called listen last, which is how others find out whose the path is. */
void listener_own(struct listener *l)
{
	l->inherited = false;
	if (!l->datagrams && !l->given && listen(l->fd, l->backlog) < 0)
		log_warn("listen %s: backlog: %s", l->name, errno_text(errno));
	if (l->mode >= 0)
		change_mode(l, (mode_t)l->mode);
}

/* Takes over new limits. */
void listener_update(struct listener *l, const struct listen_conf *conf)
{
	l->max_connections = conf->max_connections;
	l->max_per_address = conf->max_connections_per_address;
	l->log_level = conf->flow.log_level;
	set_proxies(l, conf);
	l->backlog = conf->backlog;
	l->mode = conf->mode;
	listener_own(l);
	watch(l);
}

/* Leaves it. */
void listener_leave(struct listener *l, struct legacy *legacy)
{
	if (l->given || l->fd < 0)
		return;
	l->left = true;
	legacy_leave(legacy, LEGACY_LISTENER, l->url, l->fd, &l->file);
}

/* Keeps it. */
void listener_keep(struct listener *l)
{
	l->left = false;
}

/* Retires it. */
bool listener_retire(struct listener *l)
{
	l->retired = true;
	watch(l);
	return !l->prefaces.all;
}

/* Moves it to another table of counters. */
void listener_count(struct listener *l, struct stats *stats)
{
	l->stats->listeners--;
	l->stats = stats;
	l->stats->listeners++;
}

/* Leaves newcomers in the backlog. */
void listener_pause(struct listener *l)
{
	l->paused = true;
	prefaces_pause(&l->prefaces, true);
	watch(l);
}

/* Accepts again. */
void listener_resume(struct listener *l)
{
	l->paused = false;
	prefaces_pause(&l->prefaces, false);
	watch(l);
}

/* An accepted connection has ended. */
void listener_release(struct listener *l, const struct addr *peer)
{
	struct in6_addr key;
	struct address_count *entry = NULL;

	l->live--;
	if (l->addresses && address_key(peer, &key))
		HASH_FIND(hh, l->addresses, &key, sizeof key, entry);
	if (entry && --entry->count == 0) {
		HASH_DEL(l->addresses, entry);
		free(entry);
	}
	if (l->fd >= 0)
		watch(l);
	free_if_done(l);
}

/* Closes it. */
void listener_close(struct listener *l)
{
	if (l->fd < 0)
		return;
	l->stats->listeners--;
	if (l->previous)
		l->previous->next = l->next;
	else
		l->loop->listeners = l->next;
	if (l->next)
		l->next->previous = l->previous;
	l->watched = false;
	event_free(l->event);
	timer_stop(l->loop, &l->retry);
	if (l->left || l->inherited) /* somebody else's now, or still */
		sockfile_forget(&l->file);
	else if (sockfile_remove(&l->file) < 0)
		log_warn("listen %s: cannot remove the socket file: %s", l->name, errno_text(errno));
	close(l->fd);
	if (l->given)
		l->given->taken = false;
	l->fd = -1;
	l->live -= prefaces_clear(&l->prefaces);
	free_if_done(l);
}
