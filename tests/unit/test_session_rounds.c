/* test_session_rounds.c - choices of chunks in rounds: findings, scores and kept chunks against attention and losses by brute
 * force; chains of facts that are followed by words; streams, stores, ranks, heads and early decisions; memory, failures
 * and refusals.
 */
#include "session_team_support.h"
#include "stream_support.h"

#include "eviction/kv_evict.h"
#include "text_stream.h"

/* ==== Against brute force ==== */

static const struct Input input = {9, 1100, 20, 4};

/* Nothing is evicted from nine chunks; the question's own words are tokens 3 to 11 of the tail. */
static struct Engine *open_rounds(const char *arch, int rounds, int keep)
{
    struct Engine *e = open_engine(arch, PRECISION_F32, 1);
    e->settings.chunk_score = SCORE_QUESTION;
    e->settings.rounds = rounds;
    e->settings.keep = keep;
    return e;
}

static struct Prompt asked(void)
{
    struct Prompt p = make_prompt(input);
    p.score_begin = 3;
    p.score_end = 12;
    return p;
}

/* The chunk's tokens [*from, *from + *n) that the question's last rows attend to most, in pieces of a finding's length. */
static void brute_finding(struct Engine *e, const struct Prompt *p, const struct Chunk *c,
                          int blank, int *from, int *n)
{
    struct Tokens ids = join(p, c->begin, c->end);
    struct Forward f = forward(e, ids);
    int len = c->end - c->begin, most = FOUND_MOST - blank;
    double *mass = calloc((size_t)f.n, sizeof *mass), *vote = calloc((size_t)f.n, sizeof *vote),
           best = -1;
    for (int l = 0; l < LAYERS; l++)
        for (int h = 0; h < f.kv_heads; h++) {
            brute_mass(&f, l, h, e->settings.obs_rows, mass);
            for (int j = 0; j < len; j++) vote[j] += mass[p->prefix.n + j];
        }
    for (int at = 0; at < len; at += most) {
        double sum = 0;
        int end = at + most < len ? at + most : len;
        for (int j = at; j < end; j++) sum += vote[j];
        if (sum > best) best = sum, *from = c->begin + at, *n = end - at;
    }
    free(mass);
    free(vote);
    forward_free(&f);
    tokens_free(&ids);
}

/* Mean loss of the tail's tokens that are marked, behind the prefix and one chunk. */
static double brute_score(struct Engine *e, const struct Prompt *p, const struct Chunk *c,
                          const bool *marked)
{
    struct Tokens ids = join(p, c->begin, c->end);
    struct Forward f = forward(e, ids);
    double sum = 0;
    int n = 0;
    for (int t = 0; t < p->tail.n; t++)
        if (marked[t]) sum += (double)f.nll[ids.n - p->tail.n + t], n++;
    forward_free(&f);
    tokens_free(&ids);
    return sum / n;
}

/* What is known when a round begins. */
struct Brute {
    struct Prompt p; /* with the findings before the question */
    bool marked[512];
    int round[64]; /* of each chunk that was kept */
};

static int best_left(const struct Brute *b, const double *score, int n)
{
    int best = -1;
    for (int c = 0; c < n; c++)
        if (!b->round[c] && (best < 0 || score[c] < score[best])) best = c;
    return best;
}

/* A blank line and the finding between the findings before and the question, of whose tokens those count that stand
 * nowhere else in the question, the finding or its chunk. */
static void brute_join(struct Brute *b, const struct Tokens *blank, const struct Chunk *c, int from,
                       int n)
{
    struct Tokens tail = {0};
    int before = b->p.tail.n - input.tail;
    append(&tail, b->p.tail.ids, before);
    append(&tail, blank->ids, blank->n);
    append(&tail, b->p.context.ids + from, n);
    append(&tail, b->p.tail.ids + before, input.tail);
    tokens_free(&b->p.tail);
    b->p.tail = tail;
    memset(b->marked, 0, sizeof b->marked);
    int found = before + blank->n, question = found + n;
    for (int t = question + 3; t < question + 12; t++) b->marked[t] = true;
    for (int t = found; t < question; t++) {
        b->marked[t] = true;
        for (int i = found; i < question + 12; i++)
            if ((i < t || i >= question + 3) && tail.ids[i] == tail.ids[t]) b->marked[t] = false;
        for (int i = c->begin; i < c->end; i++)
            if ((i < from || i >= from + n) && b->p.context.ids[i] == tail.ids[t])
                b->marked[t] = false;
    }
}

static void same_piece(const struct Engine *e, const int *ids, int n, const struct Str *text)
{
    struct Str want = {0};
    for (int i = 0; i < n; i++) {
        struct Slice piece = tokenizer_piece(e->tok, ids[i]);
        must(str_append(&want, piece.data, piece.len));
    }
    assert_int_equal(want.len, text->len);
    assert_memory_equal(want.data, text->data, want.len);
    str_free(&want);
}

/* Plays the rounds of a run that is over. */
static void check_rounds(struct Run *run, struct Brute *b)
{
    struct Session *s = &run->s;
    struct Engine *e = s->e;
    struct Tokens blank = {0};
    int n = s->plan.n_chunks, rounds = s->plan.rounds, each = s->plan.keep / rounds;
    must(tokenizer_encode(e->tok, "\n\n", 2, false, &blank));
    for (int r = 0; r < rounds; r++) {
        int keep = r ? each : s->plan.keep - (rounds - 1) * each, first, from = 0, len = 0;
        double score[64];
        for (int c = 0; c < n; c++)
            if (!b->round[c]) score[c] = brute_score(e, &b->p, &s->chunks[c], b->marked);
        first = best_left(b, score, n);
        for (int i = 0; i < keep; i++) {
            int best = best_left(b, score, n);
            b->round[best] = r + 1;
            assert_int_equal(run->r.chunks[best].round, rounds > 1 ? r + 1 : 0);
            assert_true(fabs(run->r.chunks[best].score - score[best]) < 1e-3);
        }
        for (int c = 0; c < n && r == rounds - 1; c++)
            if (!b->round[c]) assert_true(fabs(run->r.chunks[c].score - score[c]) < 1e-3);
        if (r == rounds - 1) break;
        brute_finding(e, &b->p, &s->chunks[first], blank.n, &from, &len);
        same_piece(e, b->p.context.ids + from, len, &run->r.found[r]);
        brute_join(b, &blank, &s->chunks[first], from, len);
    }
    for (int c = 0; c < n; c++) assert_int_equal(run->r.chunks[c].kept, b->round[c] > 0);
    tokens_free(&blank);
}

static void test_brute(void **state)
{
    (void)state;
    static const struct {
        int rounds, keep, wave;
    } cases[] = {{1, 2, 2}, {2, 2, 1}, {2, 3, 4}, {2, 5, 3}, {3, 3, 2}, {3, 5, 9}, {4, 8, 5}};
    for (int a = 0; a < N_ARCHS; a++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            struct Engine *e = open_rounds(archs[a], cases[i].rounds, cases[i].keep);
            struct Brute b = {.p = asked()};
            struct Run run;
            for (int t = 3; t < 12; t++) b.marked[t] = true;
            e->settings.wave = cases[i].wave;
            run_open_prompt(&run, e, asked());
            assert_int_equal(run.s.plan.n_chunks, 9);
            assert_int_equal(run.s.plan.rounds, cases[i].rounds);
            must(session_stages(&run.s, false));
            assert_int_equal(run.s.prompt.tail.n, input.tail); /* the question as it was */
            assert_memory_equal(run.s.prompt.tail.ids, b.p.tail.ids, sizeof(int) * 20);
            assert_int_equal(run.s.prompt.score_begin, 3);
            check_rounds(&run, &b);
            run_close(&run);
            prompt_free(&b.p);
            engine_close(e);
        }
}

/* ==== What rounds leave alone ==== */

/* The first round's chunks and scores are those of a run of one round with that much to keep, to the bit; and two runs
 * are the same. */
static void test_first_round(void **state)
{
    (void)state;
    for (int cap = 0; cap < 2; cap++)
        for (int keep = 2; keep < 6; keep++) {
            struct Engine *e = open_rounds("llama", 1, keep - keep / 2);
            if (cap) e->settings.kv_cap = 50;
            struct Outcome one = outcome_of(e, asked());
            e->settings.rounds = 2;
            e->settings.keep = keep;
            struct Outcome two = outcome_of(e, asked()), again = outcome_of(e, asked());
            same_bits(&two, &again);
            int n = 0;
            for (int c = 0; c < 9; c++) {
                if (one.kept[c]) assert_true(two.kept[c] && two.score[c] == one.score[c]);
                n += two.kept[c];
            }
            assert_int_equal(n, keep);
            engine_close(e);
        }
}

/* Which way the chunks came to be kept makes no difference to the answer: BM25 of a text without any of the question's words
 * keeps the first ones in any number of rounds. */
static void test_same_answer(void **state)
{
    (void)state;
    struct Engine *e = open_engine("qwen2", PRECISION_INT16, 1);
    struct Str text = {0};
    struct Result one, more;
    for (int i = 0; i < 1500; i++) must(str_append(&text, i % 5 == 4 ? " " : "q", 1));
    struct Request req = {
        .context = text.data, .context_len = text.len, .question = "Where is xyzzy?"};
    e->settings.chunk_score = SCORE_BM25;
    e->settings.keep = 4;
    must(session_run(e, &req, &one));
    for (int rounds = 2; rounds < 5; rounds++) {
        e->settings.rounds = rounds;
        must(session_run(e, &req, &more));
        for (int c = 0; c < more.plan.n_chunks; c++)
            assert_int_equal(more.chunks[c].kept, one.chunks[c].kept);
        assert_int_equal(more.logits_hash, one.logits_hash);
        assert_int_equal(more.n_ids, one.n_ids);
        assert_memory_equal(more.ids, one.ids, sizeof(int) * (size_t)one.n_ids);
        result_free(&more);
    }
    result_free(&one);
    str_free(&text);
    engine_close(e);
}

/* ==== Chains ==== */

/* Three facts of which each names the next, far apart in filler, in no order; the question names the first alone. */
static const char *const links[] = {"Take xyzzy to plugh now. ", "Take plugh to frobozz now. ",
                                    "Take frobozz to gnusto now. "};
enum { CHAIN = 3, WORDS = 420 };
static const int link_at[CHAIN] = {182, 392, 63};

static void chain_text(struct Str *text, bool wrapped)
{
    str_clear(text);
    for (int i = 0; i < WORDS; i++) {
        const char *words = i % 7 == 6 ? "Nothing here. " : "nothing to see, ";
        for (int l = 0; l < CHAIN; l++)
            if (i == link_at[l]) words = links[l];
        must(str_append(text, words, strlen(words)));
    }
    /* a line that breaks within a sentence does not end it */
    for (char *c = text->data; wrapped && (c = strstr(c, " to ")); c++) *c = '\n';
}

static int chunk_of(const struct Result *r, size_t at)
{
    for (int c = 0; c < r->plan.n_chunks; c++)
        if (at >= r->chunks[c].byte_begin && at < r->chunks[c].byte_end) return c;
    fail();
    return -1;
}

/* Where a link stands, wherever its line breaks. */
static size_t link_place(const struct Str *text, int l)
{
    static const char *const last[] = {"plugh now", "frobozz now", "gnusto now"};
    return (size_t)(strstr(text->data, last[l]) - text->data);
}

static struct Engine *open_chain(enum ChunkScore score, int rounds)
{
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    e->settings.chunk_score = score;
    e->settings.rounds = rounds;
    e->settings.keep = CHAIN;
    return e;
}

/* Each round finds the chunk that the one before names; one round alone finds the first. */
static void check_chain(const struct Result *r, const struct Str *text)
{
    int rounds = r->plan.rounds;
    for (int l = 0; l < CHAIN; l++) {
        int at = chunk_of(r, link_place(text, l));
        if (l < rounds) assert_int_equal(r->chunks[at].round, rounds == 1 ? 0 : l + 1);
        if (l < rounds) assert_true(r->chunks[at].kept);
        if (rounds == 1 && l) assert_false(r->chunks[at].kept);
        if (l >= rounds - 1) continue;
        assert_non_null(
            memmem(r->found[l].data, r->found[l].len, l ? "frobozz now" : "plugh now", 9));
        assert_true(r->found[l].len < 40); /* the sentence and nothing else */
    }
}

static void test_chain(void **state)
{
    (void)state;
    static const enum ChunkScore scores[] = {SCORE_BM25, SCORE_FUSION};
    struct Str text = {0};
    for (int wrapped = 0; wrapped < 2; wrapped++)
        for (int rounds = 1; rounds <= CHAIN; rounds += 2)
            for (int i = 0; i < 2 * (rounds - 1) + 1; i++) {
                struct Engine *e = open_chain(scores[i % 2], rounds);
                struct Result r;
                chain_text(&text, wrapped);
                struct Request req = {
                    .context = text.data, .context_len = text.len, .question = "Where is xyzzy?"};
                if (i / 2) e->settings.prefilter = 4;
                must(session_run(e, &req, &r));
                assert_true(r.plan.n_chunks > 20);
                check_chain(&r, &text);
                result_free(&r);
                engine_close(e);
            }
    str_free(&text);
}

/* ==== Streams and stores ==== */

static void same_results(const struct Engine *e, const struct Result *a, const struct Result *b)
{
    int heads = e->model.cfg.n_layers * e->model.cfg.n_kv_heads;
    assert_int_equal(a->plan.n_chunks, b->plan.n_chunks);
    for (int c = 0; c < a->plan.n_chunks; c++) {
        assert_int_equal(a->chunks[c].round, b->chunks[c].round);
        assert_true(a->chunks[c].score == b->chunks[c].score ||
                    (isnan(a->chunks[c].score) && isnan(b->chunks[c].score)));
    }
    for (int r = 0; r < a->plan.rounds - 1; r++) {
        assert_int_equal(a->found[r].len, b->found[r].len);
        assert_memory_equal(a->found[r].data, b->found[r].data, a->found[r].len);
    }
    assert_memory_equal(a->kv_kept, b->kv_kept, sizeof *a->kv_kept * (size_t)heads);
    assert_int_equal(a->logits_hash, b->logits_hash);
    assert_int_equal(a->n_ids, b->n_ids);
    assert_memory_equal(a->ids, b->ids, sizeof(int) * (size_t)a->n_ids);
}

static void run_stream(struct Engine *e, const char *path, struct Result *r)
{
    struct TextStream stream = {0};
    struct Request req = {.stream = &stream, .question = "Where is xyzzy?"};
    must(text_stream_open(&stream, &path, 1));
    must(session_run(e, &req, r));
    text_stream_close(&stream);
}

static void run_store(struct Engine *e, const struct Request *text, const char *path,
                      struct Result *r)
{
    struct IndexInfo made;
    struct Store store;
    must(session_index(e, text, path, true, &made));
    must(store_open(path, &store));
    struct Request req = {.store = &store, .question = text->question};
    must(session_run(e, &req, r));
    store_close(&store);
}

static void test_sources(void **state)
{
    (void)state;
    struct Str text = {0};
    char path[32], indexed[32];
    temp_name(path);
    temp_name(indexed);
    unlink(indexed);
    for (int turn = 0; turn < 8; turn++) {
        struct Engine *e = open_chain(turn % 2 ? SCORE_FUSION : SCORE_QUESTION, 2 + turn / 2 % 2);
        struct Result memory, streamed, stored;
        if (turn >= 4) e->settings.kv_cap = 40;
        if (turn % 2) e->settings.precision = PRECISION_INT16;
        e->settings.wave = turn % 3;
        chain_text(&text, turn & 1);
        if (turn == 3) hostile_text(&text, 3000, 7);
        struct Request req = {
            .context = text.data, .context_len = text.len, .question = "Where is xyzzy?"};
        write_text(path, text.data, text.len);
        must(session_run(e, &req, &memory));
        run_stream(e, path, &streamed);
        same_results(e, &memory, &streamed);
        run_store(e, &req, indexed, &stored);
        same_results(e, &memory, &stored);
        assert_true(stored.plan.read_share < memory.plan.read_share);
        result_free(&memory);
        result_free(&streamed);
        result_free(&stored);
        engine_close(e);
    }
    unlink(path);
    unlink(indexed);
    str_free(&text);
}

/* ==== Ranks, heads, early decisions ==== */

static struct Case case_of(int rounds)
{
    struct Case c = base;
    c.rounds = rounds;
    c.keep = 2 + rounds;
    return c;
}

static void test_team(void **state)
{
    (void)state;
    for (int n = 0; n < 8; n++) {
        struct Case c = case_of(2 + n % 2);
        struct Report one, many[TEAM_MAX];
        c.wave = n % 4;
        c.heads = n % 4 == 1;
        c.answer = n / 2 % 2 ? ANSWER_ALL : ANSWER_LEAD;
        c.n_calib = n == 4 ? 2 : 0;
        c.early_at = n >= 6 ? "1:6,2:5" : NULL;
        c.chunk_bias = n == 5 ? 0.5f : 0;
        must(run_team(&c, 1, &one));
        for (int i = 1; i < N_SIZES; i++) {
            must(run_team(&c, SIZES[i], many));
            if (c.answer == ANSWER_LEAD) same_bits(&one.o, &many[0].o);
            assert_int_equal(one.o.n_ids, many[0].o.n_ids);
            assert_memory_equal(one.o.ids, many[0].o.ids, sizeof one.o.ids);
            for (int r = 0; r < SIZES[i]; r++)
                assert_memory_equal(many[r].o.kept, one.o.kept, sizeof one.o.kept);
        }
    }
}

/* A margin for all changes nothing; a narrow one keeps as many. */
static void test_early(void **state)
{
    (void)state;
    for (int heads = 0; heads < 2; heads++) {
        struct Case c = case_of(2);
        struct Report off, on;
        c.heads = heads;
        must(run_team(&c, 1, &off));
        c.early_at = "1:99,2:99";
        must(run_team(&c, 1, &on));
        same_bits(&off.o, &on.o);
        c.early_at = "1:5,2:4";
        must(run_team(&c, 1, &on));
        int kept = 0;
        for (int i = 0; i < on.o.n_chunks; i++) kept += on.o.kept[i];
        assert_int_equal(kept, c.keep);
    }
}

/* ==== A device that chooses ==== */

/* What the device's own kernel does, with the policy of the host. */
static int keep_by_policy(struct Device *d, const struct AttnArgs *args, const struct KeepArgs *k)
{
    enum { KEYS = 512, HEADS = 2, WAVE = 16 };
    static float mass[WAVE * HEADS * KEYS], work[KEYS];
    const struct Backend *cpu = &backend_cpu;
    TRY(cpu->attn_mass(d, args, k->obs_rows, mass, KEYS));
    for (int i = 0; i < args->n_seqs * HEADS; i++) {
        struct KvEvict rule = {k->cap, k->pool};
        const float *of = mass + (size_t)i * KEYS + k->first;
        kv_evict(&rule, of, k->n[i / HEADS], work, kept_at(k, HEADS, i));
    }
    return PC_OK;
}

static void test_device(void **state)
{
    (void)state;
    struct Backend chooses = backend_cpu;
    chooses.keep = keep_by_policy;
    for (int wave = 0; wave < 4; wave++) {
        struct Case c = case_of(3);
        struct Report host, device;
        c.wave = wave;
        must(run_team(&c, 1, &host));
        c.backend = &chooses;
        must(run_team(&c, 1, &device));
        same_bits(&host.o, &device.o);
    }
}

/* ==== Memory and failures ==== */

static void test_memory(void **state)
{
    (void)state;
    size_t used[2];
    for (int i = 0; i < 4; i++) {
        struct Case c = case_of(3);
        struct Report r;
        c.wave = 2;
        c.input.context = i % 2 ? 4000 : 2000;
        if (i >= 2) c.early_at = "1:6,2:5";
        must(run_team(&c, 1, &r));
        used[i % 2] = r.used;
        double off = fabs((double)r.used - (double)r.planned);
        if (off > 0.05 * (double)r.planned + 4096)
            fail_msg("%zu bytes taken, %zu planned", r.used, r.planned);
        if (i % 2) assert_true(used[1] - used[0] < 2000 * 64); /* ids, cuts and scores */
    }
}

static void test_faults(void **state)
{
    (void)state;
    struct Str text = {0};
    size_t before;
    long failed = 0;
    chain_text(&text, false);
    before = mem_in_use();
    for (long n = 1;; n++) {
        struct Engine *e = open_chain(SCORE_FUSION, 2);
        struct Request req = {
            .context = text.data, .context_len = text.len, .question = "Where is xyzzy?"};
        struct Result r = {0};
        mem_fail_after(n);
        int status = session_run(e, &req, &r);
        mem_fail_after(0);
        result_free(&r);
        engine_close(e);
        assert_int_equal(mem_in_use(), before);
        if (status == PC_OK) break;
        assert_int_equal(status, PC_ENOMEM);
        failed = n;
    }
    assert_true(failed > 40);
    str_free(&text);
}

static void test_ranks_fail(void **state)
{
    (void)state;
    for (int after = 1; after < 40; after += 6) {
        struct Case c = case_of(2);
        struct Report all[TEAM_MAX];
        c.trouble = STOPPED;
        c.victim = 1;
        c.after = after;
        int status = run_team(&c, 2, all);
        assert_true(status == PC_OK || status == PC_EINTR);
    }
}

/* ==== Plans and refusals ==== */

static void test_plan(void **state)
{
    (void)state;
    struct Run run = {0};
    struct Engine *e = open_rounds("llama", 3, AUTO);
    run_open(&run, e, input);
    assert_int_equal(run.s.plan.keep, 4);
    assert_int_equal(run.s.plan.rounds, 3);
    assert_int_equal(run.s.plan.n_found, 2 * FOUND_MOST);
    assert_true(run.s.plan.read_share == 3);
    run_close(&run);
    e->settings.keep = 2;
    struct Prompt p = make_prompt(input);
    assert_int_equal(session_open(&run.s, e, &no_request, &p, &run.r), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "--keep 3"));
    session_close(&run.s);
    result_free(&run.r);
    e->settings.keep = KEEP_ALL; /* nothing to choose */
    run_open(&run, e, input);
    assert_true(run.s.plan.rounds == 1 && run.s.plan.n_found == 0);
    must(session_stages(&run.s, false));
    run_close(&run);
    e->settings.keep = 9;
    run_open(&run, e, input);
    assert_int_equal(run.s.plan.rounds, 1);
    run_close(&run);
    e->settings.method = METHOD_FULL;
    run_open(&run, e, input);
    assert_int_equal(run.s.plan.rounds, 1);
    run_close(&run);
    engine_close(e);
}

/* Progress goes on from round to round and ends whole. */
static int seen, seen_of;
static int64_t seen_tokens, seen_tokens_of;
static void watch(void *user, const struct Progress *p)
{
    (void)user;
    if (p->stage != STAGE_PREFILL) return;
    assert_true(p->chunks_done >= seen && p->tokens_done >= seen_tokens);
    assert_true(p->chunks_done <= p->n_chunks && p->tokens_done <= p->n_tokens);
    seen = p->chunks_done, seen_of = p->n_chunks;
    seen_tokens = p->tokens_done, seen_tokens_of = p->n_tokens;
}

static void test_progress(void **state)
{
    (void)state;
    for (int early = 0; early < 2; early++) {
        struct Engine *e = open_rounds("llama", 3, 5);
        struct Request req = {.question = "", .on_progress = watch};
        struct Run run = {0};
        struct Prompt p = make_prompt(input);
        seen = seen_of = 0;
        seen_tokens = 0;
        if (early) e->settings.early = EARLY_AUTO, strcpy(e->settings.early_at, "1:6");
        must(session_open(&run.s, e, &req, &p, &run.r));
        must(session_stages(&run.s, false));
        assert_int_equal(seen, 9 + 6 + 5);
        assert_int_equal(seen, seen_of);
        assert_int_equal(seen_tokens, seen_tokens_of);
        run_close(&run);
        engine_close(e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_brute),       cmocka_unit_test(test_first_round),
        cmocka_unit_test(test_same_answer), cmocka_unit_test(test_chain),
        cmocka_unit_test(test_sources),     cmocka_unit_test(test_team),
        cmocka_unit_test(test_early),       cmocka_unit_test(test_device),
        cmocka_unit_test(test_memory),      cmocka_unit_test(test_faults),
        cmocka_unit_test(test_ranks_fail),  cmocka_unit_test(test_plan),
        cmocka_unit_test(test_progress),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
