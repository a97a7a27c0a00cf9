/* The PROXY protocol: see proxyproto.h, and https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt */
#include "proxyproto.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define V1_PREFIX "PROXY "
#define V1_MAX 107  /* bytes of the longest line, CR LF included */
#define V2_FIXED 16 /* bytes in front of the addresses */
#define V2_PATH 108 /* bytes of a path */

static const unsigned char v2_signature[12] = {0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a};

/* Says what is wrong. */
static enum proxyproto_result bad(const char **why, const char *reason)
{
	*why = reason;
	return PROXYPROTO_BAD;
}

/* --- version 1: a line of text ----------------------------------------------------------------------------------------------- */

/* Takes the next word, which one space ends, or the line's end if it is the last; NULL if there is none. */
static char *next_word(char **at, bool last)
{
	char *word = *at, *end = strchr(word, ' ');

	if (*word == '\0' || *word == ' ' || (end == NULL) != last)
		return NULL;
	if (end)
		*end++ = '\0';
	*at = end;
	return word;
}

/* A port: digits without leading zeros, up to 65535. */
static bool read_port(const char *word, uint16_t *port)
{
	size_t length = strspn(word, "0123456789");
	long number = length > 0 && length <= 5 && word[length] == '\0' ? strtol(word, NULL, 10) : 65536;

	*port = (uint16_t)number;
	return number <= 65535 && (length == 1 || word[0] != '0');
}

/* An address of that family in numbers. */
static bool read_host(int family, const char *word, uint16_t port, struct addr *a)
{
	*a = (struct addr){0};
	if (inet_pton(family, word, family == AF_INET ? (void *)&a->in.sin_addr : (void *)&a->in6.sin6_addr) != 1)
		return false;
	a->any.sa_family = (sa_family_t)family;
	a->length = family == AF_INET ? sizeof a->in : sizeof a->in6;
	addr_set_port(a, port);
	return true;
}

/* Reads the line without its end: "PROXY TCP4 192.0.2.1 192.0.2.2 56324 443". */
static enum proxyproto_result read_line(char *line, struct proxyproto *header, const char **why)
{
	char *at = line + strlen(V1_PREFIX);
	int family;

	if (strcmp(at, "UNKNOWN") == 0 || strncmp(at, "UNKNOWN ", 8) == 0)
		return PROXYPROTO_DONE;
	char *protocol = next_word(&at, false);
	if (protocol && strcmp(protocol, "TCP4") == 0)
		family = AF_INET;
	else if (protocol && strcmp(protocol, "TCP6") == 0)
		family = AF_INET6;
	else
		return bad(why, "neither TCP4 nor TCP6 nor UNKNOWN");
	char *peer = next_word(&at, false), *local = peer ? next_word(&at, false) : NULL;
	char *peer_port = local ? next_word(&at, false) : NULL, *local_port = peer_port ? next_word(&at, true) : NULL;
	uint16_t from, to;
	if (!local_port)
		return bad(why, "not two addresses and two ports");
	if (!read_port(peer_port, &from) || !read_port(local_port, &to))
		return bad(why, "a port that is none");
	if (!read_host(family, peer, from, &header->peer) || !read_host(family, local, to, &header->local))
		return bad(why, "an address that is none");
	header->named = true;
	return PROXYPROTO_DONE;
}

/* Reads version 1. */
static enum proxyproto_result read_v1(const char *bytes, size_t length, struct proxyproto *header, const char **why)
{
	size_t most = length < V1_MAX ? length : V1_MAX;
	const char *end = memchr(bytes, '\n', most);
	char line[V1_MAX + 1];

	if (memchr(bytes, '\0', end ? (size_t)(end - bytes) : most))
		return bad(why, "a NUL in the line");
	if (!end)
		return length < V1_MAX ? PROXYPROTO_MORE : bad(why, "a line of more than 107 bytes");
	size_t size = (size_t)(end - bytes);
	if (bytes[size - 1] != '\r')
		return bad(why, "a line that does not end with CR LF");
	memcpy(line, bytes, size - 1);
	line[size - 1] = '\0';
	header->length = size + 1;
	return read_line(line, header, why);
}

/* --- version 2: binary ------------------------------------------------------------------------------------------------------- */

/* A path of a Unix socket, NUL-padded; abstract ones begin with a NUL, an unnamed one is empty. */
static void read_path(const unsigned char *bytes, struct addr *a)
{
	size_t length = V2_PATH, start = offsetof(struct sockaddr_un, sun_path);

	*a = (struct addr){0};
	a->any.sa_family = AF_UNIX;
	while (length > 0 && bytes[length - 1] == '\0')
		length--;
	memcpy(a->un.sun_path, bytes, length);
	a->length = (socklen_t)(start + length + (length > 0 && bytes[0] != '\0' && length < V2_PATH));
}

/* Reads the addresses behind the fixed part, size bytes. */
static enum proxyproto_result read_addresses(const unsigned char *at, size_t size, unsigned family, struct proxyproto *header,
                                             const char **why)
{
	struct addr *peer = &header->peer, *local = &header->local;
	uint16_t port;

	switch (family) {
	case 0x11: /* TCP over IPv4 */
		if (size < 12)
			return bad(why, "too short for its addresses");
		peer->any.sa_family = local->any.sa_family = AF_INET;
		peer->length = local->length = sizeof peer->in;
		memcpy(&peer->in.sin_addr, at, 4);
		memcpy(&local->in.sin_addr, at + 4, 4);
		at += 8;
		break;
	case 0x21: /* TCP over IPv6 */
		if (size < 36)
			return bad(why, "too short for its addresses");
		peer->any.sa_family = local->any.sa_family = AF_INET6;
		peer->length = local->length = sizeof peer->in6;
		memcpy(&peer->in6.sin6_addr, at, 16);
		memcpy(&local->in6.sin6_addr, at + 16, 16);
		at += 32;
		break;
	case 0x31: /* Unix stream */
		if (size < 2 * V2_PATH)
			return bad(why, "too short for its addresses");
		read_path(at, peer);
		read_path(at + V2_PATH, local);
		header->named = true;
		return PROXYPROTO_DONE;
	default:
		if ((family >> 4) > 3 || (family & 15) > 2)
			return bad(why, "an unknown family or protocol");
		return PROXYPROTO_DONE; /* unspecified, or datagrams: not ours */
	}
	memcpy(&port, at, 2);
	addr_set_port(peer, ntohs(port));
	memcpy(&port, at + 2, 2);
	addr_set_port(local, ntohs(port));
	header->named = true;
	return PROXYPROTO_DONE;
}

/* Reads version 2. */
static enum proxyproto_result read_v2(const unsigned char *bytes, size_t length, struct proxyproto *header, const char **why)
{
	if (length > 12 && bytes[12] >> 4 != 2)
		return bad(why, "neither version 1 nor 2");
	if (length > 12 && (bytes[12] & 15) > 1)
		return bad(why, "neither LOCAL nor PROXY");
	if (length < V2_FIXED)
		return PROXYPROTO_MORE;
	size_t size = (size_t)bytes[14] << 8 | bytes[15];
	header->length = V2_FIXED + size;
	if (header->length > PROXYPROTO_MAX_HEADER)
		return bad(why, "a header of more than 4096 bytes");
	if (length < header->length)
		return PROXYPROTO_MORE;
	if ((bytes[12] & 15) == 0)
		return PROXYPROTO_DONE; /* LOCAL: the proxy speaks for itself, whatever stands there */
	return read_addresses(bytes + V2_FIXED, size, bytes[13], header, why);
}

/* Reads a header. */
enum proxyproto_result proxyproto_read(const void *bytes, size_t length, struct proxyproto *header, const char **why)
{
	size_t v1 = strlen(V1_PREFIX), v2 = sizeof v2_signature;

	*header = (struct proxyproto){0};
	if (length == 0)
		return PROXYPROTO_MORE;
	if (memcmp(bytes, V1_PREFIX, length < v1 ? length : v1) == 0)
		return length < v1 ? PROXYPROTO_MORE : read_v1(bytes, length, header, why);
	if (memcmp(bytes, v2_signature, length < v2 ? length : v2) == 0)
		return length < v2 ? PROXYPROTO_MORE : read_v2(bytes, length, header, why);
	return bad(why, "no PROXY header");
}

/* --- writing ----------------------------------------------------------------------------------------------------------------- */

/* IPv4 in IPv6's clothes becomes IPv4. */
static struct addr plain(const struct addr *a)
{
	struct addr v4 = {.length = sizeof v4.in};

	if (!a->length || a->any.sa_family != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&a->in6.sin6_addr))
		return *a;
	v4.in.sin_family = AF_INET;
	v4.in.sin_port = a->in6.sin6_port;
	memcpy(&v4.in.sin_addr, &a->in6.sin6_addr.s6_addr[12], 4);
	return v4;
}

/* Writes version 1. */
static size_t write_v1(char *to, const struct addr *peer, const struct addr *local, int family)
{
	char from[ADDR_TEXT_SIZE], at[ADDR_TEXT_SIZE];
	const void *peer_host = family == AF_INET ? (const void *)&peer->in.sin_addr : (const void *)&peer->in6.sin6_addr;
	const void *local_host = family == AF_INET ? (const void *)&local->in.sin_addr : (const void *)&local->in6.sin6_addr;

	if ((family != AF_INET && family != AF_INET6) || !inet_ntop(family, peer_host, from, sizeof from) ||
	    !inet_ntop(family, local_host, at, sizeof at))
		return (size_t)sprintf(to, "PROXY UNKNOWN\r\n");
	return (size_t)snprintf(to, PROXYPROTO_MAX_WRITTEN, "PROXY %s %.45s %.45s %u %u\r\n", family == AF_INET ? "TCP4" : "TCP6", from, at,
	                        addr_port(peer), addr_port(local));
}

/* Writes a path, as read_path reads it. The place is zero. */
static void write_path(unsigned char *to, const struct addr *a)
{
	size_t start = offsetof(struct sockaddr_un, sun_path), length = a->length > start ? a->length - start : 0;

	memcpy(to, a->un.sun_path, length < V2_PATH ? length : V2_PATH);
}

/* Writes version 2. */
static size_t write_v2(unsigned char *to, const struct addr *peer, const struct addr *local, int family)
{
	unsigned char *at = to + V2_FIXED;
	uint16_t ports[2] = {htons(addr_port(peer)), htons(addr_port(local))};

	memset(to, 0, PROXYPROTO_MAX_WRITTEN);
	memcpy(to, v2_signature, sizeof v2_signature);
	to[12] = 0x21; /* version 2, PROXY */
	switch (family) {
	case AF_INET:
		to[13] = 0x11;
		memcpy(at, &peer->in.sin_addr, 4);
		memcpy(at + 4, &local->in.sin_addr, 4);
		memcpy(at + 8, ports, 4);
		to[15] = 12;
		break;
	case AF_INET6:
		to[13] = 0x21;
		memcpy(at, &peer->in6.sin6_addr, 16);
		memcpy(at + 16, &local->in6.sin6_addr, 16);
		memcpy(at + 32, ports, 4);
		to[15] = 36;
		break;
	case AF_UNIX:
		to[13] = 0x31;
		write_path(at, peer);
		write_path(at + V2_PATH, local);
		to[15] = 2 * V2_PATH;
		break;
	default: break; /* unspecified */
	}
	return V2_FIXED + (size_t)to[15];
}

/* Writes a header. */
size_t proxyproto_write(unsigned char to[PROXYPROTO_MAX_WRITTEN], enum proxyproto_version version, const struct addr *peer,
                        const struct addr *local)
{
	struct addr from = plain(peer), at = plain(local);
	int family = from.length && at.length && from.any.sa_family == at.any.sa_family ? from.any.sa_family : AF_UNSPEC;

	if (version == PROXYPROTO_NONE)
		return 0;
	return version == PROXYPROTO_V1 ? write_v1((char *)to, &from, &at, family) : write_v2(to, &from, &at, family);
}
