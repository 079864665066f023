/* headmap.h - which KV heads of a model must remember everything, and which may stream.
 *
 * DuoAttention (arXiv 2410.10819) splits KV heads in two: a retrieval head keeps every key and value, a
 * streaming head the first `sink` tokens and the last `recent` ones. A head map holds one score a KV head;
 * the choice of how many are retrieval heads is made later, by headmap_keep(). Maps come from files in three
 * formats (headmap_file.c: DuoAttention's folder; headmap_json.c: RTP-LLM's and our own JSON).
 *
 * Heads are numbered layer by layer: KV head h of layer l is l * n_kv_heads + h. Query head q of a layer
 * reads KV head q / (n_heads / n_kv_heads). Nothing here knows a model, a cache or a backend. "Spec" is
 * headwise.md.
 */
#ifndef PCOMP_HEADMAP_H
#define PCOMP_HEADMAP_H

#include "base.h"

enum {
    HEADMAP_LAYERS_MAX = 4096,
    HEADMAP_HEADS_MAX = 1 << 20, /* query heads of all layers */
    HEADMAP_SINK_MAX = 1 << 20,
    HEADMAP_RECENT_MAX = 1 << 24,
    HEADMAP_THRESHOLD_MAX = 1 << 30,
    HEADMAP_SINK = 64, /* what DuoAttention's long-context results used (paper, section 3.1) */
    HEADMAP_RECENT = 256,
    HEADMAP_METHOD_ROOM = 32,
};

struct HeadShape {
    int n_layers, n_heads, n_kv_heads; /* n_heads: query heads a layer, a multiple of n_kv_heads */
};

struct HeadMap {
    struct HeadShape shape;
    float *scores;   /* [n_layers, n_kv_heads] f32, 0..1; higher: needs the long past more; owned */
    float *q_scores; /* [n_layers, n_heads] f32, 0..1, of query heads; NULL: not known; owned */
    int sink;        /* first tokens that a streaming head keeps */
    int recent; /* last tokens that it keeps, itself included: key j is seen from i when i - j < recent */
    float ratio;   /* share of KV heads that whoever made it chose to keep; 0: none chosen */
    int threshold; /* headwise only from so many tokens on; 0: always (RTP-LLM's seqlen_threshold) */
    uint64_t model_hash; /* of the model it was made for (struct Model); 0: unknown */
    uint64_t seed;
    char method[HEADMAP_METHOD_ROOM]; /* how the scores were found: "ablate", …; may be empty */
    struct Str note;                  /* free text, UTF-8; owned */
    struct Str settings; /* a JSON object that says how it was made, as text; empty: none; owned */
};

/* ==== Life ==== */

/* A map of zeros with the default sink and recent sizes; q: with scores of query heads too. The caller owns
 * *out: headmap_close, which also takes a map that was never opened if it is all zero. On failure *out holds
 * nothing. Errors: PC_ERANGE (shape beyond the limits above, or heads that do not divide), PC_ENOMEM. */
int headmap_open(const struct HeadShape *shape, bool q, struct HeadMap *out);
void headmap_close(struct HeadMap *map);
/* n_layers * n_kv_heads */
int headmap_heads(const struct HeadMap *map);

/* ==== The choice ==== */

/* Writes to order[n_layers * n_kv_heads] the heads from the most needed to the least. Of equal scores the
 * lower layer comes first, then the lower head: never noise, as DuoAttention's loader has it (spec A.4).
 * Errors: PC_ENOMEM, PC_EINTERNAL (a score is not in 0..1). */
int headmap_order(const struct HeadMap *map, int *order);
/* Marks in keep[n_layers, n_kv_heads] u8 (1: retrieval, 0: streaming) the first round(ratio * heads) of that
 * order, halves up; ratio <= 0: none, >= 1: all. min_per_layer > 0: so many in each layer come before the
 * others; what they take is taken from the same number. Returns how many are kept. Errors: PC_ECONFIG (the
 * ratio is not a number, or too low for min_per_layer; ratio <= 0 asks for none and is no error),
 * PC_ENOMEM, PC_EINTERNAL as above. */
int headmap_keep(const struct HeadMap *map, double ratio, int min_per_layer, uint8_t *keep);
/* Marks the heads whose score is at least `score`: DuoAttention's other mode, with 0.5, and what a map of
 * 0/1 flags says itself. Returns how many. */
int headmap_keep_above(const struct HeadMap *map, float score, uint8_t *keep);
/* The scores are a choice themselves: 0 or 1 each, and both. */
bool headmap_is_flags(const struct HeadMap *map);
/* From a choice of KV heads to flags[n_layers, n_heads] u8 of query heads: 1 when its KV head is kept and its own
 * score is above 0 and not below that of the least needed KV head that is kept. Without scores of query heads, or when
 * nobody of a group has such a score, the group is flagged as one, so that no kept KV head is lost. */
void headmap_q_flags(const struct HeadMap *map, const uint8_t *keep, uint8_t *flags);
/* The score of a KV head becomes the highest of its query heads' (a mean would dilute one good head by the
 * size of its group, spec D.4). The map must have q_scores. */
void headmap_from_q(struct HeadMap *map);

/* ==== Controls ==== */

/* Scores become ranks: the most needed head 1, the least 0, by equal steps in between. Ties end in the order
 * of headmap_order, so that every choice stays what it was. A single head gets 1. Errors: as headmap_order. */
int headmap_rank(struct HeadMap *map);
/* The order turned round, ties included: keeping k heads keeps those that headmap_keep dropped when it kept
 * all but k. The scores become ranks; those of query heads go. A sound map does far better than its
 * inversion (spec G.5). Errors: as headmap_order. */
int headmap_invert(struct HeadMap *map);
/* A map with random scores: the same for a seed on every machine. Owned as by headmap_open; same errors. */
int headmap_random(const struct HeadShape *shape, uint64_t seed, struct HeadMap *out);

/* ==== Memory (spec D.1) ==== */

/* What a streaming head keeps of n tokens that stand behind n_prefix others: so many of the first, which complete the sinks,
 * and of the last, which the next row sees besides itself. */
struct HeadEnds {
    int first, last;
};
struct HeadEnds headmap_ends(int sinks, int recent, int n_prefix, int n);

/* What a run keeps. Tokens and heads are counts; a full head holds prefix + chunks * cap + tail + answer
 * tokens, a streaming one sink + recent + 1. */
struct HeadMemory {
    size_t n_full, n_streaming;        /* KV heads of all layers */
    size_t prefix, chunks, cap;        /* kept chunks, and context tokens kept in each */
    size_t tail, answer, sink, recent; /* tail: the question's tokens */
    size_t page_tokens; /* tokens are held in pages of so many; 1: the formula as it stands */
    size_t token_bytes; /* of a token in one KV head: 2 * head_dim * bytes an element */
    size_t head_dim;    /* elements */
    size_t landmarks;   /* f16 vectors [head_dim] that find a full head's page; 0: no index */
};

struct HeadBytes {
    size_t full, streaming, index, total;
};

/* Bytes of the caches. With pages, a full head fills the last one up, and a streaming head owns
 * ceil(sink / page) + ceil(recent / page) + 1 (spec D.2). Errors: PC_ECONFIG (no page_tokens), PC_ENOMEM (more
 * bytes than a size_t holds). */
int headmap_memory(const struct HeadMemory *m, struct HeadBytes *out);

/* ==== Files ==== */

/* Reads the map of a model of this shape, from
 *   - a folder with DuoAttention's full_attention_heads.tsv and config.json, or that .tsv (any name) itself:
 *     n_layers rows of n_kv_heads numbers with tabs between them; values are clipped to 0..1, with a warning
 *     in the log where one is far outside. config.json stands beside it; without its sink_size or recent_size
 *     they are 64 and 256, with a warning;
 *   - a JSON file with RTP-LLM's headwise configuration (spec B.2), as the whole file or as the member
 *     "headwise_config": lists "0", "1", … of n_heads flags. A KV head scores 1 when any query head of its
 *     group is flagged, else 0, and the flags become q_scores. swa_token_num W means i - j <= W, so recent is
 *     W + 1 (spec D.3);
 *   - a JSON file of our own, schema "pcomp.heads.v1".
 * Which it is shows in the content. The caller owns *out; on failure it holds nothing. CRLF and a missing last
 * line feed are fine. Errors: PC_EIO (cannot be read), PC_ERANGE (longer than a map of this shape can be),
 * PC_EFORMAT, PC_ENOMEM. A PC_EFORMAT text names the file, the line, layer or member, what was found, what the
 * model has or the format wants, and what to do. Whether model_hash fits the model is for the caller to see. */
int headmap_read(const char *path, const struct HeadShape *model, struct HeadMap *out);

/* The same from memory, without files beside it: a .tsv's text leaves sink and recent at their defaults.
 * `file` is for the error texts. */
int headmap_parse(const char *text, size_t len, const char *file, const struct HeadShape *model,
                  struct HeadMap *out);
/* DuoAttention's config.json into a map that was read from its .tsv: sink_size, recent_size, and what
 * headmap_duo_text adds; other members are ignored. On failure the map is as it was, or partly changed. */
int headmap_parse_config(const char *text, size_t len, const char *file, struct HeadMap *map);

/* Append a map as text. The same map gives the same bytes. Errors: PC_ENOMEM, PC_EINTERNAL (the map breaks what
 * struct HeadMap says).
 * Duo: scores as ranks (headmap_rank), so that any quantile cuts exactly; what they were is lost.
 * RTP: the flags of headmap_q_flags for a choice keep[n_layers, n_kv_heads].
 * JSON: everything; reading it back gives every bit again. */
int headmap_duo_text(const struct HeadMap *map, struct Str *tsv, struct Str *config);
int headmap_q_text(const struct HeadMap *map, struct Str *tsv); /* q_scores as they are */
int headmap_rtp_text(const struct HeadMap *map, const uint8_t *keep, struct Str *out);
int headmap_json_text(const struct HeadMap *map, struct Str *out);

/* Write them: each file beside its target first, then renamed over it (file_write). The folder is made when it
 * is not there; it gets config.json, q_heads.tsv when query heads have scores, and full_attention_heads.tsv
 * last. Errors: as above, and PC_EIO. */
int headmap_write_duo(const struct HeadMap *map, const char *folder);
int headmap_write_rtp(const struct HeadMap *map, const uint8_t *keep, const char *path);
int headmap_write_json(const struct HeadMap *map, const char *path);

/* ==== Between the two files ==== */

/* JSON of either kind; called by headmap_parse. */
int headmap_parse_json(const char *text, size_t len, const char *file,
                       const struct HeadShape *model, struct HeadMap *out);
/* DuoAttention's config.json with our facts; called by headmap_duo_text. */
int headmap_config_text(const struct HeadMap *map, struct Str *out);
/* Refuses NUL bytes and what is not UTF-8, naming the line. */
int headmap_check_text(const char *text, size_t len, const char *file);
/* Refuses, with PC_EINTERNAL, a map that a writer could not write or a reader would not take back. */
int headmap_check(const struct HeadMap *map);

#endif
