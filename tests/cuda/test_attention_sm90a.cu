/* test_attention_sm90a.cu - cuda_attention_sm90a against a reference in double precision.
 *
 *     test_attention_sm90a [--time [shape, -1 for all [runs]]]
 */
#include "../../cuda/kernels.h"

#include <algorithm>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <thread>
#include <vector>

typedef std::vector<int> Ints;

static int n_passed, n_failed;

static void check(bool ok, const char *what, const char *name, double got)
{
    if (ok)
        n_passed++;
    else {
        n_failed++;
        printf("FAILED %s: %s (%g)\n", name, what, got);
    }
}

static void need(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return;
    printf("FAILED %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}

/* ==== A problem ==== */

struct Problem {
    const char *name;
    int head_dim, n_heads, n_kv_heads;
    Ints rows;       /* of each sequence */
    Ints past;       /* of KV head h: past[h % size] */
    float sharpness; /* factor on the logits */
    int last_rows;
    Ints window; /* of head h: window[h % size]; empty: none */
    int sinks;
};

enum { GUARD = 4096 }; /* elements behind each output that must stay as they were */

struct Data {
    struct CudaAttn a;
    std::vector<bf16> q, k, v;
    Ints begin, past, window;
    std::vector<void *> owned;
};

static uint64_t random_state = 88172645463325252u;

/* The sum of four uniforms of 16 bits, which has a variance of 1/3 before the factor. */
static float random_normal(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    uint64_t x = random_state;
    uint64_t sum = (x & 0xFFFF) + (x >> 16 & 0xFFFF) + (x >> 32 & 0xFFFF) + (x >> 48);
    return ((float)sum / 65536 - 2) * 1.7320508f;
}

template <class T> static T *to_device(struct Data *d, const T *src, size_t n)
{
    void *p;
    need(cudaMalloc(&p, n * sizeof(T)), "cudaMalloc");
    d->owned.push_back(p);
    if (src) need(cudaMemcpy(p, src, n * sizeof(T), cudaMemcpyHostToDevice), "copy");
    return (T *)p;
}

static void fill_random(std::vector<bf16> *x, float factor)
{
    for (bf16 &e : *x) e = __float2bfloat16(random_normal() * factor);
}

/* Random keys up to the last one of each head, zeros behind it. */
static void fill_keys(std::vector<bf16> *x, const struct Problem *p, const struct Data *d)
{
    size_t at = 0;
    for (int rows : p->rows)
        for (int h = 0; h < p->n_kv_heads; h++)
            for (int i = 0; i < d->a.kv.key_stride; i++)
                for (int c = 0; c < p->head_dim; c++, at++)
                    (*x)[at] = __float2bfloat16(i < d->past[h] + rows ? random_normal() : 0.0f);
}

static void open_data(struct Data *d, const struct Problem *p)
{
    struct CudaAttn *a = &d->a;
    *a = {};
    d->begin = {0};
    for (int r : p->rows) {
        d->begin.push_back(d->begin.back() + r);
        a->max_seq_rows = std::max(a->max_seq_rows, r);
    }
    for (int h = 0; h < p->n_kv_heads; h++) d->past.push_back(p->past[h % p->past.size()]);
    for (int h = 0; h < p->n_heads && !p->window.empty(); h++)
        d->window.push_back(p->window[h % p->window.size()]);
    int keys = *std::max_element(d->past.begin(), d->past.end()) + a->max_seq_rows;
    a->kv.key_stride = (keys + CUDA_KEY_TILE - 1) / CUDA_KEY_TILE * CUDA_KEY_TILE;
    a->n_seqs = (int)p->rows.size();
    a->n_rows = d->begin.back();
    a->n_heads = p->n_heads;
    a->n_kv_heads = p->n_kv_heads;
    a->head_dim = p->head_dim;
    a->scale = 1 / sqrtf((float)p->head_dim);
    a->last_rows = p->last_rows;
    a->sinks = p->sinks;

    size_t n_q = (size_t)a->n_rows * a->n_heads * a->head_dim;
    size_t n_k = (size_t)a->n_seqs * a->n_kv_heads * a->kv.key_stride * a->head_dim;
    d->q.resize(n_q);
    d->k.resize(n_k);
    d->v.resize(n_k);
    fill_random(&d->q, p->sharpness);
    fill_keys(&d->k, p, d);
    fill_keys(&d->v, p, d);
    a->q = to_device(d, d->q.data(), n_q);
    a->kv.k = to_device(d, d->k.data(), n_k);
    a->kv.v = to_device(d, d->v.data(), n_k);
    a->kv.past = to_device(d, d->past.data(), d->past.size());
    a->seq_begin = to_device(d, d->begin.data(), d->begin.size());
    if (!d->window.empty()) a->window = to_device(d, d->window.data(), d->window.size());
    a->out = to_device<bf16>(d, NULL, n_q + GUARD);
    a->lse = to_device<float>(d, NULL, (size_t)a->n_heads * a->n_rows + GUARD);
}

static void close_data(struct Data *d)
{
    for (void *p : d->owned) cudaFree(p);
}

/* ==== Reference ==== */

struct RowRef {
    std::vector<double> out;
    double lse;
};

static void reference_row(const struct Data *d, int seq, int row, int head, struct RowRef *ref)
{
    const struct CudaAttn *a = &d->a;
    int dim = a->head_dim, kv_head = head / (a->n_heads / a->n_kv_heads);
    int at = d->past[kv_head] + row, window = d->window.empty() ? 0 : d->window[head];
    const bf16 *q = &d->q[((size_t)(d->begin[seq] + row) * a->n_heads + head) * dim];
    size_t set = ((size_t)seq * a->n_kv_heads + kv_head) * a->kv.key_stride * dim;
    std::vector<double> qd(dim), weight(at + 1, -INFINITY);
    for (int c = 0; c < dim; c++) qd[c] = __bfloat162float(q[c]);
    double top = -INFINITY, sum = 0;
    for (int j = 0; j <= at; j++) {
        if (window > 0 && j >= a->sinks && at - j >= window) continue;
        const bf16 *k = &d->k[set + (size_t)j * dim];
        double dot = 0;
        for (int c = 0; c < dim; c++) dot += qd[c] * __bfloat162float(k[c]);
        weight[j] = dot * a->scale;
        top = std::max(top, weight[j]);
    }
    ref->out.assign(dim, 0);
    for (int j = 0; j <= at; j++) {
        double w = exp(weight[j] - top);
        const bf16 *v = &d->v[set + (size_t)j * dim];
        sum += w;
        for (int c = 0; c < dim && w > 0; c++) ref->out[c] += w * __bfloat162float(v[c]);
    }
    for (double &o : ref->out) o /= sum;
    ref->lse = top + log(sum);
}

/* ==== Checks ==== */

struct Outputs {
    std::vector<uint16_t> out;
    std::vector<uint32_t> lse;
};

static void run(const struct Data *d, struct Outputs *o)
{
    const struct CudaAttn *a = &d->a;
    o->out.resize((size_t)a->n_rows * a->n_heads * a->head_dim + GUARD);
    o->lse.resize((size_t)a->n_heads * a->n_rows + GUARD);
    need(cudaMemset(a->out, 0xFF, o->out.size() * 2), "poison");
    need(cudaMemset(a->lse, 0xFF, o->lse.size() * 4), "poison");
    need(cuda_attention_sm90a(a, 0), "launch");
    need(cudaDeviceSynchronize(), "kernel");
    need(cudaMemcpy(o->out.data(), a->out, o->out.size() * 2, cudaMemcpyDeviceToHost), "copy");
    need(cudaMemcpy(o->lse.data(), a->lse, o->lse.size() * 4, cudaMemcpyDeviceToHost), "copy");
}

static float as_float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

struct Errors {
    double diff, norm, worst_row, worst_lse;
};

static void compare_row(const struct Data *d, const struct Outputs *o, int seq, int row, int head,
                        struct Errors *e)
{
    const struct CudaAttn *a = &d->a;
    struct RowRef ref;
    reference_row(d, seq, row, head, &ref);
    size_t at = (size_t)(d->begin[seq] + row);
    double diff = 0, norm = 0;
    for (int c = 0; c < a->head_dim; c++) {
        uint32_t bits = o->out[(at * a->n_heads + head) * a->head_dim + c];
        double x = as_float(bits << 16) - ref.out[c];
        diff += x * x;
        norm += ref.out[c] * ref.out[c];
    }
    double lse = fabs(as_float(o->lse[(size_t)head * a->n_rows + at]) - ref.lse);
    e->diff += diff;
    e->norm += norm;
    /* The negations let a NaN through as the worst. */
    if (!(sqrt(diff / norm) <= e->worst_row)) e->worst_row = sqrt(diff / norm);
    if (!(lse <= e->worst_lse)) e->worst_lse = lse;
}

static void check_errors(const struct Errors *e, const char *name)
{
    double total = sqrt(e->diff / e->norm);
    check(total < 5e-3, "output", name, total);
    check(e->worst_row < 2e-2, "worst row", name, e->worst_row);
    check(e->worst_lse < 1e-3, "log-sum-exp", name, e->worst_lse);
}

/* What was written outside the wanted rows. */
static size_t count_strays(const struct Data *d, const struct Outputs *o)
{
    const struct CudaAttn *a = &d->a;
    size_t width = (size_t)a->n_heads * a->head_dim, n_out = (size_t)a->n_rows * width, n = 0;
    size_t n_lse = (size_t)a->n_heads * a->n_rows;
    for (size_t i = n_out; i < o->out.size(); i++) n += o->out[i] != 0xFFFF;
    for (size_t i = n_lse; i < o->lse.size(); i++) n += o->lse[i] != 0xFFFFFFFF;
    for (int s = 0; s < a->n_seqs; s++) {
        int end = a->last_rows > 0 ? d->begin[s + 1] - a->last_rows : 0;
        for (int r = d->begin[s]; r < end; r++) {
            for (size_t c = 0; c < width; c++) n += o->out[r * width + c] != 0xFFFF;
            for (int h = 0; h < a->n_heads; h++)
                n += o->lse[(size_t)h * a->n_rows + r] != 0xFFFFFFFF;
        }
    }
    return n;
}

/* Compares every wanted row, on all cores. */
static struct Errors compare_all(const struct Data *d, const struct Outputs *o)
{
    int n = std::max(1, (int)std::thread::hardware_concurrency());
    std::vector<struct Errors> part(n);
    std::vector<std::thread> threads;
    for (int t = 0; t < n; t++)
        threads.emplace_back([=, &part] {
            int i = 0;
            for (int s = 0; s < d->a.n_seqs; s++) {
                int rows = d->begin[s + 1] - d->begin[s];
                int first = d->a.last_rows > 0 ? std::max(0, rows - d->a.last_rows) : 0;
                for (int r = first; r < rows; r++)
                    for (int h = 0; h < d->a.n_heads; h++)
                        if (i++ % n == t) compare_row(d, o, s, r, h, &part[t]);
            }
        });
    struct Errors all = {};
    for (int t = 0; t < n; t++) {
        threads[t].join();
        all.diff += part[t].diff;
        all.norm += part[t].norm;
        if (!(part[t].worst_row <= all.worst_row)) all.worst_row = part[t].worst_row;
        if (!(part[t].worst_lse <= all.worst_lse)) all.worst_lse = part[t].worst_lse;
    }
    return all;
}

static void test_problem(const struct Problem *p)
{
    struct Data d;
    struct Outputs first, second;
    open_data(&d, p);
    run(&d, &first);
    run(&d, &second);
    struct Errors e = compare_all(&d, &first);
    check_errors(&e, p->name);
    size_t strays = count_strays(&d, &first);
    check(strays == 0, "writes outside the wanted rows", p->name, (double)strays);
    check(first.out == second.out && first.lse == second.lse, "same bytes twice", p->name, 0);
    close_data(&d);
}

/* A few rows of a problem too large for the reference. */
static void test_spots(const struct Problem *p)
{
    struct Data d;
    struct Outputs first, second;
    struct Errors e = {};
    open_data(&d, p);
    run(&d, &first);
    run(&d, &second);
    for (int i = 0; i < 64; i++) {
        int s = i % d.a.n_seqs, rows = p->rows[s];
        int row = i < 16 ? std::max(0, rows - 1 - i * 37) : rand() % rows;
        compare_row(&d, &first, s, row, rand() % p->n_heads, &e);
    }
    check_errors(&e, p->name);
    size_t missing = 0;
    for (size_t i = 0; i + GUARD < first.out.size(); i++) missing += first.out[i] == 0xFFFF;
    check(missing == 0, "unwritten elements", p->name, (double)missing);
    check(first.out == second.out && first.lse == second.lse, "same bytes twice", p->name, 0);
    close_data(&d);
}

/* Launches on two streams at once share no state. */
static void test_streams(const struct Problem *p)
{
    struct Data d[2];
    struct Outputs want[2], got;
    cudaStream_t s[2];
    for (int i = 0; i < 2; i++) {
        open_data(&d[i], p);
        run(&d[i], &want[i]);
        need(cudaStreamCreateWithFlags(&s[i], cudaStreamNonBlocking), "stream");
    }
    for (int n = 0; n < 300; n++) need(cuda_attention_sm90a(&d[n % 2].a, s[n % 2]), "launch");
    need(cudaDeviceSynchronize(), "kernels");
    for (int i = 0; i < 2; i++) {
        got = want[i];
        need(cudaMemcpy(got.out.data(), d[i].a.out, got.out.size() * 2, cudaMemcpyDeviceToHost),
             "copy");
        check(got.out == want[i].out, "two streams at once", p->name, i);
        need(cudaStreamDestroy(s[i]), "stream");
        close_data(&d[i]);
    }
}

static void test_refusals(void)
{
    struct CudaAttn a = {};
    check(cuda_attention_sm90a(&a, 0) == cudaErrorInvalidValue, "empty", "refusals", 0);
    a.n_seqs = a.n_rows = a.max_seq_rows = a.n_heads = a.n_kv_heads = 1;
    a.kv.key_stride = CUDA_KEY_TILE;
    a.scale = 1;
    a.head_dim = 96;
    check(cuda_attention_sm90a(&a, 0) == cudaErrorInvalidValue, "head_dim 96", "refusals", 0);
}

static Ints repeated(int n, int value)
{
    return Ints(n, value);
}

static void test_all(void)
{
    const Ints odd = {1, 63, 129, 300, 515}, pasts = {0, 31, 64, 200};
    for (int dim : {64, 128}) {
        const struct Problem small[] = {
            {"plain", dim, 2, 2, {128, 256}, {0}, 1},
            {"one row", dim, 1, 1, {1}, {0}, 1},
            {"an empty sequence", dim, 2, 1, {3, 0, 70}, {0}, 1},
            {"windows of many tiles", dim, 4, 4, {300, 900}, {0, 77}, 1, 0, {400, 300}, 5},
            {"odd rows", dim, 4, 4, odd, {0}, 1},
            {"past by head", dim, 8, 4, odd, pasts, 1},
            {"sharp", dim, 4, 4, odd, pasts, 12},
            {"no groups of 2", dim, 9, 3, {77, 193}, {5, 130, 0}, 2},
            {"groups of 7", dim, 14, 2, {200}, {100, 3}, 1},
            {"last rows", dim, 4, 4, odd, pasts, 1, 100},
            {"last row", dim, 4, 4, odd, pasts, 1, 1},
            {"window", dim, 4, 4, odd, pasts, 1, 0, {64, 0, 1, 200}, 0},
            {"window and sinks", dim, 4, 4, odd, pasts, 1, 0, {50, 128, 0, 129}, 4},
            {"many sinks", dim, 4, 2, odd, {7, 200}, 1, 0, {33, 100}, 140},
            {"all", dim, 4, 4, odd, pasts, 3, 150, {70, 130, 0, 255}, 9},
            {"windows of one key", dim, 4, 2, {300}, {300}, 1, 0, {1}, 0},
            {"fewer keys than sinks and window",
             dim,
             6,
             2,
             {40, 9},
             {10, 13},
             1,
             0,
             {64, 30, 999},
             16},
            {"windows within a group", dim, 9, 3, {330, 70}, {190}, 1, 0, {0, 1, 257, 63}, 4},
        };
        for (const struct Problem &p : small) test_problem(&p);
        const struct Problem large[] = {
            {"large", dim, 32, 8, {8192, 8192}, {0}, 1},
            {"large, past", dim, 8, 2, {1000, 3000, 2048}, {5000, 4177}, 2},
        };
        for (const struct Problem &p : large) test_spots(&p);
        const struct Problem twice = {"twice", dim, 32, 8, {1024, 700}, {0, 200}, 1};
        test_streams(&twice);
    }
    test_refusals();
}

/* ==== Timing ==== */

static double median_ms(const struct CudaAttn *a, int runs)
{
    enum { WARM = 5 };
    std::vector<cudaEvent_t> at(runs + 1);
    std::vector<float> ms(runs);
    for (cudaEvent_t &e : at) need(cudaEventCreate(&e), "event");
    for (int i = 0; i < WARM + runs; i++) {
        if (i >= WARM) need(cudaEventRecord(at[i - WARM]), "event");
        need(cuda_attention_sm90a(a, 0), "launch");
    }
    need(cudaEventRecord(at[runs]), "event");
    need(cudaDeviceSynchronize(), "kernels");
    for (int i = 0; i < runs; i++) need(cudaEventElapsedTime(&ms[i], at[i], at[i + 1]), "time");
    for (cudaEvent_t e : at) cudaEventDestroy(e);
    std::nth_element(ms.begin(), ms.begin() + runs / 2, ms.end());
    return ms[runs / 2];
}

/* Two products of every row with all the keys that it sees. */
static double count_flops(const struct Data *d)
{
    double pairs = 0;
    for (int s = 0; s < d->a.n_seqs; s++)
        for (int h = 0; h < d->a.n_heads; h++) {
            double rows = d->begin[s + 1] - d->begin[s];
            pairs += rows * (d->past[h / (d->a.n_heads / d->a.n_kv_heads)] + (rows + 1) / 2);
        }
    return pairs * 4 * d->a.head_dim;
}

/* All shapes, or one. */
static void time_shapes(int only, int runs)
{
    const struct Problem shapes[] = {
        {"128: 32/8 heads, 2 x 8192", 128, 32, 8, repeated(2, 8192), {0}, 1},
        {"128: 32/8 heads, 8 x 2048", 128, 32, 8, repeated(8, 2048), {0}, 1},
        {"128: 32/8 heads, 1 x 2048, past 14336", 128, 32, 8, {2048}, {14336}, 1},
        {"64: 9/3 heads, 16 x 2048", 64, 9, 3, repeated(16, 2048), {0}, 1},
        {"64: 9/3 heads, 64 x 2048", 64, 9, 3, repeated(64, 2048), {0}, 1},
        {"64: 14/2 heads, 16 x 2048", 64, 14, 2, repeated(16, 2048), {0}, 1},
        {"64: 32/8 heads, 2 x 8192", 64, 32, 8, repeated(2, 8192), {0}, 1},
    };
    for (const struct Problem &p : shapes) {
        if (only >= 0 && &p != &shapes[only]) continue;
        struct Data d;
        open_data(&d, &p);
        double flops = count_flops(&d), ms = median_ms(&d.a, runs);
        printf("%-40s %7.3f ms %4.0f TFLOP/s\n", p.name, ms, flops / ms / 1e9);
        close_data(&d);
    }
}

int main(int argc, char **argv)
{
    int n = 0;
    struct cudaDeviceProp prop;
    if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) {
        printf("SKIP: no GPU\n");
        return 0;
    }
    need(cudaGetDeviceProperties(&prop, 0), "device");
    if (prop.major != 9 || prop.minor != 0) {
        printf("SKIP: no GPU of compute capability 9.0\n");
        return 0;
    }
    if (argc > 1 && !strcmp(argv[1], "--time")) {
        time_shapes(argc > 2 ? atoi(argv[2]) : -1, argc > 3 ? atoi(argv[3]) : 20);
        return 0;
    }
    test_all();
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed > 0;
}
