/* dataset.h - rows of LongBench and InfiniteBench from files: .jsonl, .jsonl.gz, .jsonl.zst, one or a folder. */
#ifndef PCOMP_DATASET_H
#define PCOMP_DATASET_H

#include "sample.h"

/* ==== Lines of a file that may be packed ==== */

enum { LINE_BYTES_MAX = 1 << 28 }; /* a longer line is reported and passed over */

struct LineReader;

/* The packing is told from the first bytes, not from the name. line_close always. */
int lines_open(const char *path, struct LineReader **out);
/* 1: a line, without its line feed, valid until the next call; 0: the end; PC_ERANGE: a line longer than
 * LINE_BYTES_MAX was passed over, the next call goes on behind it; PC_EIO, PC_EFORMAT: no further lines. */
int lines_next(struct LineReader *r, const char **line, size_t *len);
void lines_close(struct LineReader *r);

/* ==== Rows ==== */

struct DataRow {
    struct Sample sample;
    long line;  /* number in the file, from 1 */
    int status; /* PC_OK, or why the row cannot be read: err_text() */
};

/* Calls row() for each row of one task, in file order; what row() returns below 0 ends the walk.
 * path: a folder that holds <task>.jsonl (also .gz, .zst, or in a folder data/), or one file, whose
 * rows of another "dataset" are passed over. PC_EIO when there is no such file. Bad rows are handed on
 * with their status. */
int dataset_each(const char *path, const char *task, int (*row)(void *user, struct DataRow *row),
                 void *user);
/* Counts the rows that dataset_each() would hand on, and takes their bytes into hash; reads lines, not rows. */
int dataset_count(const char *path, const char *task, long *rows, uint64_t *hash);
/* True when path has rows for the task: its file is there, or path is a file. */
bool dataset_has(const char *path, const char *task);

/* Reads one row: LongBench's fields (input, context, answers, all_classes, length, _id), InfiniteBench's (id,
 * context or content, input, answer, options) or those of `pcomp-eval generate`. */
int row_parse(const char *line, size_t len, const char *task, struct Sample *out);

#endif
