/* test_place_pages.cu - cuda_place_pages against eviction/residency.c, choice after choice over the same slots, the copies that
 * it asks for, and the pages that it asks the host for.
 */
#include "tests/cuda/support.cuh"

extern "C" {
#include "eviction/residency.h"
}

struct Case {
    int n_kv_heads, pages, slots, chosen; /* pages of a head and of a choice, at most */
    bool late;
};

/* What the host knows of one head. */
struct Twin {
    vector<int> page_at, slot_of, idx;
    int seen;
};

struct World {
    Case c;
    int stride;
    uint32_t n_near;
    vector<struct CudaPageRef> refs;
    vector<int> n_refs;
    vector<float> score;
    vector<Twin> heads;
};

static World make_world(const Case &c)
{
    World w = {c, c.pages + 40, (uint32_t)(c.n_kv_heads * c.slots + 100), {}, {}, {}, {}};
    w.refs.resize((size_t)c.n_kv_heads * w.stride);
    w.score.resize(w.refs.size());
    for (int h = 0; h < c.n_kv_heads; h++) {
        int n = h == 1 ? 3 : c.pages / 2 + random_below(c.pages / 2 + 1);
        w.n_refs.push_back(n);
        for (int i = 0; i < n; i++) {
            bool below = i > 0 && random_below(12);
            w.refs[(size_t)h * w.stride + i] = {
                below ? w.n_near + (uint32_t)(h * c.pages + i)
                      : (uint32_t)(c.n_kv_heads * c.slots + random_below(100)),
                random_below(4) ? 64u : 1 + random_u32() % 64, random_below(4) ? 0 : 0.5f};
        }
        w.heads.push_back({vector<int>(c.slots, -1), vector<int>(w.stride, -1), {}, 0});
    }
    return w;
}

static int n_scored(const World &w, int h)
{
    int n = w.n_refs[h];
    while (n > 0 && w.refs[(size_t)h * w.stride + n - 1].len < 64) n--;
    return n;
}

/* A new choice of every head, with scores that tie now and then. */
static void choose(World &w)
{
    for (auto &s : w.score)
        s = random_below(40) == 0 ? NAN : random_below(3) ? random_normal() : random_below(3);
    for (int h = 0; h < w.c.n_kv_heads; h++) {
        Twin &t = w.heads[h];
        t.idx.clear();
        for (int i = 0; i < w.n_refs[h]; i++)
            if (i >= n_scored(w, h) || random_below(w.c.pages) < w.c.chosen) t.idx.push_back(i);
        t.seen = w.n_refs[h];
    }
}

/* Pages that came since, near and of one token each. */
static void grow(World &w)
{
    for (int h = 0; h < w.c.n_kv_heads; h++)
        for (int i = random_below(3); i > 0 && w.n_refs[h] < w.stride; i--)
            w.refs[(size_t)h * w.stride + w.n_refs[h]++] = {
                (uint32_t)(w.c.n_kv_heads * w.c.slots + random_below(100)), 1, 0};
}

static vector<struct PageFetch> fetches(World &w, int h, int *wanted, int *missed)
{
    Twin &t = w.heads[h];
    vector<float> score(w.score.begin() + (size_t)h * w.stride,
                        w.score.begin() + (size_t)(h + 1) * w.stride);
    for (int i = n_scored(w, h); i < w.n_refs[h]; i++) score[i] = INFINITY;
    vector<int> below, from(w.stride + w.c.slots), take(w.stride + w.c.slots);
    vector<float> value(w.stride + w.c.slots);
    vector<uint8_t> held(w.c.slots);
    for (int i : t.idx)
        if (w.refs[(size_t)h * w.stride + i].page >= w.n_near) below.push_back(i);
    *wanted += (int)below.size();
    for (int i : below) *missed += t.slot_of[i] < 0;
    vector<struct PageFetch> out(w.stride + w.c.slots);
    struct ResidencyWork work = {value.data(), from.data(), take.data(), held.data()};
    struct Residency r = {w.c.slots, t.page_at.data(), t.slot_of.data(), NULL};
    out.resize(
        residency_fetch(&r, score.data(), below.data(), (int)below.size(), &work, out.data()));
    return out;
}

/* The table that a row finds; slots as they were where it does not wait. */
static vector<struct CudaPageRef> table_of(const World &w, int h, const vector<int> &slot_of,
                                           int *late, int *through)
{
    vector<struct CudaPageRef> out;
    for (int i : w.heads[h].idx) {
        struct CudaPageRef ref = w.refs[(size_t)h * w.stride + i];
        bool below = ref.page >= w.n_near;
        if (below && slot_of[i] < 0 && w.c.late) {
            ++*late;
            continue;
        }
        if (below && slot_of[i] < 0) ++*through;
        if (below && slot_of[i] >= 0) ref.page = (uint32_t)(h * w.c.slots + slot_of[i]);
        out.push_back(ref);
    }
    return out;
}

/* In the host's memory, as the device leaves it. */
struct Asks {
    struct CudaAsks a;
    Asks(int heads, size_t lines)
    {
        check_cuda(cudaMallocHost(&a.n, heads * sizeof *a.n), "asks");
        check_cuda(cudaMallocHost(&a.n_asked, heads * sizeof *a.n_asked), "asks");
        check_cuda(cudaMallocHost(&a.page, lines * sizeof *a.page), "asks");
        check_cuda(cudaMallocHost(&a.score, lines * sizeof *a.score), "asks");
        check_cuda(cudaMallocHost(&a.asked, lines * sizeof *a.asked), "asks");
    }
    ~Asks()
    {
        cudaFreeHost(a.n), cudaFreeHost(a.n_asked), cudaFreeHost(a.page);
        cudaFreeHost(a.score), cudaFreeHost(a.asked);
    }
};

/* What a head's row asks for: pages that have just been given a slot, and those that it reads without one. */
static vector<struct CudaAsk> asks_of(const World &w, int h, const vector<int> &before, bool again)
{
    const Twin &t = w.heads[h];
    vector<struct CudaAsk> out;
    for (int i : t.idx) {
        if (w.refs[(size_t)h * w.stride + i].page < w.n_near) continue;
        bool stays = t.slot_of[i] < 0;
        if (stays ? !w.c.late : !again && before[i] < 0) out.push_back({i, stays});
    }
    return out;
}

static bool asks_right(const World &w, int h, const vector<int> &before, bool again,
                       const struct CudaAsks &got)
{
    vector<struct CudaAsk> want = asks_of(w, h, before, again);
    size_t first = (size_t)h * w.stride;
    bool right = got.n[h] == w.n_refs[h] && got.n_asked[h] == (int)want.size() &&
                 !memcmp(want.data(), got.asked + first, want.size() * sizeof want[0]);
    for (int i = 0; right && i < w.n_refs[h]; i++) {
        uint32_t page = w.refs[first + i].page;
        float score = i < n_scored(w, h) && !again ? w.score[first + i] : INFINITY;
        right = got.page[first + i] == (page < w.n_near ? UINT32_MAX : page - w.n_near) &&
                !memcmp(&got.score[first + i], &score, sizeof score);
    }
    return right;
}

static void test(const Case &c)
{
    const size_t page_bytes = 64 * 2 * 8 * 2;
    World w = make_world(c);
    size_t lines = w.refs.size(), all_slots = (size_t)c.n_kv_heads * c.slots,
           n_below = (size_t)c.n_kv_heads * c.pages;
    vector<uint32_t> first_slots;
    for (int h = 0; h < c.n_kv_heads; h++) first_slots.push_back(h * c.slots);
    Memory<struct CudaPageRef> refs(lines), out(lines);
    Memory<int> n_refs(c.n_kv_heads), idx(lines), n_out(c.n_kv_heads), n_tokens(c.n_kv_heads),
        slot_of(lines), page_at(all_slots), n_copies(c.n_kv_heads), take(all_slots),
        give(all_slots), held(all_slots);
    Memory<struct CudaChoice> kept(c.n_kv_heads);
    Memory<float> score(lines);
    Memory<uint32_t> first(first_slots), share(lines);
    Memory<struct CudaPageCopy> copies(all_slots);
    Memory<unsigned long long> counts(vector<unsigned long long>(2, 0)),
        tiers(vector<unsigned long long>(CUDA_TIER_COUNTS, 0));
    Memory<uint8_t> near(w.n_near * page_bytes);
    Asks asks(c.n_kv_heads, lines);
    uint8_t *below = NULL;
    check_cuda(cudaMallocHost(&below, n_below * page_bytes), "cudaMallocHost");
    for (size_t i = 0; i < n_below * page_bytes; i++) below[i] = (uint8_t)(i / page_bytes * 7 + i);
    struct CudaPagePlace a = {};
    a.refs = refs.p, a.n_refs = n_refs.p, a.ref_stride = w.stride, a.n_kv_heads = c.n_kv_heads;
    a.score = score.p, a.idx = idx.p, a.kept = kept.p, a.out = out.p, a.n_out = n_out.p;
    a.n_tokens = n_tokens.p, a.counts = counts.p;
    a.tier = {slot_of.p, page_at.p, first.p, share.p,  copies.p, n_copies.p, take.p, give.p,
              held.p,    tiers.p,   c.slots, w.stride, w.n_near, c.late,     asks.a};
    struct CudaCopies copy = {copies.p,
                              n_copies.p,
                              c.slots,
                              c.n_kv_heads,
                              3,
                              near.p,
                              {below - w.n_near * page_bytes, w.n_near},
                              page_bytes};
    char name[200];
    snprintf(name, sizeof name, "heads %d pages %d slots %d chosen %d late %d", c.n_kv_heads,
             c.pages, c.slots, c.chosen, c.late);
    int wanted = 0, missed = 0, fetched = 0, late = 0, through = 0, read = 0, there = 0;
    bool tables = true, slots = true, copied = true, lists = true, asked = true;
    for (int round = 0; round < 24; round++) {
        a.again = round % 3 == 2;
        vector<int> flat(lines, -1);
        vector<struct CudaChoice> choices;
        if (a.again) grow(w);
        if (!a.again) choose(w);
        check_cuda(cudaMemcpy(refs.p, w.refs.data(), refs.bytes(), cudaMemcpyHostToDevice), "refs");
        check_cuda(cudaMemcpy(n_refs.p, w.n_refs.data(), n_refs.bytes(), cudaMemcpyHostToDevice),
                   "n_refs");
        check_cuda(cudaMemcpy(score.p, w.score.data(), score.bytes(), cudaMemcpyHostToDevice),
                   "score");
        for (int h = 0; h < c.n_kv_heads; h++) {
            Twin &t = w.heads[h];
            std::copy(t.idx.begin(), t.idx.end(), flat.begin() + (size_t)h * w.stride);
            choices.push_back({(int)t.idx.size(), t.seen});
        }
        if (!a.again) {
            check_cuda(cudaMemcpy(idx.p, flat.data(), idx.bytes(), cudaMemcpyHostToDevice), "idx");
            check_cuda(cudaMemcpy(kept.p, choices.data(), kept.bytes(), cudaMemcpyHostToDevice),
                       "kept");
        }
        check_cuda(cuda_place_pages(&a, 0), name);
        if (!a.again) check_cuda(cuda_copy_pages(&copy, 0), name);
        check_cuda(cudaDeviceSynchronize(), name);
        vector<struct CudaPageRef> got = out.get();
        vector<struct CudaPageCopy> list = copies.get();
        vector<int> n_got = n_out.get(), tokens = n_tokens.get(), n_list = n_copies.get(),
                    at = page_at.get(), of = slot_of.get();
        vector<uint8_t> bytes = near.get();
        for (int h = 0; h < c.n_kv_heads; h++) {
            Twin &t = w.heads[h];
            for (int i = t.seen; a.again && i < w.n_refs[h]; i++) t.idx.push_back(i);
            t.seen = w.n_refs[h];
            vector<int> before = t.slot_of;
            vector<struct PageFetch> f;
            if (!a.again) f = fetches(w, h, &wanted, &missed);
            fetched += (int)f.size();
            asked &= asks_right(w, h, before, a.again, asks.a);
            vector<struct CudaPageRef> want =
                table_of(w, h, c.late ? before : t.slot_of, &late, &through);
            int sum = 0;
            for (auto &r : want) sum += (int)r.len;
            tables &=
                n_got[h] == (int)want.size() && tokens[h] == sum &&
                !memcmp(want.data(), &got[(size_t)h * w.stride], want.size() * sizeof want[0]);
            read += (int)want.size();
            there += w.n_refs[h];
            slots &= !memcmp(t.page_at.data(), &at[(size_t)h * c.slots], c.slots * sizeof(int));
            slots &= !memcmp(t.slot_of.data(), &of[(size_t)h * w.stride], w.stride * sizeof(int));
            if (!a.again) lists &= n_list[h] == (int)f.size();
            for (size_t i = 0; i < f.size(); i++) {
                struct CudaPageCopy l = list[(size_t)h * c.slots + i];
                lists &= l.from == w.refs[(size_t)h * w.stride + f[i].page].page &&
                         l.to == (uint32_t)(h * c.slots + f[i].slot);
            }
            for (int s = 0; s < c.slots; s++) {
                if (t.page_at[s] < 0) continue;
                uint32_t page = w.refs[(size_t)h * w.stride + t.page_at[s]].page;
                copied &= !memcmp(&bytes[(size_t)(h * c.slots + s) * page_bytes],
                                  below + (page - w.n_near) * page_bytes, page_bytes);
            }
        }
    }
    vector<unsigned long long> n = tiers.get(), sums = counts.get();
    report(name, tables, "the table of the chosen pages");
    report(name, slots, "what the slots hold");
    report(name, lists, "the list of copies");
    report(name, copied, "the copies");
    report(name, asked, "what the host is asked for");
    report(name, sums[0] == (unsigned)read && sums[1] == (unsigned)there, "pages read");
    report(name,
           n[CUDA_TIER_WANTED] == (unsigned)wanted && n[CUDA_TIER_MISSED] == (unsigned)missed &&
               n[CUDA_TIER_FETCHED] == (unsigned)fetched && n[CUDA_TIER_LATE] == (unsigned)late &&
               n[CUDA_TIER_THROUGH] == (unsigned)through,
           "counts");
    report(name, fetched > 0 && (late > 0) == c.late, "something to do");
    report(name, c.late ? n[CUDA_TIER_SHARE] > 0 : n[CUDA_TIER_SHARE] == 0, "the late share");
    report(name,
           out.guarded() && idx.guarded() && slot_of.guarded() && page_at.guarded() &&
               copies.guarded() && held.guarded() && near.guarded(),
           "guards");
    cudaFreeHost(below);
}

int main(void)
{
    int n_gpus = 0;
    if (cudaGetDeviceCount(&n_gpus) || n_gpus == 0) {
        printf("SKIP: no GPU\n");
        return 0;
    }
    static const Case cases[] = {
        {1, 20, 1, 3, false},        {2, 20, 4, 3, false},     {3, 40, 12, 20, false},
        {8, 600, 64, 40, false},     {8, 600, 700, 40, false}, {5, 1500, 513, 400, false},
        {2, 1200, 600, 1200, false},
    };
    for (Case c : cases)
        for (int late = 0; late < 2; late++) {
            c.late = late;
            test(c);
        }
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed != 0;
}
