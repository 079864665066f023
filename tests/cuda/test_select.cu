/* test_select.cu - cuda_select against the CPU's kv_evict: the same tokens for the same mass.
 *
 * test_select        random, tied and odd masses
 * test_select time   speed
 */
#include "cuda/kernels.h"

#include <algorithm>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <vector>

extern "C" {
#include "eviction/kv_evict.h"
}

using std::vector;

static void check_cuda(cudaError_t err, const char *what)
{
    if (!err) return;
    printf("FAIL: %s: %s\n", what, cudaGetErrorString(err));
    exit(1);
}

template <class X> static X *to_device(const vector<X> &x)
{
    X *p;
    check_cuda(cudaMalloc(&p, x.size() * sizeof(X)), "cudaMalloc");
    check_cuda(cudaMemcpy(p, x.data(), x.size() * sizeof(X), cudaMemcpyHostToDevice), "copy");
    return p;
}

static uint32_t random_state = 7;
static uint32_t random_u32()
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    return random_state ^= random_state << 5;
}

/* Kinds: 0 like attention, 1 all zero, 2 mostly zero, 3 few levels, 4 signs, infinities and NaN, 5 rising, 6 any bits. */
static float mass_value(int kind, int i)
{
    float u = (random_u32() >> 8) * (1.0f / 16777216.0f);
    const float odd[] = {-0.0f, 0.0f, INFINITY, -INFINITY, NAN, 1.0f, -1.0f, 1e-42f};
    uint32_t bits = random_u32();
    float any;
    memcpy(&any, &bits, 4);
    switch (kind) {
    case 0:
        return expf(-12 * u);
    case 1:
        return 0;
    case 2:
        return u < 0.02f ? u : 0;
    case 3:
        return (int)(u * 5) * 0.25f;
    case 4:
        return odd[random_u32() % 8];
    case 5:
        return (float)i;
    default:
        return any;
    }
}

struct Case {
    vector<int> n;
    int kv_heads, cap, pool, first, kind;
};

/* Sequences further apart than their heads take. */
static size_t keep_step(const Case &c, int keep_stride)
{
    return (size_t)c.kv_heads * keep_stride + 5;
}

/* What the kernel shall write, with -1 where it shall write nothing. */
static vector<int> wanted(const Case &c, const vector<float> &mass, int stride, int keep_stride)
{
    size_t step = keep_step(c, keep_stride);
    vector<int> want(c.n.size() * step, -1), keep(stride);
    vector<float> pooled(stride);
    struct KvEvict rule = {};
    rule.cap = c.cap;
    rule.pool = c.pool;
    for (size_t line = 0; line < c.n.size() * c.kv_heads; line++) {
        int n = kv_evict(&rule, &mass[line * stride + c.first], c.n[line / c.kv_heads],
                         pooled.data(), keep.data());
        size_t at = line / c.kv_heads * step + line % c.kv_heads * keep_stride;
        std::copy(keep.begin(), keep.begin() + n, want.begin() + at);
    }
    return want;
}

static bool test(const Case &c)
{
    int max_n = *std::max_element(c.n.begin(), c.n.end());
    int stride = max_n + c.first + 5, lines = c.n.size() * c.kv_heads;
    int keep_stride = std::max(1, (c.cap < 0 ? max_n : std::min(c.cap, max_n)) + 3);
    vector<float> mass((size_t)lines * stride);
    for (size_t i = 0; i < mass.size(); i++) mass[i] = mass_value(c.kind, i % stride);
    float *d_mass = to_device(mass), *d_pooled = to_device(mass);
    int *d_n = to_device(c.n);
    int64_t step = keep_step(c, keep_stride);
    vector<int> got(c.n.size() * step, -1), want = wanted(c, mass, stride, keep_stride);
    int *d_keep = to_device(got);
    struct CudaSelect a = {d_mass, stride, c.first,  d_n,    (int)c.n.size(), c.kv_heads, max_n,
                           c.cap,  c.pool, d_pooled, d_keep, keep_stride,     step};
    bool ok = true;
    for (int run = 0; run < 2; run++) {
        check_cuda(cudaMemset(d_keep, 0xff, got.size() * 4), "memset");
        check_cuda(cuda_select(&a, 0), "cuda_select");
        check_cuda(cudaMemcpy(got.data(), d_keep, got.size() * 4, cudaMemcpyDeviceToHost), "run");
        ok &= got == want;
    }
    cudaFree(d_mass);
    cudaFree(d_pooled);
    cudaFree(d_n);
    cudaFree(d_keep);
    if (!ok)
        printf("FAIL n=%d cap=%d pool=%d first=%d kind=%d\n", c.n[0], c.cap, c.pool, c.first,
               c.kind);
    return ok;
}

static void time_select(int n, int cap, int lines)
{
    vector<float> mass((size_t)lines * n);
    for (size_t i = 0; i < mass.size(); i++) mass[i] = mass_value(0, i % n);
    float *d_mass = to_device(mass), *d_pooled = to_device(mass);
    int *d_n = to_device(vector<int>(1, n)), *d_keep = to_device(vector<int>((size_t)lines * cap));
    struct CudaSelect a = {d_mass, n, 0, d_n, 1, lines, n, cap, 7, d_pooled, d_keep, cap};
    cudaEvent_t from, to;
    cudaEventCreate(&from);
    cudaEventCreate(&to);
    vector<float> times;
    for (int i = 0; i < 15; i++) {
        cudaEventRecord(from);
        for (int j = 0; j < 10; j++) check_cuda(cuda_select(&a, 0), "cuda_select");
        cudaEventRecord(to);
        check_cuda(cudaEventSynchronize(to), "timed run");
        float t;
        cudaEventElapsedTime(&t, from, to);
        if (i > 2) times.push_back(t / 10);
    }
    std::sort(times.begin(), times.end());
    printf("select n=%d cap=%d x %d: %.4f ms\n", n, cap, lines, times[times.size() / 2]);
    cudaFree(d_mass);
    cudaFree(d_pooled);
    cudaFree(d_n);
    cudaFree(d_keep);
}

int main(int argc, char **argv)
{
    int n_gpus = 0, n_passed = 0, n_failed = 0;
    if (cudaGetDeviceCount(&n_gpus) || n_gpus == 0) {
        printf("SKIP: no GPU\n");
        return 0;
    }
    if (argc > 1 && !strcmp(argv[1], "time")) {
        time_select(8192, 4000, 16);
        time_select(65536, 4000, 16);
        return 0;
    }
    const vector<int> ns[] = {{1}, {63, 0, 129}, {1000, 1024, 1025}, {8192, 5}, {70001}};
    for (auto &n : ns)
        for (int cap : {-1, 0, 1, 31, 1000, 4000})
            for (int pool : {1, 2, 7, 64})
                for (int kind = 0; kind < 7; kind++) {
                    Case c = {n, 3, cap, pool, kind % 3 * 17, kind};
                    (test(c) ? n_passed : n_failed)++;
                }
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed != 0;
}
