/*
 * Text that comes from outside may be anything; what we write for machines to read must be UTF-8.
 */
#ifndef REACTORD_UTF8_H
#define REACTORD_UTF8_H

#include <stddef.h>

/* The bytes of the character that a text, which ends with a NUL, begins with: 1 to 4; 0: it is not UTF-8 there. */
size_t utf8_length(const char *text);

#endif
