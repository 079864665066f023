/* test_tiers.c - pages in the host's memory, and in a file below that: whole runs give, to the bit, what they give with all pages
 * on the device, over kinds of pages, classes of heads, choices that stand and pages that fill; rows that do not wait give the
 * same bytes on every run and say what they missed; failed allocations, a file that is cut short, a full disk.
 */
#include "src/session.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BYTES = 3000, MOST = 160 };

static int passed, failed;
static char text[BYTES + 1];

static void check(bool ok, const char *what, const char *with)
{
    ok ? passed++ : failed++;
    if (!ok) printf("FAIL %s, %s: %s\n", what, with, err_text());
}

struct Answer {
    int status, n, ids[MOST];
    float last[1024];
    uint64_t hash;
    int64_t read, there;
    struct TierCounts tiers;
    size_t peak, planned;
};

/* Per cent of the pages below, beside a layer's, that the host's memory may hold; ALL_HOST: it holds all. */
enum { ALL_HOST = -1 };
static int homes = ALL_HOST;
static void (*on_progress)(void *user, const struct Progress *p);

/* The least memory of the host that a run takes, and a share of the rest. */
static size_t host_room(struct Engine *e, const struct Request *req)
{
    struct PlanInfo plan;
    size_t page = e->be->page_bytes(e->dev);
    e->settings.kv_host = page;
    while (session_plan(e, req, &plan) < 0 && e->settings.kv_host < (size_t)1 << 30)
        e->settings.kv_host += page;
    return e->settings.kv_host +
           (plan.tier_below_bytes - e->settings.kv_host - page) / 100 * (size_t)homes;
}

static struct Answer answer(struct Engine *e, const char *resident, const char *wait)
{
    static struct Answer none;
    struct Answer a = none;
    struct Settings before = e->settings;
    struct Request req = {.context = text,
                          .context_len = BYTES,
                          .question = "Which one?",
                          .on_progress = on_progress};
    struct Prompt prompt = {0};
    struct Session s = {0};
    struct Result r = {0};
    settings_set(&e->settings, "kv_resident", resident);
    settings_set(&e->settings, "tier_wait", wait);
    if (homes != ALL_HOST && strcmp(resident, "all") && e->settings.kv_host == AUTO)
        e->settings.kv_host = host_room(e, &req);
    e->be->peak(e->dev, true);
    a.status = session_prompt(e, &req, &prompt);
    if (a.status == PC_OK) a.status = session_open(&s, e, &req, &prompt, &r);
    if (a.status == PC_OK) a.status = session_stages(&s, true);
    if (a.status == PC_OK) {
        a.n = r.n_ids;
        memcpy(a.ids, r.ids, sizeof(int) * (size_t)a.n);
        if (e->settings.temperature > 0)
            memcpy(a.last, s.logits, sizeof(float) * (size_t)e->model.cfg.vocab_size);
        a.hash = r.logits_hash;
        a.read = r.pages_read;
        a.there = r.pages_there;
        a.tiers = r.tiers;
        a.planned = s.plan.peak_bytes;
    }
    a.peak = e->be->peak(e->dev, false);
    prompt_free(&prompt);
    session_close(&s);
    result_free(&r);
    e->settings = before;
    return a;
}

static bool same_answer(const struct Answer *a, const struct Answer *b)
{
    return a->status == PC_OK && b->status == PC_OK && a->hash == b->hash && a->n == b->n &&
           !memcmp(a->ids, b->ids, sizeof a->ids) && !memcmp(a->last, b->last, sizeof a->last) &&
           a->read == b->read && a->there == b->there;
}

/* ==== Rows that wait ==== */

static struct TierCounts sum;

static void test_exact(struct Engine *e, const char *with)
{
    static const char *const shares[] = {"1%", "25%", "60%", "100%"};
    struct Answer near = answer(e, "all", "exact");
    check(near.status == PC_OK && near.n > 1 && near.read < near.there, "all near", with);
    for (int i = 0; i < 4; i++) {
        char what[64];
        struct Answer a = answer(e, shares[i], "exact");
        snprintf(what, sizeof what, "the bytes of all near with %s", shares[i]);
        check(same_answer(&near, &a), what, with);
        check(a.tiers.fetched > 0 && a.tiers.fetched <= a.tiers.missed &&
                  a.tiers.missed <= a.tiers.wanted && a.tiers.late == 0,
              "counts", with);
        double off = ((double)a.peak - (double)a.planned) / (double)a.peak;
        check(off > -0.02 && off < 0.02, "memory as planned", with);
        sum.fetched += a.tiers.fetched;
        sum.missed += a.tiers.missed;
        sum.through += a.tiers.through;
        check((a.tiers.from_file > 0) == (homes != ALL_HOST), "pages come from the file", with);
    }
}

static void set(struct Engine *e, const char *name, const char *value)
{
    check(settings_set(&e->settings, name, value) == PC_OK, name, value);
}

static const char *const changes[][2] = {
    {"select_every", "1"},
    {"select_every", "7"},
    {"select_every", "64"},
    {"select_mass", "0.7"},
    {"kv_cap", "60"},
    {"select", "bound"},
    {"temperature", "0"},
    {"chunk_bias", "0.5"},
    {"method", "full"},
    {"prefix_copies", "2"},
    {"calib", "[{\"class\":\"middle\",\"layers\":[0,1],\"lambda\":0.001,\"stage\":2}]"}};
enum { FULL = 8, N_CHANGES = sizeof changes / sizeof *changes };

static void test_with(struct Engine *e, const char *kind, int i)
{
    struct Settings before = e->settings;
    char name[160];
    snprintf(name, sizeof name, "%s, %s %s", kind, changes[i][0], changes[i][1]);
    set(e, changes[i][0], changes[i][1]);
    if (i == FULL) set(e, "window", "4096");
    test_exact(e, name);
    e->settings = before;
}

static void test_all(struct Engine *e, const char *kind)
{
    for (int i = 0; i < N_CHANGES; i++) test_with(e, kind, i);
}

static void test_heads(struct Engine *e, const char *kind)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct HeadShape shape = {m->n_layers, m->n_heads, m->n_kv_heads};
    struct Settings before = e->settings;
    char name[160];
    snprintf(name, sizeof name, "%s, half of the heads stream", kind);
    check(headmap_random(&shape, 1, &e->heads) == PC_OK, "a map", kind);
    e->heads.sink = 4;
    e->heads.recent = 70;
    test_exact(e, name);
    set(e, "select_every", "16");
    test_exact(e, name);
    set(e, "method", "duo");
    set(e, "window", "4096");
    test_exact(e, name);
    e->settings = before;
    headmap_close(&e->heads);
}

/* With room for every page a choice matters to no byte, however long it stands and wherever pages lie. */
static void test_all_pages(struct Engine *e, const char *kind)
{
    static const char *const everies[] = {"1", "7", "64"};
    struct Settings before = e->settings;
    set(e, "select", "off");
    struct Answer off = answer(e, "all", "exact");
    e->settings = before;
    set(e, "select_pages", "1000");
    for (int i = 0; i < 6; i++) {
        set(e, "select_every", everies[i / 2]);
        struct Answer a = answer(e, i % 2 ? "40%" : "all", "exact");
        check(off.status == PC_OK && a.status == PC_OK && a.hash == off.hash && a.n == off.n &&
                  !memcmp(a.ids, off.ids, sizeof a.ids) &&
                  !memcmp(a.last, off.last, sizeof a.last) && a.read == a.there,
              i % 2 ? "the bytes of all pages, with tiers" : "the bytes of all pages", kind);
    }
    e->settings = before;
}

/* ==== Rows that do not wait ==== */

static void test_late(struct Engine *e, const char *kind)
{
    struct Answer near = answer(e, "all", "exact"), late = answer(e, "25%", "late"),
                  again = answer(e, "25%", "late"), all = answer(e, "100%", "late");
    check(late.status == PC_OK && late.hash == near.hash, "the question waits", kind);
    check(late.tiers.late > 0 && late.read < late.there, "late pages are counted", kind);
    check(late.tiers.late_share > 0 && late.tiers.late_share < 1, "and what they are worth", kind);
    check(same_answer(&late, &again) && late.tiers.late == again.tiers.late &&
              late.tiers.late_share == again.tiers.late_share,
          "the same bytes on every run", kind);
    check(all.status == PC_OK && all.tiers.late == all.tiers.missed,
          "what is late is late for one token", kind);
    printf("%s: %lld late of %lld wanted, %.1f%% of the attention chosen\n", kind,
           (long long)late.tiers.late, (long long)late.tiers.wanted, 100 * late.tiers.late_share);
}

/* ==== A file below the host's memory ==== */

/* A choice that stands and is more than slots and homes hold: by share, over seven tokens. */
static void test_spills(struct Engine *e, const char *kind)
{
    struct Settings before = e->settings;
    set(e, "select_every", "7");
    set(e, "select_mass", "0.9");
    test_exact(e, kind);
    e->settings = before;
}

static void test_files(struct Engine *e, const char *kind)
{
    static const int some[] = {0, 1, 3, 4, 6, FULL, 10};
    for (homes = 0; homes <= 60; homes += 60) {
        char name[160];
        snprintf(name, sizeof name, "%s, a file, %d%% of the rest at home", kind, homes);
        for (size_t i = 0; i < sizeof some / sizeof *some; i++) test_with(e, name, some[i]);
        test_spills(e, name);
        test_heads(e, name);
        test_late(e, name);
    }
    homes = ALL_HOST;
}

static const char *const FOLDER = "tiers_folder";

/* Cuts the file that the process has open in the folder. */
static void cut_file(void)
{
    DIR *dir = opendir("/proc/self/fd");
    for (struct dirent *at; dir && (at = readdir(dir));) {
        char path[300], to[4096];
        snprintf(path, sizeof path, "/proc/self/fd/%s", at->d_name);
        ssize_t n = readlink(path, to, sizeof to - 1);
        if (n < 0) continue;
        to[n] = '\0';
        if (strstr(to, FOLDER) && ftruncate(atoi(at->d_name), 1000) < 0) puts("FAIL to cut");
    }
    if (dir) closedir(dir);
}

static void cut_in_answer(void *user, const struct Progress *p)
{
    (void)user;
    if (p->stage == STAGE_DECODE && p->tokens_done == 1) cut_file();
}

/* What the host cannot read while the device works is an error of the run. */
static void test_cut(struct Engine *e, const char *wait)
{
    struct Settings before = e->settings;
    set(e, "kv_dir", FOLDER);
    homes = 0;
    on_progress = cut_in_answer;
    struct Answer a = answer(e, "1%", wait);
    on_progress = NULL;
    check(a.status == PC_EIO && strstr(err_text(), "cut short"), "a file that is cut", wait);
    homes = ALL_HOST;
    e->settings = before;
}

/* The room on disk is taken before work begins. */
static void test_full_disk(struct Engine *e)
{
    struct rlimit old, least;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    least = (struct rlimit){10000, old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &least);
    homes = 0;
    struct Answer a = answer(e, "25%", "exact");
    homes = ALL_HOST;
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, handler);
    check(a.status == PC_EIO && strstr(err_text(), "has no room"), "a full disk", "exact");
    check(e->be->peak(e->dev, true) == 0, "GPU memory is given back", "a full disk");
}

/* ==== Memory ==== */

static void test_faults(struct Engine *e, const char *wait)
{
    size_t host = mem_in_use();
    for (long n = 1;; n++) {
        mem_fail_after(n);
        struct Answer a = answer(e, "25%", wait);
        mem_fail_after(0);
        bool done = a.status == PC_OK;
        check(done || a.status == PC_ENOMEM, "an allocation fails", wait);
        check(mem_in_use() == host, "host memory is given back", wait);
        check(e->be->peak(e->dev, true) == 0, "GPU memory is given back", wait);
        if (!done) continue;
        check(n > 10, "allocations counted", wait);
        break;
    }
}

static void test_file_faults(struct Engine *e)
{
    struct Settings before = e->settings;
    struct Request req = {.context = text, .context_len = BYTES, .question = "Which one?"};
    set(e, "kv_resident", "25%");
    homes = 30;
    e->settings.kv_host = host_room(e, &req); /* not while allocations fail */
    test_faults(e, "exact");
    homes = ALL_HOST;
    e->settings = before;
}

static void test_bad_files(struct Engine *e)
{
    mkdir(FOLDER, 0700);
    test_cut(e, "exact");
    test_cut(e, "late");
    rmdir(FOLDER);
    test_full_disk(e);
    test_file_faults(e);
}

static struct Engine *open_engine(const char *model, const char *kv_type)
{
    static const char *const with[][2] = {
        {"backend", "cuda"},   {"window", "512"},     {"chunk", "150"},
        {"kv_cap", "off"},     {"keep", "all"},       {"select", "mean"},
        {"select_pages", "4"}, {"max_tokens", "100"}, {"temperature", "2"}};
    struct Settings s;
    struct Engine *e = NULL;
    settings_default(&s);
    for (size_t i = 0; i < sizeof with / sizeof *with; i++)
        settings_set(&s, with[i][0], with[i][1]);
    settings_set(&s, "kv_type", kv_type);
    if (engine_open(model, &s, &e) < 0) printf("FAIL %s\n", err_text());
    return e;
}

int main(void)
{
    static const char *const models[] = {"geometry:tiny", "geometry:tiny-40"}, *const types[] = {
                                                                                   "auto", "q8",
                                                                                   "q4"};
    if (!&backend_cuda || !backend_cuda.available()) {
        puts("SKIP: no GPU");
        return 0;
    }
    for (int i = 0; i < BYTES; i++) text[i] = i % 50 == 49 ? '\n' : (char)('a' + i * i / 7 % 26);
    for (int m = 0; m < 2; m++)
        for (int t = 0; t < 3; t++) {
            char kind[64];
            struct Engine *e = open_engine(models[m], types[t]);
            if (!e) return 1;
            snprintf(kind, sizeof kind, "%s %s", models[m], types[t]);
            test_all(e, kind);
            test_heads(e, kind);
            test_all_pages(e, kind);
            test_late(e, kind);
            if (t == 0) test_faults(e, "exact");
            if (t == 0) test_faults(e, "late");
            test_files(e, kind);
            if (t == 0) test_bad_files(e);
            engine_close(e);
        }
    check(sum.fetched < sum.missed && sum.through > 0, "more pages than slots, now and then",
          "all");
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
