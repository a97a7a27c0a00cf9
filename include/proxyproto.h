/*
 * The PROXY protocol, versions 1 and 2: the first bytes of a connection that a proxy has made tell whose it is. Pure: bytes in, addresses
 * out, and the other way. Of version 2 TCP over IPv4 and IPv6 and Unix stream sockets are understood; whatever else a proxy passes on keeps
 * the addresses of the socket. What follows the addresses (TLVs) is skipped.
 */
#ifndef REACTORD_PROXYPROTO_H
#define REACTORD_PROXYPROTO_H

#include <stdbool.h>
#include <stddef.h>

#include "addr.h"

#define PROXYPROTO_MAX_HEADER 4096 /* bytes; a longer header is refused. Version 1 has 107 at most */
#define PROXYPROTO_MAX_WRITTEN 232 /* bytes of the longest header that we write */

enum proxyproto_version { PROXYPROTO_NONE, PROXYPROTO_V1, PROXYPROTO_V2 };

enum proxyproto_result {
	PROXYPROTO_MORE, /* a beginning: more bytes are needed */
	PROXYPROTO_DONE,
	PROXYPROTO_BAD
};

struct proxyproto {
	size_t length;           /* bytes of the header */
	bool named;              /* it has addresses: else (LOCAL, UNKNOWN) the socket's own are true */
	struct addr peer, local; /* the client's, and the one that the client connected to */
};

/* Reads a header at the start of some bytes, which may go on behind it. BAD: the reason is in *why (static), as soon as it is clear.
 * header is meaningful after DONE only. */
enum proxyproto_result proxyproto_read(const void *bytes, size_t length, struct proxyproto *header, const char **why)
	__attribute__((warn_unused_result));

/* Writes the header for a connection from peer to local; returns its length. Addresses of different families, and those that the version
 * cannot express (paths in version 1), become "unknown". */
size_t proxyproto_write(unsigned char to[PROXYPROTO_MAX_WRITTEN], enum proxyproto_version version, const struct addr *peer,
                        const struct addr *local) __attribute__((warn_unused_result));

#endif
