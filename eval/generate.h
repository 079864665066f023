/* generate.h - makes samples of the synthetic long-context tasks, exact in the model's own tokens.
 *
 * InfiniteBench: passkey, number_string, kv_retrieval, math_find, math_calc, code_run. RULER: the eight
 * niah_*, vt, cwe, fwe; qa_1 and qa_2 from the user's own question set. Ours: needle and needles (in the
 * user's text), passphrase (a passkey of several words), hops (a chain through the user's text).
 *
 * A sample depends on its GenSpec and the tokenizer alone: the same bytes on every machine. The context
 * has exactly GenSpec.tokens tokens where the filler can be cut to fit; else it is the largest that is
 * not above: at most 8 short for texts, at most one unit (a pair, a line, a number, a function, a
 * document) for lists.
 */
#ifndef PCOMP_GENERATE_H
#define PCOMP_GENERATE_H

#include "sample.h"
#include "tokenizer.h"

/* Zero means the task's default in every field from n_keys on. */
struct GenSpec {
    const char *task;
    int64_t tokens; /* of the context alone, as tokenizer_encode counts it (no BOS) */
    double depth;   /* 0..1: where the asked piece stands; negative: drawn from the seed */
    uint64_t seed;
    int index;                  /* number of the sample */
    const struct Str *haystack; /* UTF-8 for the tasks that need a text; repeated when too short */
    const struct Str *qa;       /* SQuAD 2 JSON for qa_1, HotpotQA JSON for qa_2 */
    int n_keys;                 /* niah, vt, hops: keys or chains hidden, the asked ones included */
    int n_values;               /* niah: values a key */
    int n_queries;              /* niah: keys asked for */
    int n_hops;                 /* vt, hops: steps of a chain; code_run: calls */
    int n_needles;              /* needles: how many */
    int n_words;                /* passphrase: how many */
    const char *needle;         /* needle: the user's own sentence, with … */
    const char *question;       /* … what becomes Sample.input, and … */
    const char *answer;         /* … the part of the sentence that answers it */
};

/* Fills *out (empty before; sample_free). Answers are in the order asked. answer_at: for retrieval where
 * each answer begins; for chains (vt, hops) where each link's sentence begins, in order; code_run: where
 * each function called begins, in order; math_find, cwe, fwe: where each answer first stands; qa: where
 * each document needed begins; math_calc: none.
 * Errors: PC_ECONFIG: unknown task (naming the nearest), a missing text or a value out of range;
 * PC_ERANGE: tokens is too small, naming the least that works, or above what can be made. */
int generate(const struct GenSpec *spec, const struct Tokenizer *tok, struct Sample *out);

/* The n-th task's name and help in one line; NULL after the last. */
const char *generate_task(int n, const char **help);
/* Whether the task needs GenSpec.haystack, or GenSpec.qa. PC_ECONFIG: unknown task, naming the nearest. */
int generate_needs(const char *task, bool *haystack, bool *qa);

#endif
