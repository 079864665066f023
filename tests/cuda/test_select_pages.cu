/* test_select_pages.cu - cuda_select_pages against doubles and against eviction/page_select.c.
 *
 * test_select_pages        scores, choices and tables over odd shapes
 * test_select_pages time   speed beside what the index's bytes allow
 *
 * Scores are held against sums in double of the index as it is. The choice is held against the policy on the device's own
 * scores: by number it must be the same; by mass the device's exp may err by a few bits, so the chosen pages must be the
 * heaviest, and as few as reach the share but for a millionth of it.
 */
#include "tests/cuda/support.cuh"

extern "C" {
#include "eviction/page_select.h"
}

enum { KINDS = 4 };

struct Case {
    int head_dim, group, n_kv_heads, most; /* pages of a head, at most */
    bool bound;
    int turned; /* 1: by angles; 2: and evened out, for pages of codes */
    struct PageSelect rule;
    int kind; /* of the index: 0 random, 1 few levels, 2 all the same, 3 steep */
};

struct World {
    vector<bf16> q, index;
    vector<float> angles, balance;
    vector<struct CudaPageRef> refs;
    vector<int> n_refs;
    int stride, entry; /* values of a page's index */
};

static float index_value(int kind, float page)
{
    switch (kind) {
    case 1:
        return (float)random_below(2);
    case 2:
        return 0.5f;
    case 3:
        return page * 3 + 0.1f * random_normal();
    default:
        return random_normal();
    }
}

/* Pages part full and biased anywhere; one head is empty, one has windows (read whole). */
static World make_world(const Case &c)
{
    World w;
    int vectors = c.bound ? 2 : 1, d = c.head_dim, n_pages = c.most * c.n_kv_heads;
    w.entry = vectors * d;
    w.stride = c.most + 3;
    w.q = random_bf16((size_t)c.n_kv_heads * c.group * d);
    w.index.resize((size_t)n_pages * w.entry);
    for (int i = 0; i < n_pages; i++) {
        float page = random_normal();
        for (int j = 0; j < d; j++) {
            float x = index_value(c.kind, page), y = index_value(c.kind, page);
            w.index[(size_t)i * w.entry + j] = __float2bfloat16(c.bound ? fminf(x, y) : x);
            if (c.bound) w.index[(size_t)i * w.entry + d + j] = __float2bfloat16(fmaxf(x, y));
        }
    }
    w.refs.resize((size_t)c.n_kv_heads * w.stride);
    for (int h = 0; h < c.n_kv_heads; h++) {
        w.n_refs.push_back(h == 1 ? 0 : h == 0 ? c.most : random_below(c.most + 1));
        for (int i = 0; i < w.n_refs[h]; i++)
            w.refs[(size_t)h * w.stride + i] = {(uint32_t)(h * c.most + (i * 11 + 3) % c.most),
                                                random_below(3) ? 64u : 1 + random_u32() % 64,
                                                random_below(4) ? 0 : 0.3f * random_normal()};
    }
    for (int i = 0; i < d; i++) w.angles.push_back(random_normal());
    for (int i = 0; i < d * c.n_kv_heads; i++)
        w.balance.push_back(0.5f + random_below(100) / 50.0f);
    return w;
}

/* Turned heads times the balance of their KV head, through the Hadamard transform. */
static void even_out(const Case &c, const World &w, vector<float> &q)
{
    int d = c.head_dim, half = d / 2, run = d & -d;
    for (size_t h = 0; h < q.size(); h += d) {
        float *x = &q[h];
        const float *by = &w.balance[h / d / c.group * d];
        for (int i = 0; i < half; i++) {
            float u = __bfloat162float(w.q[h + i]), v = __bfloat162float(w.q[h + half + i]),
                  co = w.angles[i], si = w.angles[half + i];
            x[i] = fmaf(u, co, -(v * si)) * by[i];
            x[half + i] = fmaf(u, si, v * co) * by[half + i];
        }
        for (int step = 1; step < run; step *= 2)
            for (int i = 0; i < half; i++) {
                int at = i / step * 2 * step + i % step;
                float a = x[at], b = x[at + step];
                x[at] = a + b;
                x[at + step] = a - b;
            }
        for (int i = 0; i < d; i++)
            x[i] = __bfloat162float(__float2bfloat16_rn(x[i] * (1 / sqrtf((float)run))));
    }
}

/* The query heads as the device turns them: here by halves, without a norm. */
static vector<float> turned_queries(const Case &c, const World &w)
{
    int d = c.head_dim, half = d / 2;
    vector<float> q(w.q.size());
    for (size_t i = 0; i < q.size(); i++) q[i] = __bfloat162float(w.q[i]);
    for (size_t h = 0; c.turned && h < q.size(); h += d)
        for (int i = 0; i < half; i++) {
            float u = q[h + i], v = q[h + half + i], co = w.angles[i], si = w.angles[half + i];
            q[h + i] = __bfloat162float(__float2bfloat16_rn(fmaf(u, co, -(v * si))));
            q[h + half + i] = __bfloat162float(__float2bfloat16_rn(fmaf(u, si, v * co)));
        }
    if (c.turned == 2) even_out(c, w, q);
    return q;
}

static bool score_right(const Case &c, const World &w, const vector<float> &q, int head, int page,
                        float scale, float got)
{
    struct CudaPageRef ref = w.refs[(size_t)head * w.stride + page];
    double best = -INFINITY, size = 0;
    for (int g = 0; g < c.group; g++) {
        double sum = 0;
        for (int j = 0; j < c.head_dim; j++) {
            double x = q[((size_t)head * c.group + g) * c.head_dim + j];
            double low = __bfloat162float(w.index[(size_t)ref.page * w.entry + j]), high = low;
            if (c.bound)
                high = __bfloat162float(w.index[(size_t)ref.page * w.entry + c.head_dim + j]);
            sum += std::max(x * low, x * high);
            size = std::max(size, c.head_dim * std::max(fabs(x * low), fabs(x * high)));
        }
        best = std::max(best, sum);
    }
    return fabs(got - (best * scale + ref.bias)) <= 1e-6 * (c.head_dim * 0.02 + 1) * (size + 1);
}

struct Head {
    const float *score;
    vector<int> len;
    int n, n_open, end;
    vector<int> got; /* pages that the device chose */
};

/* By mass: nothing left out is heavier, and it takes the last one. */
static bool mass_right(const Case &c, const Head &h)
{
    vector<bool> taken(h.n);
    for (int i : h.got) taken[i] = true;
    double all = 0, have = 0, least = INFINITY, most_left = -INFINITY, top = -INFINITY;
    bool any = false;
    auto log_mass = [&](int i) { return h.score[i] + log((double)h.len[i]); };
    for (int i = 0; i < h.n - h.n_open; i++) top = std::max(top, log_mass(i));
    for (int i = 0; i < h.n - h.n_open; i++) {
        double share = exp(log_mass(i) - top);
        all += share;
        have += taken[i] ? share : 0;
        if (i < c.rule.first || i >= h.end) continue;
        if (taken[i]) any = true, least = std::min(least, log_mass(i));
        if (!taken[i]) most_left = std::max(most_left, log_mass(i));
    }
    double slack = 2e-6 * all + h.n * 0x1p-29;
    bool enough = have >= c.rule.mass * all - slack,
         few = !any || have - exp(least - top) <= c.rule.mass * all + slack;
    return enough && few && least >= most_left - 1e-5;
}

static bool choice_right(const Case &c, const Head &h)
{
    vector<int> idx(h.n + 1), want;
    vector<float> log_work(h.n + 1);
    vector<uint32_t> share(h.n + 1);
    struct PageWeights work = {log_work.data(), share.data()};
    if (c.rule.mass > 0 && !page_select_all(&c.rule, h.n, h.n_open)) return mass_right(c, h);
    int n = page_select(&c.rule, h.score, h.len.data(), h.n, h.n_open, &work, idx.data());
    idx.resize(n);
    return idx == h.got;
}

static bool head_right(const Case &c, const World &w, const vector<float> &score, int head,
                       const struct CudaPageRef *out, int n_out, int n_tokens, bool whole)
{
    const struct CudaPageRef *refs = &w.refs[(size_t)head * w.stride];
    Head h = {&score[(size_t)head * w.stride], {}, w.n_refs[head], 0, 0, {}};
    int tokens = 0;
    for (int i = 0; i < h.n; i++) h.len.push_back((int)refs[i].len);
    while (h.n_open < h.n && h.len[h.n - 1 - h.n_open] < 64) h.n_open++;
    h.end = std::max(0, h.n - std::max(c.rule.last, h.n_open));
    for (int i = 0, at = 0; i < n_out; i++) {
        while (at < h.n && memcmp(&refs[at], &out[i], sizeof *out)) at++;
        if (at == h.n) return false; /* not a page of the head, or not in order */
        h.got.push_back(at++);
        tokens += (int)out[i].len;
    }
    if (tokens != n_tokens) return false;
    return whole ? n_out == h.n : choice_right(c, h);
}

static void test(const Case &c)
{
    World w = make_world(c);
    size_t lines = (size_t)c.n_kv_heads * w.stride;
    Memory<bf16> q(w.q), index(w.index);
    Memory<float> angles(w.angles), balance(w.balance), score(lines);
    Memory<struct CudaPageRef> refs(w.refs), out(lines);
    Memory<int> n_refs(w.n_refs), n_out(c.n_kv_heads), n_tokens(c.n_kv_heads),
        tickets(vector<int>(c.n_kv_heads, 0));
    Memory<unsigned long long> counts(vector<unsigned long long>(2, 0));
    struct CudaPageSelect a = {};
    a.q = q.p;
    if (c.turned) a.turn.angles = angles.p, a.turn.rope_dim = c.head_dim;
    if (c.turned == 2) a.turn.even = true, a.turn.balance = balance.p;
    a.index = (const uint8_t *)index.p;
    a.index_bytes = w.entry * sizeof(bf16);
    a.bound = c.bound;
    a.refs = refs.p;
    a.n_refs = n_refs.p;
    a.ref_stride = w.stride;
    a.n_heads = c.group * c.n_kv_heads;
    a.n_kv_heads = c.n_kv_heads;
    a.head_dim = c.head_dim;
    a.scale = 1 / sqrtf((float)c.head_dim);
    a.pages = c.rule.pages;
    a.first = c.rule.first;
    a.last = c.rule.last;
    a.mass = c.rule.mass;
    int window_head = c.n_kv_heads > 2 ? 2 : -1;
    if (window_head >= 0) a.whole[0] = 1u << window_head;
    a.out = out.p;
    a.n_out = n_out.p;
    a.n_tokens = n_tokens.p;
    a.score = score.p;
    a.tickets = tickets.p;
    a.counts = counts.p;
    char name[200];
    snprintf(name, sizeof name,
             "dim %d group %d heads %d most %d bound %d turned %d k %d p %g kind %d", c.head_dim,
             c.group, c.n_kv_heads, c.most, c.bound, c.turned, c.rule.pages, c.rule.mass, c.kind);
    vector<float> queries = turned_queries(c, w);
    unsigned long long read = 0, there = 0;
    vector<struct CudaPageRef> first;
    for (int blocks : {1, 3, 16}) {
        a.n_blocks = blocks;
        out.poison();
        check_cuda(cuda_select_pages(&a, 0), name);
        check_cuda(cudaDeviceSynchronize(), name);
        vector<struct CudaPageRef> got = out.get();
        vector<float> scores = score.get();
        vector<int> n = n_out.get(), tokens = n_tokens.get(), left = tickets.get();
        bool right = true, scored = true;
        for (int h = 0; h < c.n_kv_heads; h++) {
            bool whole = h == window_head;
            right &=
                head_right(c, w, scores, h, &got[(size_t)h * w.stride], n[h], tokens[h], whole);
            right &= left[h] == 0;
            if (whole) continue;
            read += n[h];
            there += w.n_refs[h];
            if (n[h] == w.n_refs[h]) continue; /* may not have been scored */
            int n_scored = w.n_refs[h];
            while (n_scored && w.refs[(size_t)h * w.stride + n_scored - 1].len < 64) n_scored--;
            for (int i = 0; i < n_scored; i++)
                scored &=
                    score_right(c, w, queries, h, i, a.scale, scores[(size_t)h * w.stride + i]);
        }
        report(name, right, "the pages chosen");
        report(name, scored, "scores");
        if (blocks == 1) first = got;
        report(name, same(first, got), "the same bytes whatever the number of blocks");
        report(name, out.guarded() && score.guarded() && n_out.guarded(), "guards");
    }
    vector<unsigned long long> sums = counts.get();
    report(name, sums[0] == read && sums[1] == there, "counts");
}

static void time_select(int head_dim, int group, int n_kv_heads, int pages, bool bound, float mass)
{
    int n_sm = 0, entry = (bound ? 2 : 1) * head_dim;
    cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, 0);
    const int layers = 16; /* so that the index is not in the cache */
    size_t all = (size_t)layers * n_kv_heads * pages;
    Memory<bf16> q(random_bf16((size_t)n_kv_heads * group * head_dim)), index(all * entry);
    fill(index.p, index.n);
    vector<struct CudaPageRef> table(all);
    for (size_t i = 0; i < all; i++) table[i] = {(uint32_t)i, 64, 0};
    Memory<struct CudaPageRef> refs(table), out((size_t)n_kv_heads * pages);
    Memory<float> score((size_t)n_kv_heads * pages);
    Memory<int> n_refs(vector<int>(n_kv_heads, pages)), n_out(n_kv_heads), n_tokens(n_kv_heads),
        tickets(vector<int>(n_kv_heads, 0));
    Memory<unsigned long long> counts(vector<unsigned long long>(2, 0));
    struct CudaPageSelect a = {};
    a.q = q.p;
    a.index = (const uint8_t *)index.p;
    a.index_bytes = entry * sizeof(bf16);
    a.bound = bound;
    a.n_refs = n_refs.p;
    a.ref_stride = pages;
    a.n_heads = group * n_kv_heads;
    a.n_kv_heads = n_kv_heads;
    a.head_dim = head_dim;
    a.scale = 1 / sqrtf((float)head_dim);
    a.pages = pages / 16;
    a.mass = mass;
    a.first = 1;
    a.last = 2;
    a.out = out.p;
    a.n_out = n_out.p;
    a.n_tokens = n_tokens.p;
    a.score = score.p;
    a.tickets = tickets.p;
    a.counts = counts.p;
    a.n_blocks = cuda_select_blocks(n_kv_heads, pages, n_sm);
    float ms = time_ms(4 * layers, [&](int i) {
        a.refs = refs.p + (size_t)(i % layers) * n_kv_heads * pages;
        check_cuda(cuda_select_pages(&a, 0), "cuda_select_pages");
    });
    printf("select_pages dim %d group %d heads %d pages %d %s %s: %.4f ms, %.0f GB/s of index\n",
           head_dim, group, n_kv_heads, pages, bound ? "bound" : "mean",
           mass > 0 ? "share" : "number", ms,
           (double)n_kv_heads * pages * entry * sizeof(bf16) / ms * 1e-6);
}

static void time_all(void)
{
    for (int pages : {512, 2048, 16384})
        for (int bound = 0; bound < 2; bound++) {
            time_select(128, 4, 8, pages, bound, 0);
            time_select(128, 4, 8, pages, bound, 0.9f);
        }
    time_select(64, 7, 2, 2048, false, 0);
    time_select(64, 3, 3, 2048, false, 0);
}

int main(int argc, char **argv)
{
    int n_gpus = 0;
    if (cudaGetDeviceCount(&n_gpus) || n_gpus == 0) {
        printf("SKIP: no GPU\n");
        return 0;
    }
    if (argc > 1 && !strcmp(argv[1], "time")) {
        time_all();
        return 0;
    }
    static const struct PageSelect rules[] = {
        {PAGE_INDEX_MEAN, 7, 0, 1, 2},    {PAGE_INDEX_MEAN, 0, 0, 0, 0},
        {PAGE_INDEX_MEAN, 60, 0, 3, 0},   {PAGE_INDEX_MEAN, 1, 0, 0, 5},
        {PAGE_INDEX_MEAN, 0, 0.5f, 1, 1}, {PAGE_INDEX_MEAN, 0, 0.95f, 0, 2},
        {PAGE_INDEX_MEAN, 5000, 0, 1, 1}, {PAGE_INDEX_MEAN, 0, 1, 1, 1},
    };
    static const int dims[] = {8, 40, 64, 80, 96, 128, 256}, mosts[] = {1, 9, 70, 513, 2100};
    for (int d = 0; d < 7; d++)
        for (int m = 0; m < 5; m++)
            for (int r = 0; r < 8; r++)
                for (int bound = 0; bound < 2; bound++) {
                    int turn = d + m + r + bound;
                    Case c = {dims[d],    turn % 7 + 1, turn % 3 * 2 + 1, mosts[m],
                              bound != 0, turn % 2,     rules[r],         (turn / 2) % KINDS};
                    test(c);
                    c.turned = 2; /* heads whose factor no device rounds otherwise */
                    if (dims[d] == 64 || dims[d] == 80 || dims[d] == 256) test(c);
                }
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed != 0;
}
