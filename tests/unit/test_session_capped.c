/* test_session_capped.c - capped stores: of each chunk a head has those tokens that a plain forward pass over chunk and vote
 * finds most attended, with the very bytes that a whole store has of them; an answer is what the same tokens give out of a whole
 * store, and a chunk's score what the question's words cost over them. Rules and caps of a question name tokens by their
 * places in the chunk. Bytes, waves, interrupted runs, what is refused, memory, faults.
 */
#include "tests/unit/session_support.h"

#include "cpu.h"
#include "eviction/kv_evict.h"

enum { BYTES = 1700, CAP = 40 };

static char text[BYTES], path[] = "/tmp/pcomp_capped_XXXXXX",
                         whole_path[] = "/tmp/pcomp_whole_XXXXXX";
static const char question[] = "Where is xyzzy?";

static int free_name(char *name)
{
    int fd = mkstemp(name);
    if (fd < 0) return -1;
    close(fd);
    return unlink(name);
}

static int prepare(void **state)
{
    (void)state;
    uint64_t seed = 3;
    for (int i = 0; i < BYTES; i++)
        text[i] = i % 6 == 5 ? ' ' : (char)('a' + next_number(&seed) % 26);
    memcpy(text + 1111, " XYZZY ", 7);
    return free_name(path) || free_name(whole_path) ? -1 : 0;
}

static int clean(void **state)
{
    char part[64];
    (void)state;
    snprintf(part, sizeof part, "%s.part", path);
    unlink(path);
    unlink(part);
    unlink(whole_path);
    return 0;
}

static struct IndexInfo index_at(struct Engine *e, int cap, const char *at)
{
    struct IndexInfo made;
    struct Request req = {.context = text, .context_len = BYTES, .question = ""};
    e->settings.store_cap = cap;
    must(session_index(e, &req, at, true, &made));
    assert_int_equal(made.n_done, made.plan.n_chunks);
    return made;
}

/* Indexes with that cap, and leaves it set. */
static void open_capped(struct Engine *e, int cap, struct Store *out)
{
    index_at(e, cap, path);
    must(store_open(path, out));
    assert_int_equal(out->info.cap, cap);
}

static int chunk_len(const struct Store *s, int c)
{
    return s->info.chunks[c].end - s->info.chunks[c].begin;
}

static struct StoreChunk chunk_of(struct Store *s, int c)
{
    struct StoreChunk chunk;
    must(store_chunk(s, c, &chunk));
    return chunk;
}

/* Tokens that a head has of a chunk, in order; returns how many. */
static int tokens_of(struct Store *s, int c, int head, int *tokens)
{
    int n = 0, len = chunk_len(s, c);
    struct StoreChunk chunk = chunk_of(s, c);
    const uint8_t *marks = chunk.marks + (size_t)head * store_mark_bytes(&s->info, len);
    for (int t = 0; t < len; t++)
        if (!chunk.marks || store_marked(marks, t)) tokens[n++] = t;
    return n;
}

/* ==== Which tokens ==== */

enum { VOTES_POOL = 31 };

/* The tail that votes, as the session has it. */
static struct Prompt vote_prompt(struct Engine *e)
{
    struct Prompt p = {0};
    struct Request req = {.context = text, .context_len = BYTES, .question = ""};
    must(index_prompt(e, &req, &p));
    return p;
}

/* No token that was left out has more votes, pooled, than one that was kept. */
static void check_votes(struct Engine *e, struct Store *s, int c, const struct Forward *f)
{
    const struct ModelConfig *m = &e->model.cfg;
    int tokens[1024], len = chunk_len(s, c), first = s->info.n_prefix, votes = f->n - first - len;
    double mass[2048];
    for (int h = 0; h < m->n_layers * m->n_kv_heads; h++) {
        int n = tokens_of(s, c, h, tokens), at = 0;
        double least = INFINITY, most = 0;
        assert_int_equal(n, s->info.cap < len ? s->info.cap : len);
        brute_mass(f, h / m->n_kv_heads, h % m->n_kv_heads, votes, mass);
        for (int t = 0; t < len; t++) {
            double pooled = 0;
            for (int j = t - VOTES_POOL / 2; j <= t + VOTES_POOL / 2; j++)
                if (j >= 0 && j < len) pooled = fmax(pooled, mass[first + j]);
            bool kept = at < n && tokens[at] == t;
            at += kept;
            if (kept) least = fmin(least, pooled);
            if (!kept) most = fmax(most, pooled);
        }
        assert_int_equal(at, n);
        if (n < len && most > least * 1.001 + 1e-6)
            fail_msg("%s: head %d of chunk %d has a token of %g and leaves one of %g", m->arch, h,
                     c, least, most);
    }
}

static void test_votes(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_engine(archs[a], PRECISION_F32, 1);
        struct Store s;
        struct Prompt p = vote_prompt(e);
        assert_true(p.tail.n > 8);
        open_capped(e, CAP, &s);
        for (int c = 0; c < s.info.n_chunks; c += 3) {
            struct Tokens ids = join(&p, s.info.chunks[c].begin, s.info.chunks[c].end);
            struct Forward f = forward(e, ids);
            check_votes(e, &s, c, &f);
            forward_free(&f);
            tokens_free(&ids);
        }
        prompt_free(&p);
        store_close(&s);
        engine_close(e);
    }
}

/* ==== What of them ==== */

static void read_token(struct Engine *e, const struct StoreChunk *c, uint32_t page, int at,
                       float *k, float *v)
{
    struct PagePool pool = {.data = (uint8_t *)(uintptr_t)c->pages,
                            .page_bytes = e->be->page_bytes(e->dev)};
    must(e->be->kv_read(e->dev, &pool,
                        (struct PageRef){page + (uint32_t)(at / PAGE_TOKENS), PAGE_TOKENS, 0},
                        at % PAGE_TOKENS, k, v));
}

/* Every token of a capped store is, to the bit, that of a whole one; so are the rows behind the last layer. */
static void check_bytes(struct Engine *e)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct Store s, whole;
    index_at(e, CAP_OFF, whole_path);
    must(store_open(whole_path, &whole));
    open_capped(e, CAP, &s);
    assert_int_equal(s.info.n_chunks, whole.info.n_chunks);
    for (int c = 0; c < s.info.n_chunks; c++) {
        struct StoreChunk a = chunk_of(&s, c), b = chunk_of(&whole, c);
        uint32_t page_a = 0, page_b = 0;
        assert_memory_equal(a.last, b.last, sizeof(float) * (size_t)m->dim);
        assert_null(b.marks);
        for (int h = 0; h < m->n_layers * m->n_kv_heads; h++) {
            int tokens[1024], n = tokens_of(&s, c, h, tokens);
            float have[2][HEAD_DIM_MAX], want[2][HEAD_DIM_MAX];
            for (int i = 0; i < n; i++) {
                read_token(e, &a, page_a, i, have[0], have[1]);
                read_token(e, &b, page_b, tokens[i], want[0], want[1]);
                for (int kv = 0; kv < 2; kv++)
                    assert_memory_equal(have[kv], want[kv], sizeof(float) * (size_t)m->head_dim);
            }
            page_a += (uint32_t)((n + PAGE_TOKENS - 1) / PAGE_TOKENS);
            page_b += (uint32_t)((chunk_len(&s, c) + PAGE_TOKENS - 1) / PAGE_TOKENS);
        }
        assert_int_equal(a.n_pages, page_a);
        assert_int_equal(b.n_pages, page_b);
    }
    store_close(&s);
    store_close(&whole);
}

static void test_bytes(void **state)
{
    (void)state;
    each_engine(check_bytes);
}

static void test_bytes_codes(void **state)
{
    (void)state;
    for (enum KvType type = KV_Q8; type <= KV_Q4; type++) {
        struct Engine *e = open_engine_of("llama", PRECISION_INT16, type, 1);
        check_bytes(e);
        engine_close(e);
    }
}

/* ==== The same file, whoever chooses and however many at once ==== */

static int device_keep(struct Device *d, const struct AttnArgs *args, const struct KeepArgs *k)
{
    enum { KEYS = 1024, HEADS = 16, SEQS = 8 };
    static float mass[SEQS * HEADS * KEYS], work[KEYS];
    int heads = args->n_seqs ? 2 : 0, all[KEYS];
    struct KvEvict rule = {k->cap, k->pool};
    assert_true(args->n_seqs <= SEQS);
    TRY(backend_cpu.attn_mass(d, args, k->obs_rows, mass, KEYS));
    for (int i = 0; i < args->n_seqs * heads; i++) {
        int n = kv_evict(&rule, mass + (size_t)i * KEYS + k->first, k->n[i / heads], work, all);
        memcpy(kept_at(k, heads, i), all, sizeof *all * (size_t)n);
    }
    return PC_OK;
}

/* Slots behind a head's last token hold anything. */
static void same_stores(struct Engine *e, struct Store *a, struct Store *b)
{
    const struct ModelConfig *m = &e->model.cfg;
    for (int c = 0; c < a->info.n_chunks; c++) {
        struct StoreChunk x = chunk_of(a, c), y = chunk_of(b, c);
        uint32_t page = 0;
        assert_true(distance(x.last, y.last, m->dim) <
                    1e-2); /* a wave's size decides how it is summed */
        assert_memory_equal(x.marks, y.marks, store_marks_bytes(&a->info, chunk_len(a, c)));
        for (int h = 0; h < m->n_layers * m->n_kv_heads; h++, page++)
            for (int i = 0; i < CAP; i++) {
                float have[2][HEAD_DIM_MAX] = {{0}}, want[2][HEAD_DIM_MAX] = {{0}};
                read_token(e, &x, page, i, have[0], have[1]);
                read_token(e, &y, page, i, want[0], want[1]);
                assert_memory_equal(have, want, sizeof have);
            }
    }
}

static void test_same_file(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Backend on_device = *e->be;
    const struct Backend *be = e->be;
    struct Store want, have;
    assert_int_equal(e->model.cfg.n_kv_heads, 2);
    on_device.keep = device_keep;
    e->settings.wave = 1;
    index_at(e, CAP, whole_path);
    must(store_open(whole_path, &want));
    for (int i = 0; i < 4; i++) {
        e->settings.wave = 1 + 2 * i;
        e->be = i % 2 ? &on_device : be;
        open_capped(e, CAP, &have);
        e->be = be;
        same_stores(e, &have, &want);
        store_close(&have);
    }
    store_close(&want);
    engine_close(e);
}

/* ==== Asked ==== */

/* A session that has answered, for the caller to look at and close; logits of the first row. */
static void ask(struct Engine *e, struct Store *store, struct Run *run)
{
    static struct Request req;
    struct Prompt p = {0};
    req = (struct Request){
        .context = text, .context_len = BYTES, .store = store, .question = question};
    memset(run, 0, sizeof *run);
    run->s.store = store;
    must(session_prompt(e, &req, &p));
    must(session_open(&run->s, e, &req, &p, &run->r));
    must(session_stages(&run->s, false));
    must(question_pass(&run->s));
    memcpy(run->logits, run->s.logits, sizeof(float) * (size_t)e->model.cfg.vocab_size);
    must(decode_answer(&run->s));
}

/* Of a whole store that is asked, the tokens that another one has: chunks come one by one, in all layers. */
static struct {
    struct Store *store;
    int n_layers, calls;
} told;

static int keep_told(struct Device *d, const struct AttnArgs *args, const struct KeepArgs *k)
{
    int chunk = told.calls++ / told.n_layers, heads = told.store->info.n_kv_heads, tokens[1024];
    (void)d;
    for (int h = 0; h < heads; h++) {
        int n = tokens_of(told.store, chunk, args->layer * heads + h, tokens);
        memcpy(k->keep + (size_t)h * (size_t)k->stride, tokens, sizeof(int) * (size_t)n);
    }
    return PC_OK;
}

/* The whole store's answer over these tokens. */
static void ask_told(struct Engine *e, struct Store *whole, struct Store *capped, struct Run *run)
{
    struct Backend table = *e->be;
    const struct Backend *real = e->be;
    table.keep = keep_told;
    told.store = capped;
    told.n_layers = e->model.cfg.n_layers;
    told.calls = 0;
    e->be = &table;
    e->settings.kv_cap = CAP;
    e->settings.store_cap = CAP_OFF;
    ask(e, whole, run);
    assert_int_equal(told.calls, told.n_layers * whole->info.n_chunks);
    run->s.tf.be = run->s.kv.be = real;
    e->be = real;
    e->settings.kv_cap = CAP_OFF;
    e->settings.store_cap = CAP;
}

static void check_answer(struct Engine *e)
{
    struct Store s, whole;
    struct Run a, b;
    e->settings.keep = KEEP_ALL;
    e->settings.kv_cap = CAP_OFF;
    e->settings.wave = 1;
    index_at(e, CAP_OFF, whole_path);
    must(store_open(whole_path, &whole));
    open_capped(e, CAP, &s);
    ask(e, &s, &a);
    for (int h = 0; h < a.s.merged.n_heads; h++)
        assert_int_equal(a.r.kv_kept[h], CAP * s.info.n_chunks);
    ask_told(e, &whole, &s, &b);
    assert_memory_equal(a.logits, b.logits, sizeof(float) * (size_t)e->model.cfg.vocab_size);
    assert_int_equal(a.r.n_ids, b.r.n_ids);
    assert_memory_equal(a.r.ids, b.r.ids, sizeof(int) * (size_t)a.r.n_ids);
    run_close(&a);
    run_close(&b);
    store_close(&s);
    store_close(&whole);
}

static void test_answer(void **state)
{
    (void)state;
    each_engine(check_answer);
}

/* The kept chunk's score is what the question's own words cost over its tokens in the store. */
static void check_score(struct Engine *e)
{
    struct Store s;
    struct Run run;
    float nll[256];
    e->settings.keep = 1;
    e->settings.chunk_score = SCORE_QUESTION;
    open_capped(e, CAP, &s);
    ask(e, &s, &run);
    int begin = run.s.prompt.score_begin, end = run.s.prompt.score_end, chunk = -1;
    double sum = 0;
    for (int c = 0; c < s.info.n_chunks; c++)
        if (run.r.chunks[c].kept) chunk = c;
    assert_true(begin > 0 && end > begin && run.s.prompt.tail.n < 256);
    run_close(&run);
    struct Request req = {.store = &s, .question = question};
    struct Prompt p = {0};
    memset(&run, 0, sizeof run);
    run.s.store = &s;
    must(session_prompt(e, &req, &p));
    must(session_open(&run.s, e, &req, &p, &run.r));
    must(session_stages(&run.s, false));
    must(question_nll(&run.s, nll));
    for (int t = begin; t < end; t++) sum += nll[t];
    double want = sum / (end - begin), have = run.r.chunks[chunk].score;
    if (!(fabs(want - have) < (e->settings.precision == PRECISION_F32 ? 1e-4 : 0.05)))
        fail_msg("%s: chunk %d has the score %g, and its tokens give %g", e->model.cfg.arch, chunk,
                 have, want);
    run_close(&run);
    store_close(&s);
}

static void test_score(void **state)
{
    (void)state;
    each_engine(check_score);
}

/* What the question's rows pay to a chunk's tokens in the first head, by what attention says; its own rows come behind. */
static struct {
    const struct Backend *real;
    int before, n_chunks;
    double paid[64], own[64];
} masses;

static int note_mass(struct Device *d, const struct AttnArgs *args, int rows, float *mass,
                     int stride)
{
    TRY(masses.real->attn_mass(d, args, rows, mass, stride));
    int c = masses.n_chunks++;
    for (int i = 0; i < CAP; i++) masses.paid[c] += (double)mass[masses.before + i];
    for (int i = CAP; i < CAP + 4; i++) masses.own[c] += (double)mass[masses.before + i];
    return PC_OK;
}

static void check_attention(struct Engine *e)
{
    struct Store s;
    struct Run plain, run;
    struct Backend table = *e->be;
    const struct ModelConfig *m = &e->model.cfg;
    e->settings.kv_cap = CAP_OFF;
    e->settings.wave = 1;
    e->settings.chunk_score = SCORE_FUSION;
    e->chunks = (struct ChunkProfile){
        .n_layers = m->n_layers, .n_kv_heads = m->n_kv_heads, .n_stops = 1, .nats = 0.5f};
    e->chunks.last = (struct ChunkStop){.layer = m->n_layers, .n_heads = 1};
    e->chunks.last.heads[0] = (struct StopHead){0, 0, MEASURE_SUM, EARLY_ROWS, 1};
    open_capped(e, CAP, &s);
    ask(e, &s, &plain);
    memset(&masses, 0, sizeof masses);
    masses.real = e->be;
    masses.before = plain.s.prompt.prefix.n;
    table.attn_mass = note_mass;
    e->be = &table;
    e->settings.chunk_score = SCORE_ATTENTION;
    ask(e, &s, &run);
    run.s.tf.be = run.s.kv.be = e->be = masses.real;
    assert_int_equal(masses.n_chunks, s.info.n_chunks);
    int rows = min_int(EARLY_ROWS, run.s.prompt.tail.n) * (m->n_heads / m->n_kv_heads);
    for (int c = 0; c < s.info.n_chunks; c++) {
        double want = plain.r.chunks[c].score - 0.5 * log(masses.paid[c] / rows);
        assert_true(masses.own[c] > 0);
        assert_true(fabs(run.r.chunks[c].score - want) < 1e-5);
    }
    run_close(&run);
    run_close(&plain);
    store_close(&s);
}

static void test_attention(void **state)
{
    (void)state;
    each_engine(check_attention);
}

/* A cap that no chunk reaches takes nothing away; nor does a question's own that is no lower than the store's. */
static void test_loose(void **state)
{
    (void)state;
    struct Engine *e = open_engine("qwen2", PRECISION_INT16, 1);
    struct Store s;
    struct Run a, b;
    e->settings.kv_cap = CAP_OFF;
    open_capped(e, 500, &s);
    ask(e, &s, &a);
    store_close(&s);
    e->settings.store_cap = CAP_OFF;
    index_at(e, CAP_OFF, whole_path);
    must(store_open(whole_path, &s));
    ask(e, &s, &b);
    assert_memory_equal(a.logits, b.logits, sizeof(float) * (size_t)e->model.cfg.vocab_size);
    run_close(&a);
    run_close(&b);
    store_close(&s);
    open_capped(e, CAP, &s);
    ask(e, &s, &a);
    e->settings.kv_cap = CAP + 20;
    ask(e, &s, &b);
    assert_null(b.s.mass);
    assert_memory_equal(a.logits, b.logits, sizeof(float) * (size_t)e->model.cfg.vocab_size);
    run_close(&a);
    run_close(&b);
    store_close(&s);
    engine_close(e);
}

/* ==== A question's own choice ==== */

/* Every kept token is one that the store has, in order and by its place in the chunk. */
static void check_named(const struct Run *run, struct Store *s, int most)
{
    for (int c = 0; c < s->info.n_chunks; c++) {
        const struct Slot *slot = session_slot((struct Session *)(uintptr_t)&run->s, c);
        for (int h = 0; slot && h < run->s.merged.n_heads; h++) {
            int tokens[1024], n = tokens_of(s, c, h, tokens), at = 0;
            assert_true(slot->kept[h] <= most);
            for (int j = 0; j < slot->kept[h]; j++) {
                int token = slot->index[(size_t)h * (size_t)run->s.cap + (size_t)j];
                while (at < n && tokens[at] < token) at++;
                assert_true(at < n);
                assert_int_equal(tokens[at++], token);
            }
        }
    }
}

static void check_choice(struct Engine *e)
{
    struct Store s;
    struct Run run;
    e->settings.kv_cap = 25;
    e->settings.keep = 3;
    open_capped(e, CAP, &s);
    ask(e, &s, &run);
    for (int h = 0; h < run.s.merged.n_heads; h++) assert_int_equal(run.r.kv_kept[h], 3 * 25);
    check_named(&run, &s, 25);
    run_close(&run);
    store_close(&s);
}

static void test_choice(void **state)
{
    (void)state;
    each_engine(check_choice);
}

/* Tokens of a class that a rule drops at any attention are gone, and those are the ones that stand there in the chunk. */
static void check_rule(struct Engine *e, enum TokenClass which, int stage)
{
    enum { REGION = 30 };
    struct Store s;
    struct Run run;
    e->settings.kv_cap = CAP_OFF;
    e->settings.keep = 2;
    e->settings.n_calib = 0;
    add_rule(e, (struct CalibRule){which, 0, LAYERS - 1, 0, REGION, 0, stage});
    open_capped(e, CAP, &s);
    ask(e, &s, &run);
    check_named(&run, &s, CAP);
    for (int c = 0; c < s.info.n_chunks; c++) {
        const struct Slot *slot = session_slot(&run.s, c);
        int len = chunk_len(&s, c), tokens[1024];
        for (int h = 0; slot && h < run.s.merged.n_heads; h++) {
            int n = tokens_of(&s, c, h, tokens), left = 0, *index = slot->index + (size_t)h * CAP;
            for (int i = 0; i < n; i++) left += calib_class(tokens[i], len, REGION) != which;
            assert_int_equal(slot->kept[h], left);
            for (int j = 0; j < left; j++)
                assert_int_not_equal(calib_class(index[j], len, REGION), which);
        }
    }
    run_close(&run);
    store_close(&s);
}

static void test_rules(void **state)
{
    (void)state;
    for (int stage = 1; stage <= 2; stage++)
        for (int which = CLASS_SINK; which <= CLASS_RECENT; which++) {
            struct Engine *e = open_engine("llama", PRECISION_F32, 1);
            check_rule(e, (enum TokenClass)which, stage);
            engine_close(e);
        }
}

/* ==== Heads that stream ==== */

static void stream_half(struct Engine *e)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct HeadShape shape = {m->n_layers, m->n_heads, m->n_kv_heads};
    must(headmap_random(&shape, 4, &e->heads));
    e->heads.sink = 12;
    e->heads.recent = 30;
    e->settings.heads_ratio = 0.5f;
}

static void check_streams(struct Engine *e)
{
    struct Store s, whole;
    struct Run a, b;
    stream_half(e);
    e->settings.keep = KEEP_ALL;
    e->settings.kv_cap = CAP_OFF;
    e->settings.wave = 1;
    index_at(e, CAP_OFF, whole_path);
    must(store_open(whole_path, &whole));
    open_capped(e, CAP, &s);
    for (int h = 0; h < s.info.n_layers * s.info.n_kv_heads; h++) {
        int tokens[1024];
        assert_int_equal(tokens_of(&s, 0, h, tokens), s.info.streams[h] ? 0 : CAP);
    }
    ask(e, &s, &a);
    ask_told(e, &whole, &s, &b);
    assert_memory_equal(a.logits, b.logits, sizeof(float) * (size_t)e->model.cfg.vocab_size);
    run_close(&a);
    run_close(&b);
    store_close(&s);
    store_close(&whole);
}

static void test_streams(void **state)
{
    (void)state;
    each_engine(check_streams);
}

/* ==== Bytes ==== */

/* Keys and values take as much less as the cap says, as planned; so says who indexes. */
static void test_sizes(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    size_t page = e->be->page_bytes(e->dev),
           heads = (size_t)e->model.cfg.n_layers * (size_t)e->model.cfg.n_kv_heads;
    e->settings.chunk = 512;
    struct IndexInfo whole = index_at(e, CAP_OFF, whole_path), some = index_at(e, 128, path);
    size_t chunks = (size_t)some.plan.n_chunks;
    assert_int_equal(some.plan.store_cap, 128);
    assert_int_equal(some.plan.store_bytes, chunks * heads * 2 * page);
    assert_true(whole.plan.store_bytes >= chunks * heads * 6 * page);
    size_t rest = whole.bytes - whole.plan.store_bytes, marks = chunks * (heads * 64 + 64 + 4096);
    assert_true(some.bytes <= some.plan.store_bytes + rest + marks);
    engine_close(e);
}

/* ==== Interrupted ==== */

struct Stop {
    int after, seen;
};

static void note_progress(void *user, const struct Progress *p)
{
    ((struct Stop *)user)->seen = p->chunks_done;
}
static bool stop_now(void *user)
{
    const struct Stop *stop = user;
    return stop->seen >= stop->after;
}

static void test_interrupted(void **state)
{
    (void)state;
    struct Engine *e = open_engine("qwen3", PRECISION_INT16, 1);
    struct Store want, have;
    struct IndexInfo made;
    struct Stop stop = {4, 0};
    struct Request req = {.context = text, .context_len = BYTES, .question = ""}, stopped = req;
    e->settings.wave = 2;
    index_at(e, CAP, whole_path);
    must(store_open(whole_path, &want));
    stopped.user = &stop;
    stopped.on_progress = note_progress;
    stopped.stop = stop_now;
    assert_int_equal(session_index(e, &stopped, path, false, &made), PC_EINTR);
    assert_in_range(made.n_done, 4, 5);
    must(session_index(e, &req, path, false, &made));
    assert_in_range(made.n_before, 4, 5);
    must(store_open(path, &have));
    same_stores(e, &have, &want);
    store_close(&have);
    store_close(&want);
    engine_close(e);
}

/* ==== What does not fit ==== */

static void refused(int status, const char *words)
{
    if (status != PC_ECONFIG || !strstr(err_text(), words))
        fail_msg("status %d, '%s' for '%s'", status, err_text(), words);
}

static int run_question(struct Engine *e, struct Store *store)
{
    struct Request req = {.store = store, .question = question};
    struct Result r;
    int status = session_run(e, &req, &r);
    result_free(&r);
    return status;
}

static void test_refused(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    struct Request req = {.context = text, .context_len = BYTES, .question = ""};
    struct IndexInfo made;
    struct Store s;
    uint64_t key[3];
    open_capped(e, CAP, &s);
    must(run_question(e, &s));
    must(session_store_key(e, &req, &key[0]));
    e->settings.store_cap = CAP + 1;
    refused(run_question(e, &s), "{\"store_cap\":40}, and this is {\"store_cap\":41}");
    must(session_store_key(e, &req, &key[1]));
    refused(session_index(e, &req, path, false, &made), "another text, model or settings");
    e->settings.store_cap = CAP_OFF;
    refused(run_question(e, &s), "{\"store_cap\":40}, and this is {\"store_cap\":\"off\"}");
    must(session_store_key(e, &req, &key[2]));
    assert_true(key[0] != key[1] && key[0] != key[2] && key[1] != key[2]);
    store_close(&s);
    index_at(e, CAP_OFF, path);
    must(store_open(path, &s));
    e->settings.store_cap = CAP;
    refused(run_question(e, &s), "{\"store_cap\":\"off\"}, and this is {\"store_cap\":40}");
    store_close(&s);
    e->settings.heads_by = HEADS_BY_QUERY;
    refused(session_index(e, &req, path, true, &made), "leave out --heads-by query");
    engine_close(e);
}

/* ==== Memory and faults ==== */

static size_t held(struct Engine *e)
{
    struct BatchShape least = {.rows = 1, .seqs = 1, .keys = 1, .head_rows = 1};
    must(e->be->reserve(e->dev, &least));
    return mem_in_use();
}

static int do_index(struct Engine *e, struct Store *unused)
{
    struct IndexInfo made;
    struct Request req = {.context = text, .context_len = BYTES, .question = ""};
    (void)unused;
    clean(NULL);
    int status = session_index(e, &req, path, false, &made);
    if (status == PC_OK && made.peak_bytes > made.plan.peak_bytes + (1 << 16) + mem_in_use())
        fail_msg("index took %zu bytes, planned %zu", made.peak_bytes, made.plan.peak_bytes);
    return status;
}

static void each_fault(struct Engine *e, struct Store *store,
                       int (*act)(struct Engine *e, struct Store *store))
{
    int n = 1;
    for (int status = PC_ENOMEM; status == PC_ENOMEM; n++) {
        size_t before = held(e);
        mem_fail_after(n);
        status = act(e, store);
        mem_fail_after(0);
        if (held(e) != before) fail_msg("allocation %d failed and memory stays", n);
        assert_true(status == PC_OK || status == PC_ENOMEM);
    }
    assert_true(n > 30);
}

static void test_faults(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Store s;
    e->settings.wave = 2;
    e->settings.store_cap = CAP;
    each_fault(e, NULL, do_index);
    open_capped(e, CAP, &s);
    e->settings.kv_cap = 20;
    each_fault(e, &s, run_question);
    store_close(&s);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_votes, clean),
        cmocka_unit_test_teardown(test_bytes, clean),
        cmocka_unit_test_teardown(test_bytes_codes, clean),
        cmocka_unit_test_teardown(test_same_file, clean),
        cmocka_unit_test_teardown(test_answer, clean),
        cmocka_unit_test_teardown(test_score, clean),
        cmocka_unit_test_teardown(test_attention, clean),
        cmocka_unit_test_teardown(test_loose, clean),
        cmocka_unit_test_teardown(test_choice, clean),
        cmocka_unit_test_teardown(test_rules, clean),
        cmocka_unit_test_teardown(test_streams, clean),
        cmocka_unit_test_teardown(test_sizes, clean),
        cmocka_unit_test_teardown(test_interrupted, clean),
        cmocka_unit_test_teardown(test_refused, clean),
        cmocka_unit_test_teardown(test_faults, clean),
    };
    return cmocka_run_group_tests_name("session_capped", tests, prepare, clean) != 0;
}
