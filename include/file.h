/*
 * Files on their way into connections: whole small ones at once, others as a source that adds piece after piece while the peer takes it.
 */
#ifndef REACTORD_FILE_H
#define REACTORD_FILE_H

#include <stdbool.h>
#include <sys/types.h>

#include "conn.h"

#define FILE_SMALL 32768 /* bytes that file_read takes at most */

/* Opens a regular file for reading, close-on-exec; *size gets its bytes. -1 with errno: EISDIR for a folder, EINVAL for a device, pipe or
 * socket, which could keep the loop waiting. */
int file_open(const char *path, off_t *size) __attribute__((warn_unused_result));

/* Reads a small file into bytes, which have room for FILE_SMALL; returns how many, or -1 with errno: EFBIG where it is larger. */
ssize_t file_read(const char *path, char *bytes) __attribute__((warn_unused_result));

/*
 * Queues a file's first `size` bytes, behind all that was sent before. A plain socket's go from the page cache to the kernel, others are
 * read a piece at a time. chunks: framed as HTTP's chunked coding, 16 KiB each, with the last one. A file that turns out to be
 * shorter ends the connection with EIO. fd is taken over; on SEND_CLOSED and SEND_SHUT it is closed and on_end not called. on_end: all of
 * it is with the kernel (why NULL), or the connection ends with that code (NULL: orderly) and why.
 */
enum send_result file_stream(struct conn *c, int fd, off_t size, bool chunks, void (*on_end)(void *data, const char *code, const char *why),
                             void *data);

#endif
