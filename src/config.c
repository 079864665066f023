/* config.c - the settings: one table, and everything that is driven by it.
 *
 * A value reaches struct Settings through settings_set() only, whether it comes from a JSON file, the
 * environment or a flag, so that ranges and words are checked in one place and named the same way.
 * JSON is read with cJSON into a copy that replaces the settings when all of it was good.
 */
#include "config.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== The table ==== */

static const char *const WORDS_AUTO[] = {"auto=0", NULL};
static const char *const WORDS_KEEP[] = {"auto=0", "all=-1", NULL};
static const char *const WORDS_CAP[] = {"auto=0", "off=-1", NULL};
static const char *const WORDS_MAP[] = {"auto=-1", NULL};
static const char *const WORDS_FREED[] = {"release", "share", NULL};
static const char *const WORDS_HEADS_BY[] = {"auto", "kv", "query", NULL};
static const char *const WORDS_METHOD[] = {"parallelcomp",  "full",   "truncate",  "self-extend",
                                           "streaming-llm", "snapkv", "pyramidkv", "duo",
                                           "headwise",      NULL};
static const char *const WORDS_SCALING[] = {"auto", "ntk", "yarn", NULL};
static const char *const WORDS_SCORE[] = {"auto", "question", "published", "random",
                                          "bm25", "fusion",   "attention", NULL};
static const char *const WORDS_EARLY[] = {"off", "auto", "profile", NULL};
static const char *const WORDS_OFF[] = {"off=0", NULL};
static const char *const WORDS_SELECT[] = {"off", "mean", "bound", NULL};
static const char *const WORDS_PRECISION[] = {"auto", "int16", "f32", "bf16", "fp8", NULL};
static const char *const WORDS_KV_TYPE[] = {"auto", "q8", "q4", NULL};
static const char *const WORDS_RESIDENT[] = {"all=0", NULL};
static const char *const WORDS_TIER[] = {"exact", "late", NULL};
static const char *const WORDS_ANSWER[] = {"lead", "all", NULL};
static const char *const WORDS_CHAT[] = {"auto",    "raw",     "chatml",  "qwen",
                                         "llama-2", "llama-3", "mistral", NULL};
static const char *const WORDS_BACKEND[] = {"auto", "cpu", "cuda", NULL};
static const char *const WORDS_ISA[] = {"auto", "avx2", "avx512", "avx512vnni", NULL};

#define AT(field)      offsetof(struct Settings, field)
#define ROOM(field)    sizeof(((struct Settings *)0)->field)
#define TEXT_AT(field) AT(field), ROOM(field), 0, 0
#define ENUM_AT(field) AT(field), 0, 0, 0

const struct Setting SETTINGS[] = {
    {"method", SET_ENUM, ENUM_AT(method), WORDS_METHOD, "parallelcomp", "method",
     "how a text longer than the window is read: chunks in parallel, all at once, or cut in the middle; "
     "or as published: grouped positions, sinks and recent tokens, all at once and then compressed by the question; "
     "duo, headwise: all at once, with the KV heads or query heads of --heads restricted"},
    {"window", SET_INT, AT(window), 0, 64, 1 << 24, WORDS_AUTO, "auto", "method",
     "positions the model may use; auto: the context it was trained on"},
    {"chunk", SET_INT, AT(chunk), 0, 16, 1 << 22, WORDS_AUTO, "auto", "method",
     "context tokens in a chunk at most; auto: a quarter of the window, 1024 to 4096; or all of a text that fits the window"},
    {"overlap", SET_INT, AT(overlap), 0, 0, 1 << 20, NULL, "0", "method",
     "tokens shared by neighbouring chunks"},
    {"keep", SET_INT, AT(keep), 0, 1, 1 << 16, WORDS_KEEP, "auto", "method",
     "chunks kept (k), those that chunk_score ranks first; auto: 2, or one more than rounds"},
    {"kv_cap", SET_INT, AT(kv_cap), 0, 1, 1 << 22, WORDS_CAP, "auto", "method",
     "context tokens kept for each chunk, layer and KV head; auto: half a chunk, 2048 at least, or all of a text read at once; off: all of them; "
     "snapkv, pyramidkv: prompt tokens kept for each layer and KV head, or on average over the layers"},
    {"store_cap", SET_INT, AT(store_cap), 0, 1, 1 << 22, WORDS_CAP + 1, "off", "method",
     "context tokens that a store (pcomp index, --store) keeps of each chunk, layer and KV head, chosen before there is a question; off: all of them"},
    {"obs_rows", SET_INT, AT(obs_rows), 0, 1, 4096, NULL, "8", "method",
     "last question rows whose attention votes for the tokens to keep; snapkv, pyramidkv keep these too"},
    {"pool", SET_INT, AT(pool), 0, 1, 255, NULL, "7", "method",
     "width of the max-pool over the votes, odd; 1: none"},
    {"chunk_score", SET_ENUM, ENUM_AT(chunk_score), WORDS_SCORE, "auto", "method",
     "what ranks the chunks: surprise of the question's own words, or of all that follows the chunk; "
     "without the model: chance, or words shared with the question; fusion: the first and the last of these; "
     "attention: fusion, and what the heads that chunk_profile names find; auto: attention for a model with such a profile, else fusion; "
     "where only token ids of the text are known, question"},
    {"chunk_bias", SET_FLOAT, AT(chunk_bias), 0, 0, 100, NULL, "0", "method",
     "logits of a kept chunk's tokens fall by so much for each nat that its score is worse than the best one's; for scores of the model only"},
    {"rounds", SET_INT, AT(rounds), 0, 1, ROUNDS_MAX, NULL, "1", "method",
     "choices of chunks, one after another: the sentence that answers the question best in the chunks of one round leads the next, as facts need that name each other; all share keep"},
    {"prefilter", SET_INT, AT(prefilter), 0, 1, 1 << 24, WORDS_OFF, "off", "method",
     "chunks that are read at all: those that share most words with the question (BM25), keep at least; off: every chunk"},
    {"early", SET_ENUM, ENUM_AT(early), WORDS_EARLY, "off", "method",
     "chunks that the question's attention finds hopeless leave after some of the layers, and only survivors go on to chunk_score; "
     "profile: as the model's profile says, see `pcomp calibrate chunks`; auto: the same, or off for a model without one"},
    {"early_at", SET_TEXT, TEXT_AT(early_at), NULL, "", "method",
     "after how many layers chunks leave, and how many survive, in place of the profile's own: 8:12,50%:6, or with + for the comma; layers as a number or a share of all"},
    {"early_risk", SET_FLOAT, AT(early_risk), 0, 0, 1, NULL, "0.02", "method",
     "chance to lose at one decision a chunk with the answer that all layers would have kept, from which the survivors are counted, twice keep at least; early_at counts them itself"},
    {"early_memory", SET_SIZE, AT(early_memory), 0, 1 << 20, 0x1p50, NULL, "4G", "method",
     "room for the rows of the survivors of a profile's decision, on a GPU its own: where they are more than 32 and need more, none leaves there"},
    {"chunk_profile", SET_TEXT, TEXT_AT(chunk_profile), NULL, "", "method",
     "file of the profile that early and the score by attention go by; empty: the one in configs/chunks that was made for this model"},
    {"prefix_copies", SET_INT, AT(prefix_copies), 0, 1, 1 << 16, NULL, "1", "method",
     "weight of the shared prefix in the merged cache, as that many copies"},
    {"calib", SET_CALIB, AT(calib), 0, 0, 0, NULL, "[]", "method",
     "attention-bias calibration: a list of rules, or (as a flag) a JSON file that holds one"},
    {"calib_layers", SET_INT, AT(calib_layers), 0, 1, 4096, WORDS_AUTO, "auto", "method",
     "layers of the model that the rules' bands were written for; auto: this model"},
    {"heads", SET_TEXT, TEXT_AT(heads), NULL, "", "method",
     "head map, as `pcomp calibrate heads`, DuoAttention or RTP-LLM write it: KV heads that it finds dispensable stream, "
     "that is keep the first and the last tokens only; for parallelcomp, full, truncate, duo, headwise"},
    {"heads_ratio", SET_FLOAT, AT(heads_ratio), 0, 0, 1, WORDS_MAP, "auto", "method",
     "share of the KV heads that keep everything; auto: as the map chose, or half"},
    {"head_sinks", SET_INT, AT(head_sinks), 0, 0, 1 << 20, WORDS_MAP, "auto", "method",
     "first tokens that a streaming head keeps; auto: as the map says"},
    {"head_recent", SET_INT, AT(head_recent), 0, 1, 1 << 24, WORDS_AUTO, "auto", "method",
     "last tokens that it keeps, the one at hand included; auto: as the map says"},
    {"freed", SET_ENUM, ENUM_AT(freed), WORDS_FREED, "release", "method",
     "parallelcomp: what streaming heads do not need is given back, or raises kv_cap for the others at the same memory"},
    {"heads_by", SET_ENUM, ENUM_AT(heads_by), WORDS_HEADS_BY, "auto", "method",
     "which heads are restricted while the text is read: KV heads, or query heads one by one; auto: query for headwise, else kv"},
    {"select", SET_ENUM, ENUM_AT(select), WORDS_SELECT, "off", "method",
     "what tells which pages of 64 cache entries a token of the answer reads, head by head: the mean of a page's keys, or a bound from their ranges; "
     "off: all pages, as where a method moves keys"},
    {"select_pages", SET_INT, AT(select_pages), 0, 0, 1 << 20, NULL, "64", "method",
     "pages that select reads for each KV head, between the first and the last ones"},
    {"select_mass", SET_FLOAT, AT(select_mass), 0, 0, 1, NULL, "0", "method",
     "instead of a number: as many pages as make up this share of the estimated attention; 0: by number"},
    {"select_sinks", SET_INT, AT(select_sinks), 0, 0, 1 << 16, NULL, "1", "method",
     "first pages that select always reads"},
    {"select_recent", SET_INT, AT(select_recent), 0, 0, 1 << 16, NULL, "2", "method",
     "last pages that select always reads, those that still fill among them"},
    {"select_every", SET_INT, AT(select_every), 0, 1, 64, NULL, "1", "method",
     "tokens of the answer for which a choice of pages stands; pages that come meanwhile are read"},
    {"kv_resident", SET_SIZE, AT(kv_resident), 0, 1, 0x1p50, WORDS_RESIDENT, "all", "method",
     "with select: room for the text's pages where attention computes, as 25% or 2G, by scores; the others lie on disk, or for a GPU in its host's memory (kv_host)"},
    {"tier_wait", SET_ENUM, ENUM_AT(tier_wait), WORDS_TIER, "exact", "method",
     "what a token does whose pages are still below: waits for them; or late: does without until they have come, and says how much it missed"},
    {"kv_host", SET_SIZE, AT(kv_host), 0, 1 << 20, 0x1p50, WORDS_AUTO, "auto", "method",
     "kv_resident on a GPU: memory of its host for pages that are not on it; what that cannot hold lies in a file in kv_dir, by scores; auto: three quarters of what is free"},
    {"kv_dir", SET_TEXT, TEXT_AT(kv_dir), NULL, "/tmp", "method",
     "folder for the file of pages that kv_resident or kv_host puts on disk; it has no name, and goes with the process"},
    {"rope_scaling", SET_ENUM, ENUM_AT(rope_scaling), WORDS_SCALING, "auto", "method",
     "how positions beyond the trained ones are brought within reach, for any method; auto: as the model file says"},
    {"rope_factor", SET_FLOAT, AT(rope_factor), 0, 1, 4096, WORDS_AUTO, "auto", "method",
     "ntk, yarn: how far to stretch; auto: positions used over positions trained"},
    {"group", SET_INT, AT(group), 0, 1, 1 << 20, WORDS_AUTO, "auto", "method",
     "self-extend: neighbouring far tokens that share a position; auto: the fewest that fit the window"},
    {"neighbours", SET_INT, AT(neighbours), 0, 1, 1 << 24, WORDS_AUTO, "auto", "method",
     "self-extend: tokens before each that keep their own positions; auto: a quarter of the window"},
    {"sinks", SET_INT, AT(sinks), 0, 0, 1 << 20, NULL, "4", "method",
     "streaming-llm: first tokens that stay in its cache, which holds a window"},
    {"chat_template", SET_TEXT, TEXT_AT(chat_template), WORDS_CHAT, "auto", "prompt",
     "how the prompt is wrapped; auto: by the template stored in the model"},
    {"instruction", SET_TEXT, TEXT_AT(instruction), NULL,
     "Read the text and answer the question at its end.", "prompt", "what stands before the text"},
    {"answer_prefix", SET_TEXT, TEXT_AT(answer_prefix), NULL, "", "prompt",
     "first words of the answer, put into the model's mouth"},
    {"system", SET_TEXT, TEXT_AT(system), NULL, "none", "prompt",
     "system message; none: no system block; empty: the template's default"},
    {"max_tokens", SET_INT, AT(max_tokens), 0, 1, 1 << 20, NULL, "128", "answer",
     "tokens in an answer at most"},
    {"temperature", SET_FLOAT, AT(temperature), 0, 0, 10, NULL, "0", "answer",
     "randomness of the answer; 0: greedy, the same on each run"},
    {"top_p", SET_FLOAT, AT(top_p), 0, 0, 1, NULL, "1", "answer",
     "draw from the likeliest tokens that make up this share; counts when temperature is above 0"},
    {"seed", SET_U64, AT(seed), 0, 0, 18446744073709551615.0, NULL, "1", "answer",
     "start of the random numbers"},
    {"backend", SET_TEXT, TEXT_AT(backend), WORDS_BACKEND, "auto", "machine",
     "where to compute; auto: on a GPU when this build can and there is one"},
    {"precision", SET_ENUM, ENUM_AT(precision), WORDS_PRECISION, "auto", "machine",
     "arithmetic of the prefill; auto: int16 on a CPU, bf16 on a GPU; for comparison f32 (cpu); faster fp8 (cuda)"},
    {"kv_type", SET_ENUM, ENUM_AT(kv_type), WORDS_KV_TYPE, "auto", "machine",
     "numbers of the KV cache; auto: 16 bits; q8, q4: 8 or 4 bits with a scale and a zero for each token and KV head, in half or a quarter of the memory"},
    {"answer_ranks", SET_ENUM, ENUM_AT(answer_ranks), WORDS_ANSWER, "lead", "machine",
     "several processes: the kept chunks go to rank 0, which answers, or stay with the ranks that read them, which all do: each needs memory for its own share only"},
    {"isa", SET_TEXT, TEXT_AT(isa), WORDS_ISA, "auto", "machine",
     "instructions used on a CPU; auto: the best that this one has"},
    {"threads", SET_INT, AT(threads), 0, 1, 1024, WORDS_AUTO, "auto", "machine",
     "threads; auto: the cores this process may use"},
    {"wave", SET_INT, AT(wave), 0, 1, 4096, WORDS_AUTO, "auto", "machine",
     "chunks prefilled together; auto: from memory and cores"},
    {"memory", SET_SIZE, AT(memory), 0, 1 << 20, 1125899906842624.0, WORDS_AUTO, "auto", "machine",
     "bytes the run may use besides the model file, as 8G or 512M; auto: what is free"},
    {"gpu_memory", SET_SIZE, AT(gpu_memory), 0, 1 << 20, 1125899906842624.0, WORDS_AUTO, "auto",
     "machine",
     "bytes of the GPU that may be used, the model's weights included; auto: what is free"},
};
const int N_SETTINGS = sizeof SETTINGS / sizeof SETTINGS[0];

static const char *const CLASS_NAMES[] = {"sink", "middle", "recent", NULL};

/* ==== Names, limits and messages ==== */

const struct Setting *setting_find(const char *name)
{
    for (int i = 0; i < N_SETTINGS; i++)
        if (strcmp(SETTINGS[i].name, name) == 0) return &SETTINGS[i];
    return NULL;
}

/* The candidate nearest to `name`, when near enough that a slip of the fingers explains it. */
static const char *nearest(const char *name, const char *candidate, const char *best)
{
    int distance = word_distance(name, candidate);
    int limit = (int)strlen(name) / 3 + 1;
    if (distance > limit) return best;
    return !best || distance < word_distance(name, best) ? candidate : best;
}

const char *settings_nearest(const char *name)
{
    const char *best = NULL;
    for (int i = 0; i < N_SETTINGS; i++) best = nearest(name, SETTINGS[i].name, best);
    return best;
}

static int unknown_setting(const char *name)
{
    const char *best = settings_nearest(name);
    if (best) return err_set(PC_ECONFIG, "unknown setting '%.64s': did you mean '%s'?", name, best);
    return err_set(PC_ECONFIG, "unknown setting '%.64s'; `pcomp settings` lists all", name);
}

/* A size that may also be a share: of this, up to 100 are per cent. */
static bool takes_shares(const struct Setting *set)
{
    return set->type == SET_SIZE && set->min == 1;
}

/* "1 to 4096", in whole numbers where the limits are whole. */
static void limits_text(const struct Setting *set, char *text, size_t room)
{
    if (set->type == SET_U64)
        snprintf(text, room, "0 to 18446744073709551615");
    else if (takes_shares(set))
        snprintf(text, room, "1%% to 100%%, 1M to %.0fT", set->max / 1099511627776.0);
    else if (set->type == SET_SIZE)
        snprintf(text, room, "%.0fM to %.0fT", set->min / (1 << 20), set->max / 1099511627776.0);
    else if (set->type == SET_CALIB)
        snprintf(text, room, "up to %d rules", CALIB_RULES_MAX);
    else if (set->type == SET_TEXT && !set->words)
        snprintf(text, room, "text, at most %zu bytes", set->room - 1);
    else if (set->type == SET_ENUM || set->type == SET_TEXT)
        text[0] = '\0';
    else
        snprintf(text, room, "%.15g to %.15g%s", set->min, set->max,
                 strcmp(set->name, "pool") == 0 ? ", odd" : "");
}

void setting_limits(const struct Setting *set, char *text, size_t room)
{
    limits_text(set, text, room);
    for (int i = 0; set->words && set->words[i]; i++) {
        size_t len = strlen(text);
        snprintf(text + len, room - len, "%s%.*s", len ? ", " : "",
                 (int)strcspn(set->words[i], "="), set->words[i]);
    }
}

static int bad_value(const struct Setting *set, const char *value, const char *why)
{
    char limits[256];
    setting_limits(set, limits, sizeof limits);
    return err_set(PC_ECONFIG, "setting '%s': '%.64s' %s; accepted: %s", set->name, value, why,
                   limits);
}

/* True when value is one of the special words; *out is what it stands for. */
static bool special_word(const struct Setting *set, const char *value, int *out)
{
    for (int i = 0; set->words && set->words[i]; i++) {
        const char *equals = strchr(set->words[i], '=');
        if (!equals) continue;
        size_t len = (size_t)(equals - set->words[i]);
        if (strlen(value) != len || memcmp(value, set->words[i], len) != 0) continue;
        *out = atoi(equals + 1);
        return true;
    }
    return false;
}

/* ==== One value ==== */

static int set_int(const struct Setting *set, int *at, const char *value)
{
    if (special_word(set, value, at)) return PC_OK;
    char *end;
    errno = 0;
    long long number = strtoll(value, &end, 10);
    if (end == value || *end) return bad_value(set, value, "is not a whole number");
    if (errno == ERANGE || number < set->min || number > set->max)
        return bad_value(set, value, "is out of range");
    if (strcmp(set->name, "pool") == 0 && number % 2 == 0) return bad_value(set, value, "is even");
    *at = (int)number;
    return PC_OK;
}

static int set_float(const struct Setting *set, float *at, const char *value)
{
    char *end;
    int word;
    if (special_word(set, value, &word)) {
        *at = (float)word;
        return PC_OK;
    }
    double number = strtod(value, &end);
    if (end == value || *end) return bad_value(set, value, "is not a number");
    if (!(number >= set->min && number <= set->max))
        return bad_value(set, value, "is out of range");
    *at = (float)number;
    return PC_OK;
}

static int set_u64(const struct Setting *set, uint64_t *at, const char *value)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(value, &end, 10);
    /* strtoull takes "-1" and wraps it round. */
    if (end == value || *end || strchr(value, '-'))
        return bad_value(set, value, "is not a whole number of 0 or more");
    if (errno == ERANGE) return bad_value(set, value, "is out of range");
    *at = number;
    return PC_OK;
}

/* A number of bytes with an optional K, M, G or T (powers of 1024), and an optional B or iB. */
static int set_size(const struct Setting *set, size_t *at, const char *value)
{
    int word;
    if (special_word(set, value, &word)) {
        *at = (size_t)word;
        return PC_OK;
    }
    char *end;
    double number = strtod(value, &end);
    static const char units[] = "KMGT";
    const char *unit = *end ? strchr(units, *end & ~0x20) : NULL;
    bool digits = end != value && strspn(value, "0123456789.") == (size_t)(end - value);
    if (unit && *unit) {
        for (int i = 0; i <= unit - units; i++) number *= 1024;
        end++;
        if (*end == 'i') end++;
    }
    if (*end == 'B') end++;
    bool share = *end == '%' && takes_shares(set);
    if (share) end++;
    double least = takes_shares(set) && !share ? 1 << 20 : set->min;
    if (!digits || *end) return bad_value(set, value, "is not a size");
    if (!(number >= least && number <= (share ? 100 : set->max)))
        return bad_value(set, value, "is out of range");
    *at = (size_t)number;
    return PC_OK;
}

static int set_enum(const struct Setting *set, void *at, const char *value)
{
    for (int i = 0; set->words[i]; i++) {
        if (strcmp(set->words[i], value) != 0) continue;
        memcpy(at, &i, sizeof i); /* every enum of struct Settings has the size of int */
        return PC_OK;
    }
    return bad_value(set, value, "is not known");
}

_Static_assert(sizeof(enum Method) == sizeof(int) && sizeof(enum ChunkScore) == sizeof(int) &&
                   sizeof(enum Precision) == sizeof(int) && sizeof(enum Scaling) == sizeof(int) &&
                   sizeof(enum Freed) == sizeof(int) && sizeof(enum HeadsBy) == sizeof(int) &&
                   sizeof(enum KvType) == sizeof(int) && sizeof(enum Early) == sizeof(int) &&
                   sizeof(enum AnswerRanks) == sizeof(int),
               "enums of struct Settings are read and written as int");

static int set_text(const struct Setting *set, char *at, const char *value)
{
    size_t len = strlen(value);
    if (len >= set->room)
        return err_set(PC_ECONFIG, "setting '%s': the text has %zu bytes; at most %zu are accepted",
                       set->name, len, set->room - 1);
    size_t bad = utf8_invalid_at(value, len);
    if (bad < len)
        return err_set(PC_ECONFIG, "setting '%s': byte %zu of the text is not UTF-8", set->name,
                       bad);
    bool known = !set->words;
    for (int i = 0; set->words && set->words[i]; i++)
        if (strcmp(set->words[i], value) == 0) known = true;
    if (!known) return bad_value(set, value, "is not known");
    memset(at, 0, set->room);
    memcpy(at, value, len);
    return PC_OK;
}

/* ==== Calibration rules ==== */

static int rule_int(const cJSON *item, int index, const int limits[2], int *out)
{
    if (!cJSON_IsNumber(item) || item->valuedouble != floor(item->valuedouble) ||
        item->valuedouble < limits[0] || item->valuedouble > limits[1])
        return err_set(PC_ECONFIG,
                       "setting 'calib', rule %d: '%s' must be a whole number, %d to %d", index,
                       item->string ? item->string : "layers", limits[0], limits[1]);
    *out = (int)item->valuedouble;
    return PC_OK;
}

static int rule_layers(const cJSON *item, int index, struct CalibRule *rule)
{
    static const int limits[2] = {0, 4095};
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != 2)
        return err_set(PC_ECONFIG, "setting 'calib', rule %d: 'layers' must be [first, last]",
                       index);
    TRY(rule_int(cJSON_GetArrayItem(item, 0), index, limits, &rule->layer_lo));
    TRY(rule_int(cJSON_GetArrayItem(item, 1), index, limits, &rule->layer_hi));
    if (rule->layer_lo > rule->layer_hi)
        return err_set(PC_ECONFIG,
                       "setting 'calib', rule %d: first layer %d is after last layer %d", index,
                       rule->layer_lo, rule->layer_hi);
    return PC_OK;
}

static int rule_class(const cJSON *item, int index, struct CalibRule *rule)
{
    for (int i = 0; cJSON_IsString(item) && CLASS_NAMES[i]; i++) {
        if (strcmp(CLASS_NAMES[i], item->valuestring) != 0) continue;
        rule->token_class = (enum TokenClass)i;
        return PC_OK;
    }
    return err_set(PC_ECONFIG, "setting 'calib', rule %d: 'class' must be sink, middle or recent",
                   index);
}

static int rule_lambda(const cJSON *item, int index, struct CalibRule *rule)
{
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= 1))
        return err_set(PC_ECONFIG, "setting 'calib', rule %d: 'lambda' must be a number, 0 to 1",
                       index);
    rule->lambda = (float)item->valuedouble;
    return PC_OK;
}

enum RuleKey {
    RULE_CLASS,
    RULE_LAYERS,
    RULE_LAMBDA,
    RULE_REGION,
    RULE_ROWS,
    RULE_STAGE,
    RULE_KEYS
};
static const char *const RULE_NAMES[RULE_KEYS] = {"class",  "layers", "lambda",
                                                  "region", "rows",   "stage"};

static int rule_value(const cJSON *item, int index, int key, struct CalibRule *rule)
{
    static const int regions[2] = {1, 1 << 20}, rows[2] = {0, 4096}, stages[2] = {1, 2};
    switch (key) {
    case RULE_CLASS:
        return rule_class(item, index, rule);
    case RULE_LAYERS:
        return rule_layers(item, index, rule);
    case RULE_LAMBDA:
        return rule_lambda(item, index, rule);
    case RULE_REGION:
        return rule_int(item, index, regions, &rule->region);
    case RULE_ROWS:
        return rule_int(item, index, rows, &rule->rows);
    default:
        return rule_int(item, index, stages, &rule->stage);
    }
}

static int rule_parse(const cJSON *object, int index, struct CalibRule *rule)
{
    *rule = (struct CalibRule){.region = 100, .rows = 1, .stage = 1};
    if (!cJSON_IsObject(object))
        return err_set(PC_ECONFIG, "setting 'calib', rule %d is not a JSON object", index);
    unsigned seen = 0;
    for (const cJSON *item = object->child; item; item = item->next) {
        int key = 0;
        while (key < RULE_KEYS && strcmp(RULE_NAMES[key], item->string) != 0) key++;
        if (key == RULE_KEYS) {
            const char *best = NULL;
            for (int i = 0; i < RULE_KEYS; i++) best = nearest(item->string, RULE_NAMES[i], best);
            return err_set(PC_ECONFIG, "setting 'calib', rule %d: unknown key '%.64s'%s%s%s", index,
                           item->string, best ? ": did you mean '" : "", best ? best : "",
                           best ? "'?" : "");
        }
        if (seen & (1u << key))
            return err_set(PC_ECONFIG, "setting 'calib', rule %d: '%s' is given twice", index,
                           item->string);
        seen |= 1u << key;
        TRY(rule_value(item, index, key, rule));
    }
    for (int key = RULE_CLASS; key <= RULE_LAMBDA; key++)
        if (!(seen & (1u << key)))
            return err_set(PC_ECONFIG, "setting 'calib', rule %d: '%s' is missing", index,
                           RULE_NAMES[key]);
    return PC_OK;
}

static int rules_parse(struct Settings *s, const cJSON *array)
{
    if (!cJSON_IsArray(array))
        return err_set(PC_ECONFIG, "setting 'calib' must be a list of rules");
    int n = cJSON_GetArraySize(array);
    if (n > CALIB_RULES_MAX)
        return err_set(PC_ECONFIG, "setting 'calib' has %d rules; at most %d are accepted", n,
                       CALIB_RULES_MAX);
    memset(s->calib, 0, sizeof s->calib);
    s->n_calib = 0;
    for (const cJSON *rule = array->child; rule; rule = rule->next, s->n_calib++)
        TRY(rule_parse(rule, s->n_calib + 1, &s->calib[s->n_calib]));
    return PC_OK;
}

/* ==== JSON in ==== */

/* Takes one member of a settings object. The JSON type has to fit the setting: "2048" is no number. */
static int member_set(struct Settings *s, const struct Setting *set, const cJSON *item)
{
    char number[40];
    int word;
    switch (set->type) {
    case SET_CALIB:
        return rules_parse(s, item);
    case SET_TEXT:
    case SET_ENUM:
        if (!cJSON_IsString(item))
            return err_set(PC_ECONFIG, "setting '%s' must be a string", set->name);
        return settings_set(s, set->name, item->valuestring);
    default:
        break;
    }
    if (cJSON_IsString(item)) {
        /* Sizes carry units, and a seed may have more digits than a JSON number holds exactly. */
        bool as_text = set->type == SET_SIZE || set->type == SET_U64;
        if (as_text || special_word(set, item->valuestring, &word))
            return settings_set(s, set->name, item->valuestring);
        return bad_value(set, item->valuestring, "is a string");
    }
    if (!cJSON_IsNumber(item))
        return err_set(PC_ECONFIG, "setting '%s' must be a number", set->name);
    if (set->type == SET_U64 && item->valuedouble > 9007199254740992.0)
        return err_set(PC_ECONFIG,
                       "setting '%s': JSON numbers above 2^53 lose digits; write a string",
                       set->name);
    bool whole = item->valuedouble == floor(item->valuedouble) && fabs(item->valuedouble) < 1e18;
    snprintf(number, sizeof number, whole ? "%.0f" : "%.17g", item->valuedouble);
    return settings_set(s, set->name, number);
}

static int object_set(struct Settings *s, const cJSON *root, bool calib_only)
{
    if (!cJSON_IsObject(root)) return err_set(PC_ECONFIG, "the settings are not a JSON object");
    uint64_t seen = 0;
    for (const cJSON *item = root->child; item; item = item->next) {
        const struct Setting *set = setting_find(item->string);
        if (!set) return unknown_setting(item->string);
        uint64_t bit = (uint64_t)1 << (set - SETTINGS);
        if (seen & bit) return err_set(PC_ECONFIG, "setting '%s' is given twice", set->name);
        seen |= bit;
        if (calib_only && strncmp(set->name, "calib", 5) != 0)
            return err_set(PC_ECONFIG,
                           "setting '%s' has no place in a calibration file; use --config",
                           set->name);
        TRY(member_set(s, set, item));
    }
    return PC_OK;
}

_Static_assert(sizeof SETTINGS / sizeof SETTINGS[0] <= 64, "one bit of `seen` for each setting");

static int json_set(struct Settings *s, const char *json, size_t len, bool calib_only)
{
    const char *end = json;
    cJSON *root = cJSON_ParseWithLengthOpts(json, len, &end, false);
    if (end < json || end > json + len) end = json + len;
    while (root && end < json + len && strchr(" \t\r\n", *end) && *end) end++;
    if (!root || end < json + len) {
        int line = 1;
        for (const char *c = json; c < end; c++) line += *c == '\n';
        cJSON_Delete(root);
        return err_set(PC_ECONFIG, "not valid JSON at byte %zu, line %d", (size_t)(end - json),
                       line);
    }
    struct Settings copy = *s;
    int status = object_set(&copy, root, calib_only);
    if (status == PC_OK) *s = copy;
    cJSON_Delete(root);
    return status;
}

int settings_parse(struct Settings *s, const char *json, size_t len, const char *what)
{
    int status = json_set(s, json, len, false);
    return status < 0 ? err_prefix(status, "%s", what) : PC_OK;
}

static int load_file(struct Settings *s, const char *path, bool calib_only)
{
    struct Str text = {0};
    int status = file_read(path, &text);
    if (status == PC_OK) {
        status = json_set(s, text.data ? text.data : "", text.len, calib_only);
        if (status < 0) err_prefix(status, "%s", path);
    }
    str_free(&text);
    return status;
}

int settings_load(struct Settings *s, const char *path)
{
    return load_file(s, path, false);
}

/* A list of rules typed in place, "off", or the path of a file that holds one. */
static int set_calib(struct Settings *s, const char *value)
{
    if (strcmp(value, "off") == 0) value = "[]";
    if (value[0] != '[') return load_file(s, value, true);
    cJSON *array = cJSON_Parse(value);
    if (!array) return err_set(PC_ECONFIG, "setting 'calib': the list of rules is not valid JSON");
    struct Settings copy = *s;
    int status = rules_parse(&copy, array);
    if (status == PC_OK) *s = copy;
    cJSON_Delete(array);
    return status;
}

int settings_set(struct Settings *s, const char *name, const char *value)
{
    const struct Setting *set = setting_find(name);
    if (!set) return unknown_setting(name);
    void *at = (char *)s + set->offset;
    switch (set->type) {
    case SET_INT:
        return set_int(set, at, value);
    case SET_FLOAT:
        return set_float(set, at, value);
    case SET_U64:
        return set_u64(set, at, value);
    case SET_SIZE:
        return set_size(set, at, value);
    case SET_ENUM:
        return set_enum(set, at, value);
    case SET_TEXT:
        return set_text(set, at, value);
    default:
        return set_calib(s, value);
    }
}

void settings_default(struct Settings *s)
{
    memset(s, 0, sizeof *s);
    for (int i = 0; i < N_SETTINGS; i++) settings_set(s, SETTINGS[i].name, SETTINGS[i].def);
}

const char *setting_word(const char *name, int value)
{
    return setting_find(name)->words[value];
}

/* Head maps say nothing about positions that move, or tokens chosen once the text was read. */
static int check_heads(const struct Settings *s)
{
    enum Method m = s->method;
    const char *name = setting_word("method", (int)m);
    if (!*s->heads && (m == METHOD_DUO || m == METHOD_HEADWISE))
        return err_set(PC_ECONFIG,
                       "method %s needs a head map: give --heads FILE; `pcomp calibrate heads` "
                       "makes one",
                       name);
    if (*s->heads && (m == METHOD_SELF_EXTEND || m == METHOD_STREAMING || m == METHOD_SNAPKV ||
                      m == METHOD_PYRAMIDKV))
        return err_set(PC_ECONFIG,
                       "setting 'heads': method %s takes no head map; use parallelcomp, full, "
                       "truncate, duo or headwise",
                       name);
    return PC_OK;
}

int settings_check(const struct Settings *s)
{
    TRY(check_heads(s));
    if (*s->early_at && s->early == EARLY_OFF)
        return err_set(PC_ECONFIG,
                       "setting 'early_at': it says where chunks leave, but early is off; give "
                       "--early auto");
    if (s->rope_factor > 0 && s->rope_scaling == SCALING_AUTO)
        return err_set(PC_ECONFIG,
                       "setting 'rope_factor': it says how far, but not how to stretch; "
                       "give --rope-scaling ntk or yarn");
    if (s->chunk != AUTO && s->overlap >= s->chunk)
        return err_set(PC_ECONFIG,
                       "setting 'overlap': %d tokens do not fit into a chunk of %d; "
                       "give less than half a chunk",
                       s->overlap, s->chunk);
    if (s->chunk != AUTO && s->window != AUTO && s->chunk >= s->window)
        return err_set(PC_ECONFIG,
                       "setting 'chunk': %d tokens and a question do not fit into a window "
                       "of %d; lower --chunk",
                       s->chunk, s->window);
    return PC_OK;
}

/* ==== JSON and text out ==== */

/* The shortest decimal that reads back as the same float. */
static void float_text(float value, char *text, size_t room)
{
    for (int digits = 1; digits <= FLT_DECIMAL_DIG; digits++) {
        snprintf(text, room, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) return;
    }
}

static cJSON *rule_json(const struct CalibRule *rule)
{
    char lambda[40];
    float_text(rule->lambda, lambda, sizeof lambda);
    const int layers[2] = {rule->layer_lo, rule->layer_hi};
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "class", CLASS_NAMES[rule->token_class]);
    cJSON_AddItemToObject(object, "layers", cJSON_CreateIntArray(layers, 2));
    cJSON_AddRawToObject(object, "lambda", lambda);
    cJSON_AddNumberToObject(object, "region", rule->region);
    cJSON_AddNumberToObject(object, "rows", rule->rows);
    cJSON_AddNumberToObject(object, "stage", rule->stage);
    return object;
}

/* The special word that stands for this number, or NULL; *len is its length. */
static const char *word_of(const struct Setting *set, long long number, int *len)
{
    for (int i = 0; set->words && set->words[i]; i++) {
        const char *equals = strchr(set->words[i], '=');
        if (!equals || atoll(equals + 1) != number) continue;
        *len = (int)(equals - set->words[i]);
        return set->words[i];
    }
    return NULL;
}

static void add_number(cJSON *root, const struct Setting *set, const void *at)
{
    char text[48];
    int len;
    const char *word = NULL;
    if (set->type == SET_INT) {
        word = word_of(set, *(const int *)at, &len);
        snprintf(text, sizeof text, "%d", *(const int *)at);
    } else if (set->type == SET_SIZE) {
        word = *(const size_t *)at == 0 ? word_of(set, 0, &len) : NULL;
        bool share = takes_shares(set) && *(const size_t *)at <= 100;
        snprintf(text, sizeof text, share ? "\"%zu%%\"" : "%zu", *(const size_t *)at);
    } else if (set->type == SET_U64) {
        uint64_t number = *(const uint64_t *)at;
        const char *quote = number > (1ull << 53) ? "\"" : "";
        snprintf(text, sizeof text, "%s%llu%s", quote, (unsigned long long)number, quote);
    } else {
        float number = *(const float *)at;
        word = number == floorf(number) ? word_of(set, (long long)number, &len) : NULL;
        float_text(*(const float *)at, text, sizeof text);
    }
    if (word) snprintf(text, sizeof text, "\"%.*s\"", len, word);
    cJSON_AddRawToObject(root, set->name, text);
}

static bool among(const char *const *names, const char *name)
{
    while (*names && strcmp(*names, name)) names++;
    return *names;
}

int settings_json(const struct Settings *s, struct Str *out)
{
    return settings_json_some(s, NULL, out);
}

int settings_json_some(const struct Settings *s, const char *const *names, struct Str *out)
{
    cJSON *root = cJSON_CreateObject();
    for (int i = 0; i < N_SETTINGS; i++) {
        const struct Setting *set = &SETTINGS[i];
        const void *at = (const char *)s + set->offset;
        if (names && !among(names, set->name)) continue;
        if (set->type == SET_TEXT) {
            cJSON_AddStringToObject(root, set->name, at);
        } else if (set->type == SET_ENUM) {
            cJSON_AddStringToObject(root, set->name, set->words[*(const int *)at]);
        } else if (set->type == SET_CALIB) {
            cJSON *rules = cJSON_AddArrayToObject(root, set->name);
            for (int k = 0; k < s->n_calib; k++)
                cJSON_AddItemToArray(rules, rule_json(&s->calib[k]));
        } else {
            add_number(root, set, at);
        }
    }
    char *text = cJSON_PrintUnformatted(root);
    int status = text ? str_append(out, text, strlen(text))
                      : err_set(PC_ENOMEM, "could not write the settings as JSON");
    cJSON_free(text);
    cJSON_Delete(root);
    return status;
}
