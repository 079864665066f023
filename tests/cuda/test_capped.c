/* test_capped.c - stores on the GPU that have some tokens of each chunk, and pages of stored chunks below: a capped store has what
 * a whole one has of the tokens that it names; a cap that takes nothing changes no bit; and whatever share of the kept
 * pages is near, in the host's memory or in a file, the answer has the bits of all near, also where chunks stay on the device.
 */
#include "src/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BYTES = 3000, CAP = 70 };

static int passed, failed;
static char text[BYTES + 1], path[] = "/tmp/pcomp_gpu_capped_XXXXXX",
                             whole_path[] = "/tmp/pcomp_gpu_whole_XXXXXX";

static void check(bool ok, const char *what, const char *with)
{
    ok ? passed++ : failed++;
    if (!ok) printf("FAIL %s, %s: %s\n", what, with, err_text());
}

static struct Engine *open_engine(const char *kv_type)
{
    struct Settings set;
    struct Engine *e = NULL;
    settings_default(&set);
    settings_set(&set, "backend", "cuda");
    settings_set(&set, "kv_type", kv_type);
    settings_set(&set, "window", "512");
    settings_set(&set, "chunk", "150");
    settings_set(&set, "kv_cap", "off");
    settings_set(&set, "max_tokens", "60");
    settings_set(&set, "keep", "all");
    settings_set(&set, "temperature", "2");
    if (engine_open("geometry:tiny", &set, &e) < 0) printf("FAIL %s\n", err_text());
    return e;
}

static bool open_store(struct Engine *e, int cap, const char *at, struct Store *out)
{
    struct IndexInfo made;
    struct Request req = {.context = text, .context_len = BYTES, .question = ""};
    e->settings.store_cap = cap;
    bool ok = session_index(e, &req, at, true, &made) == PC_OK && store_open(at, out) == PC_OK;
    check(ok, "index", at);
    return ok;
}

/* ==== Capped stores ==== */

/* Value d of a token's key or value in the pages of a head, of bf16. */
static float value_of(const struct StoreChunk *c, size_t page_bytes, size_t page, int token,
                      size_t d)
{
    size_t dim = page_bytes / PAGE_TOKENS / 4;
    uint16_t half;
    page += (size_t)token / PAGE_TOKENS;
    size_t row = (d / dim) * PAGE_TOKENS + (size_t)(token % PAGE_TOKENS);
    memcpy(&half, c->pages + page * page_bytes + 2 * (row * dim + d % dim), sizeof half);
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The largest difference between a token of a capped store and of the whole one; products of other sizes round otherwise. */
static double farthest(struct Store *s, struct Store *whole, int chunk)
{
    int len = s->info.chunks[chunk].end - s->info.chunks[chunk].begin;
    struct StoreChunk a, b;
    if (store_chunk(s, chunk, &a) < 0 || store_chunk(whole, chunk, &b) < 0) return INFINITY;
    size_t marks = store_mark_bytes(&s->info, len), page_a = 0, page_b = 0,
           bytes = s->info.page_bytes;
    double worst = 0;
    for (int h = 0; h < s->info.n_layers * s->info.n_kv_heads; h++) {
        int n = 0;
        for (int t = 0; t < len; t++) {
            if (marks && !store_marked(a.marks + (size_t)h * marks, t)) continue;
            for (size_t d = 0; d < bytes / PAGE_TOKENS / 2; d++)
                worst = fmax(worst, fabs(value_of(&a, bytes, page_a, n, d) -
                                         value_of(&b, bytes, page_b, t, d)));
            n++;
        }
        page_a += (size_t)(n + PAGE_TOKENS - 1) / PAGE_TOKENS;
        page_b += (size_t)(len + PAGE_TOKENS - 1) / PAGE_TOKENS;
    }
    return worst;
}

static void test_values(struct Engine *e)
{
    struct Store s = {0}, whole = {0};
    if (open_store(e, CAP_OFF, whole_path, &whole) && open_store(e, CAP, path, &s)) {
        double worst = 0;
        for (int c = 0; c < s.info.n_chunks; c++) worst = fmax(worst, farthest(&s, &whole, c));
        printf("a capped store is off the whole one by at most %.2g\n", worst);
        check(worst < 0.1, "a capped store", "the tokens of a whole one");
        check(s.map.len < whole.map.len, "a capped store", "is smaller");
    }
    store_close(&s);
    store_close(&whole);
}

static int ask(struct Engine *e, struct Store *store, bool stays, struct Result *r)
{
    struct Request req = {.context = text,
                          .context_len = BYTES,
                          .question = "Which one?",
                          .store = store,
                          .store_stays = stays};
    return session_run(e, &req, r);
}

static bool same(const struct Result *a, const struct Result *b)
{
    return a->logits_hash == b->logits_hash && a->n_ids == b->n_ids && a->n_ids > 1 &&
           !memcmp(a->ids, b->ids, sizeof(int) * (size_t)a->n_ids);
}

static void test_loose(struct Engine *e)
{
    struct Store s = {0};
    struct Result loose = {0}, whole = {0};
    if (open_store(e, CAP_OFF, path, &s))
        check(ask(e, &s, false, &whole) == PC_OK, "asked", "whole");
    store_close(&s);
    if (open_store(e, 400, path, &s))
        check(ask(e, &s, false, &loose) == PC_OK, "asked", "a cap that no chunk reaches");
    store_close(&s);
    check(same(&loose, &whole), "a cap that no chunk reaches", "the same bits");
    result_free(&loose);
    result_free(&whole);
}

/* ==== Pages below ==== */

static void test_share(struct Engine *e, struct Store *s, const struct Result *near,
                       const char *resident, bool stays)
{
    struct Settings before = e->settings;
    struct Result far = {0};
    char what[64];
    settings_set(&e->settings, "kv_resident", resident);
    snprintf(what, sizeof what, "%s near%s%s", resident, stays ? ", chunks stay" : "",
             e->settings.kv_host == AUTO ? "" : ", a file");
    check(ask(e, s, stays, &far) == PC_OK, "asked", what);
    check(same(near, &far), "the bits of all near", what);
    check(far.tiers.fetched > 0 && far.plan.tier_below_bytes > 0, "pages come from below", what);
    check((far.tiers.from_file > 0) == (e->settings.kv_host != AUTO), "and from where", what);
    result_free(&far);
    e->settings = before;
}

/* The least memory of the host that a question takes. */
static size_t least_host(struct Engine *e, struct Store *s)
{
    struct Settings before = e->settings;
    struct PlanInfo plan;
    struct Request req = {.store = s, .question = "Which one?"};
    size_t page = e->be->page_bytes(e->dev), host = page;
    settings_set(&e->settings, "kv_resident", "25%");
    for (e->settings.kv_host = host; session_plan(e, &req, &plan) < 0 && host < (size_t)1 << 30;)
        e->settings.kv_host = host += page;
    e->settings = before;
    return host;
}

static void test_tiers(struct Engine *e, int cap, const char *kv_cap)
{
    static const char *const shares[] = {"1%", "30%", "100%"};
    struct Settings before = e->settings;
    struct Store s = {0};
    struct Result near = {0};
    settings_set(&e->settings, "select", "mean");
    settings_set(&e->settings, "select_pages", "3");
    settings_set(&e->settings, "kv_cap", kv_cap);
    if (open_store(e, cap, path, &s)) {
        check(ask(e, &s, false, &near) == PC_OK, "asked", "all near");
        check(near.pages_read < near.pages_there, "pages are chosen", kv_cap);
        size_t least = least_host(e, &s);
        for (int i = 0; i < 3; i++)
            for (int stays = 0; stays < 2; stays++)
                for (int file = 0; file < 2; file++) {
                    e->settings.kv_host = file ? least : AUTO;
                    test_share(e, &s, &near, shares[i], stays);
                }
    }
    result_free(&near);
    store_close(&s);
    resident_close(e);
    e->settings = before;
}

static void test_all(const char *kv_type)
{
    struct Engine *e = open_engine(kv_type);
    if (!e) {
        failed++;
        return;
    }
    if (strcmp(kv_type, "auto") == 0) test_values(e);
    test_loose(e);
    test_tiers(e, CAP_OFF, "off");
    test_tiers(e, CAP_OFF, "60");
    test_tiers(e, CAP, "off");
    test_tiers(e, CAP, "40");
    engine_close(e);
}

static bool free_name(char *name)
{
    int fd = mkstemp(name);
    if (fd < 0) return false;
    close(fd);
    return unlink(name) == 0;
}

int main(void)
{
    if (!&backend_cuda || !backend_cuda.available()) {
        puts("SKIP: no GPU");
        return 0;
    }
    if (!free_name(path) || !free_name(whole_path)) return 1;
    for (int i = 0; i < BYTES; i++) text[i] = i % 50 == 49 ? '\n' : (char)('a' + i * i / 7 % 26);
    test_all("auto");
    test_all("q8");
    test_all("q4");
    unlink(path);
    unlink(whole_path);
    printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}
