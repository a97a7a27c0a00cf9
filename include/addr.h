/*
 * Addresses and URLs: "tcp://127.0.0.1:8081", "tls://[::]:8443", "udp://0.0.0.0:53", "unix:///run/x.sock", "fd://NAME".
 */
#ifndef REACTORD_ADDR_H
#define REACTORD_ADDR_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

/* A socket address of any family that we use; length 0: none. */
struct addr {
	socklen_t length;
	union {
		struct sockaddr any;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
		struct sockaddr_un un;
	};
};

#define ADDR_TEXT_SIZE 128 /* enough for every addr_format, NUL included */

enum scheme { SCHEME_TCP, SCHEME_TLS, SCHEME_UDP, SCHEME_UNIX, SCHEME_FD };

struct url {
	enum scheme scheme;
	char *host;    /* without brackets, lower case; NULL for unix and fd. "*" is any IPv4 address and becomes "0.0.0.0" */
	uint16_t port; /* 0 with unix and fd */
	char *path;    /* unix: the path, "@name" for the abstract name space; fd: the name or number; else NULL */
};

/* Takes a URL apart. False with a reason in *why (caller frees) when it is not one; u is empty then. */
bool url_parse(struct url *u, const char *text, char **why) __attribute__((warn_unused_result));
void url_clear(struct url *u);
bool url_equal(const struct url *a, const struct url *b);

/* The text of a URL in its one canonical spelling; the caller owns it. */
char *url_format(const struct url *u) __attribute__((returns_nonnull, warn_unused_result));
const char *scheme_name(enum scheme scheme);

/* An address from a numeric host; false if host is a name. IPv6 may carry a scope ("fe80::1%eth0", an interface that exists).
 * "" and "*" are any IPv4 address; "::" is any address of either family where the system binds so. */
bool addr_from_numeric(struct addr *a, const char *host, uint16_t port) __attribute__((warn_unused_result));

/* Is it a host name by RFC 1123, underscores allowed? One dot may stand at the end. */
bool addr_is_host_name(const char *host);

/* An address from a path ("@name": abstract); false with errno ENAMETOOLONG or EINVAL (empty). */
bool addr_from_path(struct addr *a, const char *path) __attribute__((warn_unused_result));

/* "127.0.0.1:80", "[::1]:80", a path, "@name", or "" for an unnamed or empty one. Returns text. */
char *addr_format(const struct addr *a, char text[ADDR_TEXT_SIZE]);

/* The host ("127.0.0.1", "::1") or path alone, "" if there is none; v4-mapped IPv6 addresses are written as IPv4. Returns text. */
char *addr_host(const struct addr *a, char text[ADDR_TEXT_SIZE]);
uint16_t addr_port(const struct addr *a); /* 0 where the family has none */
void addr_set_port(struct addr *a, uint16_t port);

/* Addresses that begin alike. */
struct network {
	struct addr base; /* any port; length 0: Unix sockets */
	unsigned bits;
};

/* Takes "10.0.0.0/8", "2001:db8::/32", "::1" (that address alone) or "unix" (every peer on a Unix socket). */
bool network_parse(struct network *n, const char *text) __attribute__((warn_unused_result));
bool network_has(const struct network *n, const struct addr *a); /* IPv4 in IPv6's clothes is IPv4 */

bool addr_same_host(const struct addr *a, const struct addr *b); /* ports aside, for limits per address; never for unix */

#endif
