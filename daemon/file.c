/* Files on their way into connections: see file.h. */
#include "file.h"

#include <errno.h>
#include <event2/buffer.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem.h"

#define CHUNK 16384 /* bytes of a piece that is read, and of one of HTTP's chunks, as EventMachine's */

struct file_stream {
	struct conn_source source; /* first: the source is the stream */
	int fd;
	off_t at, end; /* next byte to add; how many there are */
	bool chunks;
	void (*on_end)(void *data, const char *code, const char *why);
	void *data;
};

/* Opens a regular file. */
int file_open(const char *path, off_t *size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* opening a named pipe does not wait */
	struct stat st;
	int error;

	if (fd < 0)
		return -1;
	if (fstat(fd, &st) < 0)
		error = errno;
	else if (!S_ISREG(st.st_mode))
		error = S_ISDIR(st.st_mode) ? EISDIR : EINVAL;
	else {
		*size = st.st_size;
		return fd;
	}
	close(fd);
	errno = error;
	return -1;
}

/* Reads until the buffer is full or the file at its end; -1 with errno. */
static ssize_t read_at(int fd, void *bytes, size_t length, off_t at)
{
	size_t done = 0;

	while (done < length) {
		ssize_t n = pread(fd, (char *)bytes + done, length - done, at + (off_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

/* Reads a small file. */
ssize_t file_read(const char *path, char *bytes)
{
	off_t size;
	int fd = file_open(path, &size);
	ssize_t n = -1;
	char more;

	if (fd < 0)
		return -1;
	errno = EFBIG;
	if (size <= FILE_SMALL) {
		n = read_at(fd, bytes, FILE_SMALL, 0);
		if (n == FILE_SMALL && read_at(fd, &more, 1, FILE_SMALL) == 1) { /* it has grown, or does not tell its size */
			errno = EFBIG;
			n = -1;
		}
	}
	int saved = errno;
	close(fd);
	errno = saved;
	return n;
}

/* Adds n bytes as a reference to the file, which sendfile will read. */
static bool add_segment(struct file_stream *f, struct evbuffer *to, size_t n)
{
	struct evbuffer_file_segment *segment =
		evbuffer_file_segment_new(f->fd, f->at, (ev_off_t)n, EVBUF_FS_DISABLE_MMAP | EVBUF_FS_DISABLE_LOCKING);

	if (!segment)
		return false;
	int r = evbuffer_add_file_segment(to, segment, 0, (ev_off_t)n);
	evbuffer_file_segment_free(segment);
	return r == 0;
}

/* Reads n bytes into the output; ends the connection where the file does not have them any more. */
static bool add_copy(struct conn *c, struct file_stream *f, struct evbuffer *to, size_t n)
{
	struct evbuffer_iovec space;

	if (evbuffer_reserve_space(to, (ev_ssize_t)n, &space, 1) < 1)
		abort(); /* want of memory */
	ssize_t got = read_at(f->fd, space.iov_base, n, f->at);
	if (got != (ssize_t)n) {
		conn_end(c, got < 0 ? errno_code(errno) : "EIO", got < 0 ? errno_text(errno) : CONN_CUT_SHORT);
		return false;
	}
	space.iov_len = n;
	evbuffer_commit_space(to, &space, 1);
	return true;
}

/* Adds the next pieces. */
static void fill(struct conn *c, struct conn_source *s, struct evbuffer *to, size_t room)
{
	struct file_stream *f = (struct file_stream *)s;

	if (!s->begun)
		s->weightless = c->is_socket && !c->filter && !f->chunks;
	while (f->at < f->end && room) {
		size_t n = (size_t)(f->end - f->at) < room ? (size_t)(f->end - f->at) : room;
		if (!s->weightless && n > CHUNK)
			n = CHUNK;
		if (f->chunks) { /* whole chunks, whatever the room is */
			n = f->end - f->at < CHUNK ? (size_t)(f->end - f->at) : CHUNK;
			evbuffer_add_printf(to, "%zx\r\n", n);
		}
		if (s->weightless) {
			if (!add_segment(f, to, n)) {
				conn_end_errno(c, errno ? errno : EIO);
				return;
			}
		} else if (!add_copy(c, f, to, n)) {
			return;
		}
		if (f->chunks)
			evbuffer_add(to, "\r\n", 2);
		f->at += (off_t)n;
		room -= n < room ? n : room;
	}
	if (f->at < f->end)
		return;
	if (f->chunks)
		evbuffer_add(to, "0\r\n\r\n", 5);
	s->made = true;
}

/* Has the file become too short for what sendfile was promised? */
static bool broken(struct conn_source *s)
{
	struct file_stream *f = (struct file_stream *)s;
	struct stat st;

	return s->weightless && (fstat(f->fd, &st) < 0 || st.st_size < f->at);
}

/* It is through, or its connection is. */
static void on_end(struct conn *c, struct conn_source *s, const char *code, const char *why)
{
	struct file_stream *f = (struct file_stream *)s;
	struct file_stream copy = *f;

	(void)c;
	close(f->fd);
	free(f);
	copy.on_end(copy.data, code, why);
}

/* Queues a file. */
enum send_result file_stream(struct conn *c, int fd, off_t size, bool chunks,
                             void (*on_done)(void *data, const char *code, const char *why), void *data)
{
	struct file_stream *f = mem_zalloc(sizeof *f);

	*f = (struct file_stream){.fd = fd, .end = size, .chunks = chunks, .on_end = on_done, .data = data};
	f->source = (struct conn_source){.fill = fill, .broken = broken, .on_end = on_end};
	(void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
	enum send_result result = conn_send_source(c, &f->source);
	if (result == SEND_OK || result == SEND_FULL)
		return result;
	close(fd);
	free(f);
	return result;
}
