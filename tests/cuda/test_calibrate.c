/* test_calibrate.c - head studies on the GPU beside the CPU's in f32: the same samples, so the same scores but for bf16.
 *
 * One head's ablation moves an answer by little, and bf16 moves it too: scores are compared by the length of all of them.
 * Attention on needles moves less. Two runs on the GPU give the same bytes.
 */
#include "src/calibrate.h"

#include "tests/cuda/sides.h"

static struct Engine *open_study_side(const char *model, const char *backend)
{
    struct Settings set;
    struct Engine *e;
    settings_default(&set);
    must(settings_set(&set, "backend", backend));
    must(settings_set(&set, "window", "1024"));
    if (!strcmp(backend, "cpu")) must(settings_set(&set, "precision", "f32"));
    must(engine_open(model, &set, &e));
    must(engine_weights(e));
    return e;
}

static struct HeadMap scores_of(struct Engine *e, enum HeadMethod method, bool parallel)
{
    struct StudyOptions o = {.parallel = parallel,
                             .lens = {800},
                             .n_lens = 1,
                             .samples = 1,
                             .passkeys = 1,
                             .words = 3,
                             .sink = 4,
                             .recent = 32,
                             .seed = 5};
    struct Str text = {0};
    struct Study st;
    struct HeadMap map;
    double unit;
    for (int i = 0; i < 300; i++)
        must(str_appendf(&text, "In the year %d the miller wrote letter %d home. ", 1800 + i,
                         i * 7));
    must(study_open(&st, e, &o, text.data, text.len));
    must(study_scores(&st, method, &map, &unit));
    for (int i = 0; i < headmap_heads(&map); i++) map.scores[i] *= (float)unit;
    study_close(&st);
    str_free(&text);
    return map;
}

/* |a - b| / |b|; lengths below NOISE count as NOISE: of random weights a head may move an answer by less than bf16 shows */
static const double NOISE = 1e-4; /* nats */

static double apart(const float *a, const float *b, int n)
{
    double d = 0, l = 0;
    for (int i = 0; i < n; i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        l += (double)b[i] * b[i];
    }
    return sqrt(d) / fmax(sqrt(l), NOISE);
}

static void compare_scores(struct Engine *cpu, struct Engine *gpu, enum HeadMethod method,
                           bool parallel)
{
    struct HeadMap a = scores_of(cpu, method, parallel), b = scores_of(gpu, method, parallel),
                   again = scores_of(gpu, method, parallel);
    int n = headmap_heads(&a);
    char what[192];
    snprintf(what, sizeof what, "%s, %s, %s", gpu->model.cfg.name, head_method_name(method),
             parallel ? "parallel" : "plain");
    double limit = method == HEADS_ALONE || method == HEADS_DEVIATE ? 0.25 : 0.05;
    check(apart(b.scores, a.scores, n) < limit, "scores", what, apart(b.scores, a.scores, n));
    check(memcmp(b.scores, again.scores, sizeof(float) * (size_t)n) == 0, "same bytes", what, 0);
    headmap_close(&a);
    headmap_close(&b);
    headmap_close(&again);
}

int main(void)
{
    static const char *const models[] = {"geometry:tiny", "geometry:tiny-40"};
    static const enum HeadMethod methods[] = {HEADS_ALONE, HEADS_DEVIATE, HEADS_MASS, HEADS_ECHO,
                                              HEADS_ROPE};
    if (!&backend_cuda || !backend_cuda.available()) {
        puts("SKIP: no GPU");
        return 0;
    }
    for (int m = 0; m < 2; m++) {
        struct Engine *cpu = open_study_side(models[m], "cpu"),
                      *gpu = open_study_side(models[m], "cuda");
        for (int i = 0; i < 5; i++)
            for (int parallel = 0; parallel < 2; parallel++)
                compare_scores(cpu, gpu, methods[i], parallel);
        engine_close(cpu);
        engine_close(gpu);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
