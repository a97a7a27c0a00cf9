/*
 * The table of all options. Validation, defaults, the dump and the documentation are made from it; conf/reactord.conf repeats each
 * option with its default and its help.
 */
#include "config_scopes.h"

#include <string.h>

#include "config.h"

#define MEMBER(structure, name) .offset = offsetof(struct structure, name), .size = sizeof(((struct structure *)0)->name)
#define CONFIG(name) MEMBER(config, name)
#define BYTES_MAX 1099511627776.0 /* 1 TiB */
#define SECONDS_MAX 315360000.0   /* 10 years */
#define COUNT_MAX 1000000000.0
#define COUNT(options) (sizeof(options) / sizeof((options)[0]))

static const char *const log_levels[] = {"error", "warn", "info", "debug", NULL};
static const char *const own_log_levels[] = {"default", "error", "warn", "info", "debug", NULL};
static const char *const log_formats[] = {"auto", "text", "journal", "json", NULL};

static const struct option_def top[] = {
	{"handlers", OPTION_FOLDERS, CONFIG(handlers), .fallback = "{}", .reloadable = true,
     .help = "Folders in which handlers are looked up by name, in this order; the shipped ones come last"},
	{"user", OPTION_STRING, CONFIG(user), .fallback = "nil", .help = "User to become once all sockets are open, by name or number"},
	{"group", OPTION_STRING, CONFIG(group), .fallback = "nil", .help = "Group to become, by name or number; the user's own if not given"},
	{"pid_file", OPTION_PATH, CONFIG(pid_file), .fallback = "nil", .help = "File that holds the process id while the daemon runs"},
	{"control", OPTION_PATH, CONFIG(control), .fallback = "nil",
     .help = "Unix socket for reactord ctl; /run/reactord/control.sock if not given, where that folder exists"},
	{"control_eval", OPTION_BOOLEAN, CONFIG(control_eval), .fallback = "false", .reloadable = true,
     .help = "Let reactord ctl eval run Lua among the handlers"},
	{"processes", OPTION_INTEGER, CONFIG(processes), .fallback = "1", .min = 1, .max = 256, .automatic = true,
     .help = "Processes that serve, each with a loop and handlers of its own; \"auto\" is one for each core"},
	{"memory_limit", OPTION_SIZE, CONFIG(memory_limit), .fallback = "\"1 GiB\"", .min = 1048576, .max = BYTES_MAX, .reloadable = true,
     .help = "Memory that the handlers of one generation may take"},
	{"max_queued", OPTION_SIZE, CONFIG(max_queued), .fallback = "\"1 GiB\"", .min = 65536, .max = BYTES_MAX, .reloadable = true,
     .help = "Unsent bytes of all connections together; over it the longest queue ends"},
	{"channel_queue", OPTION_SIZE, CONFIG(channel_queue), .fallback = "\"16 MiB\"", .min = 65536, .max = BYTES_MAX, .reloadable = true,
     .help = "Messages on named channels that may wait in a process to be delivered; over it pushing is refused"},
	{"shared_size", OPTION_SIZE, CONFIG(shared_size), .fallback = "\"16 MiB\"", .min = 65536, .max = BYTES_MAX,
     .help = "What em.shared may hold, all names together"},
	{"callback_time", OPTION_SECONDS, CONFIG(callback_time_ns), .fallback = "1", .max = SECONDS_MAX, .reloadable = true,
     .help = "Seconds after which a callback is stopped; 0 is never"},
	{"slow_callback", OPTION_SECONDS, CONFIG(slow_callback_ns), .fallback = "0.1", .max = SECONDS_MAX, .reloadable = true,
     .help = "Seconds after which a callback is logged as slow, with the place where it was then; 0 is never"},
	{"hang_timeout", OPTION_SECONDS, CONFIG(hang_timeout_ns), .fallback = "10", .max = SECONDS_MAX, .reloadable = true,
     .help = "Seconds beyond callback_time after which one of several processes that hangs is killed and replaced; 0 is never"},
	{"drain_timeout", OPTION_SECONDS, CONFIG(drain_timeout_ns), .fallback = "30", .max = SECONDS_MAX, .reloadable = true,
     .help = "Seconds that connections have to end by themselves when the daemon stops"},
	{"reload_timeout", OPTION_SECONDS, CONFIG(reload_timeout_ns), .fallback = "3600", .max = SECONDS_MAX, .reloadable = true,
     .help = "Seconds that connections may stay on old code after a reload"},
	{"upgrade_timeout", OPTION_SECONDS, CONFIG(upgrade_timeout_ns), .fallback = "60", .max = SECONDS_MAX, .reloadable = true,
     .help = "Seconds that a new process has at an upgrade to get ready"},
	{"generations", OPTION_INTEGER, CONFIG(generations), .fallback = "4", .min = 1, .max = 100, .reloadable = true,
     .help = "Generations of code that may live at once; beyond it the oldest ends"},
	{"unsafe", OPTION_BOOLEAN, CONFIG(unsafe), .fallback = "false", .reloadable = true,
     .help = "Give handlers the whole standard library, also what can stop the daemon"},
	{"nameservers", OPTION_ADDRESSES, CONFIG(nameservers), .fallback = "{}", .reloadable = true,
     .help = "Name servers, \"address\" or \"address:port\"; those of /etc/resolv.conf if none are given"},
	{"lua_path", OPTION_SEARCH_PATH, CONFIG(lua_path), .fallback = "nil", .reloadable = true,
     .help = "Where require looks for modules in Lua: templates with ';' between"},
	{"lua_cpath", OPTION_SEARCH_PATH, CONFIG(lua_cpath), .fallback = "nil", .reloadable = true,
     .help = "Where require looks for modules in C: templates with ';' between"},
};

static const struct option_def logs[] = {
	{"level", OPTION_CHOICE, CONFIG(log_level), .fallback = "\"info\"", .choices = log_levels, .reloadable = true,
     .help = "What is logged: \"error\", \"warn\", \"info\" or \"debug\" and all that is graver"},
	{"format", OPTION_CHOICE, CONFIG(log_format), .fallback = "\"auto\"", .choices = log_formats, .reloadable = true,
     .help = "How: \"text\", \"journal\", \"json\", or \"auto\" for journal under systemd and else text"},
	{"file", OPTION_PATH, CONFIG(log_file), .fallback = "nil", .reloadable = true,
     .help = "Where to: a file that SIGUSR1 opens anew; standard error if not given"},
	{"repeats", OPTION_INTEGER, CONFIG(log_repeats), .fallback = "10", .max = COUNT_MAX, .reloadable = true,
     .help = "Lines in a second that say the same of one listener and handler; more are counted, and the count is logged. 0: no limit"},
};

/* What accepted and outgoing connections have in common. */
#define FLOW_OPTIONS(structure)                                                                             \
	{"idle_timeout",                                                                                        \
	 OPTION_SECONDS,                                                                                        \
	 MEMBER(structure, flow.idle_timeout_ns),                                                               \
	 .fallback = "0",                                                                                       \
	 .max = SECONDS_MAX,                                                                                    \
	 .reloadable = true,                                                                                    \
	 .help = "Seconds without a byte in either direction after which a connection ends; 0 is never"},       \
		{"linger_timeout",                                                                                  \
	     OPTION_SECONDS,                                                                                    \
	     MEMBER(structure, flow.linger_timeout_ns),                                                         \
	     .fallback = "30",                                                                                  \
	     .max = SECONDS_MAX,                                                                                \
	     .reloadable = true,                                                                                \
	     .help = "Seconds that a closing connection has to send what is queued and to see the peer's end"}, \
		{"log_level",                                                                                       \
	     OPTION_CHOICE,                                                                                     \
	     MEMBER(structure, flow.log_level),                                                                 \
	     .fallback = "\"default\"",                                                                         \
	     .choices = own_log_levels,                                                                         \
	     .reloadable = true,                                                                                \
	     .help = "What is logged of its connections, as log.level, which is the default"},                  \
		{"low_water",                                                                                       \
	     OPTION_SIZE,                                                                                       \
	     MEMBER(structure, flow.low_water),                                                                 \
	     .fallback = "\"64 KiB\"",                                                                          \
	     .max = BYTES_MAX,                                                                                  \
	     .reloadable = true,                                                                                \
	     .help = "Unsent bytes at which a full connection takes more again; never above high_water"},       \
		{"high_water",                                                                                      \
	     OPTION_SIZE,                                                                                       \
	     MEMBER(structure, flow.high_water),                                                                \
	     .fallback = "\"1 MiB\"",                                                                           \
	     .min = 1,                                                                                          \
	     .max = BYTES_MAX,                                                                                  \
	     .reloadable = true,                                                                                \
	     .help = "Unsent bytes from which send_data says that it is enough; never above max_outbound"},     \
		{"max_outbound",                                                                                    \
	     OPTION_SIZE,                                                                                       \
	     MEMBER(structure, flow.max_outbound),                                                              \
	     .fallback = "\"64 MiB\"",                                                                          \
	     .min = 1,                                                                                          \
	     .max = BYTES_MAX,                                                                                  \
	     .reloadable = true,                                                                                \
	     .help = "Unsent bytes over which a connection is closed"},                                         \
		{"nodelay",          OPTION_BOOLEAN,     MEMBER(structure, flow.nodelay),                           \
	     .fallback = "true", .reloadable = true, .help = "Send small packets at once (TCP_NODELAY)"},       \
	{                                                                                                       \
		"keepalive", OPTION_KEEPALIVE, MEMBER(structure, flow.keepalive),                                   \
			.fallback = "false", .reloadable = true,                                                        \
			.help = "Probe idle peers (SO_KEEPALIVE): true, or the seconds before the first probe"          \
	}

static const struct option_def listens[] = {
	{"handler", OPTION_STRING, MEMBER(listen_conf, handler), .fallback = "nil", .reloadable = true,
     .help = "Name of the handler that serves the connections; required"},
	{"args", OPTION_LIST, MEMBER(listen_conf, args), .fallback = "nil", .reloadable = true,
     .help = "List of plain values that the handler's initialize gets"},
	{"backlog", OPTION_INTEGER, MEMBER(listen_conf, backlog), .fallback = "4096", .min = 1, .max = 65535, .reloadable = true,
     .help = "Connections that the system holds until they are accepted"},
	{"max_connections", OPTION_INTEGER, MEMBER(listen_conf, max_connections), .fallback = "0", .max = COUNT_MAX, .reloadable = true,
     .help = "Open connections at which accepting pauses; 0 is no limit"},
	{"max_connections_per_address", OPTION_INTEGER, MEMBER(listen_conf, max_connections_per_address), .fallback = "0", .max = COUNT_MAX,
     .reloadable = true, .help = "Open connections of one host over which a new one is closed; 0 is no limit"},
	{"first_byte_timeout", OPTION_SECONDS, MEMBER(listen_conf, flow.first_byte_timeout_ns), .fallback = "0", .max = SECONDS_MAX,
     .reloadable = true, .help = "Seconds after which a connection ends that has sent nothing yet; 0 is never"},
	FLOW_OPTIONS(listen_conf),
	{"reuse_port", OPTION_BOOLEAN, MEMBER(listen_conf, reuse_port), .fallback = "false", .reloadable = true,
     .help = "Share the address with other listeners that say so too (SO_REUSEPORT)"},
	{"mode", OPTION_MODE, MEMBER(listen_conf, mode), .fallback = "nil", .reloadable = true,
     .help = "Permissions of a unix:// socket, such as \"0660\"; by the umask if not given"},
	{"proxy_protocol", OPTION_NETWORKS, MEMBER(listen_conf, proxy_protocol), .fallback = "{}", .reloadable = true,
     .help = "Networks of proxies (or \"unix\") whose PROXY header tells the client's address; others may not connect then"},
};

static const char *const proxy_versions[] = {"none", "v1", "v2", NULL};

static const struct option_def connects[] = {
	{"handler", OPTION_STRING, MEMBER(connect_conf, handler), .fallback = "nil", .reloadable = true,
     .help = "Name of the handler that serves the connection; required"},
	{"args", OPTION_LIST, MEMBER(connect_conf, args), .fallback = "nil", .reloadable = true,
     .help = "List of plain values that the handler's initialize gets"},
	{"connect_timeout", OPTION_SECONDS, MEMBER(connect_conf, connect_timeout_ns), .fallback = "20", .max = SECONDS_MAX, .reloadable = true,
     .help = "Seconds that connecting may take; 0 is as long as the system tries"},
	{"reconnect", OPTION_SECONDS, MEMBER(connect_conf, reconnect_ns), .present = offsetof(struct connect_conf, has_reconnect),
     .fallback = "nil", .min = 0.01, .max = SECONDS_MAX, .reloadable = true,
     .help = "Seconds after its end at which the connection is tried again; never if not given"},
	{"each_process", OPTION_BOOLEAN, MEMBER(connect_conf, each_process), .fallback = "false", .reloadable = true,
     .help = "With several processes: connect from each of them, not from the first alone"},
	{"bind", OPTION_ADDRESS, MEMBER(connect_conf, bind), .fallback = "nil", .reloadable = true,
     .help = "Local address to connect from: \"host\" or \"host:port\", numeric"},
	{"proxy_protocol", OPTION_CHOICE, MEMBER(connect_conf, proxy_protocol), .fallback = "\"none\"", .choices = proxy_versions,
     .reloadable = true, .help = "Begin with a PROXY header: \"v1\" or \"v2\""},
	FLOW_OPTIONS(connect_conf),
};

#define TLS(name) MEMBER(tls_conf, name)

static const char *const tls_versions[] = {"default", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3", NULL};

static const struct option_def identities[] = {
	{"certificate", OPTION_PEM, MEMBER(tls_sni_conf, certificate), .fallback = "nil",
     .help = "Certificate and chain: a PEM file or PEM text"},
	{"private_key", OPTION_PEM, MEMBER(tls_sni_conf, private_key), .fallback = "nil",
     .help = "Its key: a PEM file or PEM text; looked for in certificate if not given"},
	{"private_key_pass", OPTION_STRING, MEMBER(tls_sni_conf, private_key_pass), .fallback = "nil", .help = "Password of the key"},
};

static const struct option_def tls[] = {
	{"certificate", OPTION_PEM, TLS(certificate), .fallback = "nil", .reloadable = true,
     .help = "Certificate and chain: a PEM file or PEM text"},
	{"private_key", OPTION_PEM, TLS(private_key), .fallback = "nil", .reloadable = true,
     .help = "Its key: a PEM file or PEM text; looked for in certificate if not given"},
	{"private_key_pass", OPTION_STRING, TLS(private_key_pass), .fallback = "nil", .reloadable = true, .help = "Password of the key"},
	{"self_signed", OPTION_BOOLEAN, TLS(self_signed), .fallback = "false", .reloadable = true,
     .help = "Make a certificate in memory for localhost, where none is given"},
	{"verify_peer", OPTION_SWITCH, TLS(verify_peer), .fallback = "nil", .reloadable = true,
     .help = "Ask for the peer's certificate and check it; clients do, servers do not, if not given"},
	{"verify_hostname", OPTION_HOSTNAME, TLS(verify_hostname), .fallback = "nil", .reloadable = true,
     .help = "Name that the server's certificate must have; the name connected to if not given, false for any"},
	{"ca_file", OPTION_PEM, TLS(ca_file), .fallback = "nil", .reloadable = true,
     .help = "Trusted certificates: a PEM file or PEM text; with ca_path in the place of the system's"},
	{"ca_path", OPTION_PATH, TLS(ca_path), .fallback = "nil", .reloadable = true, .help = "Folder of trusted certificates by their hash"},
	{"fail_if_no_peer_cert", OPTION_BOOLEAN, TLS(fail_if_no_peer_cert), .fallback = "false", .reloadable = true,
     .help = "With verify_peer on a server: refuse clients without a certificate"},
	{"sni_hostname", OPTION_STRING, TLS(sni_hostname), .fallback = "nil", .reloadable = true,
     .help = "Name that a client asks for; the name connected to if not given"},
	{"alpn", OPTION_STRINGS, TLS(alpn), .fallback = "{}", .reloadable = true, .help = "Application protocols, the preferred one first"},
	{"sni", OPTION_TABLE, TLS(sni), .fallback = "nil", .reloadable = true,
     .help = "Certificates by the name that clients ask for: { [\"example.org\"] = { certificate = …, private_key = … } }"},
	{"min_version", OPTION_CHOICE, TLS(min_version), .fallback = "\"default\"", .choices = tls_versions, .reloadable = true,
     .help = "Oldest version spoken; TLSv1.2 by default"},
	{"max_version", OPTION_CHOICE, TLS(max_version), .fallback = "\"default\"", .choices = tls_versions, .reloadable = true,
     .help = "Newest version spoken"},
	{"ssl_version", OPTION_STRINGS, TLS(ssl_version), .fallback = "{}", .reloadable = true,
     .help = "EventMachine's way of naming the versions, such as { \"tlsv1_2\", \"tlsv1_3\" }"},
	{"cipher_list", OPTION_STRING, TLS(cipher_list), .fallback = "nil", .reloadable = true,
     .help = "Suites up to TLS 1.2, in OpenSSL's words; AEAD with forward secrecy if not given"},
	{"ciphersuites", OPTION_STRING, TLS(ciphersuites), .fallback = "nil", .reloadable = true,
     .help = "Suites of TLS 1.3, in OpenSSL's words"},
	{"ecdh_curve", OPTION_STRING, TLS(ecdh_curve), .fallback = "nil", .reloadable = true,
     .help = "Curves for the key exchange; X25519:P-256:P-384 if not given"},
	{"dhparam", OPTION_PEM, TLS(dhparam), .fallback = "nil", .reloadable = true,
     .help = "Parameters for DHE suites: a PEM file or PEM text"},
	{"handshake_timeout", OPTION_SECONDS, TLS(handshake_timeout_ns), .fallback = "10", .min = 0.001, .max = SECONDS_MAX, .reloadable = true,
     .help = "Seconds that the handshake may take"},
};

/* What listen and connect blocks have beside their scopes: config.c makes a struct tls_conf of it. */
const struct option_def option_tls = {"tls", OPTION_TABLE, .fallback = "nil", .reloadable = true,
                                      .help = "TLS and its options, a table; a tls:// address has it in any case"};

const struct scope scope_tls = {"tls", tls, COUNT(tls)};
const struct scope scope_identity = {"sni", identities, COUNT(identities)};
const struct scope scope_top = {"top", top, COUNT(top)};
const struct scope scope_log = {"log", logs, COUNT(logs)};
const struct scope scope_listen = {"listen", listens, COUNT(listens)};
const struct scope scope_connect = {"connect", connects, COUNT(connects)};

/* The option of that name, NULL if there is none. */
const struct option_def *scope_find(const struct scope *scope, const char *name)
{
	for (size_t i = 0; i < scope->count; i++)
		if (strcmp(scope->options[i].name, name) == 0)
			return &scope->options[i];
	return NULL;
}

/* Sets every member to its default; what stood there is overwritten. */
void scope_set_defaults(const struct scope *scope, void *base)
{
	for (size_t i = 0; i < scope->count; i++)
		option_set_default(&scope->options[i], base);
}

/* Frees what the members own. */
void scope_clear(const struct scope *scope, void *base)
{
	for (size_t i = 0; i < scope->count; i++)
		option_clear(&scope->options[i], base);
}
