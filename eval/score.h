/* score.h - how predictions become numbers: one entry for each benchmark, exact to its published scorer. */
#ifndef PCOMP_SCORE_H
#define PCOMP_SCORE_H

#include "base.h"

struct Jieba;

/* fuzzywuzzy.ratio with difflib (what LongBench's requirements give), or with python-Levenshtein. */
enum CodeSim { CODE_SIM_DIFFLIB, CODE_SIM_INDEL };

struct ScoreOptions {
    enum CodeSim code_sim;
    const struct Jieba
        *jieba; /* NULL: tasks that cut Chinese are refused (PC_ECONFIG with the remedy) */
    const char *model_name; /* InfiniteBench's math_calc treats "gpt4" apart; NULL: none */
};

/* Texts are UTF-8 and borrowed. A lone surrogate of the JSON (\ud83d) arrives as its three-byte form. */
struct ScoreInput {
    const char *pred;
    size_t pred_len;
    const struct Str *answers;
    int n_answers;
    const struct Str *all_classes;
    int n_classes;
};

struct ScoreOutput {
    double score; /* 0..1 */
    bool
        unparsed; /* the answer had not the form that the scorer looks for (no number, no letter) */
};

/* task: LongBench's name of the set, as "narrativeqa" (also with a trailing "_e"). PC_ECONFIG: unknown task
 * (naming the nearest), or a dictionary is missing. */
int longbench_score(const char *task, const struct ScoreOptions *o, const struct ScoreInput *in,
                    struct ScoreOutput *out);
/* task: "passkey", "longbook_qa_eng", … ; the rules are those of June 2024 (infinitebench@2024-06). */
int infinitebench_score(const char *task, const struct ScoreOptions *o, const struct ScoreInput *in,
                        struct ScoreOutput *out);
/* task: RULER's name ("niah_single_1", "vt", "qa_1", …): all answers, or one of them, as substrings. */
int ruler_score(const char *task, const struct ScoreOptions *o, const struct ScoreInput *in,
                struct ScoreOutput *out);
/* 1 when the words of the answer's first sentence, up to a full stop or a line feed, are those of one of the phrases, in order,
 * and no others; case, white space and other ASCII punctuation aside. Errors: PC_EFORMAT (no phrase), PC_ENOMEM. */
int phrase_score(const struct ScoreInput *in, struct ScoreOutput *out);
/* The metric's name for reports: "qa_f1", "rouge", "code_sim=difflib", …; NULL for an unknown task. */
const char *longbench_metric(const char *task, const struct ScoreOptions *o);
const char *infinitebench_metric(const char *task);
const char *ruler_metric(const char *task);

#endif
