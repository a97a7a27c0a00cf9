/*
 * Kinds of options: how a plain value becomes a member of a struct, and the way back.
 */
#include "option.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "addr.h"
#include "confread.h"
#include "mem.h"

#define LIST_LIMIT 200 /* positional arguments: as many as Lua passes on without a thought */

static const char *const type_names[] = {"string",    "path",    "search path", "folders", "boolean", "integer",   "size",
                                         "seconds",   "choice",  "keepalive",   "mode",    "address", "addresses", "PEM",
                                         "host name", "strings", "networks",    "switch",  "table",   "list"};

/* The member of the struct at base. */
static void *member(const struct option_def *o, void *base)
{
	return (char *)base + o->offset;
}

static const void *const_member(const struct option_def *o, const void *base)
{
	return (const char *)base + o->offset;
}

/* The kind of an option in a word. */
const char *option_type_name(enum option_type type)
{
	return type_names[type];
}

/* --- what is wrong --------------------------------------------------------------------------------------------------- */

/* A value in a few words, for messages. */
static char *describe(const struct value *v)
{
	switch (v->kind) {
	case VALUE_NIL: return mem_strdup("nil");
	case VALUE_BOOLEAN: return mem_strdup(v->boolean ? "true" : "false");
	case VALUE_INTEGER: return mem_printf("%lld", (long long)v->integer);
	case VALUE_NUMBER: return mem_printf("%.14g", v->number);
	case VALUE_STRING: return mem_printf(strlen(v->string.bytes) > 40 ? "\"%.40s…\"" : "\"%.40s\"", v->string.bytes);
	case VALUE_TABLE: break;
	}
	return mem_strdup("a table");
}

/* What an option must be; the caller owns it. */
static char *expectation(const struct option_def *o)
{
	char *text, *longer;

	switch (o->type) {
	case OPTION_STRING: return mem_strdup("a text that is not empty");
	case OPTION_PATH: return mem_strdup("a path that is not empty");
	case OPTION_SEARCH_PATH: return mem_strdup("a text such as \"lib/?.lua;lib/?/init.lua\"");
	case OPTION_FOLDERS: return mem_strdup("a list of folders such as { \"handlers\" }");
	case OPTION_BOOLEAN: return mem_strdup("true or false");
	case OPTION_INTEGER: return mem_printf("a whole number from %.0f to %.0f%s", o->min, o->max, o->automatic ? ", or \"auto\"" : "");
	case OPTION_SIZE:
		return mem_printf("a whole number of bytes from %.0f to %.0f, or a text such as \"64 KiB\", \"1 MiB\", \"1 GiB\"", o->min, o->max);
	case OPTION_SECONDS: return mem_printf("a number of seconds from %.14g to %.14g", o->min, o->max);
	case OPTION_KEEPALIVE: return mem_strdup("true, false, or whole seconds from 1 to 32767");
	case OPTION_MODE: return mem_strdup("permissions in octal as a text, such as \"0660\"");
	case OPTION_ADDRESS: return mem_strdup("a text \"host\" or \"host:port\" with a numeric host");
	case OPTION_ADDRESSES: return mem_strdup("a list such as { \"127.0.0.1\", \"[::1]:5353\" } with numeric hosts");
	case OPTION_PEM: return mem_strdup("a path, or PEM text");
	case OPTION_HOSTNAME: return mem_strdup("a host name, or false");
	case OPTION_STRINGS: return mem_strdup("a list of texts such as { \"h2\", \"http/1.1\" }");
	case OPTION_NETWORKS: return mem_strdup("a list of networks such as { \"127.0.0.0/8\", \"::1\", \"unix\" }");
	case OPTION_SWITCH: return mem_strdup("true or false");
	case OPTION_TABLE: return mem_strdup("a table");
	case OPTION_LIST: return mem_strdup("a list such as { \"lobby\", 5 }");
	case OPTION_CHOICE: break;
	}
	text = mem_strdup("one of");
	for (const char *const *choice = o->choices; *choice; choice++) {
		longer = mem_printf("%s%s \"%s\"", text, choice == o->choices ? "" : ",", *choice);
		free(text);
		text = longer;
	}
	return text;
}

/* Words a refusal. */
static bool refuse(const struct option_def *o, const struct value *v, char **why)
{
	char *expected = expectation(o), *got = describe(v);

	*why = mem_printf("must be %s, got %s", expected, got);
	free(expected);
	free(got);
	return false;
}

/* --- from values ----------------------------------------------------------------------------------------------------- */

/* A number of whatever kind; a not-a-number if it is none. */
static double number_of(const struct value *v)
{
	return v->kind == VALUE_INTEGER ? (double)v->integer : v->kind == VALUE_NUMBER ? v->number : NAN;
}

/* Whether a number is whole and within bounds, which are within those of an int64_t. */
static bool is_whole(double number, double min, double max)
{
	return number >= min && number <= max && number == (double)(int64_t)number;
}

/* Whether a value is a text that C can take: not empty, no NULs in it. */
static bool is_text(const struct value *v)
{
	return v->kind == VALUE_STRING && v->string.length > 0 && strlen(v->string.bytes) == v->string.length;
}

/* Reads a size in bytes: a number, or digits with a unit of 1024, 1024² or 1024³ bytes; not-a-number if it is none. */
static double size_of(const struct value *v)
{
	static const struct {
		const char *name;
		double bytes;
	} units[] = {{"", 1}, {"b", 1}, {"k", 1024}, {"kib", 1024}, {"m", 1048576}, {"mib", 1048576}, {"g", 1073741824}, {"gib", 1073741824}};
	const char *digits, *unit;

	if (v->kind != VALUE_STRING)
		return number_of(v);
	digits = v->string.bytes;
	unit = digits + strspn(digits, "0123456789");
	if (unit == digits || unit - digits > 15)
		return NAN;
	unit += strspn(unit, " ");
	for (size_t i = 0; i < sizeof units / sizeof units[0]; i++)
		if (strcasecmp(unit, units[i].name) == 0 && strlen(digits) == v->string.length)
			return strtod(digits, NULL) * units[i].bytes;
	return NAN;
}

/* Stores a whole number in a member of whatever width. */
static void store(const struct option_def *o, void *base, double number)
{
	if (o->size == sizeof(int))
		*(int *)member(o, base) = (int)number;
	else
		*(int64_t *)member(o, base) = (int64_t)number;
}

/* Stores a text in the place of what stood there. */
static void store_text(const struct option_def *o, void *base, char *text)
{
	option_clear(o, base);
	*(char **)member(o, base) = text;
}

/* Resolves each template of a search path. Empty ones mean something to Lua and stay. */
static char *resolve_templates(const char *file, const char *templates)
{
	char *result = mem_strdup("");

	for (bool first = true;; first = false) {
		size_t length = strcspn(templates, ";");
		char *one = mem_strndup(templates, length), *resolved = length > 0 && file ? confread_resolve(file, one) : mem_strdup(one);
		char *longer = mem_printf("%s%s%s", result, first ? "" : ";", resolved);

		free(one);
		free(resolved);
		free(result);
		result = longer;
		if (templates[length] == '\0')
			return result;
		templates += length + 1;
	}
}

/* A list of texts; folders among them are resolved. */
static bool set_strings(const struct option_def *o, void *base, const struct value *v, const char *file, char **why)
{
	struct strings *s = member(o, base);

	if (v->kind != VALUE_TABLE)
		return refuse(o, v, why);
	for (size_t i = 0; i < v->table.count; i++) {
		const struct field *f = &v->table.fields[i];

		if (f->key.kind != VALUE_INTEGER || !is_text(&f->value)) {
			char *expected = expectation(o);
			*why = mem_printf("must be %s: each item a text", expected);
			free(expected);
			return false;
		}
	}
	option_clear(o, base);
	if (v->table.count > 0)
		s->items = mem_alloc(v->table.count * sizeof *s->items);
	for (; s->count < v->table.count; s->count++) {
		const char *folder = v->table.fields[s->count].value.string.bytes;

		s->items[s->count] = file ? confread_resolve(file, folder) : mem_strdup(folder);
	}
	return true;
}

/* A list of networks. */
static bool set_networks(const struct option_def *o, void *base, const struct value *v, char **why)
{
	struct network n;

	for (size_t i = 0; v->kind == VALUE_TABLE && i < v->table.count; i++) {
		const struct value *item = &v->table.fields[i].value;
		if (is_text(item) && !network_parse(&n, item->string.bytes))
			return refuse(o, item, why);
	}
	return set_strings(o, base, v, NULL, why);
}

/* A list of positional values; holes are nils. */
static bool set_list(const struct option_def *o, void *base, const struct value *v, char **why)
{
	if (v->kind != VALUE_TABLE)
		return refuse(o, v, why);
	for (size_t i = 0; i < v->table.count; i++) {
		const struct value *key = &v->table.fields[i].key;

		if (key->kind != VALUE_INTEGER || key->integer < 1 || key->integer > LIST_LIMIT) {
			*why = mem_printf("must be a list such as { \"lobby\", 5 }, at most %d items without names", LIST_LIMIT);
			return false;
		}
	}
	option_clear(o, base);
	value_copy(member(o, base), v);
	return true;
}

/* Is it an address with or without a port? */
bool option_is_address(const char *text)
{
	char *with_port, *without, *ignored = NULL;
	struct url url;
	struct addr a;
	bool ok;

	with_port = mem_printf("tcp://%s", text);
	without = mem_printf("tcp://%s:0", text);
	ok = url_parse(&url, with_port, &ignored);
	if (!ok) {
		free(ignored);
		ignored = NULL;
		ok = url_parse(&url, without, &ignored);
	}
	free(ignored);
	free(with_port);
	free(without);
	ok = ok && (addr_from_numeric(&a, url.host, url.port) || strchr(url.host, '%'));
	url_clear(&url);
	return ok;
}

/* A local address to bind to. */
static bool set_address(const struct option_def *o, void *base, const struct value *v, char **why)
{
	if (!is_text(v) || !option_is_address(v->string.bytes))
		return refuse(o, v, why);
	store_text(o, base, mem_strdup(v->string.bytes));
	return true;
}

/* A list of addresses. */
static bool set_addresses(const struct option_def *o, void *base, const struct value *v, char **why)
{
	for (size_t i = 0; v->kind == VALUE_TABLE && i < v->table.count; i++) {
		const struct value *item = &v->table.fields[i].value;

		if (!is_text(item) || !option_is_address(item->string.bytes))
			return refuse(o, item, why);
	}
	return set_strings(o, base, v, NULL, why);
}

/* One of the option's words. */
static bool set_choice(const struct option_def *o, void *base, const struct value *v, char **why)
{
	if (v->kind == VALUE_STRING) {
		for (int i = 0; o->choices[i]; i++) {
			if (strcmp(o->choices[i], v->string.bytes) == 0) {
				store(o, base, i);
				return true;
			}
		}
	}
	return refuse(o, v, why);
}

/* Permissions in octal. */
static bool set_mode(const struct option_def *o, void *base, const struct value *v, char **why)
{
	if (!is_text(v) || v->string.length > 4 || v->string.bytes[strspn(v->string.bytes, "01234567")] != '\0' ||
	    strtol(v->string.bytes, NULL, 8) > 0777)
		return refuse(o, v, why);
	*(int *)member(o, base) = (int)strtol(v->string.bytes, NULL, 8);
	return true;
}

/* Nothing instead of a value. */
static void set_none(const struct option_def *o, void *base)
{
	option_clear(o, base);
	if (o->type == OPTION_MODE || o->type == OPTION_SWITCH)
		*(int *)member(o, base) = -1;
	else if (o->present)
		*(bool *)((char *)base + o->present) = false;
}

/* Sets the member from a value. */
bool option_set(const struct option_def *o, void *base, const struct value *v, const char *file, char **why)
{
	double number;

	if (v->kind == VALUE_NIL) {
		set_none(o, base);
		return true;
	}
	switch (o->type) {
	case OPTION_STRING:
	case OPTION_PATH:
	case OPTION_SEARCH_PATH:
		if (!is_text(v))
			return refuse(o, v, why);
		store_text(o, base,
		           o->type == OPTION_SEARCH_PATH    ? resolve_templates(file, v->string.bytes)
		           : o->type == OPTION_PATH && file ? confread_resolve(file, v->string.bytes)
		                                            : mem_strdup(v->string.bytes));
		return true;
	case OPTION_FOLDERS: return set_strings(o, base, v, file, why);
	case OPTION_STRINGS: return set_strings(o, base, v, NULL, why);
	case OPTION_NETWORKS: return set_networks(o, base, v, why);
	case OPTION_ADDRESSES: return set_addresses(o, base, v, why);
	case OPTION_LIST: return set_list(o, base, v, why);
	case OPTION_ADDRESS: return set_address(o, base, v, why);
	case OPTION_CHOICE: return set_choice(o, base, v, why);
	case OPTION_MODE: return set_mode(o, base, v, why);
	case OPTION_PEM:
		if (!is_text(v))
			return refuse(o, v, why);
		store_text(o, base,
		           file && !strstr(v->string.bytes, "-----BEGIN ") ? confread_resolve(file, v->string.bytes) : mem_strdup(v->string.bytes));
		return true;
	case OPTION_HOSTNAME:
		if (!is_text(v) && !(v->kind == VALUE_BOOLEAN && !v->boolean))
			return refuse(o, v, why);
		store_text(o, base, mem_strdup(v->kind == VALUE_STRING ? v->string.bytes : ""));
		return true;
	case OPTION_SWITCH:
		if (v->kind != VALUE_BOOLEAN)
			return refuse(o, v, why);
		*(int *)member(o, base) = v->boolean;
		return true;
	case OPTION_TABLE:
		if (v->kind != VALUE_TABLE)
			return refuse(o, v, why);
		option_clear(o, base);
		value_copy(member(o, base), v);
		return true;
	case OPTION_BOOLEAN:
		if (v->kind != VALUE_BOOLEAN)
			return refuse(o, v, why);
		*(bool *)member(o, base) = v->boolean;
		return true;
	case OPTION_KEEPALIVE:
		number = v->kind == VALUE_BOOLEAN ? (v->boolean ? 0 : -1) : number_of(v);
		if (v->kind != VALUE_BOOLEAN && !is_whole(number, 1, 32767))
			return refuse(o, v, why);
		store(o, base, number);
		return true;
	case OPTION_INTEGER:
		if (o->automatic && v->kind == VALUE_STRING && strcmp(v->string.bytes, "auto") == 0) {
			store(o, base, 0);
			return true;
		}
		/* fall through */
	case OPTION_SIZE:
		number = o->type == OPTION_SIZE ? size_of(v) : number_of(v);
		if (!is_whole(number, o->min, o->max))
			return refuse(o, v, why);
		store(o, base, number);
		return true;
	case OPTION_SECONDS:
		number = number_of(v);
		if (!(number >= o->min && number <= o->max))
			return refuse(o, v, why);
		*(uint64_t *)member(o, base) = (uint64_t)(number * 1e9 + 0.5);
		if (o->present)
			*(bool *)((char *)base + o->present) = true;
		return true;
	}
	return false;
}

/* Makes a value of a text as it is written outside files: the option's kind tells what it stands for. */
static void value_from_text(const struct option_def *o, const char *text, struct value *v)
{
	char *end;
	double number;

	value_string(v, text, strlen(text));
	if (o->type == OPTION_BOOLEAN || o->type == OPTION_KEEPALIVE) {
		bool yes = strcmp(text, "true") == 0 || strcmp(text, "yes") == 0 || strcmp(text, "on") == 0;
		bool no = strcmp(text, "false") == 0 || strcmp(text, "no") == 0 || strcmp(text, "off") == 0;

		if (o->type == OPTION_BOOLEAN) {
			yes = yes || strcmp(text, "1") == 0;
			no = no || strcmp(text, "0") == 0;
		}
		if (yes || no) {
			value_clear(v);
			*v = (struct value){.kind = VALUE_BOOLEAN, .boolean = yes};
			return;
		}
	}
	if (o->type == OPTION_INTEGER || o->type == OPTION_SECONDS || o->type == OPTION_KEEPALIVE) {
		number = strtod(text, &end);
		if (isdigit((unsigned char)*text) && *end == '\0') {
			value_clear(v);
			*v = (struct value){.kind = VALUE_NUMBER, .number = number};
		}
	}
}

/* Sets the member from a text. */
bool option_set_text(const struct option_def *o, void *base, const char *text, char **why)
{
	struct value v;
	bool ok;

	value_from_text(o, text, &v);
	ok = option_set(o, base, &v, NULL, why);
	value_clear(&v);
	return ok;
}

/* Sets the default, which is written as in a file. */
void option_set_default(const struct option_def *o, void *base)
{
	struct value v = {.kind = VALUE_NIL};
	size_t length = strlen(o->fallback);
	char *why = NULL;

	memset(member(o, base), 0, o->size);
	if (o->fallback[0] == '"')
		value_string(&v, o->fallback + 1, length - 2);
	else if (strcmp(o->fallback, "{}") == 0)
		v.kind = VALUE_TABLE;
	else if (strcmp(o->fallback, "nil") != 0)
		value_from_text(o, o->fallback, &v);
	if (!option_set(o, base, &v, NULL, &why))
		free(why);
	value_clear(&v);
}

/* --- and back -------------------------------------------------------------------------------------------------------- */

/* Frees what the member owns. */
void option_clear(const struct option_def *o, void *base)
{
	struct strings *s;

	switch (o->type) {
	case OPTION_STRING:
	case OPTION_PATH:
	case OPTION_SEARCH_PATH:
	case OPTION_ADDRESS:
	case OPTION_PEM:
	case OPTION_HOSTNAME:
		free(*(char **)member(o, base));
		*(char **)member(o, base) = NULL;
		break;
	case OPTION_FOLDERS:
	case OPTION_STRINGS:
	case OPTION_NETWORKS:
	case OPTION_ADDRESSES:
		s = member(o, base);
		for (size_t i = 0; i < s->count; i++)
			free(s->items[i]);
		free(s->items);
		*s = (struct strings){0};
		break;
	case OPTION_TABLE:
	case OPTION_LIST: value_clear(member(o, base)); break;
	default: break;
	}
}

/* Whether two structs have the same in this member. */
bool option_equal(const struct option_def *o, const void *a, const void *b)
{
	json_t *x = option_json(o, a), *y = option_json(o, b);
	bool equal = json_equal(x, y);

	json_decref(x);
	json_decref(y);
	return equal;
}

/* A string as JSON. Text is expected, so only the rare one that is not UTF-8 is gone through byte by byte. */
static json_t *string_json(const char *bytes, size_t length)
{
	json_t *json = json_stringn(bytes, length);
	char *clean, *p;

	if (json)
		return json;
	p = clean = mem_alloc(length * 3 + 1);
	for (size_t i = 0; i < length; i++) {
		if ((unsigned char)bytes[i] < 0x80) {
			*p++ = bytes[i];
		} else {
			memcpy(p, "\xef\xbf\xbd", 3);
			p += 3;
		}
	}
	json = json_stringn(clean, (size_t)(p - clean));
	free(clean);
	return json;
}

/* A table as JSON: an array if its keys are 1 to n in order, else an object. */
static json_t *table_json(const struct value *v)
{
	bool list = true;
	json_t *json;

	for (size_t i = 0; i < v->table.count; i++)
		list = list && v->table.fields[i].key.kind == VALUE_INTEGER && v->table.fields[i].key.integer == (int64_t)i + 1;
	json = list ? json_array() : json_object();
	for (size_t i = 0; i < v->table.count; i++) {
		const struct field *f = &v->table.fields[i];
		char *name;

		if (list) {
			json_array_append_new(json, option_value_json(&f->value));
			continue;
		}
		if (f->key.kind == VALUE_STRING) {
			json_t *key = string_json(f->key.string.bytes, f->key.string.length);

			name = mem_strdup(json_string_value(key));
			json_decref(key);
		} else {
			name = describe(&f->key);
		}
		json_object_set_new(json, name, option_value_json(&f->value));
		free(name);
	}
	return json;
}

/* Plain data as JSON. */
json_t *option_value_json(const struct value *v)
{
	switch (v->kind) {
	case VALUE_BOOLEAN: return json_boolean(v->boolean);
	case VALUE_INTEGER: return json_integer(v->integer);
	case VALUE_NUMBER: return isfinite(v->number) ? json_real(v->number) : json_null();
	case VALUE_STRING: return string_json(v->string.bytes, v->string.length);
	case VALUE_TABLE: return table_json(v);
	case VALUE_NIL: break;
	}
	return json_null();
}

/* The member as JSON. */
json_t *option_json(const struct option_def *o, const void *base)
{
	const void *m = const_member(o, base);
	int64_t number = o->size == sizeof(int) ? *(const int *)m : o->size == sizeof(int64_t) ? *(const int64_t *)m : 0;
	const struct strings *s = m;
	const char *text;
	char mode[8];
	json_t *json;

	switch (o->type) {
	case OPTION_STRING:
	case OPTION_PATH:
	case OPTION_SEARCH_PATH:
	case OPTION_PEM:
	case OPTION_ADDRESS: text = *(char *const *)m; return text ? string_json(text, strlen(text)) : json_null();
	case OPTION_HOSTNAME:
		text = *(char *const *)m;
		return text && !*text ? json_false() : text ? string_json(text, strlen(text)) : json_null();
	case OPTION_SWITCH: return number < 0 ? json_null() : json_boolean(number);
	case OPTION_FOLDERS:
	case OPTION_STRINGS:
	case OPTION_NETWORKS:
	case OPTION_ADDRESSES:
		json = json_array();
		for (size_t i = 0; i < s->count; i++)
			json_array_append_new(json, string_json(s->items[i], strlen(s->items[i])));
		return json;
	case OPTION_BOOLEAN: return json_boolean(*(const bool *)m);
	case OPTION_INTEGER:
	case OPTION_SIZE: return o->automatic && number == 0 ? json_string("auto") : json_integer(number);
	case OPTION_SECONDS:
		if (o->present && !*((const bool *)((const char *)base + o->present)))
			return json_null();
		return number % 1000000000 == 0 ? json_integer(number / 1000000000) : json_real((double)number / 1e9);
	case OPTION_CHOICE: return json_string(o->choices[number]);
	case OPTION_KEEPALIVE: return number > 0 ? json_integer(number) : json_boolean(number == 0);
	case OPTION_MODE:
		if (number < 0)
			return json_null();
		snprintf(mode, sizeof mode, "%04o", (unsigned)number & 0777);
		return json_string(mode);
	case OPTION_TABLE:
	case OPTION_LIST: return option_value_json(m);
	}
	return json_null();
}
