/*
 * The configuration: from a file's plain data (confread.h) by one table of options to structs with every default filled in.
 */
#ifndef REACTORD_CONFIG_H
#define REACTORD_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "addr.h"
#include "log.h"
#include "option.h"
#include "problems.h"
#include "value.h"

/* How the bytes of a connection flow, and what is logged of it; the same for accepted and outgoing ones. */
struct flow {
	uint64_t idle_timeout_ns;                   /* 0: none */
	uint64_t first_byte_timeout_ns;             /* limit of the silence that an accepted connection begins with, 0: none */
	uint64_t linger_timeout_ns;                 /* limit of a close after writing */
	size_t low_water, high_water, max_outbound; /* bytes */
	bool nodelay;
	int keepalive;                           /* -1: off, 0: on with the system's times, else idle seconds before the first probe */
	int keepalive_interval, keepalive_count; /* seconds between probes, and how many; 0: the system's; set by scripts only */
	int log_level;                           /* as in struct log_context: 0: the log's, else 1 + an enum log_level */
};

/* A certificate for clients that ask for that name. */
struct tls_sni_conf {
	char *name;
	char *certificate, *private_key, *private_key_pass;
};

/* TLS of one side; the same for listeners, connections and start_tls. */
struct tls_conf {
	char *certificate, *private_key; /* PEM text or a path, NULL: none */
	char *private_key_pass;
	bool self_signed;
	int verify_peer;         /* -1: clients do, servers do not */
	char *verify_hostname;   /* NULL: the name given to connect; "": any */
	char *ca_file, *ca_path; /* both NULL: the system's store */
	bool fail_if_no_peer_cert;
	char *sni_hostname; /* NULL: the name given to connect */
	struct strings alpn;
	struct value sni;              /* as read */
	struct tls_sni_conf *sni_list; /* what it says */
	size_t sni_count;
	int min_version, max_version; /* 0: default, 1 TLSv1, 2 TLSv1.1, 3 TLSv1.2, 4 TLSv1.3 */
	struct strings ssl_version;
	char *cipher_list, *ciphersuites, *ecdh_curve, *dhparam; /* NULL: ours */
	uint64_t handshake_timeout_ns;
};

/* One listen block (or the options of em.listen). */
struct listen_conf {
	char *file; /* where it stands; NULL from a script */
	int line;
	struct url url;
	char *url_text;    /* canonical */
	char *handler;     /* a handler's name; NULL from a script */
	struct value args; /* a table of positional arguments, or nil */
	struct flow flow;
	int backlog;
	uint64_t max_connections;             /* 0: no limit */
	uint64_t max_connections_per_address; /* 0: no limit */
	bool reuse_port;
	int mode;                      /* unix: permissions of the socket file, -1: by umask */
	struct strings proxy_protocol; /* networks of proxies, for network_parse; not empty: every connection begins with a PROXY header */
	struct tls_conf *tls;          /* NULL: plain */
};

/* One connect block (or the options of em.connect). */
struct connect_conf {
	char *file;
	int line;
	struct url url;
	char *url_text;
	char *handler;
	struct value args;
	struct flow flow;
	uint64_t connect_timeout_ns;
	uint64_t reconnect_ns; /* wait after an end before the next attempt; meaningful with has_reconnect */
	bool has_reconnect;
	bool each_process;
	char *bind;           /* local "host:port", or NULL */
	int proxy_protocol;   /* version of the PROXY header to begin with, 0: none */
	struct tls_conf *tls; /* NULL: plain */
};

/* A whole file. */
struct config {
	char *file;              /* as opened; NULL for a config made without one */
	struct strings handlers; /* folders, absolute or relative to the working directory */
	char *user, *group;      /* NULL: stay who we are */
	char *pid_file;          /* NULL: none */
	char *control;           /* NULL: the default place, if there is one */
	bool control_eval;
	char *lua_path, *lua_cpath;          /* NULL: none */
	struct strings nameservers;          /* "address" or "address:port"; none: those of the system */
	uint64_t memory_limit, max_queued;   /* bytes */
	uint64_t channel_queue, shared_size; /* bytes */
	uint64_t callback_time_ns, slow_callback_ns, hang_timeout_ns, drain_timeout_ns, reload_timeout_ns, upgrade_timeout_ns;
	int64_t generations, processes; /* processes 0: "auto", see config_processes */
	bool unsafe;
	enum log_level log_level;
	enum log_format log_format;
	uint64_t log_repeats;
	char *log_file; /* NULL: standard error */
	struct listen_conf *listens;
	size_t listen_count;
	struct connect_conf *connects;
	size_t connect_count;
};

/* A "name=value" from the command line or the environment that goes before the file. Top-level options but lists only; those of log are
 * "log_level", "log_format", "log_file", "log_repeats". */
struct override {
	const char *name;   /* option */
	const char *value;  /* as text */
	const char *origin; /* "--set log_level" or "REACTORD_LOG_LEVEL", for messages */
};

/* Collects the REACTORD_<OPTION> variables of the environment in front of those given: later ones win. Returns an array that the
 * caller frees (it holds the names; values and what was given are borrowed) and its length. */
struct override *config_overrides(const struct override *given, size_t count, size_t *total) __attribute__((warn_unused_result));

/* Reads and validates a file. NULL when anything is wrong; all of it is in problems. */
struct config *config_load(const char *path, const struct override *overrides, size_t count, struct problems *problems)
	__attribute__((warn_unused_result));

/* A config with defaults alone (reactord run), still under overrides. */
struct config *config_defaults(const struct override *overrides, size_t count, struct problems *problems)
	__attribute__((warn_unused_result));
void config_free(struct config *config);

/* The same schema for scripts: options is a table, or nil or NULL for none; its "url" is passed over. False with a reason that names
 * every mistake (caller frees); out is empty then. */
bool config_listen(struct listen_conf *out, const char *url, const struct value *options, char **why) __attribute__((warn_unused_result));
bool config_connect(struct connect_conf *out, const char *url, const struct value *options, char **why) __attribute__((warn_unused_result));
/* The options of start_tls. */
bool config_tls(struct tls_conf *out, const struct value *options, char **why) __attribute__((warn_unused_result));
void tls_conf_clear(struct tls_conf *tls);

/* Every option in one text: equal texts, equal configurations. The caller owns it. */
char *config_tls_text(const struct tls_conf *tls) __attribute__((warn_unused_result));

void listen_conf_clear(struct listen_conf *l);
void connect_conf_clear(struct connect_conf *c);
void flow_defaults(struct flow *flow);

/* The whole effective configuration as JSON, every option of the schema included. */
void config_dump_json(const struct config *config, FILE *to);

/* How many processes are to serve. */
unsigned config_processes(const struct config *config);

/* The options that differ between two configs and cannot change while running (user, group, pid_file, …); for each one a line in
 * problems ("reactord.conf: 'user' cannot change in a reload: restart the daemon"). */
void config_check_reload(const struct config *now, const struct config *next, struct problems *problems);

/* One option for those who describe them all: documentation, --help, completion. */
struct option_row {
	const char *scope; /* "top", "log", "listen", "connect", "tls" */
	const char *name;
	const char *type;     /* "string", "size", "seconds", … */
	const char *fallback; /* the default as it is written in a file */
	bool reloadable;
	const char *help;
};

/* All options, scope by scope; the caller frees the array. */
struct option_row *config_option_rows(size_t *count) __attribute__((warn_unused_result));

#endif
