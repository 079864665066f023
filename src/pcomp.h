/* pcomp.h - the engine's public interface: open a model, run requests, read results.
 *
 * An Engine owns the model, the tokenizer, the backend and its memory. session_run() takes one
 * request through the whole method (session.c reads like the paper); it may be called many times.
 * Nothing here prints or exits; progress goes to the request's callbacks.
 */
#ifndef PCOMP_PCOMP_H
#define PCOMP_PCOMP_H

#include "chunk_profile.h"
#include "config.h"
#include "eviction/residency.h"
#include "model.h"

#define PCOMP_VERSION "0.1.0"

struct Engine;
struct Team; /* team.h */
struct Tokenizer;
struct PromptFrame; /* prompt.h */
struct Store;       /* store.h */
struct TextStream;  /* text_stream.h */
struct PipeRead;    /* session_pipe() */

/* Opens the model at path (or a geometry, see model_open) with these settings. *out is the caller's: engine_close. */
int engine_open(const char *model_path, const struct Settings *settings, struct Engine **out);
void engine_close(struct Engine *e);
const struct Model *engine_model(const struct Engine *e);
const struct Tokenizer *engine_tokenizer(const struct Engine *e);
const struct Settings *engine_settings(const struct Engine *e);
/* Replaces the settings that do not belong to the machine group; those must be equal. */
int engine_configure(struct Engine *e, const struct Settings *settings);
/* Runs of this engine are shared with the other ranks of the team (borrowed), which run the same requests in the same order;
 * rank 0 has the answer. Every rank calls this once, and each finds the way between their devices. */
int engine_join(struct Engine *e, struct Team *team);
/* "cpu avx512vnni int16, 2 threads" */
const char *engine_device(const struct Engine *e);
/* The device computes in memory of its own, and for one process: what was opened does not survive a fork. */
bool engine_on_gpu(const struct Engine *e);

enum Stage { STAGE_TOKENIZE, STAGE_PREFILL, STAGE_QUESTION, STAGE_DECODE, STAGE_DONE };

struct Progress {
    enum Stage stage;
    int chunks_done, n_chunks; /* prefill */
    int64_t tokens_done,
        n_tokens;   /* prefill: context tokens; decode: tokens made and the most there may be;
                       tokenize: those of a stream, n_tokens by its bytes. Totals are 0 while a pipe is open */
    double seconds; /* since this run began */
    size_t memory;  /* bytes held */
};

struct Request {
    const char *context; /* UTF-8, borrowed */
    size_t context_len;
    /* The text was indexed: its chunks come from here, and context is left alone. May be NULL. */
    struct Store *store;
    /* Other questions of this store follow: what a device with memory of its own has read of it stays there for them, where
     * all of it has room. */
    bool store_stays;
    /* A text that need not fit memory, in place of context: read a stretch at a time, and scanned by the first plan or run.
     * One at a time may use it. NULL: context is the text. */
    struct TextStream *stream;
    /* What session_pipe() has read of the stream, for the same question and settings; its time is counted with the first run's. May be
     * NULL. */
    struct PipeRead *pipe;
    const char *question; /* the user's words; "" for none */
    /* A whole prompt around the context, in place of the settings' instruction and the question; the
     * question is then for the records only. May be NULL. */
    const struct PromptFrame *frame;
    /* The last token of this text ends the answer too, and the answer has at least one token that is no end
     * (LongBench's rule for samsum, with a line feed). May be NULL. */
    const char *stop_text;
    void *user;                                                /* handed to the callbacks */
    void (*on_progress)(void *user, const struct Progress *p); /* may be NULL */
    void (*on_text)(void *user, const char *piece,
                    size_t len); /* answer text as it comes; may be NULL */
    bool (*stop)(
        void *user); /* asked between layers: true ends the run with PC_EINTR; may be NULL */
};

struct ChunkInfo {
    int begin, end;              /* context tokens [begin, end) */
    size_t byte_begin, byte_end; /* the same in the context text */
    double
        score; /* lower is kept; NAN when none was taken. Mean NLL of the scored question tokens, nats;
                   * the same less what shared words are worth; BM25 with a minus sign; or chance: as
                   * chunk_score says */
    bool kept;
    uint8_t round; /* that chose it, from 1; 0: none did, or there is one round alone */
    int n_layers; /* layers that read it: all, those before the decision at which it left early, or 0. As if
                     so, of chunks that were read while a pipe was open */
};

/* Of the chunks that got so far, only survivors are read by the layers from `layer` on. */
struct EarlyDecision {
    int layer, n_before, survivors;
    double
        risk; /* to lose the chunk with the answer, as the model's profile has it; NAN: not known */
};

struct Timings {
    double tokenize, prefill, question, decode, total;
}; /* seconds */

/* What one run needs and did. Filled by session_plan() without running, and by session_run(). */
struct PlanInfo {
    enum Method method;
    enum Scaling rope_scaling;
    enum ChunkScore chunk_score;         /* of parallelcomp; no AUTO */
    double rope_factor;                  /* 1: not stretched */
    int group, neighbours, sinks;        /* resolved; 0 where the method has none */
    int n_context, n_prefix, n_question; /* tokens */
    int n_chunks, chunk_tokens, wave, keep, kv_cap, window; /* resolved values, no AUTO left */
    int n_read; /* chunks prefilled: all, those that prefilter chose, or the kept ones where they are known beforehand */
    struct EarlyDecision early[STOPS_MAX];
    int n_early; /* 0: all layers read every one of them */
    int early_safe; /* chunks that share most words with the question: a profile's decisions keep them */
    size_t
        early_wants; /* bytes of early_memory that a decision of the profile lacked; 0: none did */
    int rounds;      /* choices of chunks, which share keep */
    int n_found;     /* tokens of findings that go with the question, at most; 0: one round */
    double read_share; /* chunks times layers that are read, of all chunks times all layers */
    int question_pos;  /* position of the first question token in stage 2 */
    int n_positions; /* no two tokens that see each other are so far apart, as the rotation counts it */
    int max_tokens;
    int heads_full, heads_streaming; /* KV heads of all layers */
    int head_sinks, head_recent;     /* tokens that a streaming head keeps; 0: none streams */
    size_t
        heads_bytes; /* keys and values of all heads when the answer is at its longest: headwise.md D.1 */
    int n_truncated;       /* context tokens left out (--method truncate only) */
    enum PageIndex select; /* OFF where keys move */
    int select_every;      /* answer tokens that a choice of pages serves */
    int tier_slots;        /* copies of pages that a KV head has near; 0: all its pages are there */
    enum TierWait tier_wait;
    const char *tier_below;                   /* where its pages lie then: "disk", "host memory" */
    size_t tier_near_bytes, tier_below_bytes; /* of all heads' copies, and of the pages below */
    size_t tier_host_bytes, tier_file_bytes;  /* for these, memory of a device's host, and a file */
    size_t kv_bytes;                          /* pages of the kept chunks */
    int store_cap;      /* context tokens of a chunk that a head of a store has at most; CAP_OFF */
    size_t store_bytes; /* pages of all chunks in a store; 0: the method has none */
    size_t index_bytes; /* what pages are selected by, of all pages of the pool */
    size_t peak_bytes;  /* all that the run allocates, model file excluded */
    size_t made_bytes;  /* of these, a geometry's random weights; 0: none, or on a device */
    size_t model_bytes; /* weights as stored: mapped, or made */
    size_t available_bytes; /* what the run may use */
    bool fits;
    char chat_template[32];
};

struct Result {
    struct Str text; /* the answer */
    int *ids;        /* [n_ids] its tokens */
    int n_ids;
    bool stopped_at_eos, stopped_at_text;
    struct PlanInfo plan;
    struct ChunkInfo *chunks;         /* [plan.n_chunks] */
    int n_piped;                      /* of these, those that were read while a pipe was open */
    struct Str found[ROUNDS_MAX - 1]; /* [plan.rounds - 1] what each round handed on to the next */
    int64_t *kv_in,
        *kv_kept; /* [n_layers * n_kv_heads] context entries seen in kept chunks, and kept */
    /* Pages that the answer's rows read of the KV heads that select, over all rows and heads, and pages these heads had;
     * 0 and 0 where every page is read. */
    int64_t pages_read, pages_there;
    struct TierCounts tiers; /* zeros without plan.tier_slots */
    size_t tier_bytes;       /* copied from below: those fetched, and those read without a copy */
    struct Timings time;
    size_t peak_bytes;                             /* measured */
    uint64_t input_hash, config_hash, logits_hash; /* logits_hash: of the first answer row */
};

/* Plans a request: tokenises, derives chunks, memory and positions; runs nothing.
 * PC_ENOMEM is not raised here: look at out->fits. */
int session_plan(struct Engine *e, const struct Request *req, struct PlanInfo *out);
/* Configures the engine for an answer that covers the whole text, as a summary: with several chunks kept and no
 * kv_cap given, the cap that lets them share about half the window. */
int engine_cover(struct Engine *e, const struct Request *req, struct Settings *settings);
/* Reads chunks of a stream that is a pipe until that has ended, so that the run that follows need not: its answer is the same.
 * *out stays NULL where nothing was read: the stream is no pipe or soon at its end, or the settings want all of the
 * text first. Errors as of session_run; pipe_read_free always. */
int session_pipe(struct Engine *e, const struct Request *req, struct PipeRead **out);
void pipe_read_free(struct PipeRead *p);
/* Runs one request. On PC_EINTR the result holds what was done. result_free always. */
int session_run(struct Engine *e, const struct Request *req, struct Result *out);
void result_free(struct Result *r);

/* Reads a text once and keeps it at path (store.h) for many questions: Request.store. Goes on with an interrupted one; a
 * store of this text, model and settings that is there already is left as it is. PC_ECONFIG: another file is there
 * and not `fresh`. *out is filled on PC_EINTR and errors too, as far as known. */
struct IndexInfo {
    struct PlanInfo plan;
    int n_before, n_done; /* chunks that were there, and that are now */
    size_t bytes;         /* of the store */
    size_t peak_bytes;
    double seconds;
    bool busy; /* another process is writing this store: the reason of PC_ECONFIG */
};
int session_index(struct Engine *e, const struct Request *req, const char *path, bool fresh,
                  struct IndexInfo *out);

/* What a store is made from, as one number: text, model, settings that shape chunks, pages. */
int session_store_key(struct Engine *e, const struct Request *req, uint64_t *key);

/* Perplexity of text under the settings' method (method.md section 6, point 19).
 * full: mean NLL of every token after the first, in windows of `window` positions.
 * parallelcomp, truncate: mean NLL of the last `tail` tokens given the compressed rest. */
struct PerplexityResult {
    double nll, ppl;
    int64_t n_scored, n_context;
    double seconds;
};
int session_perplexity(struct Engine *e, const struct Request *text, int tail,
                       struct PerplexityResult *out);

/* Times one operation class for `pcomp bench`: see bench.c. */
struct BenchRow {
    char name[48], shape[64];
    double seconds, flops, bytes; /* one repetition: time, work, memory touched */
    double least_seconds; /* what the device's peak rates allow; 0 where they are not known */
};
int engine_bench_op(struct Engine *e, int op, int n_tokens,
                    struct BenchRow *row); /* PC_ERANGE past the last op */

/* What so many threads of the host do with a streamed text, without the model: see bench_text.c. */
enum TextWork { TEXT_SCAN, TEXT_CUTS, TEXT_WORDS, TEXT_LOADS, N_TEXT_WORK };
struct BenchText {
    double seconds[N_TEXT_WORK];
    int n_tokens;
};
int engine_bench_text(struct Engine *e, const struct Request *req, int threads,
                      struct BenchText *out);

#endif
