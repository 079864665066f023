/* gen_needles.c - tasks that hide sentences: passkey, number_string, niah_*, needle, needles, passphrase, vt, hops. */
#include "gen_task.h"

#include <stdio.h>
#include <string.h>

enum { MOST_NEEDLES = 10000, PHRASE_WORDS_MAX = 32 };

static int needles_new(int n, struct Needle **out)
{
    *out = mem_alloc((size_t)n, sizeof **out);
    return *out ? PC_OK : PC_ENOMEM;
}

static int hide(struct Gen *g, struct HayJob *job, int64_t budget, int status)
{
    if (status == PC_OK) status = hay_build(g, job, budget);
    needles_free(job->needles, job->n);
    return status;
}

/* ==== passkey, number_string ==== */

/* Five digits; for number_string five more, each a copy of one, beside it. */
static void digits_draw(struct Rng *r, bool doubled, char out[11])
{
    int n = 0;
    while (n < 5) out[n++] = (char)('0' + rng_below(r, 10));
    while (doubled && n < 10) {
        int at = (int)rng_below(r, (uint64_t)n);
        memmove(out + at + 1, out + at, (size_t)(n - at));
        n++;
    }
    out[n] = '\0';
}

static int passkey_text(struct Gen *g, struct Needle *needle)
{
    bool doubled = strcmp(g->how, "number_string") == 0;
    const char *what = doubled ? "sequence of digits" : "pass key";
    struct Rng r = gen_rng(g, DRAW_NEEDLES);
    char digits[11];
    digits_draw(&r, doubled, digits);
    TRY(str_appendf(&needle->text, "The %s is ", what));
    needle->answer = needle->text.len;
    TRY(str_appendf(&needle->text, "%s. Remember it. %s is the %s.\n", digits, digits, what));
    TRY(str_appendf(&g->out->input, "What is the %s?", what));
    return gen_answer(g, digits, strlen(digits));
}

int gen_passkey(struct Gen *g, int64_t budget)
{
    struct HayJob job = {.kind = HAY_LINES, .line = GEN_NOISE "\n", .n = 1, .n_places = 1};
    TRY(needles_new(1, &job.needles));
    job.needles[0].depth = gen_depth(g);
    return hide(g, &job, budget, passkey_text(g, job.needles));
}

/* ==== niah_*, needles ==== */

struct NiahHow {
    const char *line; /* the repeated line; NULL: the user's text */
    bool collapse;
    enum GenKind key, value;
    int n_keys, n_values, n_queries;
};

/* No two of the sample's keys may be the same: there would be no right answer. */
static void key_draw(struct Rng *r, enum GenKind kind, char (*keys)[KEY_MAX], int n)
{
    bool again;
    do {
        gen_draw(r, kind, keys[n]);
        again = false;
        for (int i = 0; i < n; i++) again = again || strcmp(keys[i], keys[n]) == 0;
    } while (again);
}

static int niah_sentence(const struct NiahHow *how, const char *key, const char *value,
                         struct Needle *needle)
{
    TRY(str_appendf(&needle->text, "One of the special magic %s for %s is: ",
                    how->value == KIND_NUMBERS ? "numbers" : "uuids", key));
    needle->answer = needle->text.len;
    return str_appendf(&needle->text, "%s.%s", value, how->line ? "\n" : "");
}

/* The first keys are the asked ones: where all stand is drawn, so it makes no difference. */
static int niah_needles(struct Gen *g, const struct NiahHow *how, char (*keys)[KEY_MAX],
                        struct Needle *needles)
{
    struct Rng r = gen_rng(g, DRAW_NEEDLES);
    char value[KEY_MAX];
    int n = 0;
    for (int k = 0; k < how->n_keys; k++) {
        key_draw(&r, how->key, keys, k);
        for (int v = 0; v < how->n_values; v++, n++) {
            gen_draw(&r, how->value, value);
            TRY(niah_sentence(how, keys[k], value, &needles[n]));
            needles[n].number = k < how->n_queries ? n : -1;
            if (k < how->n_queries) TRY(gen_answer(g, value, strlen(value)));
        }
    }
    return gen_enumerate((const char(*)[KEY_MAX])keys, how->n_queries, &g->out->input);
}

static int niah_settle(const struct GenSpec *s, struct NiahHow *how)
{
    TRY(gen_knob("number of values", s->n_values, how->n_values, 1000, &how->n_values));
    TRY(gen_knob("number of queries", s->n_queries, how->n_queries, 1000, &how->n_queries));
    if (how->n_keys < how->n_queries) how->n_keys = how->n_queries;
    TRY(gen_knob("number of keys", s->n_keys, how->n_keys, 1000, &how->n_keys));
    if (how->n_keys < how->n_queries)
        return err_set(PC_ECONFIG, "%d keys are too few for %d queries", how->n_keys,
                       how->n_queries);
    if (how->n_keys * how->n_values <= MOST_NEEDLES) return PC_OK;
    return err_set(PC_ECONFIG, "%d keys of %d values: at most %d needles", how->n_keys,
                   how->n_values, MOST_NEEDLES);
}

static int niah_build(struct Gen *g, const struct NiahHow *how, int64_t budget)
{
    char(*keys)[KEY_MAX] = mem_alloc((size_t)how->n_keys, sizeof *keys);
    if (!keys) return PC_ENOMEM;
    struct HayJob job = {.kind = how->line ? HAY_LINES : HAY_PROSE,
                         .line = how->line,
                         .collapse = how->collapse,
                         .n = how->n_keys * how->n_values,
                         .n_places = how->n_queries * how->n_values};
    int status = needles_new(job.n, &job.needles);
    if (status == PC_OK) status = niah_needles(g, how, keys, job.needles);
    if (status == PC_OK) status = gen_depths(g, job.needles, job.n);
    mem_free(keys);
    return hide(g, &job, budget, status);
}

int gen_niah(struct Gen *g, int64_t budget)
{
    struct NiahHow how = *(const struct NiahHow *)g->how;
    TRY(niah_settle(g->spec, &how));
    return niah_build(g, &how, budget);
}

/* ==== needle: the user's own sentence ==== */

static int needle_own(struct Gen *g, struct Needle *needle)
{
    const struct GenSpec *s = g->spec;
    if (!s->question || !s->answer)
        return err_set(PC_ECONFIG, "a needle of your own needs a question and an answer, too");
    const char *at = *s->answer ? strstr(s->needle, s->answer) : NULL;
    if (!at)
        return err_set(PC_ECONFIG, "the answer '%.64s' is not part of the needle '%.200s'",
                       s->answer, s->needle);
    needle->answer = (size_t)(at - s->needle);
    TRY(str_append(&needle->text, s->needle, strlen(s->needle)));
    TRY(str_append(&g->out->input, s->question, strlen(s->question)));
    return gen_answer(g, s->answer, strlen(s->answer));
}

/* needle and needles: as RULER's, but the user's text stays as it is. */
int gen_needle(struct Gen *g, int64_t budget)
{
    bool many = strcmp(g->spec->task, "needles") == 0;
    struct NiahHow how = {
        .key = KIND_WORDS, .value = KIND_NUMBERS, .n_keys = 1, .n_values = 1, .n_queries = 1};
    if (many) TRY(gen_knob("number of needles", g->spec->n_needles, 10, 1000, &how.n_queries));
    how.n_keys = how.n_queries;
    if (many || !g->spec->needle) return niah_build(g, &how, budget);
    struct HayJob job = {.kind = HAY_PROSE, .n = 1, .n_places = 1};
    TRY(needles_new(1, &job.needles));
    job.needles[0].depth = gen_depth(g);
    return hide(g, &job, budget, needle_own(g, job.needles));
}

/* ==== passphrase: a passkey of several words ==== */

/* Everyday words, each of one or two tokens, so that a miss is one of reading rather than of spelling (of rarer words, a small
 * model misspells some even in a short text); 6 bits each. */
static const char *const phrase_words[64] = {
    "apple",  "river",   "stone",   "horse",  "window", "garden", "silver",  "mountain",
    "paper",  "winter",  "bridge",  "music",  "king",   "ocean",  "flower",  "table",
    "summer", "doctor",  "island",  "candle", "forest", "bread",  "letter",  "shadow",
    "castle", "market",  "dragon",  "engine", "pepper", "cotton", "violin",  "rabbit",
    "anchor", "basket",  "butter",  "camera", "circle", "desert", "feather", "guitar",
    "hammer", "jacket",  "kitchen", "ladder", "mirror", "needle", "orange",  "pencil",
    "queen",  "rocket",  "saddle",  "temple", "valley", "wagon",  "yellow",  "zebra",
    "button", "diamond", "eagle",   "finger", "honey",  "iron",   "lemon",   "tiger"};

static int passphrase_text(struct Gen *g, int n_words, struct Needle *needle)
{
    struct Str words = {0};
    int status = PC_OK;
    for (int i = 0; i < n_words && status == PC_OK; i++)
        status = str_appendf(&words, i ? " %s" : "%s",
                             phrase_words[rng_place(rng_join(g->key, DRAW_PICK), (uint64_t)i, 64)]);
    if (status == PC_OK) status = str_appendf(&needle->text, "The passkey to the vault is \"");
    needle->answer = needle->text.len;
    if (status == PC_OK)
        status = str_appendf(&needle->text, "%s\". Remember it. \"%s\" is the passkey.\n",
                             words.data, words.data);
    if (status == PC_OK) status = str_appendf(&g->out->input, "What is the passkey to the vault?");
    if (status == PC_OK) status = gen_answer(g, words.data, words.len);
    str_free(&words);
    return status;
}

int gen_passphrase(struct Gen *g, int64_t budget)
{
    int n_words;
    TRY(gen_knob("number of words", g->spec->n_words, 5, PHRASE_WORDS_MAX, &n_words));
    struct HayJob job = {.kind = HAY_LINES, .line = GEN_NOISE "\n", .n = 1, .n_places = 1};
    TRY(needles_new(1, &job.needles));
    job.needles[0].depth = gen_depth(g);
    return hide(g, &job, budget, passphrase_text(g, n_words, job.needles));
}

/* ==== vt: chains of variables ==== */

enum { NAME_LEN = 5 };

static void variable_name(const struct Gen *g, int i, char out[NAME_LEN + 1])
{
    uint64_t at = rng_place(rng_join(g->key, DRAW_PICK), (uint64_t)i, 26 * 26 * 26 * 26 * 26);
    for (int c = 0; c < NAME_LEN; c++, at /= 26) out[c] = (char)('A' + at % 26);
    out[NAME_LEN] = '\0';
}

/* Values and numbers of chains must differ: value = a place in 10000 .. 99999. */
static int chain_value(const struct Gen *g, int chain)
{
    return 10000 + (int)rng_place(rng_join(g->key, DRAW_ORDER), (uint64_t)chain, 90000);
}

static int vt_chain(struct Gen *g, int chain, int n_links, struct Needle *needles)
{
    char name[NAME_LEN + 1], before[NAME_LEN + 1];
    for (int i = 0; i < n_links; i++) {
        variable_name(g, chain * n_links + i, name);
        if (i == 0)
            TRY(str_appendf(&needles[i].text, " VAR %s = %d", name, chain_value(g, chain)));
        else
            TRY(str_appendf(&needles[i].text, " VAR %s = VAR %s ", name, before));
        memcpy(before, name, sizeof before);
        needles[i].answer = 1;
        needles[i].number = chain == 0 ? i : -1;
        if (chain == 0) TRY(gen_answer(g, name, NAME_LEN));
    }
    return gen_depths_ascending(g, needles, n_links, (uint64_t)chain);
}

static int chains_knobs(const struct GenSpec *s, int chains, int hops, int *n_chains, int *n_links)
{
    TRY(gen_knob("number of chains", s->n_keys, chains, 100, n_chains));
    TRY(gen_knob("number of hops", s->n_hops, hops, 100, n_links));
    ++*n_links;
    return PC_OK;
}

int gen_vt(struct Gen *g, int64_t budget)
{
    int n_chains, n_links;
    TRY(chains_knobs(g->spec, 1, 4, &n_chains, &n_links));
    struct HayJob job = {.kind = HAY_LINES, .line = " " GEN_NOISE "\n", .drop_space = true};
    job.n = n_chains * n_links;
    job.n_places = n_links;
    TRY(needles_new(job.n, &job.needles));
    int status = PC_OK;
    for (int c = 0; c < n_chains && status == PC_OK; c++)
        status = vt_chain(g, c, n_links, job.needles + c * n_links);
    if (status == PC_OK) status = str_appendf(&g->out->input, "%d", chain_value(g, 0));
    return hide(g, &job, budget, status);
}

/* ==== hops: a chain in prose, through the user's text ==== */

static void hop_name(const struct Gen *g, int i, char out[KEY_MAX])
{
    uint64_t nouns = (uint64_t)words_nouns(), all = nouns * (uint64_t)words_adjectives();
    uint64_t at = rng_place(rng_join(g->key, DRAW_PICK), (uint64_t)i, all);
    snprintf(out, KEY_MAX, "%s-%s", ADJECTIVES[at / nouns], NOUNS[at % nouns]);
}

/* The question is of the chain's last name, the answer stands in its first sentence. */
static int hops_chain(struct Gen *g, int chain, int n_links, struct Needle *needles)
{
    char name[KEY_MAX], before[KEY_MAX], code[16];
    for (int i = 0; i < n_links; i++) {
        hop_name(g, chain * n_links + i, name);
        snprintf(code, sizeof code, "%d", chain_value(g, chain));
        if (i == 0)
            TRY(str_appendf(&needles[i].text, "The locker code of %s is %s.", name, code));
        else
            TRY(str_appendf(&needles[i].text,
                            "The locker code of %s is the same as the locker code of %s.", name,
                            before));
        memcpy(before, name, sizeof before);
        needles[i].number = chain == 0 ? i : -1;
    }
    if (chain == 0) {
        TRY(gen_answer(g, code, strlen(code)));
        TRY(str_append(&g->out->input, name, strlen(name)));
    }
    return gen_depths_ascending(g, needles, n_links, (uint64_t)chain);
}

int gen_hops(struct Gen *g, int64_t budget)
{
    int n_chains, n_links;
    TRY(chains_knobs(g->spec, 2, 2, &n_chains, &n_links));
    struct HayJob job = {.kind = HAY_PROSE, .n = n_chains * n_links, .n_places = n_links};
    TRY(needles_new(job.n, &job.needles));
    int status = PC_OK;
    for (int c = 0; c < n_chains && status == PC_OK; c++)
        status = hops_chain(g, c, n_links, job.needles + c * n_links);
    return hide(g, &job, budget, status);
}

/* ==== The table ==== */

#define LINE GEN_NOISE "\n"
static const struct NiahHow SINGLE_1 = {LINE, false, KIND_WORDS, KIND_NUMBERS, 1, 1, 1},
                            SINGLE_2 = {NULL, true, KIND_WORDS, KIND_NUMBERS, 1, 1, 1},
                            SINGLE_3 = {NULL, true, KIND_WORDS, KIND_UUIDS, 1, 1, 1},
                            MULTIKEY_1 = {NULL, true, KIND_WORDS, KIND_NUMBERS, 4, 1, 1},
                            MULTIVALUE = {NULL, true, KIND_WORDS, KIND_NUMBERS, 1, 4, 1},
                            MULTIQUERY = {NULL, true, KIND_WORDS, KIND_NUMBERS, 1, 1, 4};

/* clang-format off */
const struct GenTask GEN_TASKS[] = {
    {"passkey", "InfiniteBench: a pass key of five digits in repeated filler", gen_passkey, "passkey", false, false},
    {"number_string", "InfiniteBench: ten digits with repetitions in repeated filler", gen_passkey, "number_string", false, false},
    {"kv_retrieval", "InfiniteBench: one value of a JSON object of UUIDs", gen_kv, NULL, false, false},
    {"math_find", "InfiniteBench: an extreme or the median of a list of numbers", gen_math_find, NULL, false, false},
    {"math_calc", "InfiniteBench: the intermediate values of a long sum", gen_math_calc, NULL, false, false},
    {"code_run", "InfiniteBench: the value of a function that calls others", gen_code_run, NULL, false, false},
    {"niah_single_1", "RULER: a number hidden in repeated filler", gen_niah, &SINGLE_1, false, false},
    {"niah_single_2", "RULER: a number hidden in a text", gen_niah, &SINGLE_2, true, false},
    {"niah_single_3", "RULER: a UUID hidden in a text", gen_niah, &SINGLE_3, true, false},
    {"niah_multikey_1", "RULER: one of four keys hidden in a text", gen_niah, &MULTIKEY_1, true, false},
    {"niah_multikey_2", "RULER: one number among lines like it", gen_niah_lines, "numbers", false, false},
    {"niah_multikey_3", "RULER: one UUID among lines like it", gen_niah_lines, "uuids", false, false},
    {"niah_multivalue", "RULER: all four values of a key, hidden in a text", gen_niah, &MULTIVALUE, true, false},
    {"niah_multiquery", "RULER: the values of four keys, hidden in a text", gen_niah, &MULTIQUERY, true, false},
    {"vt", "RULER: all variables that a value is handed on to", gen_vt, NULL, false, false},
    {"cwe", "RULER: the ten most common words of a list", gen_cwe, NULL, false, false},
    {"fwe", "RULER: the three most frequent coded words", gen_fwe, NULL, false, false},
    {"qa_1", "RULER: questions of a SQuAD file among its paragraphs", gen_qa, "squad", false, true},
    {"qa_2", "RULER: questions of a HotpotQA file among its documents", gen_qa, "hotpotqa", false, true},
    {"needle", "a sentence (also your own) hidden in your text", gen_needle, NULL, true, false},
    {"needles", "many sentences hidden in your text, all asked for", gen_needle, NULL, true, false},
    {"passphrase", "a passkey of several words in repeated filler", gen_passphrase, NULL, false, false},
    {"hops", "a chain of sentences through your text, to be followed back", gen_hops, NULL, true, false},
    {NULL, NULL, NULL, NULL, false, false},
};
/* clang-format on */
