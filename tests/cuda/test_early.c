/* test_early.c - chunks that leave early on the GPU: a margin for all changes neither chunks nor answer, scores by a
 * thousandth at most, in waves of any size, with pages of numbers and of codes; early scores are those of the CPU in f32 but for
 * rounding, and whoever survives on one and not on the other stood at the margin; memory does not grow with the text.
 */
#include "src/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BYTES = 6000, LONG_BYTES = 24000, CHUNK = 300 };

static int passed, failed;
static char text[LONG_BYTES + 1];

static void check(bool ok, const char *what, const char *with)
{
    ok ? passed++ : failed++;
    if (!ok) printf("FAIL %s, %s: %s\n", what, with, err_text());
}

static void set(struct Engine *e, const char *name, const char *value)
{
    struct Settings s = e->settings;
    if (settings_set(&s, name, value) < 0 || engine_configure(e, &s) < 0) {
        printf("FAIL %s\n0 passed, 1 failed\n", err_text());
        exit(1);
    }
}

static void early(struct Engine *e, const char *at)
{
    set(e, "early", *at ? "auto" : "off");
    set(e, "early_at", at);
}

static struct Engine *open_engine(const char *backend, const char *kv_type)
{
    struct Settings s;
    struct Engine *e;
    settings_default(&s);
    settings_set(&s, "backend", backend);
    settings_set(&s, "kv_type", kv_type);
    if (!strcmp(backend, "cpu")) settings_set(&s, "precision", "f32");
    s.chunk = CHUNK;
    s.keep = 3;
    s.chunk_score = SCORE_QUESTION;
    s.max_tokens = 8;
    if (engine_open("geometry:tiny", &s, &e) < 0) {
        printf("FAIL %s\n0 passed, 1 failed\n", err_text());
        exit(1);
    }
    return e;
}

static struct Result ask(struct Engine *e, size_t bytes, const char *with)
{
    struct Result r = {0};
    struct Request req = {.context = text, .context_len = bytes, .question = "Which one is it?"};
    check(session_run(e, &req, &r) == PC_OK, "a run", with);
    return r;
}

/* ==== A margin for all ==== */

static void compare(const struct Result *off, const struct Result *on, const char *with)
{
    bool kept = off->plan.n_chunks == on->plan.n_chunks;
    double worst = 0;
    for (int c = 0; kept && c < off->plan.n_chunks; c++) {
        kept &= off->chunks[c].kept == on->chunks[c].kept;
        worst = fmax(worst, fabs(off->chunks[c].score - on->chunks[c].score));
    }
    check(on->plan.n_early > 0, "decisions", with);
    check(kept, "the same chunks stay", with);
    check(worst <= 1e-3, "near scores", with);
    check(off->n_ids == on->n_ids && !memcmp(off->ids, on->ids, sizeof(int) * (size_t)off->n_ids),
          "the same answer", with);
}

static void test_margin(const char *kv_type)
{
    static const char *const margins[] = {"1:999", "50%:999", "1:999,50%:999"};
    static const char *const waves[] = {"auto", "1", "3"};
    struct Engine *e = open_engine("cuda", kv_type);
    for (int cap = 0; cap < 2; cap++) {
        set(e, "kv_cap", cap ? "100" : "off");
        early(e, "");
        struct Result off = ask(e, BYTES, kv_type);
        for (int m = 0; m < 3; m++)
            for (int w = 0; w < 3; w++) {
                set(e, "wave", waves[w]);
                early(e, margins[m]);
                struct Result on = ask(e, BYTES, margins[m]);
                compare(&off, &on, margins[m]);
                result_free(&on);
            }
        set(e, "wave", "auto");
        result_free(&off);
    }
    engine_close(e);
}

/* ==== Beside the CPU ==== */

struct Seen {
    double score[64];
    int layers[64], n;
};

static struct Seen look(struct Engine *e, const char *at)
{
    struct Seen seen = {0};
    struct Session s = {0};
    struct Prompt prompt = {0};
    struct Result r = {0};
    struct Request req = {.context = text, .context_len = BYTES, .question = "Which one is it?"};
    early(e, at);
    int status = session_prompt(e, &req, &prompt);
    if (status == PC_OK) status = session_open(&s, e, &req, &prompt, &r);
    if (status == PC_OK) status = session_stages(&s, false);
    check(status == PC_OK, "a run", at);
    for (int c = 0; status == PC_OK && c < s.plan.n_chunks && c < 64; c++, seen.n++) {
        seen.score[c] = s.early.score[c];
        seen.layers[c] = r.chunks[c].n_layers;
    }
    prompt_free(&prompt);
    session_close(&s);
    result_free(&r);
    return seen;
}

static void test_beside_cpu(void)
{
    enum { SURVIVORS = 6 };
    struct Engine *cpu = open_engine("cpu", "auto"), *gpu = open_engine("cuda", "auto");
    struct Seen a = look(cpu, "50%:6"), b = look(gpu, "50%:6");
    double worst = 0, margin = -INFINITY;
    int n_survive[2] = {0, 0};
    bool near = a.n == b.n && a.n > SURVIVORS;
    for (int c = 0; c < a.n; c++) {
        worst = fmax(worst, fabs(a.score[c] - b.score[c]));
        n_survive[0] += a.layers[c] == cpu->model.cfg.n_layers;
        n_survive[1] += b.layers[c] == gpu->model.cfg.n_layers;
        if (a.layers[c] < cpu->model.cfg.n_layers) margin = fmax(margin, a.score[c]);
    }
    for (int c = 0; c < a.n; c++)
        if (a.layers[c] != b.layers[c]) near &= fabs(a.score[c] - margin) <= 2 * worst;
    printf("early scores off by at most %.2g\n", worst);
    check(n_survive[0] == SURVIVORS && n_survive[1] == SURVIVORS, "survivors", "beside the CPU");
    check(worst < 0.05, "near early scores", "beside the CPU");
    check(near, "who survives", "beside the CPU");
    engine_close(cpu);
    engine_close(gpu);
}

/* ==== Memory and order ==== */

static void test_memory(void)
{
    struct Engine *e = open_engine("cuda", "auto");
    set(e, "wave", "2");
    early(e, "1:6,50%:4");
    struct Result less = ask(e, BYTES, "short"), more = ask(e, LONG_BYTES, "long");
    check(less.peak_bytes == more.peak_bytes, "the same memory", "four times the text");
    check(more.plan.read_share < less.plan.read_share, "less of the work", "four times the text");
    struct Result again = ask(e, LONG_BYTES, "again");
    check(again.logits_hash == more.logits_hash, "the same bits", "twice");
    result_free(&less);
    result_free(&more);
    result_free(&again);
    engine_close(e);
}

int main(void)
{
    uint64_t state = 3;
    if (!&backend_cuda || !backend_cuda.available()) {
        printf("SKIP early: no GPU here\n0 passed, 0 failed, 1 skipped\n");
        return 0;
    }
    for (int i = 0; i < LONG_BYTES; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        text[i] = i % 6 == 5 ? ' ' : (char)('a' + (state >> 33) % 26);
    }
    test_margin("auto");
    test_margin("q8");
    test_beside_cpu();
    test_memory();
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
