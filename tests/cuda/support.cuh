/* support.cuh - for tests of attention: counts, seeded numbers, device memory with guards, timing. Each test program has its own
 * copy.
 */
#ifndef PCOMP_TESTS_CUDA_SUPPORT_CUH
#define PCOMP_TESTS_CUDA_SUPPORT_CUH

#include "cuda/kernels.h"

#include <algorithm>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

using std::vector;

static int n_passed, n_failed;
static const int GUARD = 4096;

static void check_cuda(cudaError_t err, const char *what)
{
    if (!err) return;
    printf("FAIL: %s: %s\n", what, cudaGetErrorString(err));
    exit(1);
}

static uint32_t random_state = 1;
static uint32_t random_u32()
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    return random_state ^= random_state << 5;
}
static int random_below(int n)
{
    return random_u32() % n;
}
static float random_normal()
{
    float x = 0;
    for (int i = 0; i < 6; i++) x += random_u32() * (1.0f / 4294967296.0f) - 0.5f;
    return x * 1.41f;
}

static vector<bf16> random_bf16(size_t n)
{
    vector<bf16> x(n);
    for (auto &v : x) v = __float2bfloat16(random_normal());
    return x;
}

/* Device memory with guard bytes behind it, all of it 0xff before (NaN in every float type). */
template <class X> struct Memory {
    X *p;
    size_t n;
    explicit Memory(size_t count) : n(count)
    {
        check_cuda(cudaMalloc(&p, bytes() + GUARD), "cudaMalloc");
        poison();
    }
    explicit Memory(const vector<X> &from) : Memory(from.size())
    {
        check_cuda(cudaMemcpy(p, from.data(), bytes(), cudaMemcpyHostToDevice), "copy");
    }
    Memory(const Memory &) = delete;
    ~Memory() { cudaFree(p); }
    size_t bytes() const { return n * sizeof(X); }
    void poison() { check_cuda(cudaMemset(p, 0xff, bytes() + GUARD), "memset"); }
    vector<X> get() const
    {
        vector<X> x(n);
        check_cuda(cudaMemcpy(x.data(), p, bytes(), cudaMemcpyDeviceToHost), "copy back");
        return x;
    }
    bool guarded() const
    {
        vector<uint8_t> g(GUARD);
        check_cuda(cudaMemcpy(g.data(), (char *)p + bytes(), GUARD, cudaMemcpyDeviceToHost),
                   "copy back");
        return std::all_of(g.begin(), g.end(), [](uint8_t b) { return b == 0xff; });
    }
};

template <class X> static bool same(const vector<X> &a, const vector<X> &b)
{
    return !memcmp(a.data(), b.data(), a.size() * sizeof(X));
}

static void report(const char *name, bool ok, const char *why)
{
    if (ok) {
        n_passed++;
        return;
    }
    n_failed++;
    printf("FAIL %s: %s\n", name, why);
}

/* ==== Timing ==== */

[[maybe_unused]] static __global__ void fill_kernel(bf16 *x, size_t n)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint32_t h = (uint32_t)i * 2654435761u + (uint32_t)(i >> 32);
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    uint32_t g = h * 3266489917u;
    g ^= g >> 16;
    float a = ((h >> 8) + 1) * (1.0f / 16777217.0f);
    x[i] =
        __float2bfloat16(sqrtf(-2 * logf(a)) * cosf(6.2831853f * (g >> 8) * (1.0f / 16777216.0f)));
}

[[maybe_unused]] static void fill(bf16 *x, size_t n)
{
    fill_kernel<<<(n + 255) / 256, 256>>>(x, n);
}

/* Median of 11 runs of `many` launches, in milliseconds a launch. */
template <class F> static float time_ms(int many, F run)
{
    cudaEvent_t from, to;
    cudaEventCreate(&from);
    cudaEventCreate(&to);
    vector<float> times;
    for (int i = 0; i < 13; i++) {
        cudaEventRecord(from);
        for (int j = 0; j < many; j++) run(j);
        cudaEventRecord(to);
        check_cuda(cudaEventSynchronize(to), "timed run");
        float t;
        cudaEventElapsedTime(&t, from, to);
        if (i >= 2) times.push_back(t / many);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

#endif
