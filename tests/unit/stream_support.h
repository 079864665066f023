/* stream_support.h - for tests of streamed texts: hostile texts, and texts in files and pipes. Each test program has its own
 * copy.
 */
#ifndef PCOMP_STREAM_SUPPORT_H
#define PCOMP_STREAM_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base.h"

static inline void fine(int status)
{
    if (status < 0) fail_msg("%s", err_text());
}

static inline uint32_t below(uint64_t *state, uint32_t n)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33) % n;
}

/* What words, cuts and boundaries are decided by, and what looks like it. */
static const char *const ATOMS[] = {" ",
                                    "  ",
                                    "    ",
                                    "\n",
                                    "\n\n",
                                    "\r\n",
                                    "\t",
                                    " \n ",
                                    "\f",
                                    "\v",
                                    "a",
                                    "t",
                                    "the",
                                    "The",
                                    "in",
                                    "aaaa",
                                    "aaaaaaaa",
                                    "hello",
                                    "Hello",
                                    "s",
                                    "re",
                                    "ll",
                                    "'",
                                    "'s",
                                    "'S",
                                    "'re",
                                    "'ll ",
                                    "1",
                                    "12",
                                    "2024",
                                    " 3",
                                    ".",
                                    ". ",
                                    "!",
                                    "?\n",
                                    "...",
                                    "…",
                                    ",",
                                    "-",
                                    "(",
                                    ")",
                                    "\"",
                                    "{\"a\":1}",
                                    "<tool>",
                                    "<tool",
                                    "<to",
                                    "ol>",
                                    "<|im_end|>",
                                    "<|im_",
                                    "\xe4\xb8\xad\xe6\x96\x87",
                                    "\xe4\xb8\xad",
                                    "\xe3\x80\x82",
                                    "\xef\xbc\x8c",
                                    "\xe3\x80\x80",
                                    "\xe3\x81\x82\xe3\x82\xab",
                                    "\xea\xb0\x80",
                                    "\xc2\xa0",
                                    "\xc2\x85",
                                    "\xe2\x80\xa8",
                                    "\xe2\x80\x89",
                                    "\xe1\x9a\x80",
                                    "\xe2\x96\x81",
                                    "\xe2\x96\x81\xe2\x96\x81",
                                    "\xc3\xa9",
                                    "e\xcc\x81",
                                    "\xd0\x96",
                                    "\xd8\xb3",
                                    "\xe0\xa4\x95",
                                    "\xe0\xb8\x81",
                                    "\xf0\x9f\x98\x80",
                                    "\xf0\x9d\x9f\x98",
                                    "\xd9\xa3",
                                    "\xc5\xbf",
                                    "\xe2\x84\xaa",
                                    "\xe2\x80\x9d",
                                    "\xe3\x80\x8d",
                                    "\x01",
                                    "\x1c",
                                    "\x7f",
                                    "\xe1\xa0\x8e"};
enum { N_ATOMS = sizeof ATOMS / sizeof *ATOMS };

/* n bytes or a few more. Stretches keep to a few of the atoms, so that runs come about. */
static inline void hostile_text(struct Str *out, size_t n, uint64_t seed)
{
    uint64_t state = seed;
    uint32_t some[6];
    for (size_t begin = out->len; out->len - begin < n;) {
        if (below(&state, 20) == 0 || out->len == begin)
            for (int i = 0; i < 6; i++) some[i] = below(&state, N_ATOMS);
        const char *atom =
            ATOMS[below(&state, 4) ? some[below(&state, 6)] : below(&state, N_ATOMS)];
        fine(str_append(out, atom, strlen(atom)));
    }
}

static inline void temp_name(char path[32])
{
    strcpy(path, "/tmp/pcomp_stream_XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
}

static inline void write_text(const char *path, const char *data, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, len), (ssize_t)len);
    close(fd);
}

/* A named pipe at path, filled by a process of its own in pieces of any size; pipe_end waits for it. */
static inline pid_t pipe_begin(const char *path, const char *data, size_t len, uint64_t seed)
{
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child) return child;
    int fd = open(path, O_WRONLY);
    uint64_t state = seed;
    for (size_t at = 0; at < len;) {
        size_t n = 1 + below(&state, below(&state, 3) ? 70000 : 9);
        ssize_t put = write(fd, data + at, n < len - at ? n : len - at);
        if (put <= 0) break;
        at += (size_t)put;
    }
    _exit(0);
}

static inline void pipe_end(pid_t child)
{
    assert_int_equal(waitpid(child, NULL, 0), child);
}

#endif
