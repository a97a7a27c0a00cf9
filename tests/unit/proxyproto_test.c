/*
 * The PROXY protocol: what is a header, at every cut; what is none, as early as that is clear; what we write is read again.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proxyproto.h"

#define SIGNATURE "\r\n\r\n\0\r\nQUIT\n"
#define BYTES(text) text, sizeof(text) - 1

/* Headers and the addresses they tell; NULL: the socket's own. */
static const struct {
	const char *bytes;
	size_t length;
	const char *peer, *local;
} good[] = {
	{BYTES("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"), "192.0.2.1:56324", "198.51.100.2:443"},
	{BYTES("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"), "255.255.255.255:65535", "255.255.255.255:65535"},
	{BYTES("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n"), "0.0.0.0:0", "0.0.0.0:0"},
	{BYTES("PROXY TCP6 2001:db8::1 ::1 1 2\r\n"), "[2001:db8::1]:1", "[::1]:2"},
	{BYTES("PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n"),
     "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"},
	{BYTES("PROXY UNKNOWN\r\n"), NULL, NULL},
	{BYTES("PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n"), NULL, NULL},
	{BYTES("PROXY UNKNOWN what ever   \r\n"), NULL, NULL},
	{BYTES(SIGNATURE "\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb"), "192.0.2.1:56324", "198.51.100.2:443"},
	{BYTES(SIGNATURE "\x21\x11\x00\x12\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb\x04\x00\x03"
                     "abc"),
     "192.0.2.1:56324", "198.51.100.2:443"}, /* with a TLV */
	{BYTES(SIGNATURE "\x21\x21\x00\x24\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x00\x01\x00\x02"),
     "[2001:db8::1]:1", "[::1]:2"},
	{BYTES(SIGNATURE "\x20\x00\x00\x00"), NULL, NULL}, /* LOCAL */
	{BYTES(SIGNATURE "\x20\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb"), NULL, NULL},
	{BYTES(SIGNATURE "\x20\xff\x00\x03xyz"), NULL, NULL},
	{BYTES(SIGNATURE "\x21\x00\x00\x00"), NULL, NULL}, /* unspecified */
	{BYTES(SIGNATURE "\x21\x00\x00\x03xyz"), NULL, NULL},
	{BYTES(SIGNATURE "\x21\x12\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb"), NULL, NULL}, /* UDP */
};

/* What is none, the length at which that is clear, and the reason. */
static const struct {
	const char *bytes;
	size_t length;
	const char *why;
} wrong[] = {
	{BYTES("G"), "no PROXY header"},
	{BYTES("PR0"), "no PROXY header"},
	{BYTES("PROXY\t"), "no PROXY header"},
	{BYTES("p"), "no PROXY header"},
	{BYTES("\r\n\r\n\r"), "no PROXY header"},
	{BYTES("\x16"), "no PROXY header"},
	{BYTES("PROXY TCP4 192.0.2.1\n"), "a line that does not end with CR LF"},
	{BYTES("PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n"), "a line that does not end with CR LF"},
	{BYTES("PROXY \n"), "a line that does not end with CR LF"},
	{BYTES("PROXY \r\n"), "neither TCP4 nor TCP6 nor UNKNOWN"},
	{BYTES("PROXY TCP4\r\n"), "neither TCP4 nor TCP6 nor UNKNOWN"},
	{BYTES("PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n"), "neither TCP4 nor TCP6 nor UNKNOWN"},
	{BYTES("PROXY UNKNOWNS\r\n"), "neither TCP4 nor TCP6 nor UNKNOWN"},
	{BYTES("PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n"), "not two addresses and two ports"},
	{BYTES("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n"), "not two addresses and two ports"},
	{BYTES("PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n"), "not two addresses and two ports"},
	{BYTES("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n"), "not two addresses and two ports"},
	{BYTES("PROXY TCP4 1.2.3.4 1.2.3.4 1 \r\n"), "not two addresses and two ports"},
	{BYTES("PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n"), "a port that is none"},
	{BYTES("PROXY TCP4 1.2.3.4 1.2.3.4 -1 5\r\n"), "a port that is none"},
	{BYTES("PROXY TCP4 1.2.3.4 1.2.3.4 01 5\r\n"), "a port that is none"},
	{BYTES("PROXY TCP4 1.2.3.4 1.2.3.4 1x 5\r\n"), "a port that is none"},
	{BYTES("PROXY TCP4 1.2.3.256 1.2.3.4 1 5\r\n"), "an address that is none"},
	{BYTES("PROXY TCP4 ::1 ::1 1 5\r\n"), "an address that is none"},
	{BYTES("PROXY TCP6 1.2.3.4 1.2.3.4 1 5\r\n"), "an address that is none"},
	{BYTES("PROXY TCP6 ::1%lo ::1 1 5\r\n"), "an address that is none"},
	{BYTES("PROXY TCP4 1.2\0"), "a NUL in the line"},
	{BYTES(SIGNATURE "\x11"), "neither version 1 nor 2"},
	{BYTES(SIGNATURE "\x31"), "neither version 1 nor 2"},
	{BYTES(SIGNATURE "\x22"), "neither LOCAL nor PROXY"},
	{BYTES(SIGNATURE "\x21\x11\xff\xff"), "a header of more than 4096 bytes"},
	{BYTES(SIGNATURE "\x21\x11\x00\x0b\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x01"), "too short for its addresses"},
	{BYTES(SIGNATURE "\x21\x21\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb"), "too short for its addresses"},
	{BYTES(SIGNATURE "\x21\x31\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb"), "too short for its addresses"},
	{BYTES(SIGNATURE "\x21\x41\x00\x00"), "an unknown family or protocol"},
	{BYTES(SIGNATURE "\x21\x13\x00\x00"), "an unknown family or protocol"},
};

/* Reads a copy that ends where it should: a sanitizer sees what reads beyond. */
static enum proxyproto_result read_copy(const char *bytes, size_t length, struct proxyproto *header, const char **why)
{
	char *copy = malloc(length ? length : 1);

	memcpy(copy, bytes, length);
	enum proxyproto_result result = proxyproto_read(copy, length, header, why);
	free(copy);
	return result;
}

/* Each header, cut at every place, and followed by data. */
static void headers_are_read_at_every_cut(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
		struct proxyproto header;
		const char *why = NULL;
		char text[ADDR_TEXT_SIZE], longer[512];

		for (size_t cut = 0; cut < good[i].length; cut++)
			if (read_copy(good[i].bytes, cut, &header, &why) != PROXYPROTO_MORE)
				fail_msg("header %zu cut at %zu: %s", i, cut, why ? why : "done");
		memcpy(longer, good[i].bytes, good[i].length);
		memcpy(longer + good[i].length, "\r\nPROXY", 7);
		for (size_t extra = 0; extra <= 7; extra++) {
			assert_int_equal(read_copy(longer, good[i].length + extra, &header, &why), PROXYPROTO_DONE);
			assert_int_equal(header.length, good[i].length);
			assert_int_equal(header.named, good[i].peer != NULL);
			if (!header.named)
				continue;
			assert_string_equal(addr_format(&header.peer, text), good[i].peer);
			assert_string_equal(addr_format(&header.local, text), good[i].local);
		}
	}
}

/* Each fault, at the byte that makes it one and no earlier. */
static void faults_are_told_at_once(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
		struct proxyproto header;
		const char *why = NULL;

		if (read_copy(wrong[i].bytes, wrong[i].length, &header, &why) != PROXYPROTO_BAD)
			fail_msg("fault %zu (%s) was not found", i, wrong[i].why);
		assert_string_equal(why, wrong[i].why);
		for (size_t cut = 0; cut + 1 < wrong[i].length; cut++)
			if (read_copy(wrong[i].bytes, cut, &header, &why) != PROXYPROTO_MORE)
				fail_msg("fault %zu (%s) was found at %zu of %zu", i, wrong[i].why, cut, wrong[i].length);
	}
}

/* Endless lines end at 107 bytes, and 4096 bytes of version 2 are read. */
static void headers_are_bounded(void **state)
{
	struct proxyproto header;
	const char *why;
	char line[200], *v2 = calloc(1, PROXYPROTO_MAX_HEADER);

	(void)state;
	memset(line, 'x', sizeof line);
	memcpy(line, "PROXY UNKNOWN ", 14);
	for (size_t length = 14; length < 107; length++)
		assert_int_equal(read_copy(line, length, &header, &why), PROXYPROTO_MORE);
	assert_int_equal(read_copy(line, 107, &header, &why), PROXYPROTO_BAD);
	memcpy(line + 105, "\r\n", 2);
	assert_int_equal(read_copy(line, sizeof line, &header, &why), PROXYPROTO_DONE);
	assert_int_equal(header.length, 107);
	memcpy(line + 105, "x\r\n", 3);
	assert_int_equal(read_copy(line, sizeof line, &header, &why), PROXYPROTO_BAD);

	memcpy(v2, SIGNATURE "\x21\x11\x0f\xf0", 16);
	assert_int_equal(read_copy(v2, PROXYPROTO_MAX_HEADER - 1, &header, &why), PROXYPROTO_MORE);
	assert_int_equal(read_copy(v2, PROXYPROTO_MAX_HEADER, &header, &why), PROXYPROTO_DONE);
	v2[15] = (char)0xf1;
	assert_int_equal(read_copy(v2, 16, &header, &why), PROXYPROTO_BAD);
	free(v2);
}

/* An address of a test: numeric with a port, or a path. */
static struct addr address(const char *host, uint16_t port)
{
	struct addr a = {0};

	if (host && !addr_from_numeric(&a, host, port) && !addr_from_path(&a, host))
		fail_msg("%s", host);
	return a;
}

/* What we write says what it should. */
static void what_is_written_is_read_again(void **state)
{
	static const struct {
		const char *peer, *local;
		const char *v1; /* NULL: unknown in version 1 alone; "": in both */
	} cases[] = {
		{"192.0.2.1", "198.51.100.2", "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"},
		{"2001:db8::1", "::1", "PROXY TCP6 2001:db8::1 ::1 56324 443\r\n"},
		{"::ffff:192.0.2.1", "198.51.100.2", "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"},
		{"::ffff:192.0.2.1", "::ffff:198.51.100.2", "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"},
		{"fe80::1%lo", "fe80::2%lo", "PROXY TCP6 fe80::1 fe80::2 56324 443\r\n"},
		{"192.0.2.1", "::1", ""},
		{NULL, "192.0.2.1", ""},
		{"/run/client", "/run/server.sock", NULL},
		{"@client", "@server", NULL},
		{"/run/client", "192.0.2.1", ""},
	};
	unsigned char bytes[PROXYPROTO_MAX_WRITTEN];
	char a[ADDR_TEXT_SIZE], b[ADDR_TEXT_SIZE];

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct addr peer = address(cases[i].peer, 56324), local = address(cases[i].local, 443);
		const char *line = cases[i].v1 && *cases[i].v1 ? cases[i].v1 : "PROXY UNKNOWN\r\n";
		struct proxyproto header;
		const char *why;
		size_t length = proxyproto_write(bytes, PROXYPROTO_V1, &peer, &local);

		assert_int_equal(length, strlen(line));
		assert_memory_equal(bytes, line, length);
		length = proxyproto_write(bytes, PROXYPROTO_V2, &peer, &local);
		assert_true(length <= sizeof bytes);
		assert_int_equal(read_copy((char *)bytes, length, &header, &why), PROXYPROTO_DONE);
		assert_int_equal(header.length, length);
		assert_int_equal(header.named, !(cases[i].v1 && !*cases[i].v1));
		if (!header.named || strchr(cases[i].peer, '%'))
			continue;
		assert_string_equal(addr_format(&header.peer, a), addr_format(&peer, b));
		assert_string_equal(addr_format(&header.local, a), addr_format(&local, b));
		assert_int_equal(header.peer.any.sa_family == AF_UNIX, cases[i].v1 == NULL);
	}
	assert_int_equal(proxyproto_write(bytes, PROXYPROTO_NONE, &(struct addr){0}, &(struct addr){0}), 0);
}

/* Paths of every length survive, the longest ones have no NUL behind them. */
static void paths_of_every_length(void **state)
{
	(void)state;
	for (size_t length = 1; length <= 107; length++) {
		unsigned char bytes[PROXYPROTO_MAX_WRITTEN];
		char path[109] = "", a[ADDR_TEXT_SIZE], b[ADDR_TEXT_SIZE];
		struct proxyproto header;
		const char *why;

		memset(path, length % 2 ? '/' : '@', 1);
		memset(path + 1, 'p', length - 1);
		if (length == 1)
			continue;
		struct addr local = address(path, 0);
		size_t size = proxyproto_write(bytes, PROXYPROTO_V2, &local, &local);
		assert_int_equal(proxyproto_read(bytes, size, &header, &why), PROXYPROTO_DONE);
		assert_string_equal(addr_format(&header.peer, a), addr_format(&local, b));
		assert_string_equal(addr_format(&header.local, a), addr_format(&local, b));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(headers_are_read_at_every_cut), cmocka_unit_test(faults_are_told_at_once), cmocka_unit_test(headers_are_bounded),
		cmocka_unit_test(what_is_written_is_read_again), cmocka_unit_test(paths_of_every_length),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
