/* test_products.cu - the products of the CUDA backend against sums in double.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

extern "C" {
#include "../../src/quant.h"
}
#include "../../cuda/blocks.cuh"
#include "../../cuda/kernels.h"

enum { GUARD = 256, GUARD_BYTE = 0xa5 };

static int n_passed, n_failed;

static void check(bool ok, const char *what)
{
    if (ok) {
        n_passed++;
        return;
    }
    if (n_failed++ < 40) printf("FAIL %s\n", what);
}

static void must(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return;
    printf("%s: %s\n", what, cudaGetErrorString(e));
    exit(2);
}

/* ==== Random data ==== */

static uint64_t random_state = 88172645463325252u;

static uint32_t random_u32(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

/* About normal, in [-3.5, 3.5]. */
static float random_normal(void)
{
    uint64_t a = (uint64_t)random_u32() << 32 | random_u32();
    int sum = 0;
    for (int i = 0; i < 8; i++) sum += (int)(a >> 8 * i & 255);
    return (float)(sum - 1020) / 209;
}

static uint16_t bf16_bits(float f)
{
    __nv_bfloat16_raw r = __float2bfloat16_rn(f);
    return r.x;
}

static std::vector<uint16_t> random_bf16(size_t n)
{
    std::vector<uint16_t> v(n);
    for (size_t i = 0; i < n; i++) v[i] = bf16_bits(random_normal());
    return v;
}

static std::vector<float> random_f32(size_t n)
{
    std::vector<float> v(n);
    for (size_t i = 0; i < n; i++) v[i] = random_normal();
    return v;
}

static void put_scale(uint8_t *at, float size)
{
    uint16_t h = f32_to_f16(size * (0.25f + (float)(random_u32() % 1024) / 1024) *
                            (random_u32() & 1 ? 1 : -1));
    memcpy(at, &h, sizeof h);
}

/* Blocks of random bytes with scales that give weights of about 0.1. */
static std::vector<uint8_t> random_blocks(int type, int64_t n)
{
    int weights, bytes;
    if (!dtype_block((uint32_t)type, &weights, &bytes)) exit(2);
    std::vector<uint8_t> v((size_t)(n / weights * bytes + 3));
    for (size_t i = 0; i + 4 <= v.size(); i += 4) {
        uint32_t r = random_u32();
        memcpy(&v[i], &r, 4);
    }
    v.resize((size_t)(n / weights * bytes));
    for (int64_t b = 0; b < n / weights; b++) {
        uint8_t *p = v.data() + b * bytes;
        float f = 0.1f * random_normal();
        uint16_t h = bf16_bits(f);
        switch (type) {
        case DT_F32:
            memcpy(p, &f, 4);
            break;
        case DT_BF16:
            memcpy(p, &h, 2);
            break;
        case DT_F16:
            put_scale(p, 0.2f);
            break;
        case DT_Q6_K:
            put_scale(p + 208, 0.0003f);
            break;
        case DT_Q4_K:
        case DT_Q5_K:
            put_scale(p, 0.0005f), put_scale(p + 2, 0.002f);
            break;
        case DT_Q4_1:
        case DT_Q5_1:
            put_scale(p, 0.01f), put_scale(p + 2, 0.1f);
            break;
        case DT_Q8_0:
            put_scale(p, 0.001f);
            break;
        default:
            put_scale(p, 0.02f);
        }
    }
    return v;
}

/* ==== Device memory ==== */

/* Device memory with a guard behind it. */
struct Buffer {
    uint8_t *p;
    size_t bytes;

    explicit Buffer(size_t n) : bytes(n)
    {
        must(cudaMalloc(&p, n + GUARD), "cudaMalloc");
        must(cudaMemset(p, 0xff, n), "memset"); /* NaN in every float format used */
        must(cudaMemset(p + n, GUARD_BYTE, GUARD), "memset");
    }
    template <class T> explicit Buffer(const std::vector<T> &v) : Buffer(v.size() * sizeof(T))
    {
        put(v);
    }
    Buffer(const Buffer &) = delete;
    ~Buffer() { cudaFree(p); }
    template <class T> void put(const std::vector<T> &v)
    {
        must(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
    }
    std::vector<uint8_t> get(size_t n) const
    {
        std::vector<uint8_t> v(n);
        must(cudaMemcpy(v.data(), p, n, cudaMemcpyDeviceToHost), "copy");
        return v;
    }
    /* The first n bytes, when what is behind them up to the guard's end is untouched. */
    bool read(size_t n, std::vector<uint8_t> *out, uint8_t poison) const
    {
        std::vector<uint8_t> v = get(bytes + GUARD);
        bool ok = true;
        for (size_t i = n; i < bytes; i++) ok &= v[i] == poison;
        for (size_t i = bytes; i < bytes + GUARD; i++) ok &= v[i] == GUARD_BYTE;
        v.resize(n);
        *out = std::move(v);
        return ok;
    }
};

/* ==== What an output should be ==== */

struct Expect {
    double value, size; /* size: sum of the magnitudes of the terms */
};

struct Flags {
    bool out_f32, add, bias;
};

static const Flags all_flags[] = {{false, false, false}, {false, false, true}, {true, false, false},
                                  {true, false, true},   {true, true, false},  {true, true, true}};

static double worst; /* error over the bound, of the test under way */

static bool near(float got, Expect e, double relative, bool out_f32)
{
    double bound = relative * e.size + 1e-30 + (out_f32 ? 1e-7 : 0x1.01p-8) * fabs(e.value);
    double over = fabs((double)got - e.value) / bound;
    if (!(over <= worst)) worst = over;
    return over <= 1;
}

static float output_at(const std::vector<uint8_t> &out, size_t i, bool f32)
{
    float f;
    uint16_t h;
    if (f32) {
        memcpy(&f, &out[4 * i], 4);
        return f;
    }
    memcpy(&h, &out[2 * i], 2);
    return bf16_to_f32(h);
}

static Expect with_flags(Expect e, Flags f, float bias, float before)
{
    if (f.bias) e.value += bias, e.size += fabs(bias);
    if (f.add) e.value += before, e.size += fabs(before);
    return e;
}

/* ==== Matvec ==== */

struct MatvecCase {
    int type, rows, cols;
    std::vector<uint16_t> x;
    std::vector<float> bias, before;
    std::vector<Expect> expect; /* [4, rows] without flags */
};

static std::vector<Expect> products(int type, const std::vector<uint8_t> &w, int rows, int cols,
                                    const std::vector<uint16_t> &x)
{
    std::vector<float> row((size_t)cols);
    std::vector<Expect> e((size_t)rows * 4);
    size_t row_bytes = dtype_row_bytes((enum DType)type, cols);
    for (int i = 0; i < rows; i++) {
        quant_decode((enum DType)type, &w[i * row_bytes], row.data(), cols);
        for (int r = 0; r < 4; r++) {
            double sum = 0, size = 0;
            for (int c = 0; c < cols; c++) {
                double t = (double)row[(size_t)c] * bf16_to_f32(x[(size_t)r * cols + c]);
                sum += t;
                size += fabs(t);
            }
            e[(size_t)r * rows + i] = {sum, size};
        }
    }
    return e;
}

static const double matvec_bound = 3e-6;

static bool matvec_flags(const MatvecCase &c, const Buffer &w, const Buffer &x, const Buffer &bias,
                         int n_rows, Flags f)
{
    size_t n = (size_t)n_rows * c.rows, bytes = n * (f.out_f32 ? 4 : 2);
    std::vector<uint8_t> out[2];
    bool ok = true;
    for (int run = 0; run < 2; run++) {
        Buffer y(bytes);
        if (f.add) y.put(std::vector<float>(c.before.begin(), c.before.begin() + (long)n));
        struct CudaMatvec m = {c.type,
                               c.rows,
                               c.cols,
                               n_rows,
                               w.p,
                               (const bf16 *)x.p,
                               f.bias ? (const float *)bias.p : NULL,
                               y.p,
                               f.out_f32,
                               f.add};
        must(cuda_matvec(&m, 0), "cuda_matvec");
        must(cudaDeviceSynchronize(), "matvec");
        ok &= y.read(bytes, &out[run], 0xff);
    }
    ok &= out[0] == out[1];
    for (size_t i = 0; i < n; i++) {
        Expect e = with_flags(c.expect[i], f, c.bias[i % c.rows], c.before[i]);
        ok &= near(output_at(out[0], i, f.out_f32), e, matvec_bound, f.out_f32);
    }
    return ok;
}

static bool matvec_silu(const MatvecCase &gate, const MatvecCase &up, const Buffer &w,
                        const Buffer &w_up, const Buffer &x, int n_rows)
{
    size_t n = (size_t)n_rows * gate.rows;
    std::vector<uint8_t> out[2];
    bool ok = true;
    for (int run = 0; run < 2; run++) {
        Buffer y(2 * n);
        struct CudaMatvec m = {gate.type,         gate.rows, gate.cols, n_rows, w.p,
                               (const bf16 *)x.p, NULL,      y.p,       false,  false};
        must(cuda_matvec_silu(&m, w_up.p, 0), "cuda_matvec_silu");
        must(cudaDeviceSynchronize(), "matvec_silu");
        ok &= y.read(2 * n, &out[run], 0xff);
    }
    ok &= out[0] == out[1];
    for (size_t i = 0; i < n; i++) {
        Expect g = gate.expect[i], u = up.expect[i];
        double s = g.value / (1 + exp(-g.value));
        /* The slope of silu is at most 1.1. */
        ok &= near(output_at(out[0], i, false),
                   {s * u.value, fabs(s) * u.size + 1.1 * g.size * fabs(u.value)}, matvec_bound,
                   false);
    }
    return ok;
}

static void test_matvec_shape(int type, int rows, int cols)
{
    std::vector<uint8_t> w = random_blocks(type, (int64_t)rows * cols),
                         w_up = random_blocks(type, (int64_t)rows * cols);
    MatvecCase c = {type,
                    rows,
                    cols,
                    random_bf16((size_t)cols * 4),
                    random_f32((size_t)rows),
                    random_f32((size_t)rows * 4),
                    {}};
    MatvecCase up = c;
    c.expect = products(type, w, rows, cols, c.x);
    up.expect = products(type, w_up, rows, cols, c.x);
    Buffer dw(w), dw_up(w_up), dx(c.x), dbias(c.bias);
    char what[120];
    for (int n_rows = 1; n_rows <= 4; n_rows++) {
        for (Flags f : all_flags) {
            worst = 0;
            bool ok = matvec_flags(c, dw, dx, dbias, n_rows, f);
            snprintf(what, sizeof what, "matvec %s %d x %d n_rows %d f32 %d add %d bias %d: %.2f",
                     dtype_name((uint32_t)type), rows, cols, n_rows, f.out_f32, f.add, f.bias,
                     worst);
            check(ok, what);
        }
        worst = 0;
        bool ok = matvec_silu(c, up, dw, dw_up, dx, n_rows);
        snprintf(what, sizeof what, "matvec_silu %s %d x %d n_rows %d: %.2f",
                 dtype_name((uint32_t)type), rows, cols, n_rows, worst);
        check(ok, what);
    }
}

/* ==== Several matrices over normed rows ==== */

/* x as the kernel should make it of raw rows, but for roundings that the order of the sum decides. */
static std::vector<uint16_t> normed(const std::vector<float> &raw, const std::vector<float> &norm,
                                    float eps)
{
    std::vector<uint16_t> x(raw.size());
    size_t cols = norm.size();
    for (size_t r = 0; r < raw.size() / cols; r++) {
        double sum = 0;
        for (size_t c = 0; c < cols; c++) sum += (double)raw[r * cols + c] * raw[r * cols + c];
        float by = (float)(1 / sqrt(sum / (double)cols + eps));
        for (size_t c = 0; c < cols; c++)
            x[r * cols + c] = bf16_bits(raw[r * cols + c] * by * norm[c]);
    }
    return x;
}

static void test_matvecs(int type, int cols)
{
    const int rows[3] = {70, 33, 1};
    const float eps = 1e-5f;
    std::vector<float> raw = random_f32((size_t)cols * 4), norm = random_f32((size_t)cols);
    std::vector<uint16_t> x = normed(raw, norm, eps);
    Buffer draw(raw), dnorm(norm);
    for (int n_rows = 1; n_rows <= 4; n_rows++)
        for (int n = 1; n <= 3; n++) {
            struct CudaMatvec m[3] = {};
            std::vector<std::vector<Expect>> want;
            std::vector<std::vector<float>> bias;
            std::vector<Buffer *> held;
            auto hold = [&](Buffer *b) { return held.push_back(b), b->p; };
            for (int i = 0; i < n; i++) {
                std::vector<uint8_t> w = random_blocks(type, (int64_t)rows[i] * cols);
                want.push_back(products(type, w, rows[i], cols, x));
                bias.push_back(random_f32((size_t)rows[i]));
                m[i] = {type, rows[i], cols, n_rows, hold(new Buffer(w)), NULL};
                m[i].bias = (const float *)hold(new Buffer(bias[(size_t)i]));
                m[i].out = hold(new Buffer((size_t)n_rows * rows[i] * 2));
                m[i].raw = (const float *)draw.p;
                m[i].norm = (const float *)dnorm.p;
                m[i].eps = eps;
            }
            must(cuda_matvecs(m, n, 0), "cuda_matvecs");
            must(cudaDeviceSynchronize(), "matvecs");
            bool ok = true;
            worst = 0;
            for (int i = 0; i < n; i++) {
                std::vector<uint8_t> out;
                size_t values = (size_t)n_rows * rows[i];
                ok &= held[(size_t)3 * i + 2]->read(values * 2, &out, 0xff);
                for (size_t k = 0; ok && k < values; k++) {
                    Expect e = want[(size_t)i][k];
                    e = with_flags(e, {false, false, true}, bias[(size_t)i][k % rows[i]], 0);
                    ok &= near(output_at(out, k, false), e, 2e-5, false);
                }
            }
            for (Buffer *b : held) delete b;
            char what[120];
            snprintf(what, sizeof what, "%d matvecs of normed rows, %s, %d cols, n_rows %d: %.2f",
                     n, dtype_name((uint32_t)type), cols, n_rows, worst);
            check(ok, what);
        }
}

/* ==== Dequantisation ==== */

static void test_dequantize(int type, int64_t n)
{
    std::vector<uint8_t> w = random_blocks(type, n), out[2];
    std::vector<float> f((size_t)n);
    quant_decode((enum DType)type, w.data(), f.data(), n);
    std::vector<uint16_t> want((size_t)n);
    for (size_t i = 0; i < (size_t)n; i++) want[i] = bf16_bits(f[i]);
    Buffer dw(w);
    bool ok = true;
    for (int run = 0; run < 2; run++) {
        Buffer y((size_t)n * 2);
        must(cuda_dequantize(type, dw.p, n, (bf16 *)y.p, 0), "cuda_dequantize");
        must(cudaDeviceSynchronize(), "dequantize");
        ok &= y.read((size_t)n * 2, &out[run], 0xff);
    }
    char what[80];
    snprintf(what, sizeof what, "dequantize %s %lld", dtype_name((uint32_t)type), (long long)n);
    check(ok && out[0] == out[1] && memcmp(out[0].data(), want.data(), out[0].size()) == 0, what);
}

/* The decoders run on the host too: the same bits as src/quant.c. */
struct HostDecode {
    const uint8_t *blocks;
    int64_t n;
    float *out;
    template <int T> cudaError_t run() const
    {
        const int per_block = Block<T>::WEIGHTS / 8;
        for (int64_t e = 0; e < n / 8; e++)
            Block<T>::decode8(blocks + e / per_block * Block<T>::BYTES, (int)(e % per_block),
                              out + 8 * e);
        return cudaSuccess;
    }
};

static void test_decoder(int type)
{
    int64_t n = 256 * 1000;
    std::vector<uint8_t> w = random_blocks(type, n);
    std::vector<float> want((size_t)n), got((size_t)n);
    quant_decode((enum DType)type, w.data(), want.data(), n);
    with_block_type(type, HostDecode{w.data(), n, got.data()});
    char what[80];
    snprintf(what, sizeof what, "decoder %s", dtype_name((uint32_t)type));
    check(memcmp(want.data(), got.data(), (size_t)n * 4) == 0, what);
}

/* ==== e4m3 ==== */

static void test_quantize(int n_rows, int cols)
{
    std::vector<uint16_t> x = random_bf16((size_t)n_rows * cols);
    for (int c = 0; c < cols; c++) x[(size_t)(n_rows / 2) * cols + c] = 0; /* a row of zeros */
    std::vector<uint8_t> want((size_t)n_rows * cols), out[2], scale_bytes[2];
    std::vector<float> scale((size_t)n_rows);
    for (int r = 0; r < n_rows; r++) {
        float m = 0;
        for (int c = 0; c < cols; c++) m = fmaxf(m, fabsf(bf16_to_f32(x[(size_t)r * cols + c])));
        scale[(size_t)r] = m / 448.0f;
        float factor = m > 0 ? 448.0f / m : 0;
        for (int c = 0; c < cols; c++)
            want[(size_t)r * cols + c] = __nv_cvt_float_to_fp8(
                bf16_to_f32(x[(size_t)r * cols + c]) * factor, __NV_SATFINITE, __NV_E4M3);
    }
    Buffer dx(x);
    bool ok = true;
    for (int run = 0; run < 2; run++) {
        Buffer y(want.size()), s(scale.size() * 4);
        must(cuda_quantize_fp8((const bf16 *)dx.p, n_rows, cols, y.p, (float *)s.p, 0),
             "cuda_quantize_fp8");
        must(cudaDeviceSynchronize(), "quantize_fp8");
        ok &= y.read(want.size(), &out[run], 0xff) &&
              s.read(scale.size() * 4, &scale_bytes[run], 0xff);
    }
    char what[80];
    snprintf(what, sizeof what, "quantize_fp8 %d x %d", n_rows, cols);
    check(ok && out[0] == out[1] && scale_bytes[0] == scale_bytes[1] && out[0] == want &&
              memcmp(scale_bytes[0].data(), scale.data(), scale_bytes[0].size()) == 0,
          what);
}

/* ==== Gemm ==== */

static struct GemmPlan *plan;

static float e4m3_value(uint8_t v)
{
    __half_raw h = __nv_cvt_fp8_to_halfraw(v, __NV_E4M3);
    return __half2float(__half(h));
}

struct GemmCase {
    int n_rows, rows, cols;
    bool fp8;
    std::vector<uint8_t> act, w; /* bf16 or e4m3 */
    std::vector<float> act_scale, w_scale, bias, before;
    std::vector<size_t> sample; /* outputs compared */
    std::vector<Expect> expect;
};

static double gemm_operand(const std::vector<uint8_t> &v, size_t i, bool fp8)
{
    if (fp8) return e4m3_value(v[i]);
    uint16_t h;
    memcpy(&h, &v[2 * i], 2);
    return bf16_to_f32(h);
}

static std::vector<uint8_t> random_operand(size_t n, bool fp8)
{
    std::vector<uint8_t> v(fp8 ? n : 2 * n);
    for (size_t i = 0; i < n; i++) {
        uint16_t h = bf16_bits(random_normal());
        if (fp8)
            v[i] = __nv_cvt_float_to_fp8(100 * random_normal(), __NV_SATFINITE, __NV_E4M3);
        else
            memcpy(&v[2 * i], &h, 2);
    }
    return v;
}

static GemmCase gemm_case(int n_rows, int rows, int cols, bool fp8)
{
    GemmCase c = {n_rows, rows, cols, fp8};
    size_t n = (size_t)n_rows * rows;
    c.act = random_operand((size_t)n_rows * cols, fp8);
    c.w = random_operand((size_t)rows * cols, fp8);
    c.act_scale = random_f32((size_t)n_rows);
    c.w_scale = random_f32((size_t)rows);
    c.bias = random_f32((size_t)rows);
    for (float &b : c.bias) b = bf16_to_f32(bf16_bits(30 * b));
    c.before = random_f32(n);
    for (size_t i = 0; i < 600; i++)
        c.sample.push_back(i < 4 ? (i & 1 ? n - 1 : 0) : random_u32() % n);
    for (size_t at : c.sample) {
        size_t r = at / (size_t)rows, i = at % (size_t)rows;
        double sum = 0, size = 0, scale = fp8 ? (double)c.act_scale[r] * c.w_scale[i] : 1;
        for (size_t k = 0; k < (size_t)cols; k++) {
            double t =
                gemm_operand(c.act, r * cols + k, fp8) * gemm_operand(c.w, i * cols + k, fp8);
            sum += t;
            size += fabs(t);
        }
        c.expect.push_back({sum * scale, size * fabs(scale)});
    }
    return c;
}

static bool all_numbers(const std::vector<uint8_t> &out, bool f32)
{
    for (size_t i = 0; i < out.size() / (f32 ? 4 : 2); i++)
        if (isnan(output_at(out, i, f32))) return false;
    return true;
}

static bool gemm_flags(const GemmCase &c, const struct CudaGemm &base, Flags f)
{
    size_t n = (size_t)c.n_rows * c.rows, bytes = n * (f.out_f32 ? 4 : 2);
    std::vector<uint8_t> out[2];
    bool ok = true;
    for (int run = 0; run < 2; run++) {
        Buffer y(bytes);
        if (f.add) y.put(c.before);
        struct CudaGemm g = base;
        g.out = y.p;
        g.out_f32 = f.out_f32;
        g.add = f.add;
        if (!f.bias) g.bias = NULL;
        cudaError_t e = cuda_gemm(plan, &g, 0);
        if (e != cudaSuccess) return false;
        must(cudaDeviceSynchronize(), "gemm");
        ok &= y.read(bytes, &out[run], 0xff);
    }
    ok &= out[0] == out[1] && all_numbers(out[0], f.out_f32);
    for (size_t s = 0; s < c.sample.size(); s++) {
        size_t at = c.sample[s];
        Expect e = with_flags(c.expect[s], f, c.bias[at % (size_t)c.rows], c.before[at]);
        /* e4m3 sums keep fewer bits within the tensor cores. */
        ok &= near(output_at(out[0], at, f.out_f32), e, c.fp8 ? 3e-4 : 3e-6, f.out_f32);
    }
    return ok;
}

static void test_gemm_shape(int n_rows, int rows, int cols, bool fp8)
{
    GemmCase c = gemm_case(n_rows, rows, cols, fp8);
    Buffer act(c.act), w(c.w), act_scale(c.act_scale), w_scale(c.w_scale), bias(c.bias);
    struct CudaGemm g = {n_rows,
                         rows,
                         cols,
                         act.p,
                         w.p,
                         fp8,
                         (const float *)act_scale.p,
                         (const float *)w_scale.p,
                         (const float *)bias.p};
    for (Flags f : all_flags) {
        /* cuBLASLt's kernels for rows of uneven length round before they add the bias. */
        if (f.bias && rows % 8 != 0) continue;
        worst = 0;
        bool ok = gemm_flags(c, g, f);
        char what[120];
        snprintf(what, sizeof what, "gemm %s n_rows %d %d x %d f32 %d add %d bias %d: %.2f",
                 fp8 ? "fp8" : "bf16", n_rows, rows, cols, f.out_f32, f.add, f.bias, worst);
        check(ok, what);
    }
}

/* ==== All tests ==== */

static const int types[] = {DT_BF16, DT_F16,  DT_F32,  DT_Q4_0, DT_Q4_1, DT_Q5_0,
                            DT_Q5_1, DT_Q8_0, DT_Q4_K, DT_Q5_K, DT_Q6_K};

static void test_bad_arguments(void)
{
    Buffer b(4096);
    struct CudaMatvec m = {DT_Q4_K, 4, 128, 1, b.p, (const bf16 *)b.p, NULL, b.p, false, false};
    check(cuda_matvec(&m, 0) == cudaErrorInvalidValue, "cols no multiple of the block");
    m.cols = 256;
    m.n_rows = 5;
    check(cuda_matvec(&m, 0) == cudaErrorInvalidValue, "five rows");
    m.n_rows = 1;
    m.type = 99;
    check(cuda_matvec(&m, 0) == cudaErrorInvalidValue, "unknown type");
    m.type = DT_Q4_K;
    m.add = true;
    check(cuda_matvec(&m, 0) == cudaErrorInvalidValue, "add to bf16");
    check(cuda_dequantize(DT_Q4_K, b.p, 128, (bf16 *)b.p, 0) == cudaErrorInvalidValue,
          "part of a block");
    check(cuda_quantize_fp8((const bf16 *)b.p, 1, 12, b.p, (float *)b.p, 0) ==
              cudaErrorInvalidValue,
          "12 cols to fp8");
}

static void run_matvec_tests(void)
{
    const int rows[] = {1, 5, 130, 1000}, cols[] = {256, 576, 896, 4096, 4864, 14336};
    for (int type : types) {
        int weights, bytes;
        dtype_block((uint32_t)type, &weights, &bytes);
        for (int c : cols) {
            if (c % weights != 0) continue;
            for (int r : rows)
                if (r < 1000 || c != 14336) test_matvec_shape(type, r, c);
        }
        if (weights <= 32) test_matvec_shape(type, 7, 32 * 33);
        test_matvec_shape(type, 3, 28672);
        for (int c : {576, 2048, 8192})
            if (c % weights == 0) test_matvecs(type, c);
        for (int64_t n : {256, 256 * 37, 1000 * 4864}) test_dequantize(type, n);
    }
}

static void run_tests(void)
{
    for (int type : types) test_decoder(type);
    test_bad_arguments();
    for (int n : {1, 7, 130, 1025})
        for (bool fp8 : {false, true}) {
            test_gemm_shape(n, 576, 576, fp8);
            test_gemm_shape(n, 128, 896, fp8);
            test_gemm_shape(n, 4864, 896, fp8);
            test_gemm_shape(n, 1024, 4096, fp8);
            test_gemm_shape(n, 512, 14336, fp8);
            if (!fp8) test_gemm_shape(n, 1001, 256, fp8);
        }
    for (int c : {8, 256, 576, 896, 4096, 4864, 14336, 28672, 32776})
        for (int n : {1, 7, 130}) test_quantize(n, c);
    run_matvec_tests();
}

int main(void)
{
    int n_devices = 0;
    void *workspace;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        for (int type : types) test_decoder(type);
        printf("decoders on the host: %d passed, %d failed\nSKIP: no GPU\n", n_passed, n_failed);
        return n_failed != 0;
    }
    must(cudaMalloc(&workspace, GEMM_WORKSPACE), "workspace");
    plan = gemm_open(workspace);
    if (!plan) {
        printf("gemm_open failed\n");
        return 2;
    }
    run_tests();
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed != 0;
}
