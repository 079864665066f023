/* test_cuda_faults.c - allocations of the CUDA backend that fail, one after the other until none does: every time an error
 * with advice, nothing kept, and the next run as good as the first. And what must not change a run: the wave's size.
 */
#include "src/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int passed, failed;

static void check(bool ok, const char *what, long at)
{
    ok ? passed++ : failed++;
    if (!ok) printf("FAIL %s (%ld): %s\n", what, at, err_text());
}

static void settings_for(struct Settings *set, const char *backend)
{
    settings_default(set);
    settings_set(set, "backend", backend);
    settings_set(set, "window", "512");
    settings_set(set, "chunk", "150");
    settings_set(set, "kv_cap", "60");
    settings_set(set, "max_tokens", "6");
}

static int run(struct Engine *e, const char *text, struct Result *r)
{
    struct Request req = {.context = text, .context_len = strlen(text), .question = "Which one?"};
    return session_run(e, &req, r);
}

static size_t card_memory(const struct Engine *e)
{
    struct DeviceLimits l;
    e->be->limits(e->dev, &l);
    return l.memory;
}

/* Fails the first, second, ... allocation until opening succeeds. */
static void test_open(const struct Engine *witness, const struct Settings *set)
{
    size_t host = mem_in_use(), card = card_memory(witness);
    for (long n = 1;; n++) {
        struct Engine *e = NULL;
        mem_fail_after(n);
        int status = engine_open("geometry:tiny", set, &e);
        mem_fail_after(0);
        if (status == PC_OK) {
            engine_close(e);
            check(n > 5, "allocations counted while opening", n);
            break;
        }
        check(status == PC_ENOMEM, "an allocation fails while opening", n);
        check(mem_in_use() == host, "host memory is given back", n);
    }
    check(mem_in_use() == host, "host memory is given back", 0);
    size_t left = card_memory(witness), slack = (size_t)64 << 20; /* the driver keeps some */
    check(left + slack >= card, "GPU memory is given back", (long)(card - left));
}

static void test_run(struct Engine *e, const char *text, const struct Result *good)
{
    size_t host = mem_in_use();
    for (long n = 1;; n++) {
        struct Result r = {0};
        mem_fail_after(n);
        int status = run(e, text, &r);
        mem_fail_after(0);
        bool done = status == PC_OK;
        check(done || status == PC_ENOMEM, "an allocation fails in a run", n);
        if (done) check(r.logits_hash == good->logits_hash, "the run after failures", n);
        result_free(&r);
        check(mem_in_use() == host, "host memory is given back", n);
        check(e->be->peak(e->dev, true) == 0, "GPU memory is given back", n);
        if (done) {
            check(n > 10, "allocations counted in a run", n);
            break;
        }
    }
}

/* Chunks of one wave or of many: the same kept chunks and the same text. */
static void test_waves(struct Engine *e, const char *text, const struct Result *good)
{
    static const char *const waves[] = {"1", "2", "5"};
    for (int i = 0; i < 3; i++) {
        struct Settings set = *engine_settings(e), before = set;
        struct Result r = {0};
        bool same = true;
        settings_set(&set, "wave", waves[i]);
        engine_configure(e, &set);
        check(run(e, text, &r) == PC_OK, "a run of another wave", i);
        for (int c = 0; c < r.plan.n_chunks; c++) same &= r.chunks[c].kept == good->chunks[c].kept;
        same &=
            r.n_ids == good->n_ids && !memcmp(r.ids, good->ids, sizeof *r.ids * (size_t)r.n_ids);
        check(same, "the wave's size changes nothing", i);
        result_free(&r);
        engine_configure(e, &before);
    }
}

int main(void)
{
    struct Settings set;
    struct Engine *e;
    struct Result good = {0};
    char text[2001];
    if (!&backend_cuda || !backend_cuda.available()) {
        puts("SKIP: no GPU");
        return 0;
    }
    for (int i = 0; i < 2000; i++) text[i] = i % 50 == 49 ? '\n' : (char)('a' + i * 7 % 26);
    text[2000] = 0;
    settings_for(&set, "cuda");
    if (engine_open("geometry:tiny", &set, &e) < 0 || run(e, text, &good) < 0) {
        printf("FAIL %s\n", err_text());
        return 1;
    }
    test_open(e, &set);
    settings_set(&set, "kv_type", "q4");
    test_open(e, &set);
    test_run(e, text, &good);
    test_waves(e, text, &good);
    result_free(&good);
    engine_close(e);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
