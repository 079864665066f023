/* test_store.c - a text indexed and asked on the GPU: the chunks, tokens and answer of a run that reads it, scores within a
 * thousandth of a nat; whether tokens are chosen on the device, on the host or not at all. A store of another backend is
 * refused.
 */
#include "src/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BYTES = 3000 };

static int passed, failed;
static double loose; /* what codes round off besides */
static char text[BYTES + 1], path[] = "/tmp/pcomp_gpu_store_XXXXXX";

static void check(bool ok, const char *what, const char *with)
{
    ok ? passed++ : failed++;
    if (!ok) printf("FAIL %s, %s: %s\n", what, with, err_text());
}

static int ask_with(struct Engine *e, struct Store *store, const char *question, bool stays,
                    struct Result *r)
{
    struct Request req = {.context = text,
                          .context_len = BYTES,
                          .store = store,
                          .store_stays = stays,
                          .question = question};
    return session_run(e, &req, r);
}

static int ask(struct Engine *e, struct Store *store, struct Result *r)
{
    return ask_with(e, store, "Which one?", false, r);
}

static void compare(const struct Engine *e, const struct Result *cold, const struct Result *asked,
                    const char *with)
{
    const struct ModelConfig *m = &e->model.cfg;
    bool kept = true, tokens = true;
    double worst =
        0; /* of scores; bf16 rounds 8 bits, and what is added up in another order rounds otherwise */
    for (int c = 0; c < cold->plan.n_chunks; c++) {
        const struct ChunkInfo *a = &cold->chunks[c], *b = &asked->chunks[c];
        kept &= a->kept == b->kept;
        kept &= isnan(a->score) == isnan(b->score);
        if (!isnan(a->score)) worst = fmax(worst, fabs(a->score - b->score));
    }
    for (int h = 0; h < m->n_layers * m->n_kv_heads; h++)
        tokens &= cold->kv_kept[h] == asked->kv_kept[h];
    check(cold->plan.n_chunks > 5 && cold->plan.n_chunks == asked->plan.n_chunks, "chunks", with);
    check(kept || loose > 1, "the same chunks stay", with);
    check(tokens || (!kept && loose > 1), "as many tokens stay", with);
    printf("%s: scores off by at most %.2g\n", with, worst);
    check(worst < 0.01 * loose, "near scores", with);
    if (loose > 1) return; /* a question over codes may say another word */
    check(cold->n_ids == asked->n_ids &&
              !memcmp(cold->ids, asked->ids, sizeof(int) * (size_t)cold->n_ids),
          "the same answer", with);
}

static void test_with(struct Engine *e, struct Store *store, const char *name, const char *value)
{
    struct Settings before = e->settings, set = before;
    struct Result cold = {0}, asked = {0};
    settings_set(&set, name, value);
    check(engine_configure(e, &set) == PC_OK, "settings", value);
    check(ask(e, NULL, &cold) == PC_OK, "cold", value);
    check(ask(e, store, &asked) == PC_OK, "asked", value);
    if (cold.chunks && asked.chunks) compare(e, &cold, &asked, value);
    result_free(&cold);
    result_free(&asked);
    engine_configure(e, &before);
}

/* Questions of a store that stays on the device: each is what it is alone, to the bit, and cold but for rounding. */
static void test_stays(struct Engine *e, struct Store *store)
{
    static const char *const questions[] = {"Which one?", "Who stood last, and where was that?",
                                            "x", "Which one?"};
    struct Result stays[4] = {0}, alone, cold;
    for (int q = 0; q < 4; q++) {
        check(ask_with(e, store, questions[q], true, &stays[q]) == PC_OK, "stays", questions[q]);
        check(e->resident.pages, "chunks stay on the device", questions[q]);
    }
    for (int q = 0; q < 4; q++) {
        check(ask_with(e, store, questions[q], false, &alone) == PC_OK, "alone", questions[q]);
        check(!e->resident.pages, "and leave", questions[q]);
        check(alone.logits_hash == stays[q].logits_hash, "the same bits", questions[q]);
        result_free(&alone);
        check(ask_with(e, NULL, questions[q], false, &cold) == PC_OK, "cold", questions[q]);
        compare(e, &cold, &stays[q], questions[q]);
        result_free(&cold);
        result_free(&stays[q]);
    }
    check(ask_with(e, store, questions[0], true, &alone) == PC_OK, "stays", "at the end");
    result_free(&alone);
}

/* The same of chunks that leave early, which are as many as those of a cold run. */
static void test_early(struct Engine *e, struct Store *store)
{
    struct Settings before = e->settings, set = before;
    settings_set(&set, "early", "auto");
    for (int i = 0; i < 4; i++) {
        struct Result r;
        int n_left = 0;
        settings_set(&set, "early_at", i % 2 ? "1:9,50%:6" : "50%:7");
        settings_set(&set, "kv_cap", i / 2 ? "60" : "off");
        check(engine_configure(e, &set) == PC_OK, "settings", set.early_at);
        test_stays(e, store);
        check(ask(e, store, &r) == PC_OK, "asked", set.early_at);
        for (int c = 0; c < r.plan.n_chunks; c++)
            n_left += r.chunks[c].n_layers < e->model.cfg.n_layers;
        check(n_left == r.plan.n_chunks - (i % 2 ? 6 : 7), "as many leave", set.early_at);
        result_free(&r);
    }
    engine_configure(e, &before);
}

static void test_all(struct Engine *e)
{
    static const char *const with[][2] = {
        {"kv_cap", "off"},
        {"kv_cap", "60"},
        {"chunk_score", "published"},
        {"chunk_score", "bm25"},
        {"keep", "all"},
        {"wave", "1"},
        {"wave", "3"},
        {"wave", "200"},
        {"calib", "[{\"class\":\"middle\",\"layers\":[0,1],\"lambda\":0.02,\"stage\":1}]"}};
    struct IndexInfo made;
    struct Store store = {0};
    struct Request req = {.context = text, .context_len = BYTES, .question = ""};
    check(session_index(e, &req, path, true, &made) == PC_OK, "index", path);
    check(store_open(path, &store) == PC_OK, "open", path);
    for (size_t i = 0; store.checked && i < sizeof with / sizeof *with; i++)
        test_with(e, &store, with[i][0], with[i][1]);
    if (store.checked) test_stays(e, &store);
    if (store.checked) test_early(e, &store);
    store_close(&store);
}

static struct Engine *open_engine(const char *backend, const char *kv_type)
{
    struct Settings set;
    struct Engine *e = NULL;
    settings_default(&set);
    settings_set(&set, "backend", backend);
    settings_set(&set, "kv_type", kv_type);
    settings_set(&set, "window", "512");
    settings_set(&set, "chunk", "150");
    settings_set(&set, "kv_cap", "60");
    settings_set(&set, "max_tokens", "6");
    if (engine_open("geometry:tiny", &set, &e) < 0) printf("FAIL %s\n", err_text());
    return e;
}

static void test_foreign(struct Engine *cpu)
{
    struct Store store;
    struct Result r;
    check(store_open(path, &store) == PC_OK, "open", path);
    check(ask(cpu, &store, &r) == PC_ECONFIG && strstr(err_text(), "cuda bf16"),
          "pages of another backend", "cpu");
    result_free(&r);
    store_close(&store);
}

int main(void)
{
    if (!&backend_cuda || !backend_cuda.available()) {
        puts("SKIP: no GPU");
        return 0;
    }
    int fd = mkstemp(path);
    if (fd < 0) return 1;
    close(fd);
    unlink(path);
    for (int i = 0; i < BYTES; i++) text[i] = i % 50 == 49 ? '\n' : (char)('a' + i * i / 7 % 26);
    static const char *const types[] = {"q4", "q8", "auto"};
    struct Engine *cpu = open_engine("cpu", "auto");
    if (!cpu) return 1;
    for (int i = 0; i < 3; i++) {
        struct Engine *e = open_engine("cuda", types[i]);
        if (!e) return 1;
        printf("pages of %s\n", types[i]);
        loose = i == 0 ? 30 : i == 1 ? 3 : 1;
        test_all(e);
        engine_close(e);
    }
    test_foreign(cpu);
    engine_close(cpu);
    unlink(path);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
