/*
 * Fuzzes what reads a configuration: URLs, and whole files from memory. Nothing may crash, leak, or take long, and the canonical
 * spelling of a URL must be stable. The first byte chooses. Build and run from the top folder:
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -std=gnu11 -D_GNU_SOURCE -Iinclude -Idaemon $(pkg-config --cflags lua5.4) \
 *     tests/fuzz/fuzz_config.c daemon/{mem,value,addr,problems,confread_lines,confread_value,confread}.c \
 *     $(pkg-config --libs lua5.4) -o build/fuzz_config
 *   build/fuzz_config -dict=tests/fuzz/config.dict -max_len=4096 -timeout=10 build/fuzz-corpus
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "addr.h"
#include "confread.h"
#include "mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Takes a URL apart, writes it, and takes that apart again. */
static void fuzz_url(const char *text)
{
	struct url u, again;
	char *why = NULL, *first, *second;

	if (!url_parse(&u, text, &why)) {
		free(why);
		return;
	}
	first = url_format(&u);
	if (!url_parse(&again, first, &why) || !url_equal(&u, &again))
		abort();
	second = url_format(&again);
	if (strcmp(first, second) != 0)
		abort();
	free(first);
	free(second);
	url_clear(&u);
	url_clear(&again);
}

/* Reads a file whose includes lead nowhere. */
static void fuzz_file(const char *text, size_t length)
{
	static const char *const options[] = {"user", "handlers", "log", "memory_limit", NULL};
	static const char *const blocks[] = {"listen", "connect", NULL};
	static const struct confread_names names = {options, blocks};
	struct problems problems = {0};
	struct confread c;

	if (confread_text(&c, "/nowhere/fuzz.conf", text, length, &names, &problems) != (problems.count == 0))
		abort();
	for (size_t i = 0; i < c.count; i++) {
		struct value copy;

		value_copy(&copy, &c.items[i].value);
		if (!value_equal(&copy, &c.items[i].value))
			abort();
		value_clear(&copy);
	}
	confread_clear(&c);
	problems_clear(&problems);
}

/* One input. Includes of absolute paths are left out: the fuzzer would read the machine's files. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text;

	if (size == 0)
		return 0;
	text = mem_strndup((const char *)data + 1, size - 1);
	if (data[0] % 2 == 0)
		fuzz_url(text);
	else if (!memmem(text, size - 1, "include", 7))
		fuzz_file(text, size - 1);
	free(text);
	return 0;
}
