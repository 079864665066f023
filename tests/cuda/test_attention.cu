/* test_attention.cu - cuda_attention_sm80, cuda_attn_mass and cuda_paged_attention against sums in double.
 *
 * test_attention        small odd shapes: results, guard bytes behind them, and the same bytes from a second run
 * test_attention time   speed
 */
#include "cuda/seen.cuh"

#include "support.cuh"

/* Softmax over logits and the weighted sum of the values; returns the log of the sum. */
static double softmax_row(const vector<double> &logit, const vector<const bf16 *> &value, int dim,
                          vector<double> &out)
{
    double most = -INFINITY, sum = 0;
    for (double x : logit) most = std::max(most, x);
    out.assign(dim, 0);
    for (size_t j = 0; j < logit.size(); j++) {
        double p = exp(logit[j] - most);
        sum += p;
        for (int d = 0; d < dim; d++) out[d] += p * (double)__bfloat162float(value[j][d]);
    }
    for (auto &o : out) o /= sum > 0 ? sum : 1;
    return most + log(sum);
}

static double dot(const bf16 *a, const bf16 *b, int n)
{
    double s = 0;
    for (int d = 0; d < n; d++) s += (double)__bfloat162float(a[d]) * __bfloat162float(b[d]);
    return s;
}

/* Bits that differ from the wanted values by more than rounding of weights and result. */
static bool near_row(const bf16 *got, const vector<double> &want)
{
    for (size_t d = 0; d < want.size(); d++) {
        double x = __bfloat162float(got[d]);
        if (!(fabs(x - want[d]) <= 0.012 + 0.01 * fabs(want[d]))) return false;
    }
    return true;
}

/* Errors that do not cancel over a row: a whole row off by half a step of 8 bits is less than near_row allows. */
static bool centred_row(const bf16 *got, const vector<double> &want)
{
    double sum = 0;
    for (size_t d = 0; d < want.size(); d++) sum += __bfloat162float(got[d]) - want[d];
    return fabs(sum) <= 0.0015 * want.size();
}

/* ==== Packed keys ==== */

struct PackedCase {
    int dim, heads, kv_heads;
    vector<int> lens;
    int past, past_step; /* of KV head h: past + h * past_step */
    vector<int> window;  /* of head h: window[h % size]; empty: none has one */
    int sinks, last_rows, obs_rows;
};

struct Packed {
    PackedCase c;
    int rows, stride, max_len;
    vector<int> begin, past, window;
    vector<bf16> q, k, v;
    explicit Packed(const PackedCase &the) : c(the)
    {
        begin.push_back(0);
        max_len = 0;
        for (int n : c.lens) {
            begin.push_back(begin.back() + n);
            max_len = std::max(max_len, n);
        }
        rows = begin.back();
        int most = 0;
        for (int h = 0; h < c.kv_heads; h++) {
            past.push_back(c.past + h * c.past_step);
            most = std::max(most, past.back());
        }
        for (int h = 0; h < c.heads; h++)
            window.push_back(c.window.empty() ? 0 : c.window[h % c.window.size()]);
        stride = (most + max_len + CUDA_KEY_TILE - 1) / CUDA_KEY_TILE * CUDA_KEY_TILE;
        q = random_bf16((size_t)rows * c.heads * c.dim);
        k = random_bf16(c.lens.size() * c.kv_heads * stride * c.dim);
        v = random_bf16(k.size());
        for (size_t s = 0; s < c.lens.size(); s++)
            for (int h = 0; h < c.kv_heads; h++)
                for (size_t i = (size_t)(past[h] + c.lens[s]) * c.dim; i < (size_t)stride * c.dim;
                     i++)
                    k[at(s, h) + i] = v[at(s, h) + i] = __float2bfloat16(0);
    }
    size_t at(int s, int h) const { return ((size_t)s * c.kv_heads + h) * stride * c.dim; }
    struct CudaAttn args() const
    {
        struct CudaAttn a = {};
        a.kv.key_stride = stride;
        a.n_seqs = c.lens.size();
        a.n_rows = rows;
        a.max_seq_rows = max_len;
        a.last_rows = c.last_rows;
        a.n_heads = c.heads;
        a.n_kv_heads = c.kv_heads;
        a.head_dim = c.dim;
        a.scale = 1 / sqrtf(c.dim);
        a.sinks = c.sinks;
        return a;
    }
    /* The logits of the keys that a row of a sequence sees, and which they are. */
    void logits(int s, int row, int head, vector<double> &x, vector<int> &key) const
    {
        int h = head / (c.heads / c.kv_heads), i = past[h] + row, w = window[head];
        x.clear();
        key.clear();
        const bf16 *query = &q[((size_t)(begin[s] + row) * c.heads + head) * c.dim];
        for (int j = 0; j <= i; j++) {
            if (w && j >= c.sinks && i - j >= w) continue;
            key.push_back(j);
            x.push_back(dot(query, &k[at(s, h) + (size_t)j * c.dim], c.dim) / sqrt(c.dim));
        }
    }
};

static void test_packed(const PackedCase &c, const char *name)
{
    Packed p(c);
    Memory<bf16> q(p.q), k(p.k), v(p.v), out(p.q.size());
    Memory<int> begin(p.begin), past(p.past), window(p.window);
    Memory<float> lse((size_t)c.heads * p.rows);
    int mass_stride = p.stride + 37;
    Memory<float> mass(c.lens.size() * c.kv_heads * mass_stride);
    struct CudaAttn a = p.args();
    a.q = q.p;
    a.kv.k = k.p;
    a.kv.v = v.p;
    a.kv.past = past.p;
    a.out = out.p;
    a.lse = lse.p;
    a.seq_begin = begin.p;
    a.window = c.window.empty() ? NULL : window.p;
    check_cuda(cuda_attention_sm80(&a, 0), name);
    struct CudaMass m = {a, c.obs_rows, mass.p, mass_stride};
    check_cuda(cuda_attn_mass(&m, 0), name);
    check_cuda(cudaDeviceSynchronize(), name);
    vector<bf16> got = out.get();
    vector<float> got_lse = lse.get(), got_mass = mass.get();

    bool rows_ok = true, lse_ok = true, mass_ok = true;
    vector<double> want_mass(got_mass.size()), logit, row_out;
    vector<int> key;
    vector<const bf16 *> value;
    for (size_t s = 0; s < c.lens.size(); s++)
        for (int row = 0; row < c.lens[s]; row++)
            for (int head = 0; head < c.heads; head++) {
                if (c.last_rows && row < c.lens[s] - c.last_rows) continue;
                int h = head / (c.heads / c.kv_heads);
                p.logits(s, row, head, logit, key);
                value.clear();
                for (int j : key) value.push_back(&p.v[p.at(s, h) + (size_t)j * c.dim]);
                double log_sum = softmax_row(logit, value, c.dim, row_out);
                size_t at = (size_t)(p.begin[s] + row) * c.heads + head;
                rows_ok &= near_row(&got[at * c.dim], row_out);
                float x = got_lse[(size_t)head * p.rows + p.begin[s] + row];
                lse_ok &= fabs(x - log_sum) <= 5e-4;
                if (row >= c.lens[s] - c.obs_rows)
                    for (size_t j = 0; j < key.size(); j++)
                        want_mass[(s * c.kv_heads + h) * mass_stride + key[j]] +=
                            exp(logit[j] - log_sum);
            }
    for (size_t i = 0; i < want_mass.size(); i++)
        mass_ok &= want_mass[i] == 0 ? got_mass[i] == 0
                                     : fabs(got_mass[i] - want_mass[i]) <= 1e-3 * want_mass[i];
    report(name, rows_ok, "rows differ");
    report(name, lse_ok, "lse differs");
    report(name, mass_ok, "mass differs");
    report(name, out.guarded() && lse.guarded() && mass.guarded(), "guard bytes overwritten");
    out.poison();
    lse.poison();
    mass.poison();
    check_cuda(cuda_attention_sm80(&a, 0), name);
    check_cuda(cuda_attn_mass(&m, 0), name);
    report(name, same(out.get(), got) && same(lse.get(), got_lse) && same(mass.get(), got_mass),
           "the second run differs");
}

static void test_all_packed()
{
    const int shapes[][3] = {{64, 9, 3},   {64, 14, 2}, {64, 8, 8},  {96, 6, 1},
                             {96, 4, 4},   {128, 8, 2}, {128, 6, 3}, {128, 16, 1},
                             {128, 12, 1}, {256, 4, 2}, {256, 8, 1}};
    const PackedCase kinds[] = {
        {0, 0, 0, {1}, 0, 0, {}, 0, 0, 1},
        {0, 0, 0, {63, 1, 129}, 31, 33, {}, 0, 0, 8},
        {0, 0, 0, {300}, 0, 0, {}, 0, 0, 300},
        {0, 0, 0, {129, 64}, 200, -64, {}, 0, 8, 8},
        {0, 0, 0, {40, 300, 7}, 64, 7, {}, 0, 100, 50},
        {0, 0, 0, {300, 130}, 31, 0, {0, 33}, 4, 0, 9},
        {0, 0, 0, {257}, 200, 64, {0, 64}, 70, 0, 20},
        {0, 0, 0, {200}, 0, 31, {0, 1}, 0, 30, 30},
        {0, 0, 0, {330, 1, 70}, 190, 5, {0, 100, 1, 257, 63}, 4, 0, 10},
        {0, 0, 0, {40, 9}, 10, 3, {64, 30, 1000}, 16, 0, 40}, /* fewer keys than sinks and window */
        {0, 0, 0, {260}, 300, 0, {1}, 0, 0, 8},
        {0, 0, 0, {150}, 700, 1, {129, 128, 65, 0, 7}, 130, 5, 5},
    };
    char name[128];
    for (auto &s : shapes)
        for (auto &kind : kinds) {
            PackedCase c = kind;
            c.dim = s[0];
            c.heads = s[1];
            c.kv_heads = s[2];
            if (c.past + (c.kv_heads - 1) * c.past_step < 0) c.past_step = -c.past / c.kv_heads;
            snprintf(name, sizeof name, "packed D=%d %d/%d heads, case %d", c.dim, c.heads,
                     c.kv_heads, (int)(&kind - kinds));
            test_packed(c, name);
        }
}

/* ==== Pages ==== */

struct PagedCase {
    int dim, heads, kv_heads, rows;
    vector<int> pages; /* of head h: pages[h % size] */
    bool ragged;       /* pages of 1 to 64 tokens */
    bool own;          /* the rows' keys beside the pages */
    int n_biased;      /* tokens in front: the pages that begin among them have a bias */
    int n_splits;
    vector<int> window; /* of head h: window[h % size]; empty: none has one */
    int sinks;
    enum CudaPageFormat format;
};

struct Paged {
    PagedCase c;
    int stride, max_refs;
    size_t page_bytes;
    vector<bf16> pool, q, k, v;
    vector<struct CudaPageRef> refs;
    vector<int> n_refs, window, n_tokens;
    vector<struct CudaSeen> seen;
    vector<uint8_t>
        codes; /* the pool's pages where they hold codes: `pool` has what these stand for */
    explicit Paged(const PagedCase &the) : c(the)
    {
        max_refs = 0;
        for (int h = 0; h < c.kv_heads; h++) {
            n_refs.push_back(c.pages[h % c.pages.size()]);
            max_refs = std::max(max_refs, n_refs.back());
        }
        stride = max_refs + 3;
        page_bytes = (size_t)2 * 64 * c.dim * sizeof(bf16);
        q = random_bf16((size_t)c.rows * c.heads * c.dim);
        k = random_bf16((size_t)c.rows * c.kv_heads * c.dim);
        v = random_bf16(k.size());
        make_pages();
        for (int h = 0; h < c.heads; h++)
            window.push_back(c.window.empty() ? 0 : c.window[h % c.window.size()]);
        for (int h = 0; h < c.kv_heads; h++) leave_out(h);
        if (c.format != CUDA_PAGE_BF16) make_codes();
    }
    /* Any codes and grids, but NaN where the pool has it: what is not to be seen. */
    void make_codes()
    {
        int top = c.format == CUDA_PAGE_Q8 ? 255 : 15;
        size_t row = (size_t)c.dim / (top == 255 ? 1 : 2), rows = pool.size() / c.dim;
        page_bytes = 128 * (row + 4);
        codes.assign(rows / 128 * page_bytes, 0);
        for (size_t r = 0; r < rows; r++) {
            uint8_t *page = &codes[r / 128 * page_bytes], *out = page + r % 128 * row;
            bf16 *x = &pool[r * c.dim];
            bool none = isnan(__bfloat162float(x[0]));
            __half scale = __float2half((0.1f + random_below(100) / 50.0f) / top),
                   zero = __float2half(none ? NAN : -1.5f + random_below(100) / 50.0f);
            memcpy(page + 128 * row + r % 128 * 4, &scale, 2);
            memcpy(page + 128 * row + r % 128 * 4 + 2, &zero, 2);
            for (int d = 0; d < c.dim; d++) {
                int code = random_below(top + 1), nibble = d % 8 / 2 + d % 2 * 4;
                if (top == 255)
                    out[d] = code;
                else
                    out[d / 8 * 4 + nibble / 2] |= code << nibble % 2 * 4;
                x[d] = __float2bfloat16(fmaf(code, __half2float(scale), __half2float(zero)));
            }
        }
    }
    /* What no row of a head sees is NaN, so that it cannot be read unnoticed. */
    void leave_out(int h)
    {
        int group = c.heads / c.kv_heads, widest = 0;
        for (int i = h * group; i < (h + 1) * group; i++)
            widest = widest < 0 || window[i] == 0 ? -1 : std::max(widest, window[i]);
        const struct CudaPageRef *first = &refs[(size_t)h * stride];
        n_tokens.push_back(tokens(h));
        seen.push_back(
            pages_seen({std::max(widest, 0), 0, 0, 0}, first, n_refs[h], row0(h), c.sinks));
        for (int p = seen[h].front; p < seen[h].back; p++)
            for (int t = 0; t < 2 * 64 * c.dim; t++)
                pool[(size_t)first[p].page * 2 * 64 * c.dim + t] = __float2bfloat16(NAN);
    }
    /* In any order in the pool; NaN where no token is. */
    void make_pages()
    {
        int n_pages = 0;
        for (int n : n_refs) n_pages += n;
        vector<uint32_t> ids(n_pages);
        for (int i = 0; i < n_pages; i++) ids[i] = i;
        for (int i = n_pages - 1; i > 0; i--) std::swap(ids[i], ids[random_below(i + 1)]);
        pool = random_bf16((size_t)std::max(n_pages, 1) * 2 * 64 * c.dim);
        refs.assign((size_t)c.kv_heads * stride, {0xffffffffu, 64});
        for (int h = 0, i = 0; h < c.kv_heads; h++)
            for (int p = 0, before = 0; p < n_refs[h]; p++, i++) {
                bool last = p == n_refs[h] - 1;
                uint32_t len = c.ragged || last ? 1 + random_below(64) : 64;
                if (c.ragged && p % 5 == 2) len = 64;
                refs[(size_t)h * stride + p] = {ids[i], len, before < c.n_biased ? 1.25f - p : 0};
                before += len;
                for (uint32_t t = len; t < 64; t++)
                    for (int d = 0; d < c.dim; d++)
                        *key(ids[i], t, d) = *value(ids[i], t, d) = __float2bfloat16(NAN);
            }
    }
    bf16 *key(uint32_t page, int t, int d)
    {
        return &pool[((size_t)page * 2 * 64 + t) * c.dim + d];
    }
    bf16 *value(uint32_t page, int t, int d) { return key(page, t + 64, d); }
    int tokens(int h) const
    {
        int n = 0;
        for (int p = 0; p < n_refs[h]; p++) n += refs[(size_t)h * stride + p].len;
        return n;
    }
    /* The place of the first row's own key. */
    int row0(int h) const { return tokens(h) - (c.own ? 0 : c.rows); }
    void row(int r, int head, vector<double> &out)
    {
        int h = head / (c.heads / c.kv_heads), j = 0, i = row0(h) + r, w = window[head];
        auto sees = [&] { return j <= i && (w == 0 || j < c.sinks || i - j < w); };
        const bf16 *query = &q[((size_t)r * c.heads + head) * c.dim];
        vector<double> logit;
        vector<const bf16 *> values;
        for (int p = 0; p < n_refs[h]; p++) {
            struct CudaPageRef ref = refs[(size_t)h * stride + p];
            for (uint32_t t = 0; t < ref.len; t++, j++) {
                if (!sees()) continue;
                logit.push_back(dot(query, key(ref.page, t, 0), c.dim) / sqrt(c.dim) + ref.bias);
                values.push_back(value(ref.page, t, 0));
            }
        }
        for (int t = 0; c.own && t <= r; t++, j++) {
            if (!sees()) continue;
            size_t at = ((size_t)t * c.kv_heads + h) * c.dim;
            logit.push_back(dot(query, &k[at], c.dim) / sqrt(c.dim));
            values.push_back(&v[at]);
        }
        softmax_row(logit, values, c.dim, out);
    }
};

static void test_paged(const PagedCase &c, const char *name)
{
    Paged p(c);
    Memory<bf16> pool(p.pool), q(p.q), k(p.k), v(p.v), out(p.q.size());
    Memory<uint8_t> codes(p.codes);
    Memory<struct CudaPageRef> refs(p.refs);
    Memory<int> n_refs(p.n_refs), window(p.window), n_tokens(p.n_tokens);
    Memory<struct CudaSeen> seen(p.seen);
    size_t bytes = cuda_paged_scratch(c.rows, c.heads, c.dim, c.n_splits);
    Memory<float> part(bytes / 4);
    cudaMemset(part.p, 0, bytes);
    struct CudaPaged a = {};
    a.q = q.p;
    a.k = c.own ? k.p : NULL;
    a.v = c.own ? v.p : NULL;
    a.out = out.p;
    a.pool = c.format == CUDA_PAGE_BF16 ? (uint8_t *)pool.p : codes.p;
    a.page_bytes = p.page_bytes;
    a.format = c.format;
    a.refs = refs.p;
    a.n_refs = n_refs.p;
    a.ref_stride = p.stride;
    a.max_refs = p.max_refs;
    a.n_rows = c.rows;
    a.n_heads = c.heads;
    a.n_kv_heads = c.kv_heads;
    a.head_dim = c.dim;
    a.scale = 1 / sqrtf(c.dim);
    a.n_splits = c.n_splits;
    a.part = part.p;
    if (!c.window.empty()) {
        a.window = window.p;
        a.sinks = c.sinks;
        a.n_tokens = n_tokens.p;
        a.seen = seen.p;
    }
    check_cuda(cuda_paged_attention(&a, 0), name);
    check_cuda(cudaDeviceSynchronize(), name);
    vector<bf16> got = out.get();
    bool ok = true, centred = true;
    vector<double> want;
    for (int r = 0; r < c.rows; r++)
        for (int head = 0; head < c.heads; head++) {
            const bf16 *row = &got[((size_t)r * c.heads + head) * c.dim];
            p.row(r, head, want);
            ok &= near_row(row, want);
            centred &= centred_row(row, want);
        }
    report(name, ok, "rows differ");
    report(name, centred, "rows are shifted");
    report(name, out.guarded() && part.guarded(), "guard bytes overwritten");
    out.poison();
    for (int i = 0; i < 3; i++) check_cuda(cuda_paged_attention(&a, 0), name);
    report(name, same(out.get(), got), "the second run differs");
}

static void test_all_paged()
{
    const int shapes[][3] = {{64, 9, 3},   {64, 14, 2},  {96, 6, 1},  {128, 8, 2},
                             {128, 16, 1}, {128, 12, 2}, {128, 5, 5}, {256, 8, 1}};
    const PagedCase kinds[] = {
        {0, 0, 0, 1, {1}, false, false, 0, 1},
        {0, 0, 0, 1, {0, 3}, false, true, 0, 2},
        {0, 0, 0, 1, {40, 3, 17}, true, true, 70, 9},
        {0, 0, 0, 1, {40, 1, 9}, true, false, 300, 40},
        {0, 0, 0, 2, {12}, false, true, 5, 4},
        {0, 0, 0, 4, {25, 66}, true, false, 0, 7},
        {0, 0, 0, 4, {7, 100, 1}, false, true, 1000, 1},
        {0, 0, 0, 64, {30, 41}, true, false, 128, 5},
        {0, 0, 0, 64, {5, 33}, false, true, 17, 64},
        {0, 0, 0, 3, {500, 2}, false, true, 0, 33},
        {0, 0, 0, 1, {90, 9}, false, true, 0, 7, {256}, 128},
        {0, 0, 0, 1, {60, 1, 33}, true, true, 40, 11, {1}, 0},
        {0, 0, 0, 1, {8, 0}, false, true, 0, 2, {1000, 3000}, 70}, /* fewer keys than that */
        {0, 0, 0, 5, {70, 25}, true, true, 0, 9, {0, 100, 65, 1}, 5},
        {0, 0, 0, 5, {70, 12}, true, false, 500, 9, {130, 77}, 64},
        {0, 0, 0, 64, {40}, false, true, 0, 5, {30, 31, 900}, 3},
        {0, 0, 0, 64, {3, 40}, true, false, 0, 64, {63}, 0},
        {0, 0, 0, 2, {400, 130, 5}, false, false, 0, 40, {0, 0, 8192, 64}, 4},
    };
    char name[128];
    for (auto &s : shapes)
        for (int i = 0; i < (int)(sizeof kinds / sizeof *kinds) * 3; i++) {
            PagedCase c = kinds[i / 3];
            c.format = (enum CudaPageFormat)(i % 3);
            c.dim = s[0];
            c.heads = s[1];
            c.kv_heads = s[2];
            c.rows = std::min(c.rows, 64 / (c.heads / c.kv_heads));
            snprintf(name, sizeof name, "paged D=%d %d/%d heads, case %d, format %d", c.dim,
                     c.heads, c.kv_heads, i / 3, c.format);
            test_paged(c, name);
        }
}

/* ==== Which pages are seen ==== */

/* Whether what is left out of a table are just the pages, but for the last, that hold no key that a row with `past` keys
 * before it sees. */
static bool leaves_out_all(const struct CudaSeen &s, const vector<struct CudaPageRef> &refs,
                           int past, int sinks)
{
    bool ok = true;
    for (int p = 0, at = 0; p < (int)refs.size(); at += refs[p++].len) {
        bool hidden = s.window > 0 && p < (int)refs.size() - 1;
        for (int j = at; j < at + (int)refs[p].len; j++)
            hidden &= j >= sinks && past - j >= s.window;
        ok &= hidden == (p >= s.front && p < s.back) && (p != s.back || p == 0 || s.before == at);
    }
    return ok;
}

/* A head's pages grow token by token, some not to their end, as they do from step to step of decoding. */
static void test_seen(int window, int sinks)
{
    vector<struct CudaPageRef> refs;
    struct CudaSeen s = {window, 0, 0, 0};
    bool ok = true;
    for (int past = 1; past <= 1000; past++) {
        if (refs.empty() || refs.back().len == 64 || random_below(100) == 0)
            refs.push_back({(uint32_t)past, 0, 0});
        refs.back().len++;
        struct CudaSeen anew = pages_seen({window, 0, 0, 0}, refs.data(), refs.size(), past, sinks);
        s = pages_seen(s, refs.data(), refs.size(), past, sinks);
        ok &= !memcmp(&s, &anew, sizeof s) && leaves_out_all(s, refs, past, sinks);
    }
    char name[64];
    snprintf(name, sizeof name, "window %d, %d sinks", window, sinks);
    report(name, ok, "other pages are seen");
}

static void test_all_seen()
{
    for (int window : {0, 1, 2, 63, 64, 65, 200, 256, 999, 5000})
        for (int sinks : {0, 1, 4, 63, 64, 65, 128, 130, 2000}) test_seen(window, sinks);
}

/* ==== Speed ==== */

static void time_packed(int dim, int heads, int kv_heads, int n_seqs, int len, int window)
{
    size_t rows = (size_t)n_seqs * len, keys = rows * kv_heads * dim;
    Memory<bf16> q(rows * heads * dim), k(keys), v(keys), out(rows * heads * dim);
    Memory<float> lse(rows * heads), mass((size_t)n_seqs * kv_heads * len);
    vector<int> begins;
    for (int s = 0; s <= n_seqs; s++) begins.push_back(s * len);
    Memory<int> begin(begins), past(vector<int>(kv_heads, 0)), windows(vector<int>(heads, window));
    fill(q.p, q.n);
    fill(k.p, k.n);
    fill(v.p, v.n);
    struct CudaAttn a = {};
    a.q = q.p;
    a.kv = {k.p, v.p, len, past.p};
    a.out = out.p;
    a.lse = lse.p;
    a.seq_begin = begin.p;
    a.n_seqs = n_seqs;
    a.n_rows = rows;
    a.max_seq_rows = len;
    a.n_heads = heads;
    a.n_kv_heads = kv_heads;
    a.head_dim = dim;
    a.scale = 1 / sqrtf(dim);
    a.window = window ? windows.p : NULL;
    a.sinks = 64;
    float ms = time_ms(1, [&](int) { check_cuda(cuda_attention_sm80(&a, 0), "attention"); });
    double pairs = (double)rows * heads * (len + 1) / 2;
    if (window) pairs = (double)n_seqs * heads * ((double)len * (window + 64));
    printf("attention D=%3d %2d/%d heads %2d x %5d window %4d: %8.3f ms %6.1f TFLOP/s\n", dim,
           heads, kv_heads, n_seqs, len, window, ms, 4 * dim * pairs / ms * 1e-9);
    for (int obs : {8, 100}) {
        struct CudaMass m = {a, obs, mass.p, len};
        m.attn.window = NULL;
        ms = time_ms(5, [&](int) { check_cuda(cuda_attn_mass(&m, 0), "mass"); });
        printf("mass %3d rows: %.4f ms %6.0f GB/s of keys\n", obs, ms, keys * 2 / ms * 1e-6);
    }
}

/* One row is timed as a step of decoding runs it: heads are turned and stored on the way. */
static void time_paged(int dim, int heads, int kv_heads, int rows, int tokens,
                       enum CudaPageFormat format)
{
    const int layers = dim == 64 ? 64 : 32, n_pages = (tokens + 63) / 64;
    const int bits[] = {16, 8, 4};
    size_t page = (size_t)2 * 64 * (dim * bits[format] / 8 + (format ? 4 : 0));
    Memory<bf16> pool(page / 2 * (n_pages * layers + 1) * kv_heads), q((size_t)rows * heads * dim),
        k((size_t)rows * kv_heads * dim), v(k.n), out(q.n);
    fill(pool.p, pool.n);
    fill(q.p, q.n);
    fill(k.p, k.n);
    fill(v.p, v.n);
    vector<struct CudaPageRef> all;
    for (int l = 0; l < layers; l++)
        for (int h = 0; h < kv_heads; h++)
            for (int p = 0; p < n_pages; p++)
                all.push_back({(uint32_t)((l * n_pages + p) * kv_heads + h), 64});
    Memory<struct CudaPageRef> refs(all);
    Memory<int> n_refs(vector<int>(kv_heads, n_pages));
    int n_sm;
    cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, 0);
    struct CudaPaged a = {};
    a.n_splits = cuda_paged_splits(format, dim, kv_heads, n_pages, n_sm);
    size_t bytes = cuda_paged_scratch(rows, heads, dim, a.n_splits);
    Memory<float> part(bytes / 4);
    cudaMemset(part.p, 0, bytes);
    a.q = q.p;
    a.k = k.p;
    a.v = v.p;
    a.out = out.p;
    a.pool = (uint8_t *)pool.p;
    a.page_bytes = page;
    a.format = format;
    a.n_refs = n_refs.p;
    a.ref_stride = a.max_refs = n_pages;
    a.n_rows = rows;
    a.n_heads = heads;
    a.n_kv_heads = kv_heads;
    a.head_dim = dim;
    a.scale = 1 / sqrtf(dim);
    a.part = part.p;
    vector<struct CudaPageSlot> spare;
    for (int h = 0; h < kv_heads; h++)
        spare.push_back({(uint32_t)(n_pages * layers * kv_heads + h), 0});
    Memory<struct CudaPageSlot> slots(spare);
    Memory<float> angles(vector<float>(dim, 0.6f));
    if (rows == 1) {
        a.turn.angles = angles.p;
        a.turn.rope_dim = dim;
        a.slots = slots.p;
    }
    cudaStream_t s;
    cudaStreamCreate(&s);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    check_cuda(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal), "capture");
    for (int l = 0; l < layers; l++) {
        a.refs = refs.p + (size_t)l * kv_heads * n_pages;
        check_cuda(cuda_paged_attention(&a, s), "paged");
    }
    check_cuda(cudaStreamEndCapture(s, &graph), "capture");
    check_cuda(cudaGraphInstantiate(&exec, graph, 0), "graph");
    float ms = time_ms(1, [&](int) { cudaGraphLaunch(exec, 0); }) / layers;
    printf("paged D=%3d %2d bits %2d/%d heads %2d rows %6d tokens %3d splits: %.4f ms %6.0f GB/s\n",
           dim, bits[format], heads, kv_heads, rows, tokens, a.n_splits, ms,
           (double)page * n_pages * kv_heads / ms * 1e-6);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(s);
}

static void time_all()
{
    time_packed(128, 32, 8, 2, 8192, 0);
    time_packed(64, 9, 3, 32, 2048, 0);
    time_packed(128, 32, 8, 2, 8192, 512);
    time_packed(96, 32, 8, 1, 8192, 0);
    time_packed(256, 8, 4, 1, 8192, 0);
    for (auto format : {CUDA_PAGE_BF16, CUDA_PAGE_Q8, CUDA_PAGE_Q4}) {
        for (int tokens : {1000, 12000, 16384, 48000, 131072})
            time_paged(128, 32, 8, 1, tokens, format);
        time_paged(64, 14, 2, 1, 32000, format);
    }
    time_paged(128, 32, 8, 16, 12000, CUDA_PAGE_BF16);
    time_paged(64, 9, 3, 1, 32000, CUDA_PAGE_BF16);
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
    test_all_seen();
    test_all_packed();
    test_all_paged();
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed != 0;
}
