/*
 * Addresses and URLs: taking them apart strictly and writing them in one spelling.
 */
#include "addr.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"

static const char *const scheme_names[] = {"tcp", "tls", "udp", "unix", "fd"};

/* Whether the last label is one that only an IPv4 address could have ("1.2.3", "256", "0x7f"): libc would read it in old ways. */
static bool looks_numeric(const char *host)
{
	const char *label = host, *end;

	for (const char *p = host; *p; p++)
		if (*p == '.' && p[1] != '\0')
			label = p + 1;
	if (label[0] == '0' && (label[1] == 'x' || label[1] == 'X'))
		end = label + 2 + strspn(label + 2, "0123456789abcdefABCDEF");
	else
		end = label + strspn(label, "0123456789");
	return end > label && (*end == '\0' || (*end == '.' && end[1] == '\0'));
}

/* Whether host is a host name by RFC 1123, underscores allowed; one dot may stand at the end. */
bool addr_is_host_name(const char *host)
{
	size_t length = strlen(host), label = 0;

	if (length > 1 && host[length - 1] == '.')
		length--;
	if (length == 0 || length > 253)
		return false;
	for (size_t i = 0; i < length; i++) {
		if (host[i] == '.') {
			if (label == 0 || host[i - 1] == '-')
				return false;
			label = 0;
		} else {
			if (!(isalnum((unsigned char)host[i]) || host[i] == '_' || (host[i] == '-' && label > 0)) || ++label > 63)
				return false;
		}
	}
	return label > 0 && host[length - 1] != '-';
}

/* Writes an IPv6 host, scope included, in its one spelling; NULL if it is none. */
static char *canonical_ipv6(const char *host)
{
	const char *scope = strchr(host, '%');
	char *bare = mem_strndup(host, scope ? (size_t)(scope - host) : strlen(host)), *result = NULL;
	char text[INET6_ADDRSTRLEN];
	struct in6_addr in6;
	bool ok = inet_pton(AF_INET6, bare, &in6) == 1;

	if (ok && scope) {
		size_t length = strlen(scope + 1);

		ok = length > 0 && length < IF_NAMESIZE;
		for (size_t i = 1; i <= length; i++)
			ok = ok && (isalnum((unsigned char)scope[i]) || strchr("._-", scope[i]));
	}
	if (ok && inet_ntop(AF_INET6, &in6, text, sizeof text))
		result = mem_printf("%s%s", text, scope ? scope : "");
	free(bare);
	return result;
}

/* Checks a host and brings it into its one spelling; NULL with a reason. text is the whole URL. */
static char *canonical_host(const char *text, const char *host, bool bracketed, char **why)
{
	struct in_addr in;
	char *result = NULL;

	if (bracketed) {
		result = canonical_ipv6(host);
		if (!result)
			*why = mem_printf("\"%s\": [%s] is no IPv6 address", text, host);
	} else if (strcmp(host, "*") == 0) {
		result = mem_strdup("0.0.0.0");
	} else if (looks_numeric(host) && inet_pton(AF_INET, host, &in) != 1) {
		*why = mem_printf("\"%s\": '%s' is no IPv4 address: write four numbers from 0 to 255, such as 127.0.0.1", text, host);
	} else if (!addr_is_host_name(host)) {
		*why = mem_printf("\"%s\": '%s' is no host name", text, host);
	} else {
		result = mem_strdup(host);
		for (char *p = result; *p; p++)
			*p = (char)tolower((unsigned char)*p);
	}
	return result;
}

/* Reads a decimal port. */
static bool parse_port(const char *text, uint16_t *port)
{
	size_t length = strspn(text, "0123456789");
	unsigned long number = length > 0 && length <= 5 && text[length] == '\0' ? strtoul(text, NULL, 10) : 65536;

	*port = (uint16_t)number;
	return number <= 65535;
}

/* Takes "host:port" apart. */
static bool parse_host_port(struct url *u, const char *text, const char *rest, char **why)
{
	const char *name = scheme_names[u->scheme];
	bool bracketed = *rest == '[';
	const char *end = bracketed ? strchr(rest, ']') : strchr(rest, ':');
	char *host;

	if (bracketed && !end) {
		*why = mem_printf("\"%s\": the ']' is missing", text);
		return false;
	}
	if (!bracketed && rest[0] != '\0' && rest[strspn(rest, "0123456789")] == '\0') {
		*why = mem_printf("\"%s\" has a port but no host: write %s://127.0.0.1:%s, or %s://*:%s for every address", text, name, rest, name,
		                  rest);
		return false;
	}
	if (!bracketed && strchr(rest, '/')) {
		*why = mem_printf("\"%s\": nothing may follow the port: write %s://HOST:PORT", text, name);
		return false;
	}
	if (!bracketed && end && strchr(end + 1, ':')) {
		*why = mem_printf("\"%s\": an IPv6 address stands in brackets: write %s://[::1]:PORT", text, name);
		return false;
	}
	if (end == rest) {
		*why = mem_printf("\"%s\" has no host: write %s://*%s for every address", text, name, rest);
		return false;
	}
	if (!end || (bracketed && end[1] == '\0')) {
		*why = *rest == '\0' ? mem_printf("\"%s\" has no host and no port: write %s://HOST:PORT", text, name)
		                     : mem_printf("\"%s\" has no port: write %s://%s:PORT", text, name, rest);
		return false;
	}
	if ((bracketed && end[1] != ':') || !parse_port(end + (bracketed ? 2 : 1), &u->port)) {
		*why = mem_printf("\"%s\": the port must be a number from 0 to 65535", text);
		return false;
	}
	host = mem_strndup(rest + bracketed, (size_t)(end - rest) - bracketed);
	u->host = canonical_host(text, host, bracketed, why);
	free(host);
	return u->host != NULL;
}

/* Takes the part behind "fd://" or "unix://". */
static bool parse_name(struct url *u, const char *text, const char *rest, char **why)
{
	size_t length = strlen(rest);

	if (length == 0 || strcmp(rest, "@") == 0) {
		*why = mem_printf(u->scheme == SCHEME_FD ? "\"%s\" has no name: write fd://NAME or fd://3"
		                                         : "\"%s\" has no path: write unix:///run/name.sock",
		                  text);
		return false;
	}
	for (size_t i = 0; i < length; i++) {
		if (iscntrl((unsigned char)rest[i]) || (u->scheme == SCHEME_FD && (rest[i] == ':' || rest[i] == '/'))) {
			*why = mem_printf("\"%s\": a character that may not stand in a %s", text, u->scheme == SCHEME_FD ? "name" : "path");
			return false;
		}
	}
	if (u->scheme == SCHEME_UNIX && rest[length - 1] == '/') {
		*why = mem_printf("\"%s\" names a folder, not a socket", text);
		return false;
	}
	u->path = mem_strdup(rest);
	return true;
}

/* Finds the scheme; the part behind "://" or NULL with a reason. */
static const char *parse_scheme(struct url *u, const char *text, char **why)
{
	const char *colon = strstr(text, "://");

	if (!colon) {
		*why = mem_printf("\"%s\" is no URL: write tcp://HOST:PORT or unix:///PATH", text);
		return NULL;
	}
	for (size_t i = 0; i < sizeof scheme_names / sizeof scheme_names[0]; i++) {
		if (strlen(scheme_names[i]) == (size_t)(colon - text) && strncasecmp(text, scheme_names[i], (size_t)(colon - text)) == 0) {
			u->scheme = (enum scheme)i;
			return colon + 3;
		}
	}
	*why = mem_printf("\"%s\": there is no scheme '%.*s' (tcp, tls, udp, unix, fd)", text, (int)(colon - text), text);
	return NULL;
}

/* Takes a URL apart. */
bool url_parse(struct url *u, const char *text, char **why)
{
	const char *rest;
	bool ok;

	*u = (struct url){0};
	rest = parse_scheme(u, text, why);
	if (!rest)
		return false;
	ok = u->scheme == SCHEME_UNIX || u->scheme == SCHEME_FD ? parse_name(u, text, rest, why) : parse_host_port(u, text, rest, why);
	if (!ok)
		url_clear(u);
	return ok;
}

/* Frees what is in a URL. */
void url_clear(struct url *u)
{
	free(u->host);
	free(u->path);
	*u = (struct url){0};
}

/* Whether two strings are equal, NULL being equal to NULL alone. */
static bool same_text(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

/* Whether two URLs are the same. */
bool url_equal(const struct url *a, const struct url *b)
{
	return a->scheme == b->scheme && a->port == b->port && same_text(a->host, b->host) && same_text(a->path, b->path);
}

/* The text of a URL in its one spelling. */
char *url_format(const struct url *u)
{
	const char *name = scheme_names[u->scheme];

	if (u->path)
		return mem_printf("%s://%s", name, u->path);
	if (strchr(u->host, ':'))
		return mem_printf("%s://[%s]:%u", name, u->host, u->port);
	return mem_printf("%s://%s:%u", name, u->host, u->port);
}

/* The name of a scheme. */
const char *scheme_name(enum scheme scheme)
{
	return scheme_names[scheme];
}

/* Reads an IPv6 address with an optional scope, a number or an interface's name. */
static bool parse_ipv6(struct addr *a, const char *host)
{
	const char *scope = strchr(host, '%');
	size_t length = scope ? (size_t)(scope - host) : strlen(host);
	char bare[INET6_ADDRSTRLEN];

	if (length >= sizeof bare)
		return false;
	memcpy(bare, host, length);
	bare[length] = '\0';
	if (inet_pton(AF_INET6, bare, &a->in6.sin6_addr) != 1)
		return false;
	if (scope) {
		a->in6.sin6_scope_id = if_nametoindex(scope + 1);
		if (a->in6.sin6_scope_id == 0 && scope[1] != '\0' && strlen(scope + 1) <= 9 && scope[1 + strspn(scope + 1, "0123456789")] == '\0')
			a->in6.sin6_scope_id = (uint32_t)strtoul(scope + 1, NULL, 10);
		if (a->in6.sin6_scope_id == 0)
			return false;
	}
	return true;
}

/* An address from a numeric host; false if host is a name. */
bool addr_from_numeric(struct addr *a, const char *host, uint16_t port)
{
	memset(a, 0, sizeof *a);
	if (*host == '\0' || strcmp(host, "*") == 0)
		host = "0.0.0.0";
	if (inet_pton(AF_INET, host, &a->in.sin_addr) == 1) {
		a->in.sin_family = AF_INET;
		a->length = sizeof a->in;
	} else if (parse_ipv6(a, host)) {
		a->in6.sin6_family = AF_INET6;
		a->length = sizeof a->in6;
	} else {
		memset(a, 0, sizeof *a);
		return false;
	}
	addr_set_port(a, port);
	return true;
}

/* An address from a path; "@name" is in the abstract name space, where no NUL ends the name. */
bool addr_from_path(struct addr *a, const char *path)
{
	size_t length = strlen(path);
	bool abstract = path[0] == '@';

	memset(a, 0, sizeof *a);
	if (length == 0 || (abstract && length == 1)) {
		errno = EINVAL;
		return false;
	}
	if (length + !abstract > sizeof a->un.sun_path) {
		errno = ENAMETOOLONG;
		return false;
	}
	a->un.sun_family = AF_UNIX;
	memcpy(a->un.sun_path, path, length);
	if (abstract)
		a->un.sun_path[0] = '\0';
	a->length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + !abstract);
	return true;
}

/* Writes the path of a Unix address, "" for an unnamed one. NULs in an abstract name are shown as '@'. */
static void format_path(const struct addr *a, char text[ADDR_TEXT_SIZE])
{
	size_t start = offsetof(struct sockaddr_un, sun_path), length = a->length > start ? a->length - start : 0;

	if (length > sizeof a->un.sun_path)
		length = sizeof a->un.sun_path;
	if (length > 0 && a->un.sun_path[0] != '\0')
		length = strnlen(a->un.sun_path, length);
	for (size_t i = 0; i < length; i++)
		text[i] = a->un.sun_path[i] != '\0' ? a->un.sun_path[i] : '@';
	text[length] = '\0';
}

/* Writes an IPv6 address: a v4-mapped one as IPv4, a link-local one with its scope. */
static void format_ipv6(const struct addr *a, char text[ADDR_TEXT_SIZE])
{
	char name[IF_NAMESIZE];
	size_t length;

	if (IN6_IS_ADDR_V4MAPPED(&a->in6.sin6_addr)) {
		inet_ntop(AF_INET, &a->in6.sin6_addr.s6_addr[12], text, ADDR_TEXT_SIZE);
		return;
	}
	inet_ntop(AF_INET6, &a->in6.sin6_addr, text, ADDR_TEXT_SIZE);
	length = strlen(text);
	if (a->in6.sin6_scope_id != 0 && if_indextoname(a->in6.sin6_scope_id, name))
		snprintf(text + length, ADDR_TEXT_SIZE - length, "%%%s", name);
	else if (a->in6.sin6_scope_id != 0)
		snprintf(text + length, ADDR_TEXT_SIZE - length, "%%%u", a->in6.sin6_scope_id);
}

/* The host or path alone. */
char *addr_host(const struct addr *a, char text[ADDR_TEXT_SIZE])
{
	text[0] = '\0';
	if (a->length >= sizeof(sa_family_t)) {
		if (a->any.sa_family == AF_INET)
			inet_ntop(AF_INET, &a->in.sin_addr, text, ADDR_TEXT_SIZE);
		else if (a->any.sa_family == AF_INET6)
			format_ipv6(a, text);
		else if (a->any.sa_family == AF_UNIX)
			format_path(a, text);
	}
	return text;
}

/* Host and port, or the path. */
char *addr_format(const struct addr *a, char text[ADDR_TEXT_SIZE])
{
	char host[ADDR_TEXT_SIZE];

	addr_host(a, host);
	if (a->length == 0 || (a->any.sa_family != AF_INET && a->any.sa_family != AF_INET6))
		memcpy(text, host, sizeof host);
	else
		snprintf(text, ADDR_TEXT_SIZE, strchr(host, ':') ? "[%.100s]:%u" : "%.100s:%u", host, addr_port(a));
	return text;
}

/* The port, 0 where the family has none. */
uint16_t addr_port(const struct addr *a)
{
	if (a->length == 0)
		return 0;
	return a->any.sa_family == AF_INET ? ntohs(a->in.sin_port) : a->any.sa_family == AF_INET6 ? ntohs(a->in6.sin6_port) : 0;
}

/* Sets the port where the family has one. */
void addr_set_port(struct addr *a, uint16_t port)
{
	if (a->any.sa_family == AF_INET)
		a->in.sin_port = htons(port);
	else if (a->any.sa_family == AF_INET6)
		a->in6.sin6_port = htons(port);
}

/* Whether both are the same host; an IPv4 address and its v4-mapped form are. Unix peers have no host, so they never are. */
bool addr_same_host(const struct addr *a, const struct addr *b)
{
	char host_a[ADDR_TEXT_SIZE], host_b[ADDR_TEXT_SIZE];

	if (a->length == 0 || b->length == 0 || a->any.sa_family == AF_UNIX || b->any.sa_family == AF_UNIX)
		return false;
	if (a->any.sa_family == AF_INET && b->any.sa_family == AF_INET)
		return a->in.sin_addr.s_addr == b->in.sin_addr.s_addr;
	if (a->any.sa_family == AF_INET6 && b->any.sa_family == AF_INET6)
		return a->in6.sin6_scope_id == b->in6.sin6_scope_id && memcmp(&a->in6.sin6_addr, &b->in6.sin6_addr, sizeof a->in6.sin6_addr) == 0;
	return strcmp(addr_host(a, host_a), addr_host(b, host_b)) == 0;
}

/* Takes a network. */
bool network_parse(struct network *n, const char *text)
{
	const char *slash = strchr(text, '/'), *digits = slash ? slash + 1 : "";
	size_t length = slash ? (size_t)(slash - text) : strlen(text);
	char host[INET6_ADDRSTRLEN];

	*n = (struct network){0};
	if (strcmp(text, "unix") == 0)
		return true;
	if (length == 0 || length >= sizeof host || memchr(text, '%', length))
		return false;
	memcpy(host, text, length);
	host[length] = '\0';
	if (strcmp(host, "*") == 0 || !addr_from_numeric(&n->base, host, 0))
		return false;
	unsigned most = n->base.any.sa_family == AF_INET ? 32 : 128;
	n->bits = most;
	if (!slash)
		return true;
	length = strspn(digits, "0123456789");
	n->bits = length > 0 && length <= 3 && digits[length] == '\0' ? (unsigned)strtoul(digits, NULL, 10) : most + 1;
	return n->bits <= most;
}

/* Does the address belong to it? */
bool network_has(const struct network *n, const struct addr *a)
{
	const unsigned char *base, *bytes;

	if (!n->base.length || a->length < sizeof(sa_family_t) || a->any.sa_family == AF_UNIX)
		return !n->base.length && a->any.sa_family == AF_UNIX;
	if (n->base.any.sa_family == AF_INET) {
		base = (const unsigned char *)&n->base.in.sin_addr;
		if (a->any.sa_family == AF_INET)
			bytes = (const unsigned char *)&a->in.sin_addr;
		else if (a->any.sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&a->in6.sin6_addr))
			bytes = &a->in6.sin6_addr.s6_addr[12];
		else
			return false;
	} else if (a->any.sa_family == AF_INET6) {
		base = n->base.in6.sin6_addr.s6_addr;
		bytes = a->in6.sin6_addr.s6_addr;
	} else {
		return false;
	}
	if (memcmp(base, bytes, n->bits / 8) != 0)
		return false;
	unsigned rest = n->bits % 8;
	return rest == 0 || ((base[n->bits / 8] ^ bytes[n->bits / 8]) >> (8 - rest)) == 0;
}
