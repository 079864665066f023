/* test_attention_any.cu - cuda_attention_any and cuda_attn_mass_any against sums in double; packing from ragged pages.
 *
 * test_attention_any        small odd shapes: results, guard bytes behind them, and the same bytes from a second run
 * test_attention_any time   speed
 */
#include "cuda/device.h"

#include "support.cuh"

#include <limits.h>

/* Cosines, then sines, of any angles. */
static vector<float> random_turns(int n, int rope_dim)
{
    vector<float> x((size_t)n * rope_dim);
    int half = rope_dim / 2;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < half; j++) {
            float angle = 3 * random_normal();
            x[(size_t)i * rope_dim + j] = cosf(angle);
            x[(size_t)i * rope_dim + half + j] = sinf(angle);
        }
    return x;
}

/* ==== Attention ==== */

struct Case {
    int dim, heads, kv_heads, rope_dim;
    bool pairs;
    vector<int> lens;
    int past, past_step; /* of KV head h: past + h * past_step */
    int window, n;       /* window 0: no far keys */
    bool k_turn;
    int n_biased;
    float bias;
    int last_rows, obs_rows; /* obs_rows 0: no mass */
    vector<int> masks;       /* of head h: the window masks[h % size]; empty: none has one */
    int sinks;
};

struct Problem {
    Case c;
    int rows, stride, max_len;
    vector<int> begin, past, masks;
    vector<bf16> q, k, v;
    vector<float> q_turn, k_turn;
    explicit Problem(const Case &the) : c(the), max_len(0)
    {
        int most = 0;
        begin.push_back(0);
        for (int n : c.lens) {
            begin.push_back(begin.back() + n);
            max_len = std::max(max_len, n);
        }
        rows = begin.back();
        for (int h = 0; h < c.heads; h++)
            masks.push_back(c.masks.empty() ? 0 : c.masks[h % c.masks.size()]);
        for (int h = 0; h < c.kv_heads; h++) {
            past.push_back(c.past + h * c.past_step);
            most = std::max(most, past.back());
        }
        stride = (most + max_len + CUDA_KEY_TILE - 1) / CUDA_KEY_TILE * CUDA_KEY_TILE;
        q = random_bf16((size_t)rows * c.heads * c.dim);
        k = random_bf16(c.lens.size() * c.kv_heads * stride * c.dim);
        v = random_bf16(k.size());
        q_turn = random_turns(rows, c.rope_dim);
        k_turn = random_turns(most + max_len, c.rope_dim);
        for (size_t s = 0; s < c.lens.size(); s++)
            for (int h = 0; h < c.kv_heads; h++)
                for (size_t i = (size_t)(past[h] + c.lens[s]) * c.dim; i < (size_t)stride * c.dim;
                     i++)
                    k[at(s, h) + i] = v[at(s, h) + i] = __float2bfloat16(NAN);
    }
    size_t at(int s, int h) const { return ((size_t)s * c.kv_heads + h) * stride * c.dim; }
    /* A head's values as they are, or turned and rounded again. */
    vector<double> head(const bf16 *x, const float *turn) const
    {
        vector<double> out(c.dim);
        int half = c.rope_dim / 2;
        for (int d = 0; d < c.dim; d++) out[d] = __bfloat162float(x[d]);
        for (int i = 0; turn && i < half; i++) {
            int p = c.pairs ? 2 * i : i, r = c.pairs ? p + 1 : p + half;
            float a = out[p], b = out[r], co = turn[i], si = turn[half + i];
            out[p] = __bfloat162float(__float2bfloat16(a * co - b * si));
            out[r] = __bfloat162float(__float2bfloat16(a * si + b * co));
        }
        return out;
    }
    double dot(const vector<double> &a, const vector<double> &b) const
    {
        double s = 0;
        for (int d = 0; d < c.dim; d++) s += a[d] * b[d];
        return s / sqrt(c.dim);
    }
    /* The result of a row, the weight of every key in `weight`, and the log of the sum. */
    double row(int s, int r, int head_at, vector<double> &out, vector<double> &weight) const
    {
        int h = head_at / (c.heads / c.kv_heads), i = past[h] + r;
        const bf16 *query = &q[((size_t)(begin[s] + r) * c.heads + head_at) * c.dim];
        vector<double> near = head(query, NULL),
                       far = head(query, &q_turn[(size_t)(begin[s] + r) * c.rope_dim]);
        vector<double> x(i + 1, -INFINITY);
        double most = -INFINITY, sum = 0;
        for (int j = 0; j <= i; j++) {
            bool is_far = c.window && i - j >= c.window;
            if (is_far && j >= c.n) continue;
            if (masks[head_at] && j >= c.sinks && i - j >= masks[head_at]) continue;
            const float *turn = is_far && c.k_turn ? &k_turn[(size_t)j * c.rope_dim] : NULL;
            x[j] = dot(is_far ? far : near, head(&k[at(s, h) + (size_t)j * c.dim], turn)) +
                   (j < c.n_biased ? c.bias : 0);
            most = std::max(most, x[j]);
        }
        out.assign(c.dim, 0);
        weight.assign(i + 1, 0);
        for (int j = 0; j <= i; j++) sum += weight[j] = exp(x[j] - most);
        for (int j = 0; j <= i; j++) {
            weight[j] /= sum;
            for (int d = 0; d < c.dim && weight[j] > 0; d++)
                out[d] += weight[j] * __bfloat162float(v[at(s, h) + (size_t)j * c.dim + d]);
        }
        return most + log(sum);
    }
};

static bool near_row(const bf16 *got, const vector<double> &want)
{
    for (size_t d = 0; d < want.size(); d++)
        if (!(fabs(__bfloat162float(got[d]) - want[d]) <= 0.012 + 0.01 * fabs(want[d])))
            return false;
    return true;
}

static void test_case(const Case &c, const char *name)
{
    Problem p(c);
    Memory<bf16> q(p.q), k(p.k), v(p.v), out(p.q.size()), turned(p.k.size());
    vector<float> biases((size_t)c.kv_heads * p.stride, 0);
    for (size_t i = 0; i < biases.size(); i++)
        biases[i] = (int)(i % p.stride) < c.n_biased ? c.bias : 0;
    Memory<float> key_bias(biases);
    Memory<int> begin(p.begin), past(p.past), masks(p.masks);
    Memory<float> lse((size_t)c.heads * p.rows), q_turn(p.q_turn), k_turn(p.k_turn);
    int mass_stride = p.stride + 37;
    Memory<float> mass(c.lens.size() * c.kv_heads * mass_stride);
    struct CudaAttn a = {};
    a.q = q.p;
    a.kv = {k.p, v.p, p.stride, past.p};
    a.out = out.p;
    a.lse = lse.p;
    a.seq_begin = begin.p;
    a.n_seqs = c.lens.size();
    a.n_rows = p.rows;
    a.max_seq_rows = p.max_len;
    a.last_rows = c.last_rows;
    a.n_heads = c.heads;
    a.n_kv_heads = c.kv_heads;
    a.head_dim = c.dim;
    a.scale = 1 / sqrtf(c.dim);
    a.n_biased = c.n_biased;
    a.key_bias = key_bias.p;
    a.window = c.masks.empty() ? NULL : masks.p;
    a.sinks = c.sinks;
    struct CudaFar f = {
        c.window,   c.n,    q_turn.p, c.k_turn ? k_turn.p : NULL, c.k_turn ? turned.p : NULL,
        c.rope_dim, c.pairs};
    struct CudaMass m = {a, c.obs_rows, mass.p, mass_stride};
    auto run = [&] {
        check_cuda(cuda_attention_any(&a, c.window ? &f : NULL, 0), name);
        if (c.obs_rows) check_cuda(cuda_attn_mass_any(&m, 0), name);
        check_cuda(cudaDeviceSynchronize(), name);
    };
    run();
    vector<bf16> got = out.get();
    vector<float> got_lse = lse.get(), got_mass = mass.get();
    vector<double> want_mass(got_mass.size(), 0), want, weight;
    bool rows_ok = true, lse_ok = true, mass_ok = true, untouched = true;
    for (size_t s = 0; s < c.lens.size(); s++)
        for (int r = 0; r < c.lens[s]; r++)
            for (int head = 0; head < c.heads; head++) {
                const bf16 *row = &got[((size_t)(p.begin[s] + r) * c.heads + head) * c.dim];
                if (c.last_rows && r < c.lens[s] - c.last_rows) {
                    for (int d = 0; d < c.dim; d++) untouched &= isnan(__bfloat162float(row[d]));
                    continue;
                }
                double log_sum = p.row(s, r, head, want, weight);
                rows_ok &= near_row(row, want);
                lse_ok &= fabs(got_lse[(size_t)head * p.rows + p.begin[s] + r] - log_sum) <= 2e-3;
                if (r < c.lens[s] - c.obs_rows) continue;
                int h = head / (c.heads / c.kv_heads);
                for (size_t j = 0; j < weight.size(); j++)
                    want_mass[(s * c.kv_heads + h) * mass_stride + j] += weight[j];
            }
    for (size_t i = 0; c.obs_rows && i < want_mass.size(); i++)
        mass_ok &= want_mass[i] == 0 ? got_mass[i] == 0
                                     : fabs(got_mass[i] - want_mass[i]) <= 2e-3 * want_mass[i];
    report(name, rows_ok, "rows differ");
    report(name, lse_ok, "lse differs");
    report(name, mass_ok, "mass differs");
    report(name, untouched, "rows that nobody asked for were written");
    report(name, out.guarded() && lse.guarded() && mass.guarded() && turned.guarded(),
           "guard bytes overwritten");
    out.poison();
    run();
    report(name, same(out.get(), got) && same(mass.get(), got_mass), "the second run differs");
}

static void test_attention()
{
    const int shapes[][4] = {{8, 4, 2, 8},     {24, 6, 3, 24},   {32, 4, 4, 16},   {40, 6, 3, 40},
                             {64, 9, 3, 64},   {72, 4, 1, 72},   {80, 8, 2, 32},   {96, 6, 2, 96},
                             {112, 7, 1, 112}, {128, 8, 2, 128}, {160, 4, 2, 160}, {192, 4, 4, 64},
                             {200, 3, 1, 200}, {256, 4, 2, 256}};
    const Case kinds[] = {
        {0, 0, 0, 0, 0, {1}, 0, 0, 0, 0, false, 0, 0, 0, 1},
        {0, 0, 0, 0, 0, {63, 1, 129}, 31, 33, 0, 0, false, 40, 1.5f, 0, 8},
        {0, 0, 0, 0, 0, {200}, 130, -20, 0, 0, false, 0, 0, 30, 30},
        {0, 0, 0, 0, 0, {300, 40}, 64, 7, 70, INT_MAX, true, 0, 0, 0, 0},
        {0, 0, 0, 0, 0, {260}, 100, 3, 64, 5, false, 0, 0, 0, 0},
        {0, 0, 0, 0, 0, {150, 1}, 333, 0, 1, 130, true, 128, -0.7f, 9, 0},
        {0, 0, 0, 0, 0, {1}, 400, 11, 65, INT_MAX, true, 20, 2, 0, 0},
        {0, 0, 0, 0, 0, {90}, 200, 0, 100, 0, false, 5, 1, 0, 0},
        {0, 0, 0, 0, 0, {100}, 20, 5, 500, 64, true, 0, 0, 0, 0},
        {0, 0, 0, 0, 0, {330, 1, 70}, 190, 5, 0, 0, false, 0, 0, 0, 10, {0, 100, 1, 257, 63}, 4},
        {0, 0, 0, 0, 0, {40, 9}, 10, 3, 0, 0, false, 20, 1.5f, 0, 40, {64, 30, 1000}, 16},
        {0, 0, 0, 0, 0, {260}, 300, 0, 0, 0, false, 0, 0, 0, 8, {1}, 0},
        {0, 0, 0, 0, 0, {150}, 700, 1, 0, 0, false, 600, -1, 5, 5, {129, 128, 65, 0, 7}, 130},
    };
    char name[128];
    for (auto &s : shapes)
        for (auto &kind : kinds)
            for (int pairs = 0; pairs < (kind.window ? 2 : 1); pairs++) {
                Case c = kind;
                c.dim = s[0];
                c.heads = s[1];
                c.kv_heads = s[2];
                c.rope_dim = s[3];
                c.pairs = pairs;
                snprintf(name, sizeof name, "D=%d %d/%d heads, case %d, pairs %d", c.dim, c.heads,
                         c.kv_heads, (int)(&kind - kinds), pairs);
                test_case(c, name);
            }
}

/* Windows and far keys at once are refused. */
static void test_refusal()
{
    struct CudaAttn a = {};
    struct CudaFar f = {};
    int window = 0;
    a.n_heads = a.n_kv_heads = 1;
    a.head_dim = 64;
    f.window = 3;
    report("far keys", cuda_attention_any(&a, &f, 0) == cudaSuccess, "refused");
    a.window = &window;
    report("far keys and windows", cuda_attention_any(&a, &f, 0) == cudaErrorInvalidValue, "taken");
}

/* ==== Packing ==== */

static vector<struct CudaPageRef> random_pages(int n, bool ragged, int *tokens)
{
    vector<struct CudaPageRef> refs;
    *tokens = 0;
    for (int i = 0; i < n; i++) {
        uint32_t len = ragged || i == n - 1 ? random_below(65) : 64;
        refs.push_back({(uint32_t)i, len});
        *tokens += len;
    }
    for (int i = n - 1; i > 0; i--) std::swap(refs[i].page, refs[random_below(i + 1)].page);
    return refs;
}

static void test_gather(int dim, int pages, bool ragged, int rows, const char *name)
{
    const int heads = 2, stride = pages + 3;
    vector<bf16> pool = random_bf16((size_t)(pages + 1) * 2 * 64 * dim),
                 k = random_bf16((size_t)rows * heads * dim), v = random_bf16(k.size());
    vector<struct CudaPageRef> all(heads * stride, {0, 64});
    vector<int> past(heads), n_refs;
    for (int h = 0; h < heads; h++) {
        n_refs.push_back(h ? pages : pages / 2);
        vector<struct CudaPageRef> refs = random_pages(n_refs[h], ragged, &past[h]);
        std::copy(refs.begin(), refs.end(), all.begin() + h * stride);
    }
    int keys =
        (std::max(past[0], past[1]) + rows + CUDA_KEY_TILE - 1) / CUDA_KEY_TILE * CUDA_KEY_TILE;
    vector<int> begins = {0, rows};
    Memory<bf16> d_pool(pool), d_k(k), d_v(v), out_k((size_t)heads * keys * dim), out_v(out_k.n);
    Memory<struct CudaPageRef> d_refs(all);
    Memory<int> d_past(past), d_n(n_refs), d_begin(begins);
    struct GatherArgs g = {};
    g.pages = {(uint8_t *)d_pool.p, (size_t)2 * 64 * dim * 2, CUDA_PAGE_BF16, heads, dim};
    g.refs = d_refs.p;
    g.n_refs = d_n.p;
    g.ref_stride = stride;
    g.k = d_k.p;
    g.v = d_v.p;
    g.seq_begin = d_begin.p;
    g.n_seqs = 1;
    g.kv = {out_k.p, out_v.p, keys, d_past.p};
    check_cuda(pages_gather(&g, 0), name);
    check_cuda(cudaDeviceSynchronize(), name);
    vector<bf16> got[2] = {out_k.get(), out_v.get()};
    bool ok = true;
    vector<bf16> zero(dim, __float2bfloat16(0));
    for (int h = 0; h < heads; h++) {
        vector<const bf16 *> want[2];
        for (int i = 0; i < n_refs[h]; i++)
            for (uint32_t t = 0; t < all[h * stride + i].len; t++)
                for (int part = 0; part < 2; part++)
                    want[part].push_back(
                        &pool[((size_t)all[h * stride + i].page * 128 + part * 64 + t) * dim]);
        for (int r = 0; r < rows; r++) {
            want[0].push_back(&k[((size_t)r * heads + h) * dim]);
            want[1].push_back(&v[((size_t)r * heads + h) * dim]);
        }
        for (int part = 0; part < 2; part++) {
            while (want[part].size() % CUDA_KEY_TILE) want[part].push_back(zero.data());
            for (size_t j = 0; j < want[part].size(); j++)
                ok &= !memcmp(&got[part][((size_t)h * keys + j) * dim], want[part][j],
                              dim * sizeof(bf16));
        }
    }
    report(name, ok, "packed keys differ");
    report(name, out_k.guarded() && out_v.guarded(), "guard bytes overwritten");
}

static void test_packing()
{
    const int sizes[][2] = {{0, 5}, {1, 1}, {5, 64}, {127, 3}, {129, 130}, {300, 1}, {700, 70}};
    char name[64];
    for (int dim : {40, 64, 128})
        for (auto &s : sizes)
            for (int ragged = 0; ragged < 2; ragged++) {
                snprintf(name, sizeof name, "gather D=%d %d pages ragged %d", dim, s[0], ragged);
                test_gather(dim, s[0], ragged, s[1], name);
            }
}

/* ==== Speed ==== */

enum Kind { PLAIN, STREAMING, SELF_EXTEND };

/* `rows` last rows of a text of `len` tokens. */
static void time_attention(int dim, int heads, int kv_heads, int len, int rows, enum Kind kind,
                           int window)
{
    const char *const names[] = {"plain", "streaming-llm", "self-extend"};
    size_t keys = (size_t)len * kv_heads * dim, act = (size_t)rows * heads * dim;
    bool turns = kind == SELF_EXTEND;
    Memory<bf16> q(act), k(keys), v(keys), out(act), turned(turns ? keys : 1);
    Memory<float> q_turn(random_turns(rows, dim)), k_turn(random_turns(turns ? len : 1, dim));
    vector<int> begins = {0, rows};
    Memory<int> begin(begins), past(vector<int>(kv_heads, len - rows));
    fill(q.p, q.n);
    fill(k.p, k.n);
    fill(v.p, v.n);
    struct CudaAttn a = {};
    a.q = q.p;
    a.kv = {k.p, v.p, len, past.p};
    a.out = out.p;
    a.seq_begin = begin.p;
    a.n_seqs = 1;
    a.n_rows = a.max_seq_rows = rows;
    a.n_heads = heads;
    a.n_kv_heads = kv_heads;
    a.head_dim = dim;
    a.scale = 1 / sqrtf(dim);
    struct CudaFar f = {window,
                        kind == STREAMING ? 4 : INT_MAX,
                        q_turn.p,
                        turns ? k_turn.p : NULL,
                        turns ? turned.p : NULL,
                        dim,
                        false};
    float ms = time_ms(1, [&](int) {
        check_cuda(cuda_attention_any(&a, kind == PLAIN ? NULL : &f, 0), "attention");
    });
    double pairs = 0;
    for (int i = len - rows; i < len; i++)
        pairs += kind == STREAMING ? std::min(i + 1, window + 4) : i + 1;
    printf("%-13s D=%3d %2d/%d heads, %6d rows of %6d, window %4d: %8.3f ms %6.1f TFLOP/s\n",
           names[kind], dim, heads, kv_heads, rows, len, kind == PLAIN ? 0 : window, ms,
           4.0 * dim * heads * pairs / ms * 1e-9);
}

static void time_gather(int dim, int heads, int tokens, int rows)
{
    int pages = tokens / 64, keys = tokens + (rows + 127) / 128 * 128;
    Memory<bf16> pool((size_t)pages * heads * 128 * dim), k((size_t)rows * heads * dim), v(k.n),
        out_k((size_t)heads * keys * dim), out_v(out_k.n);
    vector<struct CudaPageRef> refs;
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < pages; i++) refs.push_back({(uint32_t)(i * heads + h), 64});
    Memory<struct CudaPageRef> d_refs(refs);
    vector<int> begins = {0, rows};
    Memory<int> n(vector<int>(heads, pages)), past(vector<int>(heads, tokens)), begin(begins);
    struct GatherArgs g = {};
    g.pages = {(uint8_t *)pool.p, (size_t)2 * 64 * dim * 2, CUDA_PAGE_BF16, heads, dim};
    g.refs = d_refs.p;
    g.n_refs = n.p;
    g.ref_stride = pages;
    g.k = k.p;
    g.v = v.p;
    g.seq_begin = begin.p;
    g.n_seqs = 1;
    g.kv = {out_k.p, out_v.p, keys, past.p};
    float ms = time_ms(1, [&](int) { check_cuda(pages_gather(&g, 0), "gather"); });
    printf("gather D=%d %d heads, %6d tokens in pages, %4d rows: %.3f ms %5.0f GB/s\n", dim, heads,
           tokens, rows, ms, 8.0 * dim * heads * (tokens + rows) / ms * 1e-6);
}

static void time_all()
{
    time_attention(128, 32, 8, 32768, 32768, STREAMING, 8192);
    time_attention(128, 32, 8, 131072, 131072, STREAMING, 8192);
    time_attention(128, 32, 8, 32768, 32768, SELF_EXTEND, 2048);
    time_attention(128, 32, 8, 32768, 32768, PLAIN, 0);
    time_attention(128, 32, 8, 131072, 8192, SELF_EXTEND, 2048);
    time_attention(128, 32, 8, 32768, 1, SELF_EXTEND, 2048);
    time_attention(128, 32, 8, 8320, 1, STREAMING, 8192);
    time_attention(80, 32, 32, 8192, 8192, PLAIN, 0);
    time_attention(40, 8, 8, 8192, 8192, PLAIN, 0);
    time_attention(192, 16, 16, 8192, 8192, PLAIN, 0);
    time_gather(128, 8, 8192, 8192);
    time_gather(128, 8, 131072, 8192);
    time_gather(128, 8, 32768, 1);
}

int main(int argc, char **argv)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) || n == 0) {
        printf("SKIP: no GPU\n");
        return 0;
    }
    if (argc > 1 && !strcmp(argv[1], "time")) {
        time_all();
        return 0;
    }
    test_refusal();
    test_packing();
    test_attention();
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed != 0;
}
