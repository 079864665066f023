/* session_team_support.h - for tests of runs over several ranks: cases, what may go wrong in them, and what each rank knows at
 * the end. Each test program has its own copy.
 */
#ifndef PCOMP_SESSION_TEAM_SUPPORT_H
#define PCOMP_SESSION_TEAM_SUPPORT_H

#include "session_support.h"
#include "team_support.h"

static const int SIZES[] = {1, 2, 3, 4, 8};
enum { N_SIZES = sizeof SIZES / sizeof *SIZES };

static inline void say_nothing(const char *text)
{
    (void)text;
}

static inline int code_of(int status)
{
    return status < 0 ? 10 - status : 0;
}

/* What is run, and what goes wrong on a rank other than the first. */
struct Case {
    const char *arch;
    struct Input input;
    int chunk, keep, cap, wave;
    enum ChunkScore score;
    enum Method method;
    int n_calib;
    bool heads; /* half of the KV heads stream */
    int victim; /* rank */
    enum Trouble { NONE, KILLED, NO_MEMORY, OTHER_SETTINGS, STOPPED } trouble;
    int after; /* calls of stop before it comes */
    enum AnswerRanks answer;
    enum Precision precision;
    enum KvType kv_type;
    float chunk_bias, temperature;
    int copies;                    /* of the prefix */
    const char *early_at;          /* NULL: early off */
    int select_pages;              /* besides the first and the last; 0: all are read */
    size_t resident;               /* kv_resident */
    int rounds;                    /* 0: one */
    const struct Backend *backend; /* with the CPU's device; NULL: the CPU's */
};

static const struct Case base = {
    .arch = "llama",
    .input = {9, 900, 14, 1},
    .chunk = 128,
    .keep = 3,
    .cap = 50,
    .score = SCORE_QUESTION,
    .precision = PRECISION_INT16,
    .copies = 1,
};

static inline struct Engine *open_case(const struct Case *c)
{
    struct Engine *e = open_engine_of(c->arch, c->precision, c->kv_type, 1);
    struct Settings *set = &e->settings;
    if (c->backend) e->be = c->backend;
    set->chunk = c->chunk;
    set->keep = c->keep;
    set->kv_cap = c->cap;
    set->wave = c->wave;
    set->chunk_score = c->score;
    set->method = c->method;
    set->answer_ranks = c->answer;
    set->chunk_bias = c->chunk_bias;
    set->prefix_copies = c->copies;
    set->temperature = c->temperature;
    set->kv_resident = c->resident;
    if (c->select_pages) {
        set->select = PAGE_INDEX_MEAN;
        set->select_pages = c->select_pages;
    }
    if (c->rounds) set->rounds = c->rounds;
    if (c->early_at) {
        set->early = EARLY_AUTO;
        snprintf(set->early_at, sizeof set->early_at, "%s", c->early_at);
    }
    if (c->heads) {
        struct HeadShape shape = {e->model.cfg.n_layers, e->model.cfg.n_heads,
                                  e->model.cfg.n_kv_heads};
        must(headmap_random(&shape, 5, &e->heads));
        e->heads.sink = 4;
        e->heads.recent = 40;
        set->heads_ratio = 0.5f;
    }
    if (c->n_calib > 0)
        add_rule(e, (struct CalibRule){CLASS_MIDDLE, 0, LAYERS - 1, 0.02f, 10, 2, 1});
    if (c->n_calib > 1)
        add_rule(e, (struct CalibRule){CLASS_RECENT, 0, LAYERS - 1, 0.02f, 10, 2, 2});
    return e;
}

/* ==== One rank ==== */

static struct {
    int left;
    const struct Case *c;
    bool mine;
} trouble;

static inline bool on_stop(void *user)
{
    (void)user;
    if (!trouble.mine || trouble.left-- > 0) return false;
    if (trouble.c->trouble == KILLED) raise(SIGKILL);
    return trouble.c->trouble == STOPPED;
}

/* What one rank knows at the end. */
struct Report {
    int rank;
    struct Outcome o;
    size_t used, planned; /* bytes */
};

/* The logits of the first answer row are gone when the run ends. */
static inline void on_progress(void *user, const struct Progress *p)
{
    struct Run *run = user;
    if (p->stage == STAGE_QUESTION)
        memcpy(run->logits, run->s.logits, sizeof(float) * (size_t)run->s.e->model.cfg.vocab_size);
}

static inline void report_run(const struct Run *run, struct Outcome *o)
{
    const struct Session *s = &run->s;
    size_t row = sizeof(float) * (size_t)s->e->model.cfg.vocab_size;
    o->n_chunks = s->plan.n_chunks;
    for (int i = 0; i < s->plan.n_chunks && i < 64; i++) {
        o->kept[i] = run->r.chunks[i].kept;
        o->score[i] = run->r.chunks[i].score;
    }
    if (s->e->team->rank > 0 && !s->together) return;
    o->n_ids = run->r.n_ids;
    o->hash = run->r.logits_hash;
    memcpy(o->ids, run->r.ids, sizeof(int) * (size_t)o->n_ids);
    memcpy(o->logits, run->logits, row);
    memcpy(o->last, s->logits, row);
    for (int h = 0; h < s->merged.n_heads; h++) o->kv_kept[h] = run->r.kv_kept[h];
}

/* The stages of session_run, for a prompt of token ids. */
static inline int run_rank(struct Team *t, const struct Case *c, struct Report *out)
{
    struct Engine *e = open_case(c);
    struct Run run = {0};
    struct Prompt p = make_prompt(c->input);
    struct Request req = {
        .question = "", .user = &run, .on_progress = on_progress, .stop = on_stop};
    trouble.c = c;
    trouble.mine = c->trouble != NONE && t->rank == c->victim;
    trouble.left = c->after;
    if (trouble.mine && c->trouble == OTHER_SETTINGS) e->settings.obs_rows = 3;
    if (trouble.mine && c->trouble == NO_MEMORY) mem_fail_after(c->after);
    must(engine_join(e, t));
    memset(out, 0, sizeof *out);
    out->rank = t->rank;
    size_t before = mem_in_use();
    mem_peak_reset();
    int status = session_open(&run.s, e, &req, &p, &run.r);
    if (status == PC_OK) status = session_stages(&run.s, true);
    if (status == PC_OK) status = share_end(&run.s);
    mem_fail_after(0);
    out->planned = run.s.plan.peak_bytes;
    out->used = mem_peak() - before;
    if (status == PC_OK) report_run(&run, &out->o);
    session_close(&run.s);
    result_free(&run.r);
    engine_close(e);
    return status;
}

/* ==== A team ==== */

/* What the other ranks need, and the pipe on which they send what they know. */
struct Job {
    const struct Case *c;
    int pipe[2];
};

static inline int other_rank(struct Team *t, void *user)
{
    struct Job *job = user;
    struct Report r;
    int status = run_rank(t, job->c, &r);
    if (status == PC_OK && write(job->pipe[1], &r, sizeof r) != (ssize_t)sizeof r) return 98;
    return code_of(team_close(t, status, say_nothing, code_of));
}

/* The status of rank 0, and of all others that were not killed; without failure all[size] by rank. */
static inline int run_team(const struct Case *c, int size, struct Report *all)
{
    struct Ranks r;
    struct Job job = {.c = c};
    assert_int_equal(pipe(job.pipe), 0);
    ranks_start(&r, size, other_rank, &job);
    int status = run_rank(&r.team, c, &all[0]);
    int end = team_close(&r.team, status, say_nothing, code_of);
    close(job.pipe[1]);
    for (int i = 1; i < size; i++) {
        int how = ranks_wait(&r, i);
        bool killed = i == c->victim && c->trouble == KILLED && end < 0;
        if (how != (killed ? 256 + SIGKILL : code_of(end)))
            fail_msg("rank %d of %d ended with %d, not %d", i, size, how, code_of(end));
    }
    for (int i = 1; i < size && end == PC_OK; i++) {
        struct Report other;
        assert_int_equal(read(job.pipe[0], &other, sizeof other), sizeof other);
        assert_in_range(other.rank, 1, size - 1);
        all[other.rank] = other;
    }
    close(job.pipe[0]);
    return end;
}

#endif
