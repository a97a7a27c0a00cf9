/*
 * The options of TLS: the tls table of a block and the argument of start_tls. EventMachine's names for some of them are understood.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "config_scopes.h"
#include "mem.h"

/* EventMachine's names and ours. */
static const struct {
	const char *theirs, *ours;
} aliases[] = {
	{"cert_chain_file", "certificate"},
	{"cert", "certificate"},
	{"private_key_file", "private_key"},
};

/* Versions as EventMachine writes them, by their place in the choice of min_version. */
static const char *const versions[] = {"tlsv1", "tlsv1_1", "tlsv1_2", "tlsv1_3"};

/* The table with EventMachine's names replaced, for set_options; the caller clears it. Two names for one option are a problem. */
static void rename_aliases(const struct place *at, const struct value *table, struct value *renamed)
{
	value_copy(renamed, table);
	for (size_t i = 0; i < renamed->table.count; i++) {
		struct value *key = &renamed->table.fields[i].key;
		for (size_t j = 0; key->kind == VALUE_STRING && j < sizeof aliases / sizeof *aliases; j++) {
			if (strcmp(key->string.bytes, aliases[j].theirs) != 0)
				continue;
			if (value_get(renamed, aliases[j].ours))
				problems_add_at(at->problems, at->file, at->line, "'%s' in tls says the same as '%s': give one of them", aliases[j].theirs,
				                aliases[j].ours);
			value_clear(key);
			value_string(key, aliases[j].ours, strlen(aliases[j].ours));
		}
	}
}

/* Makes the list of certificates by name. */
static void take_sni(const struct place *at, struct tls_conf *tls)
{
	if (tls->sni.kind != VALUE_TABLE)
		return;
	tls->sni_list = mem_zalloc((tls->sni.table.count + 1) * sizeof *tls->sni_list);
	for (size_t i = 0; i < tls->sni.table.count; i++) {
		const struct field *f = &tls->sni.table.fields[i];
		struct tls_sni_conf *s = &tls->sni_list[tls->sni_count];
		struct value renamed;

		if (f->key.kind != VALUE_STRING || f->value.kind != VALUE_TABLE) {
			problems_add_at(at->problems, at->file, at->line,
			                "'sni' in tls must be a table such as { [\"example.org\"] = { certificate = \"…\" } }");
			continue;
		}
		scope_set_defaults(&scope_identity, s);
		s->name = mem_strdup(f->key.string.bytes);
		tls->sni_count++;
		rename_aliases(at, &f->value, &renamed);
		config_set_options(at, &scope_identity, s, &renamed, NULL);
		value_clear(&renamed);
		if (!s->certificate)
			problems_add_at(at->problems, at->file, at->line, "'sni' in tls: \"%s\" needs a certificate", s->name);
	}
}

/* Takes the versions that ssl_version names: the range from the oldest to the newest. */
static void take_ssl_version(const struct place *at, struct tls_conf *tls)
{
	int low = 0, high = 0;

	for (size_t i = 0; i < tls->ssl_version.count; i++) {
		int found = 0;
		for (size_t j = 0; j < sizeof versions / sizeof *versions; j++)
			if (strcasecmp(tls->ssl_version.items[i], versions[j]) == 0)
				found = (int)j + 1;
		if (!found) {
			problems_add_at(at->problems, at->file, at->line,
			                "'ssl_version' in tls: unknown version \"%s\" (there are tlsv1, tlsv1_1, tlsv1_2, tlsv1_3)",
			                tls->ssl_version.items[i]);
			continue;
		}
		low = !low || found < low ? found : low;
		high = found > high ? found : high;
	}
	if (low && !tls->min_version)
		tls->min_version = low;
	if (high && !tls->max_version)
		tls->max_version = high;
}

/* Makes a tls_conf of a table; problems are added. */
void config_take_tls(const struct place *at, struct tls_conf *tls, const struct value *table)
{
	struct value renamed;

	*tls = (struct tls_conf){0};
	scope_set_defaults(&scope_tls, tls);
	if (table && table->kind == VALUE_TABLE) {
		rename_aliases(at, table, &renamed);
		config_set_options(at, &scope_tls, tls, &renamed, NULL);
		value_clear(&renamed);
	}
	take_sni(at, tls);
	take_ssl_version(at, tls);
	if (tls->min_version && tls->max_version && tls->min_version > tls->max_version)
		problems_add_at(at->problems, at->file, at->line, "'min_version' in tls is newer than max_version");
	for (size_t i = 0; i < tls->alpn.count; i++)
		if (strlen(tls->alpn.items[i]) > 255)
			problems_add_at(at->problems, at->file, at->line, "'alpn' in tls: a protocol's name has 255 bytes at most");
}

/* The options of start_tls. */
bool config_tls(struct tls_conf *out, const struct value *options, char **why)
{
	struct problems problems = {0};
	struct place at = {.problems = &problems};

	if (options && options->kind != VALUE_NIL && options->kind != VALUE_TABLE)
		problems_add(&problems, "the options must be a table");
	config_take_tls(&at, out, options);
	if (!problems.count)
		return true;
	*why = problems_join(&problems);
	problems_clear(&problems);
	tls_conf_clear(out);
	return false;
}

/* Frees what is in a tls_conf. */
void tls_conf_clear(struct tls_conf *tls)
{
	for (size_t i = 0; i < tls->sni_count; i++) {
		free(tls->sni_list[i].name);
		scope_clear(&scope_identity, &tls->sni_list[i]);
	}
	free(tls->sni_list);
	scope_clear(&scope_tls, tls);
	*tls = (struct tls_conf){0};
}

/* All of it in one text. */
char *config_tls_text(const struct tls_conf *tls)
{
	json_t *object = json_object();

	for (size_t i = 0; i < scope_tls.count; i++)
		json_object_set_new(object, scope_tls.options[i].name, option_json(&scope_tls.options[i], tls));
	char *dumped = json_dumps(object, JSON_COMPACT | JSON_SORT_KEYS), *text = mem_strdup(dumped);
	free(dumped);
	json_decref(object);
	return text;
}
