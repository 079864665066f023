/* test_rounds.c - rounds on the GPU: a chain of facts is followed as on the CPU, with pages of numbers and of codes, whether or
 * not tokens are evicted, in waves of any size, cold and from a store; twice the same bits; memory does not grow with the text.
 */
#include "src/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WORDS = 420, LONG_WORDS = 1680, LINKS = 3 };

static int passed, failed;
static struct Str text, longer;

static void check(bool ok, const char *what, const char *with)
{
    ok ? passed++ : failed++;
    if (!ok) printf("FAIL %s, %s: %s\n", what, with, err_text());
}

static void must(int status)
{
    if (status >= 0) return;
    printf("FAIL %s\n0 passed, 1 failed\n", err_text());
    exit(1);
}

static void set(struct Engine *e, const char *name, const char *value)
{
    struct Settings s = e->settings;
    must(settings_set(&s, name, value));
    must(engine_configure(e, &s));
}

/* Facts that name each other among filler, the last first. */
static void make_text(struct Str *out, int words)
{
    static const char *const links[LINKS] = {
        "Take xyzzy to plugh now. ", "Take plugh to frobozz now. ", "Take frobozz to gnusto now. "};
    static const int at[LINKS] = {182, 392, 63};
    for (int i = 0; i < words; i++) {
        const char *piece = i % 7 == 6 ? "Nothing here. " : "nothing to see, ";
        for (int l = 0; l < LINKS; l++)
            if (i == at[l]) piece = links[l];
        must(str_append(out, piece, strlen(piece)));
    }
}

static struct Engine *open_engine(const char *backend, const char *kv_type, const char *score)
{
    struct Settings s;
    struct Engine *e;
    settings_default(&s);
    must(settings_set(&s, "backend", backend));
    must(settings_set(&s, "kv_type", kv_type));
    must(settings_set(&s, "chunk_score", score));
    if (!strcmp(backend, "cpu")) must(settings_set(&s, "precision", "f32"));
    s.chunk = 300;
    s.rounds = s.keep = LINKS;
    s.max_tokens = 8;
    must(engine_open("geometry:tiny", &s, &e));
    return e;
}

static struct Result ask(struct Engine *e, const struct Str *from, const char *with)
{
    struct Result r = {0};
    struct Request req = {
        .context = from->data, .context_len = from->len, .question = "Where is xyzzy?"};
    check(session_run(e, &req, &r) == PC_OK, "a run", with);
    return r;
}

static void compare(const struct Result *a, const struct Result *b, const char *with)
{
    bool same = a->plan.n_chunks == b->plan.n_chunks && a->plan.rounds == b->plan.rounds;
    for (int c = 0; same && c < a->plan.n_chunks; c++)
        same &= a->chunks[c].round == b->chunks[c].round;
    check(same, "the same rounds", with);
    for (int r = 0; same && r < a->plan.rounds - 1; r++)
        same &= a->found[r].len == b->found[r].len &&
                !memcmp(a->found[r].data, b->found[r].data, a->found[r].len);
    check(same, "the same findings", with);
    check(a->found[1].len && strstr(a->found[1].data, "frobozz"), "the chain", with);
}

/* Words lead here, and attention, whose rounding differs, is asked among them. */
static void test_beside_cpu(const char *kv_type)
{
    static const char *const waves[] = {"auto", "1", "3"};
    struct Engine *cpu = open_engine("cpu", kv_type, "bm25"),
                  *gpu = open_engine("cuda", kv_type, "bm25");
    for (int cap = 0; cap < 2; cap++)
        for (int w = 0; w < 3; w++) {
            set(cpu, "kv_cap", cap ? "100" : "off");
            set(gpu, "kv_cap", cap ? "100" : "off");
            set(gpu, "wave", waves[w]);
            struct Result a = ask(cpu, &text, kv_type), b = ask(gpu, &text, kv_type);
            compare(&a, &b, kv_type);
            result_free(&a);
            result_free(&b);
        }
    engine_close(cpu);
    engine_close(gpu);
}

static void test_store(void)
{
    char path[] = "/tmp/pcomp_rounds_XXXXXX";
    struct Engine *e = open_engine("cuda", "auto", "question");
    struct Request req = {
        .context = text.data, .context_len = text.len, .question = "Where is xyzzy?"};
    struct IndexInfo made;
    struct Store store;
    struct Result stored = {0}, cold = ask(e, &text, "cold");
    close(mkstemp(path));
    unlink(path);
    check(session_index(e, &req, path, true, &made) == PC_OK, "an index", "store");
    must(store_open(path, &store));
    for (int stays = 0; stays < 2; stays++) { /* in one piece on the device, too */
        struct Request of = {.store = &store, .question = req.question, .store_stays = stays};
        double worst = 0;
        int same = 0;
        check(session_run(e, &of, &stored) == PC_OK, "a run", "store");
        for (int c = 0; c < cold.plan.n_chunks; c++) {
            same += cold.chunks[c].round == stored.chunks[c].round;
            if (cold.chunks[c].round == 1)
                worst = fmax(worst, fabs(cold.chunks[c].score - stored.chunks[c].score));
        }
        check(same >= cold.plan.n_chunks - 2, "near rounds", "store");
        check(worst <= 1e-2, "near scores", "store");
        result_free(&stored);
    }
    store_close(&store);
    result_free(&cold);
    unlink(path);
    engine_close(e);
}

static void test_memory(void)
{
    struct Engine *e = open_engine("cuda", "auto", "fusion");
    set(e, "wave", "2");
    struct Result less = ask(e, &text, "short"), more = ask(e, &longer, "long"),
                  again = ask(e, &longer, "again");
    check(less.peak_bytes == more.peak_bytes, "the same memory", "four times the text");
    check(again.logits_hash == more.logits_hash, "the same bits", "twice");
    result_free(&less);
    result_free(&more);
    result_free(&again);
    engine_close(e);
}

int main(void)
{
    if (!&backend_cuda || !backend_cuda.available()) {
        printf("SKIP rounds: no GPU here\n0 passed, 0 failed, 1 skipped\n");
        return 0;
    }
    make_text(&text, WORDS);
    make_text(&longer, LONG_WORDS);
    test_beside_cpu("auto");
    test_beside_cpu("q8");
    test_store();
    test_memory();
    str_free(&text);
    str_free(&longer);
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
