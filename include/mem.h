/*
 * Allocation that cannot return NULL: running out of C memory is fatal by decision, so no caller has a half-built object
 * to take apart. Lua's memory does not come from here (see lua_vm.h).
 */
#ifndef REACTORD_MEM_H
#define REACTORD_MEM_H

#include <stdarg.h>
#include <stddef.h>

/* Ends the process with a word on standard error: there is no memory. */
void mem_exhausted(void) __attribute__((noreturn));

/* Like malloc, calloc(1, size), realloc, strdup and strndup; the caller owns the result and releases it with free. */
void *mem_alloc(size_t size) __attribute__((malloc, returns_nonnull, warn_unused_result));
void *mem_zalloc(size_t size) __attribute__((malloc, returns_nonnull, warn_unused_result));
void *mem_realloc(void *old, size_t size) __attribute__((returns_nonnull, warn_unused_result));
char *mem_strdup(const char *text) __attribute__((malloc, returns_nonnull, nonnull, warn_unused_result));
char *mem_strndup(const char *text, size_t length) __attribute__((malloc, returns_nonnull, nonnull, warn_unused_result));

/* A formatted string that the caller owns. */
char *mem_printf(const char *format, ...) __attribute__((format(printf, 1, 2), returns_nonnull, warn_unused_result));
char *mem_vprintf(const char *format, va_list arguments) __attribute__((format(printf, 1, 0), returns_nonnull, warn_unused_result));

#endif
