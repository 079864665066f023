/* bench_heads.cu - what windows and sinks save, head by head, and what pages of codes do: attention of a prompt, and of a step
 * of decoding over pages.
 *
 * bench_heads [prefill | decode | codes] [most tokens]        (default: all, 1,048,576)
 *
 * prefill: 32 query heads over 8 KV heads of 128; of 20 query heads 3 see all (of 5 layers four have 5 such heads and one has
 * 4), the others 4 sinks and a window of 8,192. The speed-up is over the same kernel with full heads; its bound is what the
 * visible pairs of rows and keys allow, 1 / (0.15 + 0.85 * window's pairs / all pairs).
 * decode: one row of 32 such layers, all heads full beside every second one with 128 sinks and a window of 256, its table a
 * ring of 7 pages or still whole. All layers read the same pages, which are too many for the L2 cache to keep.
 * codes: the same row, all heads full, over pages of bf16 and of codes, which layers take turns to read from as many sets of
 * pages as the room for bf16 holds; the rate is of the bytes that they have.
 */
#include "cuda/seen.cuh"

#include "support.cuh"

enum { DIM = 128, HEADS = 32, KV_HEADS = 8, LAYERS = 32 };

static int n_sm;
static bool hopper;

/* Median of so many runs, after one that does not count where there are several. */
template <class F> static double median_ms(int runs, F run)
{
    cudaEvent_t from, to;
    cudaEventCreate(&from);
    cudaEventCreate(&to);
    vector<float> times;
    for (int i = runs > 1 ? -1 : 0; i < runs; i++) {
        float ms;
        cudaEventRecord(from);
        run();
        cudaEventRecord(to);
        check_cuda(cudaEventSynchronize(to), "timed run");
        cudaEventElapsedTime(&ms, from, to);
        if (i >= 0) times.push_back(ms);
    }
    cudaEventDestroy(from);
    cudaEventDestroy(to);
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

/* ==== A prompt ==== */

enum { WINDOW = 8192, SINKS = 4 };

struct Prompt {
    int n, runs;
    Memory<bf16> q, k, v, out;
    Memory<int> begin, past;
    explicit Prompt(int tokens)
        : n(tokens), runs(tokens > 262144 ? 1 : 5), q((size_t)n * HEADS * DIM),
          k((size_t)n * KV_HEADS * DIM), v(k.n), out(q.n), begin(vector<int>{0, n}),
          past(vector<int>(KV_HEADS, 0))
    {
        fill(q.p, q.n);
        fill(k.p, k.n);
        fill(v.p, v.n);
    }
    double ms(const int *window) const
    {
        struct CudaAttn a = {};
        a.q = q.p;
        a.kv = {k.p, v.p, n, past.p};
        a.out = out.p;
        a.seq_begin = begin.p;
        a.n_seqs = 1;
        a.n_rows = a.max_seq_rows = n;
        a.n_heads = HEADS;
        a.n_kv_heads = KV_HEADS;
        a.head_dim = DIM;
        a.scale = 1 / sqrtf(DIM);
        a.window = window;
        a.sinks = SINKS;
        return median_ms(runs, [&] {
            check_cuda(hopper ? cuda_attention_sm90a(&a, 0) : cuda_attention_sm80(&a, 0),
                       "prefill");
        });
    }
    /* With n_full heads that see all, scattered over the groups. */
    double masked_ms(int n_full) const
    {
        vector<int> window;
        for (int h = 0; h < HEADS; h++) window.push_back((h * 7 + 3) % HEADS < n_full ? 0 : WINDOW);
        Memory<int> windows(window);
        return ms(windows.p);
    }
    /* Of five layers with 24 full heads of 160. */
    double mean_ms() const { return (4 * masked_ms(5) + masked_ms(4)) / 5; }
};

static double window_pairs(double n)
{
    double most = WINDOW + SINKS;
    return n <= most ? n * (n + 1) / 2 : most * (most + 1) / 2 + (n - most) * most;
}

static void time_prompt(int n)
{
    Prompt p(n);
    double pairs = (double)n * (n + 1) / 2, full = p.ms(NULL), masked = p.mean_ms();
    double bound = 1 / (0.15 + 0.85 * window_pairs(n) / pairs);
    printf("prefill %7d tokens: full %9.2f ms (%3.0f TFLOP/s), 15%% full %8.2f ms: %.2fx, bound "
           "%.2fx, %.1f%% of it\n",
           n, full, 4.0 * DIM * HEADS * pairs / full * 1e-9, masked, full / masked, bound,
           100 * full / masked / bound);
    fflush(stdout);
}

/* ==== A step ==== */

enum { STEP_SINKS = 128, STEP_WINDOW = 256 };
enum Tables { ALL_FULL, RINGS, WHOLE };

/* Of a page. */
static size_t page_bytes(enum CudaPageFormat format)
{
    const int bits[] = {16, 8, 4};
    return 2 * 64 * (DIM * bits[format] / 8 + (format == CUDA_PAGE_BF16 ? 0 : 4));
}

struct Step {
    int n_pages;
    vector<struct CudaPageRef> refs;
    vector<int> n_refs, n_tokens, window;
    vector<struct CudaSeen> seen;
    Step(int pages, enum Tables kind) : n_pages(pages)
    {
        for (int h = 0; h < KV_HEADS; h++) add_head(h, kind);
        for (int h = 0; h < HEADS; h++)
            window.push_back(kind != ALL_FULL && h / (HEADS / KV_HEADS) % 2 ? STEP_WINDOW : 0);
    }
    /* Pages of 64 tokens; a ring has those of the sinks and the last five. */
    void add_head(int h, enum Tables kind)
    {
        bool streams = kind != ALL_FULL && h % 2, ring = streams && kind == RINGS;
        int first = refs.size(), n = 0;
        refs.resize(first + n_pages);
        for (int p = 0; p < n_pages; p++)
            if (!ring || p < STEP_SINKS / 64 || p >= n_pages - 5)
                refs[first + n++] = {(uint32_t)(p * KV_HEADS + h), 64, 0};
        n_refs.push_back(n);
        n_tokens.push_back(n * 64);
        seen.push_back(pages_seen({streams ? (int)STEP_WINDOW : 0, 0, 0, 0}, &refs[first], n,
                                  n * 64, STEP_SINKS));
    }
    double visible() const
    {
        double pages = 0;
        for (int h = 0; h < KV_HEADS; h++) pages += n_refs[h] - seen[h].back + seen[h].front;
        return pages;
    }
};

/* Milliseconds of a layer's launch, in a graph of all layers as a step of decoding is. */
static double step_ms(const Step &t, const Memory<bf16> &pool, enum CudaPageFormat format)
{
    Memory<bf16> q(HEADS * DIM), k(KV_HEADS * DIM), v(k.n), out(q.n);
    Memory<struct CudaPageRef> refs(t.refs);
    Memory<int> n_refs(t.n_refs), n_tokens(t.n_tokens), window(t.window);
    Memory<struct CudaSeen> seen(t.seen);
    Memory<float> angles(vector<float>(DIM, 0.6f));
    vector<struct CudaPageSlot> spare;
    for (int h = 0; h < KV_HEADS; h++) spare.push_back({(uint32_t)(t.n_pages * KV_HEADS + h), 0});
    Memory<struct CudaPageSlot> slots(spare);
    fill(q.p, q.n);
    fill(k.p, k.n);
    fill(v.p, v.n);
    struct CudaPaged a = {};
    a.n_splits = cuda_paged_splits(format, DIM, KV_HEADS, t.n_pages, n_sm);
    size_t bytes = cuda_paged_scratch(1, HEADS, DIM, a.n_splits);
    Memory<float> part(bytes / 4);
    cudaMemset(part.p, 0, bytes);
    a.q = q.p;
    a.k = k.p;
    a.v = v.p;
    a.out = out.p;
    a.page_bytes = page_bytes(format);
    a.format = format;
    a.refs = refs.p;
    a.n_refs = n_refs.p;
    a.ref_stride = a.max_refs = t.n_pages;
    a.n_rows = 1;
    a.n_heads = HEADS;
    a.n_kv_heads = KV_HEADS;
    a.head_dim = DIM;
    a.scale = 1 / sqrtf(DIM);
    a.part = part.p;
    a.turn.angles = angles.p;
    a.turn.rope_dim = DIM;
    a.slots = slots.p;
    if (t.seen[1].window) {
        a.window = window.p;
        a.sinks = STEP_SINKS;
        a.n_tokens = n_tokens.p;
        a.seen = seen.p;
    }
    size_t set = (t.n_pages + 1) * KV_HEADS * a.page_bytes, sets = pool.bytes() / set;
    cudaStream_t s;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamCreate(&s);
    check_cuda(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal), "capture");
    for (int l = 0; l < LAYERS; l++) {
        a.pool = (uint8_t *)pool.p + l % sets * set;
        check_cuda(cuda_paged_attention(&a, s), "decode");
    }
    check_cuda(cudaStreamEndCapture(s, &graph), "capture");
    check_cuda(cudaGraphInstantiate(&exec, graph, 0), "graph");
    double ms = median_ms(11, [&] { cudaGraphLaunch(exec, 0); }) / LAYERS;
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(s);
    return ms;
}

/* Pages for `tokens` of each KV head, and one more. */
static size_t pool_values(int tokens)
{
    return (size_t)(tokens / 64 + 1) * KV_HEADS * 2 * 64 * DIM;
}

static void time_step(int tokens)
{
    int n_pages = tokens / 64;
    Memory<bf16> pool(pool_values(tokens));
    fill(pool.p, pool.n);
    const char *const names[] = {"all heads full", "half of them rings",
                                 "half with windows over whole tables"};
    double full = 0, pages = 0;
    for (int kind = ALL_FULL; kind <= WHOLE; kind++) {
        Step t(n_pages, (enum Tables)kind);
        double ms = step_ms(t, pool, CUDA_PAGE_BF16);
        if (kind == ALL_FULL) full = ms, pages = t.visible();
        printf("decode %7d tokens, %-36s %8.4f ms a layer, %7.3f ms of %d, %4.0f GB/s, %.2fx, by "
               "bytes %.2fx\n",
               tokens, names[kind], ms, ms * LAYERS, (int)LAYERS,
               t.visible() * page_bytes(CUDA_PAGE_BF16) / ms * 1e-6, full / ms,
               pages / t.visible());
        fflush(stdout);
    }
}

static void time_codes(int tokens)
{
    Memory<bf16> pool(pool_values(tokens));
    fill(pool.p, pool.n);
    const char *const names[] = {"bf16", "q8", "q4"};
    double whole = 0;
    for (auto format : {CUDA_PAGE_BF16, CUDA_PAGE_Q8, CUDA_PAGE_Q4}) {
        Step t(tokens / 64, ALL_FULL);
        double ms = step_ms(t, pool, format);
        if (format == CUDA_PAGE_BF16) whole = ms;
        printf("codes %7d tokens, %-4s %8.4f ms a layer, %7.3f ms of %d, %4.0f GB/s, %.2fx\n",
               tokens, names[format], ms, ms * LAYERS, (int)LAYERS,
               t.visible() * page_bytes(format) / ms * 1e-6, whole / ms);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    int n = 0, most = 1 << 20;
    struct cudaDeviceProp prop;
    if (cudaGetDeviceCount(&n) || n == 0) {
        printf("SKIP: no GPU\n");
        return 0;
    }
    check_cuda(cudaGetDeviceProperties(&prop, 0), "device");
    n_sm = prop.multiProcessorCount;
    hopper = prop.major == 9 && prop.minor == 0;
    auto wanted = [&](const char *part) { return argc < 2 || !strcmp(argv[1], part); };
    if (argc > 2) most = atoi(argv[2]);
    printf("%s\n", prop.name);
    for (int tokens = 32768; wanted("prefill") && tokens <= most; tokens *= 2) time_prompt(tokens);
    for (int tokens : {102400, 1 << 20})
        if (wanted("decode") && tokens <= most) time_step(tokens);
    for (int tokens : {65536, 200000})
        if (wanted("codes") && tokens <= most) time_codes(tokens);
    return 0;
}
