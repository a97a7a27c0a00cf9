/*
 * Fuzzes what reads PROXY headers: nothing may crash or read beyond its bytes; once an input is bad or done, more bytes do not change that;
 * what was read can be written and read again. Build and run from the top folder:
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -std=gnu11 -D_GNU_SOURCE -Iinclude -Idaemon \
 *     tests/fuzz/fuzz_proxyproto.c daemon/{mem,addr,proxyproto}.c -o build/fuzz_proxyproto
 *   build/fuzz_proxyproto -dict=tests/fuzz/proxyproto.dict -max_len=5000 build/fuzz-corpus-proxyproto
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proxyproto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Writes what was read, and compares. */
static void write_again(const struct proxyproto *header)
{
	unsigned char bytes[PROXYPROTO_MAX_WRITTEN];
	char a[ADDR_TEXT_SIZE], b[ADDR_TEXT_SIZE];
	struct proxyproto again;
	const char *why;

	for (enum proxyproto_version version = PROXYPROTO_V1; version <= PROXYPROTO_V2; version++) {
		size_t length = proxyproto_write(bytes, version, &header->peer, &header->local);
		if (length > sizeof bytes || proxyproto_read(bytes, length, &again, &why) != PROXYPROTO_DONE || again.length != length)
			abort();
		if (again.named && strcmp(addr_format(&header->peer, a), addr_format(&again.peer, b)) != 0)
			abort();
		if (again.named && strcmp(addr_format(&header->local, a), addr_format(&again.local, b)) != 0)
			abort();
	}
}

/* One input, at every length that matters. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum proxyproto_result before = PROXYPROTO_MORE;
	struct proxyproto header;
	size_t done = 0;

	for (size_t length = 0; length <= size; length = length < 300 || length == size ? length + 1 : size) {
		const char *why = NULL;
		uint8_t *copy = malloc(length ? length : 1);
		memcpy(copy, data, length);
		enum proxyproto_result result = proxyproto_read(copy, length, &header, &why);
		free(copy);
		if (before != PROXYPROTO_MORE && result != before)
			abort();
		if (result == PROXYPROTO_BAD && !why)
			abort();
		if (result == PROXYPROTO_DONE && (header.length > length || (done && done != header.length)))
			abort();
		if (result == PROXYPROTO_DONE)
			done = header.length;
		if (result == PROXYPROTO_MORE && length >= PROXYPROTO_MAX_HEADER)
			abort();
		before = result;
	}
	if (before == PROXYPROTO_DONE && header.named)
		write_again(&header);
	return 0;
}
