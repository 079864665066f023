/* gen_task.h - what the generators share: one sample in the making, the table of tasks, haystacks with
 * needles, and lists of units.
 */
#ifndef PCOMP_GEN_TASK_H
#define PCOMP_GEN_TASK_H

#include "generate.h"
#include "rng.h"
#include "words.h"

/* Streams of random numbers of one sample. */
enum { DRAW_DEPTH = 1, DRAW_DEPTHS, DRAW_NEEDLES, DRAW_ORDER, DRAW_KIND, DRAW_PICK, DRAW_UNIT };

/* One sample in the making. */
struct Gen {
    const struct GenSpec *spec;
    const struct Tokenizer *tok;
    const void *how; /* the task's own constants */
    uint64_t key;    /* of all its random numbers */
    struct Sample *out;
    int64_t estimate;  /* set by the task: tokens of the context, as it counted them */
    int64_t least;     /* set by the task when the budget is too small for it */
    struct Tokens ids; /* scratch */
};

/* Makes g->out of at most `budget` tokens by its own count, which goes to g->estimate; the caller
 * checks the real count and calls again with a corrected budget. */
typedef int (*GenBuild)(struct Gen *g, int64_t budget);

struct GenTask {
    const char *name, *help;
    GenBuild build;
    const void *how;
    bool haystack, qa;
};

extern const struct GenTask GEN_TASKS[]; /* ends with a NULL name */

int gen_passkey(struct Gen *g, int64_t budget);
int gen_niah(struct Gen *g, int64_t budget);
int gen_niah_lines(struct Gen *g, int64_t budget);
int gen_needle(struct Gen *g, int64_t budget);
int gen_passphrase(struct Gen *g, int64_t budget);
int gen_vt(struct Gen *g, int64_t budget);
int gen_hops(struct Gen *g, int64_t budget);
int gen_kv(struct Gen *g, int64_t budget);
int gen_math_find(struct Gen *g, int64_t budget);
int gen_math_calc(struct Gen *g, int64_t budget);
int gen_code_run(struct Gen *g, int64_t budget);
int gen_cwe(struct Gen *g, int64_t budget);
int gen_fwe(struct Gen *g, int64_t budget);
int gen_qa(struct Gen *g, int64_t budget);

/* ==== Helpers of all tasks (gen_task.c) ==== */

struct Rng gen_rng(const struct Gen *g, uint64_t stream);
/* The wanted depth, or one drawn from RULER's grid of 40. Remembers it in g->out->depth. */
double gen_depth(struct Gen *g);
/* `given`, or `usual` when that is 0. PC_ECONFIG unless 1 <= it <= most. */
int gen_knob(const char *name, int given, int usual, int most, int *out);
/* Sets g->least and returns PC_ERANGE. */
int gen_too_small(struct Gen *g, int64_t least);
/* Tokens of text, and those that it adds when it follows `before`. */
int gen_count(struct Gen *g, const char *text, size_t len, int64_t *n);
int gen_count_after(struct Gen *g, const char *before, const struct Str *text, int64_t *n);
int gen_answer(struct Gen *g, const char *text, size_t len);
/* Makes room for n places; gen_place sets the next. */
int gen_places(struct Gen *g, int n);
void gen_place(struct Gen *g, size_t at);

/* What keys and values are made of. */
enum GenKind { KIND_WORDS, KIND_NUMBERS, KIND_UUIDS };
enum { KEY_MAX = 2 * WORD_MAX };
void gen_draw(struct Rng *r, enum GenKind kind, char out[KEY_MAX]);
/* "a", "a and b", "a, b, and c" as RULER asks for them. */
int gen_enumerate(const char (*keys)[KEY_MAX], int n, struct Str *out);

/* ==== Haystack with needles (gen_hay.c) ==== */

enum HayKind { HAY_LINES, HAY_PROSE };

struct Needle {
    struct Str text;
    size_t answer; /* offset in text of what answer_at points to */
    double depth;
    int number; /* of the needle, as made: its place in answer_at; negative: not in it */
    size_t at;  /* where it goes in the haystack */
};

/* A text without end: one cycle again and again. */
struct Hay {
    struct Str text;
    size_t *ends; /* [n] byte after each token of a cycle */
    int64_t n;
    enum HayKind kind;
};

/* The tasks' one way to build: needles (n of them, consumed in any case) in the haystack. */
struct HayJob {
    enum HayKind kind;
    const char *line;       /* HAY_LINES: the line that is repeated */
    bool collapse;          /* HAY_PROSE: runs of white space become one space, as RULER does */
    bool drop_space;        /* the context must not begin with the line's space */
    struct Needle *needles; /* [n] */
    int n, n_places;        /* n_places: needles with a number */
};
int hay_build(struct Gen *g, const struct HayJob *job, int64_t budget);

/* Depths for n needles, spread over a grid as RULER does it; the first one is the wanted depth. */
int gen_depths(struct Gen *g, struct Needle *needles, int n);
/* The same in ascending order: a chain's links. The first link is at the wanted depth. */
int gen_depths_ascending(struct Gen *g, struct Needle *needles, int n, uint64_t stream);
void needles_free(struct Needle *needles, int n);

/* The noise of passkeys, of RULER's repeated haystack and of variable tracking. */
#define GEN_NOISE                                                                                  \
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

/* ==== Lists of units (gen_units.c) ==== */

enum { GEN_REDRAW = 32 };

/* A list grown until the budget is used up; the last units are drawn anew until they fit it closely. */
struct Units {
    /* Appends unit i. Another `again` gives another text of the same kind (0 at first). */
    int (*unit)(void *user, int64_t i, int again, struct Str *out);
    void *user;
    const char *before; /* what stands before any unit, for the count */
    int64_t least;      /* units that there must be */
    int64_t most;       /* 0: no limit */
    int redraw;         /* how many of the last units may be drawn anew, at most GEN_REDRAW */

    struct Str text; /* all units, one after the other */
    size_t *at;      /* [n + 1] where each begins */
    int64_t n, cap, tokens;
};

/* Fills u within `budget` tokens. PC_ERANGE with g->least (less `fixed`) when `least` units do not fit. */
int units_fill(struct Gen *g, struct Units *u, int64_t budget, int64_t fixed);
void units_free(struct Units *u);
struct Slice units_at(const struct Units *u, int64_t i);

#endif
