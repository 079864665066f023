/* test_cuda_bias.c - attention bias as the GPU sees it beside the CPU in f32: the same weights, text and question; shares,
 * profiles and NLL, without and with rules and a cap.
 */
#include "src/session_bias.h"
#include "tests/cuda/sides.h"

enum { BYTES = 3000, REGION = 20 };

struct Seen {
    struct BiasProfile local, merged;
    struct BiasScore score;
};

static struct Engine *open_bias_side(const char *model, const char *backend)
{
    struct Settings set;
    struct Engine *e;
    settings_default(&set);
    must(settings_set(&set, "backend", backend));
    if (strcmp(backend, "cpu") == 0) set.precision = PRECISION_F32;
    set.window = 512;
    set.chunk = 200;
    set.keep = 3;
    set.max_tokens = 9;
    must(engine_open(model, &set, &e));
    return e;
}

static struct Seen look(struct Engine *e, const char *text, int cap, int n_rules)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct Seen seen = {0};
    struct Result r;
    e->settings.kv_cap = cap;
    e->settings.n_calib = n_rules;
    e->settings.calib[0] = (struct CalibRule){CLASS_RECENT, 1, 1, 0, REGION, 8, 1};
    must(bias_open(&seen.local, m->n_layers, m->n_kv_heads, REGION));
    must(bias_open(&seen.merged, m->n_layers, m->n_kv_heads, REGION));
    struct BiasAsk ask = {
        .req = {.context = text, .context_len = BYTES, .question = "Which word is next to it?"},
        .answer = " the end",
        .local = &seen.local,
        .merged = &seen.merged};
    must(session_bias(e, &ask, &seen.score, &r));
    result_free(&r);
    return seen;
}

static void compare_profiles(const struct BiasProfile *a, const struct BiasProfile *b,
                             const char *where)
{
    double worst = 0, whole = 0;
    check(a->n_views == b->n_views && a->n_chunks == b->n_chunks, "views", where, a->n_views);
    for (int l = 0; l < a->n_layers; l++)
        for (int h = 0; h < a->n_heads; h++) {
            double all = 0;
            for (int i = 0; i < BIAS_PARTS; i++) {
                double share = bias_share(a, l, h, (enum BiasPart)i);
                worst = fmax(worst, fabs(share - bias_share(b, l, h, (enum BiasPart)i)));
                all += share;
            }
            whole = fmax(whole, fabs(all - 1));
        }
    check(worst < 0.03, "shares", where, worst);
    check(whole < 0.01, "the whole", where, whole);
}

static void free_seen(struct Seen *seen)
{
    bias_close(&seen->local);
    bias_close(&seen->merged);
}

static void run_case(struct Engine *cpu, struct Engine *gpu, int cap, int n_rules)
{
    char text[BYTES + 1] = "", where[64];
    uint64_t state = 5;
    for (int i = 0; i < BYTES; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        text[i] = i % 5 == 4 ? ' ' : (char)('a' + (state >> 33) % 26);
    }
    snprintf(where, sizeof where, "cap %d, %d rules", cap, n_rules);
    struct Seen a = look(gpu, text, cap, n_rules), b = look(cpu, text, cap, n_rules);
    compare_profiles(&a.local, &b.local, where);
    /* with a cap the two may keep other tokens: attention near a tie */
    if (cap == CAP_OFF) compare_profiles(&a.merged, &b.merged, where);
    check(fabs(a.score.nll - b.score.nll) < (cap == CAP_OFF ? 0.05 : 0.5), "NLL", where,
          a.score.nll - b.score.nll);
    check((bias_share(&a.merged, 1, ALL_HEADS, PART_RECENT) == 0) == (n_rules == 1),
          "what a rule drops", where, bias_share(&a.merged, 1, ALL_HEADS, PART_RECENT));
    struct Seen again = look(gpu, text, cap, n_rules);
    size_t n = (size_t)a.merged.n_layers * (size_t)a.merged.n_heads * BIAS_BINS;
    check(again.score.nll == a.score.nll &&
              memcmp(again.merged.bin, a.merged.bin, sizeof(double) * n) == 0,
          "the same bytes again", where, again.score.nll - a.score.nll);
    free_seen(&a);
    free_seen(&b);
    free_seen(&again);
}

int main(void)
{
    if (!&backend_cuda || !backend_cuda.available()) {
        puts("SKIP: no GPU");
        return 0;
    }
    struct Engine *cpu = open_bias_side("geometry:tiny", "cpu"),
                  *gpu = open_bias_side("geometry:tiny", "cuda");
    for (int n_rules = 0; n_rules < 2; n_rules++) {
        run_case(cpu, gpu, CAP_OFF, n_rules);
        run_case(cpu, gpu, 50, n_rules);
    }
    engine_close(cpu);
    engine_close(gpu);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
