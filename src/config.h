/* config.h - every setting of the engine in one struct and one table.
 *
 * The table in config.c (name, type, place, limits, default, help) drives the JSON files in
 * configs/, the command-line flags (--chunk-score from "chunk_score"), --help, the README's table and the provenance
 * written into results. Order: built-in defaults < --config file < PCOMP_* environment < flags.
 */
#ifndef PCOMP_CONFIG_H
#define PCOMP_CONFIG_H

#include "base.h"

enum Method {
    METHOD_PARALLELCOMP,
    METHOD_FULL,
    METHOD_TRUNCATE,
    METHOD_SELF_EXTEND,
    METHOD_STREAMING,
    METHOD_SNAPKV,
    METHOD_PYRAMIDKV,
    METHOD_DUO,
    METHOD_HEADWISE
};
enum Scaling { SCALING_AUTO, SCALING_NTK, SCALING_YARN };
enum ChunkScore {
    SCORE_AUTO,
    SCORE_QUESTION,
    SCORE_PUBLISHED,
    SCORE_RANDOM,
    SCORE_BM25,
    SCORE_FUSION,
    SCORE_ATTENTION
};
/* Whether chunks leave before the last layer: never, where the model has a profile, or as its profile says. */
enum Early { EARLY_OFF, EARLY_AUTO, EARLY_PROFILE };
enum Precision { PRECISION_AUTO, PRECISION_INT16, PRECISION_F32, PRECISION_BF16, PRECISION_FP8 };
enum Freed { FREED_RELEASE, FREED_SHARE };
enum HeadsBy { HEADS_BY_AUTO, HEADS_BY_KV, HEADS_BY_QUERY };
/* What is kept of a page's keys to tell which pages a query wants: nothing, their mean, or each channel's range. */
enum PageIndex { PAGE_INDEX_OFF, PAGE_INDEX_MEAN, PAGE_INDEX_BOUND };
/* Who answers, of several ranks that read chunks. */
enum AnswerRanks { ANSWER_LEAD, ANSWER_ALL };
enum KvType { KV_AUTO, KV_Q8, KV_Q4 };
/* What a row does whose pages are not there yet. */
enum TierWait { TIER_EXACT, TIER_LATE };
enum TokenClass { CLASS_SINK, CLASS_MIDDLE, CLASS_RECENT };

/* One calibration rule (method.md section 4): drop from the cache the tokens of one class, in layers
 * [layer_lo, layer_hi], whose mean attention over the last `rows` question rows exceeds lambda. */
struct CalibRule {
    enum TokenClass token_class;
    int layer_lo, layer_hi; /* 0-based, inclusive */
    float lambda;
    int region; /* tokens at either end that count as sink or recent */
    int rows;   /* question rows averaged; 0: all */
    int stage;  /* 1: per chunk, 2: on the merged cache */
};

enum { CALIB_RULES_MAX = 32, KEEP_ALL = -1, CAP_OFF = -1, AUTO = 0, FROM_MAP = -1 };

struct Settings {
    /* the method */
    enum Method method;
    int window;  /* positions the model may use; AUTO: the trained context */
    int chunk;   /* context tokens a chunk at most; AUTO: derived from the window */
    int overlap; /* tokens shared by neighbouring chunks */
    int keep;    /* k: chunks kept; AUTO: 1 more than rounds; KEEP_ALL */
    int kv_cap; /* context tokens kept a chunk, layer and KV head; AUTO: see plan_defaults; CAP_OFF */
    int store_cap; /* the same of what a store keeps, before there is a question; CAP_OFF */
    int obs_rows;  /* last question rows that vote for tokens */
    int pool;      /* width of the max-pool over importance, odd */
    enum ChunkScore chunk_score;
    float chunk_bias; /* beta: logits of a kept chunk fall by this times its score above the best */
    int rounds; /* choices of chunks in turn, each led by what those before found; 1: one by the question alone */
    int prefilter; /* chunks read, those that share most words with the question; 0: all */
    enum Early early;
    char early_at[256];  /* "8:12,50%:6": layers done and survivors; empty: as the profile says */
    float early_risk;    /* chance to lose the best chunk at one of the profile's decisions */
    size_t early_memory; /* bytes for the rows of those that survive one */
    char chunk_profile[1024]; /* its file; empty: found by the model's hash */
    int prefix_copies; /* weight of the shared prefix in the merged cache, as that many copies */
    struct CalibRule calib[CALIB_RULES_MAX];
    int n_calib;
    int calib_layers; /* layers of the model the rules' bands were written for; AUTO: this model's */
    /* heads (headwise.md D.1) */
    char heads[1024];  /* file of a head map (headmap.h); empty: every head keeps everything */
    float heads_ratio; /* KV heads that do, of all; FROM_MAP */
    int head_sinks;    /* first and last tokens that the others keep; FROM_MAP */
    int head_recent;   /* AUTO: the map's */
    enum Freed freed;  /* what becomes of the room that they do not need */
    enum HeadsBy heads_by;
    enum PageIndex select;           /* what tells the pages that an answer's rows read */
    int select_pages;                /* how many of those between the first and the last pages */
    float select_mass;               /* instead: as much of the estimated attention; 0: by number */
    int select_sinks, select_recent; /* pages at either end that are always read */
    int select_every;                /* tokens from one choice of pages to the next */
    size_t
        kv_resident; /* bytes of pages that stay near, or up to 100: per cent of them; AUTO: all */
    enum TierWait tier_wait;
    size_t kv_host;   /* bytes of the host's memory for pages of a device; AUTO: what is free */
    char kv_dir[256]; /* for a file of the other pages */
    /* the baselines */
    enum Scaling rope_scaling; /* SCALING_AUTO: as the model file says */
    float rope_factor;         /* AUTO: positions used over positions trained */
    int group; /* self-extend: positions that far keys share; AUTO: the fewest that fit the window */
    int neighbours; /* self-extend: near keys, at their true distance; AUTO: a quarter of the window */
    int sinks;      /* streaming-llm: first tokens that stay */
    /* the prompt */
    char chat_template[32];  /* auto, raw, or a name */
    char instruction[1024];  /* before the context */
    char answer_prefix[256]; /* put into the model's mouth */
    char system[1024]; /* system message; "none": no system block; empty: the template's default */
    /* the answer */
    int max_tokens;
    float temperature; /* 0: greedy */
    float top_p;
    uint64_t seed;
    /* the machine */
    char backend[16]; /* auto, cpu, cuda */
    enum Precision precision;
    enum KvType kv_type;
    enum AnswerRanks answer_ranks;
    char isa[16];      /* auto, avx2, avx512, avx512vnni */
    int threads;       /* AUTO: cores of this process */
    int wave;          /* chunks prefilled together; AUTO */
    size_t memory;     /* bytes the run may use besides the mapped model; AUTO: what is free */
    size_t gpu_memory; /* bytes of the GPU that may be used, weights included; AUTO: what is free */
};

enum { ROUNDS_MAX = 8 };

enum SettingType { SET_INT, SET_FLOAT, SET_U64, SET_SIZE, SET_ENUM, SET_TEXT, SET_CALIB };

struct Setting {
    const char *name; /* as in JSON; the flag is --name with '-' for '_' */
    enum SettingType type;
    size_t offset;   /* in struct Settings */
    size_t room;     /* SET_TEXT: bytes of the array */
    double min, max; /* numbers: accepted range, special words apart */
    const char *const
        *words; /* SET_ENUM: names in value order, NULL-ended; SET_INT: words for special values
                              * as "all=-1", "auto=0", "off=-1"; SET_TEXT: accepted texts, NULL: any */
    const char *def;   /* default, as it would be typed */
    const char *group; /* heading in --help: method, prompt, answer, machine */
    const char *help;  /* one line */
};

extern const struct Setting SETTINGS[];
extern const int N_SETTINGS;

void settings_default(struct Settings *s);
/* Sets one value from text ("chunk", "2048"). Unknown name: PC_ECONFIG naming the nearest one. */
int settings_set(struct Settings *s, const char *name, const char *value);
/* Reads a JSON object of settings (a file in configs/). Unknown key, wrong type, out of range: PC_ECONFIG. */
int settings_load(struct Settings *s, const char *path);
int settings_parse(struct Settings *s, const char *json, size_t len, const char *what);
/* Checks settings against each other (an overlap wider than a chunk). */
int settings_check(const struct Settings *s);
/* The setting of that name, or NULL. */
const struct Setting *setting_find(const char *name);
/* The setting whose name is nearest, or NULL when none is near. */
const char *settings_nearest(const char *name);
/* The word for a value of an enum setting. */
const char *setting_word(const char *name, int value);
/* What a setting accepts, as text: "1 to 4096, auto". */
void setting_limits(const struct Setting *set, char *text, size_t room);
/* Takes PCOMP_NAME variables. Names that are no setting are reported in the log and ignored. */
int settings_env(struct Settings *s);
/* Writes the whole effective configuration as a JSON object. */
int settings_json(const struct Settings *s, struct Str *out);
/* Those of the names only, NULL-ended. */
int settings_json_some(const struct Settings *s, const char *const *names, struct Str *out);
/* The table for --help (text) or for README (markdown). */
int settings_help(bool markdown, struct Str *out);

#endif
