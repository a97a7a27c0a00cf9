/* How a configuration is come by: see settings.h. */
#include "settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "mem.h"

/* Makes a configuration for one handler on some URLs. */
static struct config *config_for_handler(const struct service_options *o, struct problems *problems)
{
	struct config *config = config_defaults(o->overrides, o->override_count, problems);

	if (!config)
		return NULL;
	config->unsafe = true;
	config->processes = 1;
	/* its own folder, for require; the handlers' folders cannot have been set otherwise */
	config->handlers.items = mem_realloc(config->handlers.items, sizeof *config->handlers.items);
	config->handlers.items[config->handlers.count++] = mem_strndup(o->handler, (size_t)(strrchr(o->handler, '/') - o->handler));
	config->listens = mem_zalloc(o->url_count * sizeof *config->listens);
	size_t good = 0;
	for (size_t i = 0; i < o->url_count; i++) {
		char *why = NULL;
		if (!config_listen(&config->listens[i], o->urls[i], NULL, &why)) {
			problems_add(problems, "%s", why);
			free(why);
			continue;
		}
		config->listens[i].handler = mem_strdup(o->handler);
		good++;
	}
	config->listen_count = o->url_count; /* a refused one is all zero */
	if (good == o->url_count)
		return config;
	config_free(config);
	return NULL;
}

/* Reads the configuration anew. */
struct config *settings_read(const struct service_options *o, struct problems *problems)
{
	if (!o->config_path)
		return config_for_handler(o, problems);
	return config_load(o->config_path, o->overrides, o->override_count, problems);
}

/* Writes all problems to the log, each an event. */
void settings_log_problems(const struct problems *problems, const char *lead)
{
	for (size_t i = 0; i < problems->count; i++)
		log_error("%s%s", lead, problems->lines[i]);
}

/* FNV-1a of the configuration's dump. */
uint64_t settings_digest(const struct config *config)
{
	char *text = NULL;
	size_t length = 0;
	uint64_t digest = 14695981039346656037u;
	FILE *memory = open_memstream(&text, &length);

	if (!memory)
		mem_exhausted();
	config_dump_json(config, memory);
	fclose(memory);
	for (size_t i = 0; i < length; i++)
		digest = (digest ^ (unsigned char)text[i]) * 1099511628211u;
	free(text);
	return digest;
}

/* Opens the log as a configuration says; on failure the old one stays. */
bool settings_apply_log(const struct config *config, struct problems *problems)
{
	char *why = NULL;

	if (log_open(config->log_level, config->log_format, config->log_file, &why)) {
		log_set_repeats((unsigned)config->log_repeats);
		return true;
	}
	problems_add(problems, "log: %s", why);
	free(why);
	return false;
}
