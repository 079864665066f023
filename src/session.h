/* session.h - the state of one run, shared by the stages of the method (session.c, plan.c, prefill.c, decode.c). */
#ifndef PCOMP_SESSION_H
#define PCOMP_SESSION_H

#include "chunk_plan.h"
#include "chunk_profile.h"
#include "eviction/chunk_evict.h"
#include "eviction/lexical.h"
#include "headmap.h"
#include "kv_ship.h"
#include "pcomp.h"
#include "prompt.h"
#include "store.h"
#include "team.h"
#include "text_ahead.h"
#include "transformer.h"

enum { WAVE_MAX = 256 }; /* chunks of one wave */

/* What a device keeps of a store between runs: pages of a pool whose first ones are the stored chunks' (session_stage.c). */
struct Resident {
    void *pages; /* [n_pages, page_bytes] device memory; NULL: nothing is kept */
    size_t n_pages, bytes;
    uint64_t store;     /* the store's own hash */
    size_t stage_pages; /* of a chunk */
    int n_chunks;
    uint8_t *there; /* [n_chunks] by place: it has been read */
};

struct Engine {
    struct Model model;
    struct Tokenizer *tok;
    struct Settings settings; /* as given, AUTO and all */
    struct Chat chat;
    const struct Backend *be;
    struct Device *dev;
    size_t file_bytes;
    struct HeadMap heads; /* settings.heads; all zero without one */
    struct ChunkProfile
        chunks;        /* settings.chunk_profile; all zero without one, or where early is off */
    struct Team *team; /* who reads chunks together; alone, until engine_join */
    struct Team alone;
    struct Peers peers; /* the ways between the team's devices */
    struct Resident resident;
};

/* The cache of one chunk while it may still win. */
struct Slot {
    int chunk; /* -1: free */
    struct HeadTable table;
    int *
        index; /* [n_heads, cap] chunk token of each kept entry; NULL when nothing can be dropped */
    int *kept; /* [n_heads] entries of index in use */
};

/* Chunks taken together, their slots, and their rows. */
struct Wave {
    const int *chunk; /* [n] */
    int n;
    int n_next; /* chunks [n, n + n_next) are those of the next wave, if that begins with their tokens */
    int from, to; /* layers [from, to) are run; from > 0: x is put in place by the caller */
    int n_read;   /* chunks done before it, for the progress, */
    int64_t n_before, n_tokens; /* and text tokens before it and in it */
    struct Slot *slot[WAVE_MAX];
    struct Batch batch;
    int before[WAVE_MAX]; /* behind the last layer: the row that predicts the tail's first token, */
    int row[WAVE_MAX];    /* and that token's own, which the other rows of the tail follow */
};

/* Reads everything with full attention, then keeps what the question's last rows attend to. */
static inline bool compresses(const struct Settings *set)
{
    return set->method == METHOD_SNAPKV || set->method == METHOD_PYRAMIDKV;
}

/* Which heads stream in a run, and what that hides. */
struct HeadRun {
    uint8_t *
        streams; /* [n_layers * n_kv_heads] 1: keeps sinks and recent tokens only; NULL: none does */
    int *read_window;              /* [n_layers, n_heads] over the text; 0: all */
    int *answer_window;            /* [n_layers, n_heads] over question and answer */
    struct HeadMasks read, answer; /* the same for a batch */
    int sinks, recent;
};

/* What ranks say to each other of a layer, where each has kept what it read (session_parts.c). */
struct RankParts {
    uint8_t *said;         /* [team size, bytes of so many rows] device memory */
    uint8_t *host;         /* the same in host memory, where the way goes through it; or NULL */
    struct AttnPart *part; /* [team size] in said */
    uint8_t
        *own; /* [n_layers * n_kv_heads] 1: prefix, question and answer are in this rank's pages */
    int streams_to;   /* the rank of streaming heads */
    int64_t *kept;    /* [team size, n_layers * n_kv_heads] */
    uint64_t *digest; /* [team size] of what all ranks have had in common up to the rows at hand */
};

/* Chunks that leave before the last layer, at decisions 0 .. n - 1 (session_early.c). */
struct EarlyRun {
    struct ChunkStop *stop;             /* [n_looks] owned */
    struct ChunkQueue queue[STOPS_MAX]; /* survivors of each */
    int n, n_held;
    int n_looks;       /* n, and one more where the heads of all layers count in the end */
    double *score;     /* [n_looks, n_chunks] sums of what the stops' heads say; higher stays */
    double *sorted;    /* [n_chunks] scratch */
    double safe_share; /* of words: who shares so much stays in any case; INFINITY: nobody */
    int *list;         /* [n_chunks] survivors that this rank reads on, in document order */
    float *mass;       /* [wave, n_kv_heads, wave_shape.mass_keys] */
    float *
        rows; /* [n_held, chunk and question tokens, dim] device memory: x of chunks that survived so far */
    int *holds;             /* [n_held] whose; -1: free */
    int64_t n_work, n_done; /* chunks times layers that this rank expects to run, and has run */
};

enum { FOUND_MOST = 64 }; /* tokens of a finding, with the blank line before it */

/* What is known of a run before it begins: the chunks that were read while a pipe was open (session_pipe.c). */
struct PipeChunk {
    struct Chunk tokens;
    size_t byte_begin, byte_end;
    double surprise;             /* mean NLL of the question */
    double looks[STOPS_MAX + 1]; /* sums of what each stop's heads say */
};
struct PipeRead {
    uint64_t key;             /* of the runs that it fits */
    struct PipeChunk *chunks; /* [cap] n of the text, from the first one on */
    int n, cap;
    size_t next;            /* byte at which the chunk behind them begins */
    struct ChunkStop *stop; /* [n_looks] that were looked at */
    int n_looks;
    double seconds; /* that it took, without the waiting, until a run counts them */
};

/* What a round hands on to the next: a sentence of a chunk that it chose. */
struct Finding {
    double score; /* higher is better; -INFINITY: none */
    int chunk, n;
    int ids[FOUND_MOST];
    uint8_t rare[FOUND_MOST]; /* 1: the rest of its chunk has no such token */
};

/* Choices of chunks, one after another (session_rounds.c). */
struct RoundRun {
    int at;                   /* the round at hand, from 0 */
    int n_read;               /* chunks that this rank read in the rounds before, */
    int64_t n_tokens;         /* and their tokens */
    int *kept, n_kept;        /* [keep] chunks of the rounds before, in their order */
    int n_found;              /* tokens of findings at the front of the tail; */
    int found;                /* of these, the newest one's begin here */
    uint8_t rare[FOUND_MOST]; /* [n_found - found] of the newest */
    struct Tokens blank;      /* a blank line */
    struct Finding *told;     /* [team size] */
    struct HeadTable past;    /* one chunk behind the prefix; the pages are not its own */
    float *mass;              /* [n_kv_heads, wave_shape.mass_keys] */
    double *vote;             /* [chunk_tokens] attention that its tokens draw */
    int *ids;                 /* [chunk_tokens] a chunk's tokens, */
    size_t *place;            /* [chunk_tokens + 1] and where they begin in its text */
    int *cut;                 /* [chunk_tokens + 1] its sentences' first tokens */
    struct LexText *text;     /* [chunk_tokens] the sentences, */
    double *share;            /* [chunk_tokens] and what words they share with the question */
};

struct Session;

/* Looks at each layer's attention before the method acts upon it. chunks: those of the batch's sequences; NULL: it is
 * the question over the merged cache. It may use the session's mass and work, which an observed session always has. */
struct Observer {
    int (*attended)(struct Observer *o, struct Session *s, const struct AttnArgs *args,
                    const int *chunks);
};

struct Session {
    struct Engine *e;
    const struct Request *req;
    struct Observer *observer; /* set before session_open, or NULL */
    struct Settings set;       /* no AUTO left */
    struct Prompt prompt;
    struct PlanInfo plan;
    struct Result *out;
    double begun;
    struct Store *store; /* the chunks were read before and lie there; NULL: they are read now */
    bool together;       /* all ranks answer, each over the kept chunks that it read */
    bool indexes;  /* chunks go to a store: there is no question yet, and nothing is evicted */
    bool open_end; /* the text's end is not known yet: chunks are those at hand (session_pipe.c) */
    const struct PipeRead *known; /* what was read then of the first chunks of this run; or NULL */

    struct DeviceLimits limits;
    struct ChunkInput cut; /* how the context is cut */
    uint8_t *boundary;     /* [n_context] */
    struct Chunk *chunks;  /* [n_chunks] */
    /* [n_chunks, 2] bytes of the text at which each chunk of a stream begins and ends, and one more, where the next one
     * begins while the end is open */
    size_t *places;
    int *todo; /* [n_chunks] chunks that this round prefills, n_todo of them, in document order */
    int n_todo;
    struct TextAhead
        *ahead;        /* loads the next wave's tokens of a stream; NULL: there is no next one */
    int n_mine;        /* of these, those of this rank: todo[0 .. n_mine) from share_chunks on */
    int n_tokens_todo; /* context tokens in them */
    int cap;           /* tokens kept a chunk and head, at most */
    int *
        budget; /* [n_layers] prompt tokens that a head keeps besides the observed rows; NULL: all */
    int observed; /* last question rows that vote */
    struct HeadRun heads;
    struct FarKeys far;      /* self-extend, streaming-llm; window 0: no key is far from any row */
    float *q_turn, *k_turn;  /* [batch_rows, rope_dim], [keys, rope_dim] device memory of far */
    float *inv_freq;         /* [rope_dim / 2] of a stretched rotation, or NULL */
    int held;                /* full, streaming-llm: most tokens of the past of a batch */
    int n_slots, batch_rows; /* rows of the largest batch */
    int question_rows; /* rows of the question that are run together: all of them where memory allows */
    struct BatchShape wave_shape, answer_shape;
    size_t n_pages;

    struct KvCache kv;
    struct HeadTable prefix, merged;
    struct HeadTable *staged; /* [wave] chunks from a store, behind the prefix, or to it; or NULL */
    const uint8_t **marks;    /* [wave] of a store: what a staged chunk's heads have (store.h) */
    uint32_t stage_page;      /* pages of the first one; those of the others follow */
    size_t stage_pages;       /* of each */
    int n_staged;             /* chunks that have such pages: a wave's, or all of this rank */
    bool resident;            /* all: they stay for the next run */
    struct KvGathers gathers; /* of stored chunks */
    struct Slot *slots;       /* [n_slots] */
    struct ChunkQueue queue;
    struct EarlyRun early;  /* n 0: every chunk is read by all layers */
    struct RoundRun rounds; /* all zero with one round */
    int *place;             /* [n_chunks] its number among those read; -1: not read */
    double *gathered;       /* [team size, n_chunks] scores, of more than one rank; or NULL */
    struct KvParcel parcel; /* the same, unless all answer */
    struct RankParts parts; /* all zero unless all answer */
    double *
        shared; /* [n_chunks] share of the best chunk's BM25, where a score counts words; or NULL */
    struct KvWrites writes;
    struct Transformer tf;

    int *tokens, *pos, *rows, *targets; /* [batch_rows] */
    int *seq_begin;                     /* [wave + 1] */
    float *nll;                         /* [batch_rows] */
    float *mass; /* [wave, n_kv_heads, mass_stride]; NULL when nothing asks */
    int mass_stride;
    float *work;          /* [3, mass_stride] scratch of the policies */
    int *keep;            /* [wave, n_kv_heads, mass_stride] chosen tokens */
    int *keep_dev;        /* the same on the device */
    uint8_t *chosen;      /* [wave, bytes] marks of chunks that go to a capped store (store.h) */
    uint8_t *drop;        /* [wave + 1, n_kv_heads, mass_stride] tokens that calibration removes */
    float *logits;        /* [vocab_size] */
    bool recorded;        /* the device has a record of some step of this run */
    bool tiered;          /* pages of the kept text lie below, and have copies near */
    struct TierPlan tier; /* how, if so */
    size_t n_below;       /* pages there; n_pages counts the copies */
    struct PageSelect select; /* what an answer's rows read; PAGE_INDEX_OFF where keys move */
};

/* engine.c */
/* Bytes of main memory that a geometry's weights take, now or once they are made; 0 for weights of files. */
size_t engine_made_bytes(const struct Engine *e);
/* Bytes that a run may use, those weights included; and what the device can take. */
size_t engine_available(const struct Engine *e, struct DeviceLimits *limits);
/* Makes them, the first time. PC_ENOMEM when they alone do not fit. */
int engine_weights(struct Engine *e);

/* plan.c: fills set, plan, cut, shapes from settings and prompt; allocates only the chunk list. */
int plan_make(struct Session *s);
/* PC_ENOMEM with numbers and a remedy when the plan does not fit. */
int plan_check(const struct Session *s);

/* session_positions.c */
/* Far keys of a sequence of `total` tokens: fills far and what the plan says of it. */
int far_plan(struct Session *s, int total);
/* rope_factor from n_positions. PC_ECONFIG when the model file has a rule of its own. */
int rope_plan(struct Session *s);
int rope_open(struct Session *s); /* after tf_open */
int far_open(struct Session *s);  /* after rope_open */
void far_close(struct Session *s);
int far_batch(struct Session *s, struct Batch *b); /* before tf_begin; uses s->rows */
void far_forget(struct Session *s,
                struct HeadTable *past); /* after a batch: what no later row sees */

/* session_heads.c */
/* Classes of heads for a run of so many tokens: fills heads and what the plan says of them. */
int heads_plan(struct Session *s, int64_t n_all);
void heads_close(struct Session *s);
int heads_ring(
    const struct Session *s); /* pages that a streaming head needs at most; 0: none streams */
int heads_share(const struct Session *s, int cap); /* the cap of full heads, with what is freed */
/* Bytes of all caches when full, in pages of so many tokens (headmap_memory). */
int heads_formula(const struct Session *s, size_t page_tokens, size_t *bytes);
bool heads_stream(const struct Session *s, int layer, int kv_head);
int heads_chunk_pages(
    const struct Session *s);            /* of one head and a chunk in its slot; 0: none streams */
int heads_ends(const struct Session *s); /* chunks that have such at a time, at most */
bool heads_may_end(const struct Session *s, int chunk); /* it may be the last kept one */
int heads_keep_chunk(struct Session *s, struct HeadTable *t, int layer, int kv_head,
                     const struct KvRows *chunk);
void heads_forget_chunk(struct Session *s, struct HeadTable *t); /* what streaming heads kept */
/* Rows of a batch behind the tokens of a streaming head; those that no later row sees are left out. rows->index NULL. */
int heads_append(struct Session *s, struct HeadTable *t, int layer, int kv_head,
                 const struct KvRows *rows);
/* To all heads of a layer, each as its class wants. */
int heads_append_all(struct Session *s, struct HeadTable *t, int layer, const struct KvRows *rows);
/* After single rows were appended: what no later row sees goes. */
void heads_slide(struct Session *s, struct HeadTable *t);
int heads_kept(const struct Session *s, int head,
               int n); /* of n text tokens, in the merged cache */
static inline const struct HeadMasks *heads_reading(const struct Session *s)
{
    return s->heads.streams ? &s->heads.read : NULL;
}
static inline const struct HeadMasks *heads_answering(const struct Session *s)
{
    return s->heads.streams ? &s->heads.answer : NULL;
}

/* session_tier.c: pages of the kept text a tier below. */
/* Whether they lie there, once it is known what selects. PC_ECONFIG says what does not go with it. */
int tiers_plan(struct Session *s);
/* `below` of n_pages are to lie below, of which an answer finds `found` a head, and copies come near. */
void tiers_split(struct Session *s, size_t below, int found);
struct TierBytes tiers_bytes(const struct Session *s); /* zeros unless tiered */
int tiers_check(const struct Session *s);              /* PC_ECONFIG: kv_host is too little */
void tiers_note(struct Session *s);                    /* what the plan says of them */
int tiers_open(struct Session *s);                     /* after kv_open */
int tiers_count(struct Session *s);                    /* into the result */

/* session_rank.c: whether the chunks are ranked without the model, so that only winners need be read; and that. */
bool ranks_ahead(const struct Settings *set);
int rank_ahead(struct Session *s);
int weigh_words(struct Session *s); /* fills shared */
/* prefilter: leaves in todo those n_todo chunks that share most words with the question. */
int prefilter_words(struct Session *s);
/* A scored chunk enters the queue; *loser as in chunk_queue_push. */
void offer_chunk(struct Session *s, int chunk, int *loser);
/* Whether chunk_score counts the words that chunk and question share, beside what the model says. */
bool counts_words(const struct Session *s);
/* Once all are read: on the logits of a chunk's tokens, for what its score is behind the lowest of the n kept ones of its
 * round; 0 when scores are not the model's. */
float chunk_bias(const struct Session *s, int chunk, const int *kept, int n);

/* session.c: pages of a head of the merged cache, at most. */
int merged_pages(const struct Session *s);

/* session_store.c: what index and ask do in place of a run's reading. */
/* Tokens by which is decided whether the text is one chunk, and which heads stream; of an indexed text, as then. */
int64_t stored_tokens_all(const struct Session *s);
/* The question's own parts, and the text's from the store. PC_ECONFIG names what the store was made with otherwise. */
int stored_prompt(struct Engine *e, const struct Request *req, struct Prompt *out);
/* The room that indexing leaves a question in the window, tokens. */
int question_room(const struct Session *s);
/* The stored cuts take the place of the plan's. PC_ERANGE when question and answer have no room behind them. */
int stored_chunks(struct Session *s);
void stored_shapes(struct Session *s); /* of batches, slots and pages */
/* session_index.c: reading the text's chunks into a store */
int index_prompt(struct Engine *e, const struct Request *req, struct Prompt *out);
void index_shapes(struct Session *s);
size_t index_marks(const struct Session *s); /* bytes of a wave's marks */
int index_stages(struct Session *s, struct StoreWriter *out);
/* session_stage.c: stored chunks in pages that follow each other. */
struct StoreInfo stage_layout(const struct Session *s); /* which tokens a head keeps */
size_t stage_bytes(const struct Session *s);            /* of main memory */
/* Whether a full head of a store has not all n tokens of a chunk; and how many it has, or would have without a store. */
bool stage_capped(const struct Session *s, int n);
int stage_held(const struct Session *s, int n);
/* Which of n tokens of the chunk in table i a head has; NULL: all, or its ends. */
const uint8_t *stage_marks(const struct Session *s, int i, int head, int n);
/* Whether what is read of the store may stay for runs to come. */
bool stage_may_stay(const struct Session *s);
int stage_cache(struct Session *s); /* in place of kv_open */
int stage_open(struct Session *s);  /* behind it, before any page is given out */
void stage_close(struct Session *s);
void resident_close(struct Engine *e); /* gives the pages back */
uint8_t *stage_at(const struct Session *s, int place);
/* Lays a chunk of n context tokens out in a place, table i, behind what `past` holds, or as the first. */
int stage_lay(struct Session *s, int i, int place, int n, const struct HeadTable *past);
/* A stored chunk behind the prefix, as table i; its pages are read unless they are there. */
int stage_load(struct Session *s, int chunk, int i);
/* The same of layers [from, to) alone, unless it is to stay. */
int stage_load_layers(struct Session *s, int chunk, int i, int from, int to);
bool stage_has(const struct Session *s, int chunk); /* its pages are there already */
/* Where the device puts its choice of a layer's tokens: a chunk's together, as a slot has them. */
void recall_choice(const struct Session *s, int layer, struct KeepArgs *out);
size_t recall_choices(const struct Session *s); /* ints of a wave; 0 where the host chooses */

/* Of stored chunks, as wave_begin, wave_layers and prefill_wave. */
int recall_begin(struct Session *s, struct Wave *w);
int recall_layers(struct Session *s, struct Wave *w);
int recall_wave(struct Session *s, int first, int n);
/* What the device chose in layers [from, to) for chunks that stay, into their slots: their pages come later. */
int recall_note(struct Session *s, const struct Wave *w);
/* What full heads keep of the queue's chunks, into their slots; and what streaming heads do of the last of them. */
int recall_kept(struct Session *s);
int recall_ends(struct Session *s);
/* session_stream.c: the text, wherever it is */
void stream_begin(const struct Engine *e, const struct Request *req,
                  struct PromptText *text); /* before prompt_make */
/* After it: what the method needs of a stream at once. */
int stream_prompt(const struct Request *req, const struct Settings *set, struct Prompt *out);
/* Goes on with the scan, as text_stream_scan. */
int stream_more(const struct Request *req, int least);
double stream_spent(const struct Request *req); /* seconds of scanning that no run has counted */
int stream_cut(struct Session *s);              /* fills chunks and places */
/* The same of chunks [first, first + n) of the text, into the first n: they begin at byte `place`, and the chunk before ends at
 * token `before`. */
int stream_cut_some(struct Session *s, int first, int n, int before, size_t place);
int stream_tokens(const struct Session *s);
size_t text_bytes(const struct Session *s); /* of main memory that text, ids and chunks take */
int ahead_open(struct Session *s); /* reads the next wave's chunks while the device works */
/* These chunks' tokens are what will be asked for next, in this order. */
void ahead_order(struct Session *s, const int *chunks, int n);
/* Both hold until the next call of either. */
int chunk_ids(struct Session *s, const struct Chunk *c, const int **ids);
int chunk_texts(void *session, int first, int n, struct LexText *out);
int texts_at_once(const struct Session *s); /* the most that it is asked for */
int hash_tokens(struct Session *s, uint64_t seed, uint64_t *out); /* hash64 of the context's ids */
uint64_t hash_text(const struct Request *req);                    /* hash64 of its bytes, seed 0 */

/* Whether words can be compared, and cuts can look for the text's boundaries; token ids alone are cut where they are. */
bool session_has_text(const struct Session *s);

/* session_early.c: chunks that leave before the last layer. */
/* Fills early.stop and the plan's decisions. PC_ECONFIG names what they do not go with. */
int early_plan(struct Session *s);
bool early_words(const struct Session *s); /* whether a decision goes by words, too */
double early_last(const struct Session *s,
                  int chunk);                /* nats that attention takes off the chunk's score */
int early_slots(const struct Session *s);    /* chunks that have pages at once, at most */
size_t early_pages(const struct Session *s); /* of these, in full heads and all layers */
void early_shapes(struct Session *s);        /* behind those of waves */
size_t early_rows_bytes(const struct Session *s); /* of device memory, */
size_t early_bytes(const struct Session *s);      /* and of the host's */
int early_open(struct Session *s);
void early_close(struct Session *s);
/* Scores as they are before any layer has read a chunk; once a round. */
void early_begin(struct Session *s);
double *early_row(const struct Session *s, int look); /* [n_chunks] of its sums */
/* What decision d goes by: what its heads say of a chunk, and its words. Higher stays. */
double early_score(const struct Session *s, int d, int chunk);
/* What the layer's attention says of the wave's chunks, for decisions and scores that ask. */
int early_look(struct Session *s, const struct Wave *w, const struct AttnArgs *args);
/* All waves of this rank's chunks, survivors in waves of their own from where they stopped. */
int early_chunks(struct Session *s);

/* session_rounds.c: choices of chunks, each led by what those before found. */
/* Once keep is known: fills the plan's rounds and n_found. PC_ECONFIG: more rounds than chunks to keep. */
int rounds_plan(struct Session *s);
int rounds_room(const struct Session *s); /* positions for findings, beside the question */
int rounds_keys(const struct Session *s); /* that a batch of the reading sees at most */
int rounds_later(
    const struct Session *s); /* chunks kept by other rounds than the one at hand, at most */
size_t rounds_bytes(const struct Session *s); /* of the host's memory */
int rounds_open(struct Session *s);
void rounds_close(struct Session *s);
/* The chunks of the round before stay, and their finding joins the question. */
int rounds_next(struct Session *s);
/* All kept chunks in the queue, the question as it was. */
int rounds_end(struct Session *s);
/* Appends the words that chunks and sentences are compared with: the question's and, once each, those of findings. */
int rounds_words(struct Session *s, struct Str *out);
/* Whether a chunk's score counts the surprise of this token of the tail. */
bool rounds_scores(const struct Session *s, int token);
bool rounds_kept(const struct Session *s, int chunk); /* by a round before */

/* prefill.c: a wave is the chunks todo[first .. first + n). */
/* ids NULL: the rows' x comes from elsewhere. */
void batch_rows_fill(struct Session *s, const int *ids, int n, int at, int pos0);
/* The rows of the wave's chunks, each with the first q of the tail behind it; of a run after wave_slots. */
int wave_begin(struct Session *s, struct Wave *w, int q);
size_t mass_at(const struct Session *s, int seq,
               int kv_head); /* of a head's entries in mass and keep */
/* Layers [from, to): KV eviction in each, and behind the last one the rows that wave_score wants. */
int wave_layers(struct Session *s, struct Wave *w);
int wave_slots(struct Session *s, struct Wave *w);                  /* each chunk takes one */
int wave_len(const struct Session *s, const struct Wave *w, int i); /* context tokens */
int64_t wave_tokens_before(const struct Session *s,
                           int n); /* context tokens of the first n chunks */
/* The context tokens that every head of the wave keeps in this layer: into keep on the device and, unless the device
 * chose, into the slots. */
bool wave_chooses_on_device(const struct Session *s);
int wave_choose(struct Session *s, struct Wave *w, int layer, const struct AttnArgs *args);
/* The score is the mean NLL of the question under each chunk of the wave (method.md section 2). */
int wave_score(struct Session *s, const struct Wave *w);
/* Takes off it what words and attention say, and offers the chunk. The queue keeps the k most relevant chunks seen so far; a
 * loser's pages are free at once. */
int settle_chunk(struct Session *s, int chunk);
int wave_evict(struct Session *s, const struct Wave *w);
int wave_read(struct Session *s, struct Wave *w); /* all layers, into slots of its own */
int prefill_prefix(struct Session *s);
int prefill_wave(struct Session *s, int first, int n);
int prefill_plain(struct Session *s);
int merge_kept(struct Session *s);
int release_chunk(struct Session *s, int chunk); /* gives a loser's pages back */

/* session_team.c */
int share_count(const struct Session *s);   /* chunks that this rank reads */
int share_through(const struct Session *s); /* near pages that those from below go through */
int share_open(struct Session *s);          /* PC_ECONFIG when ranks do not plan the same run */
void share_close(struct Session *s);
void share_chunks(struct Session *s); /* leaves only this rank's in todo; fills place */
/* Numbers [n_chunks] of chunks from the ranks that read them, to all. */
int share_numbers(struct Session *s, double *of_chunk);
/* Once each rank has read its own: all scores to all, the kept chunks to rank 0 unless all answer. */
int share_winners(struct Session *s);
int share_end(struct Session *s); /* waits until rank 0, or all, have answered */

/* session_parts.c: all ranks answer. */
int parts_plan(struct Session *s); /* fills together; PC_ECONFIG names what cannot be done so */
/* Whether prefix, question and answer of a head, layer * n_kv_heads + KV head, are in this rank's pages. */
bool parts_own(const struct Session *s, int head);
void parts_stream_to(struct Session *s, int rank); /* streaming heads go there */
int parts_heads(const struct Session *s);          /* full heads of which they are */
int parts_kept(const struct Session *s); /* most kept chunks that this rank has at the end */
/* Of the device's memory, or of the host's beside it. */
size_t parts_bytes(const struct Session *s, bool device);
/* What ranks must agree on for that, beside the run's plan; 0 where rank 0 answers. */
uint64_t parts_digest(const struct Session *s);
int parts_open(struct Session *s);
void parts_close(struct Session *s);
void parts_leave_prefix(struct Session *s); /* of heads that are not this rank's */
/* Rows behind the merged tokens of the heads that are. */
int parts_append(struct Session *s, int layer, const struct KvRows *rows);
/* As tf_attend, over the pages of all ranks. */
int parts_attend(struct Session *s, const struct Batch *b, int layer, struct AttnArgs *args);
int parts_end(struct Session *s); /* kv_kept of all ranks to all */

/* perplexity.c */
/* Rows of one sequence whose next tokens are known; nothing of them is stored. */
struct KnownRows {
    const int *ids; /* [n_known + 1], at least n */
    int n,
        n_known; /* rows run, and how many of them, from the first on, have a token that follows */
    int pos0;    /* position of the first */
    const struct HeadTable *past;
    const struct HeadMasks *masks;
};
/* nll[n_known]: of the token after each. Takes tokens, pos, rows, targets and seq_begin of the session. */
int rows_nll(struct Session *s, struct KnownRows r, float *nll);

/* decode.c */
int question_pass(struct Session *s);
int decode_answer(struct Session *s);
/* nll[t], t >= 1, of tail token t given the merged cache and the tail before it. */
int question_nll(struct Session *s, float *nll);

/* session_pipe.c: chunks that were read while a pipe was still open, in the run that follows. */
/* Fills in known, where that fits, and its cuts; returns how many. */
int pipe_cuts(struct Session *s);
double pipe_spent(const struct Request *req); /* seconds that no run has counted */
size_t pipe_bytes(const struct PipeRead *p);
/* How many there are in the round at hand: the question of later rounds is another one. */
int pipe_known(const struct Session *s);
void pipe_skip(struct Session *s); /* takes them out of todo */
/* What the heads of a stop said of them, to score[0 .. pipe_known()). */
void pipe_looks(const struct Session *s, const struct ChunkStop *stop, double *score);
int pipe_offer(struct Session *s, int chunk); /* with the score it had */
int pipe_fetch(struct Session *s);            /* reads those that stay, for their pages */

/* session.c */
/* The request's text, cut and tokenised under the engine's settings. prompt_free frees it, also after an error. */
int session_prompt(struct Engine *e, const struct Request *req, struct Prompt *out);
/* The same once so many tokens of a stream are known. */
int session_prompt_some(struct Engine *e, const struct Request *req, int least, struct Prompt *out);
/* Takes over prompt, also on failure. */
int session_open(struct Session *s, struct Engine *e, const struct Request *req,
                 struct Prompt *prompt, struct Result *out);
int session_stages(struct Session *s, bool answer);
void session_close(struct Session *s);
struct Slot *session_slot(struct Session *s, int chunk); /* NULL when the chunk lost */
int session_stop(struct Session *s);                     /* PC_EINTR when the caller asks to stop */
void session_progress(struct Session *s, enum Stage stage, int chunks, int64_t tokens);

#endif
