/* model_rope.c - the rotation frequency of every pair of a head, scaling rules applied.
 *
 * Takes the base frequency, the rotated width and the rule a model file names; hands on inv_freq
 * (radians a position) and the factor on cos and sin. Computed in double, stored as f32. Rules:
 * linear position interpolation; Llama-3.1's three bands of wave length; YaRN (Peng et al. 2023,
 * "NTK-by-parts" and the attention temperature 0.1 ln(s) + 1); per-frequency divisors stored in the
 * file.
 */
#include "model_load.h"

#include <math.h>
#include <string.h>

#define TWO_PI 6.283185307179586476925

/* The pair (a real number) that makes `turns` full turns within `len` positions. */
static double pair_of_turns(double turns, int dim, double theta, double len)
{
    return dim * log(len / (turns * TWO_PI)) / (2 * log(theta));
}

static double yarn_freq(const struct RopeSpec *s, const struct ModelConfig *cfg, int i, double freq)
{
    double low = pair_of_turns(s->beta_fast, cfg->rope_dim, cfg->rope_theta, s->original_len);
    double high = pair_of_turns(s->beta_slow, cfg->rope_dim, cfg->rope_theta, s->original_len);
    if (!s->no_truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, cfg->rope_dim - 1);
    double width = high > low ? high - low : 0.001;
    double ramp = fmin(fmax((i - low) / width, 0), 1); /* 0: turns often, kept; 1: interpolated */
    return freq / s->factor * ramp + freq * (1 - ramp);
}

static double llama3_freq(const struct RopeSpec *s, double freq)
{
    double turns = s->original_len * freq / TWO_PI;
    if (turns < s->low_freq) return freq / s->factor;
    if (turns > s->high_freq) return freq;
    double smooth = (turns - s->low_freq) / (s->high_freq - s->low_freq);
    return (1 - smooth) * freq / s->factor + smooth * freq;
}

static double scaled_freq(const struct RopeSpec *s, const struct ModelConfig *cfg, int i)
{
    double freq = pow(cfg->rope_theta, -2.0 * i / cfg->rope_dim);
    if (s->factors) freq /= s->factors[i];
    /* clang-format off */
    switch (s->scaling) {
    case ROPE_NONE: return freq;
    case ROPE_LINEAR: return freq / s->factor;
    case ROPE_LLAMA3: return llama3_freq(s, freq);
    case ROPE_YARN: return yarn_freq(s, cfg, i, freq);
    }
    /* clang-format on */
    return freq;
}

static double yarn_log(double factor, double weight)
{
    return factor > 1 ? 0.1 * weight * log(factor) + 1 : 1;
}

static double rope_scale(const struct RopeSpec *s)
{
    if (s->scaling != ROPE_YARN) return 1;
    if (s->attn_factor > 0) return s->attn_factor;
    double scale = yarn_log(s->factor, s->mscale > 0 ? s->mscale : 1);
    return s->mscale_all > 0 ? scale / yarn_log(s->factor, s->mscale_all) : scale;
}

static int check_spec(const struct ModelFile *f, const struct RopeSpec *s,
                      const struct ModelConfig *cfg)
{
    if (!(cfg->rope_theta > 1) || !isfinite(cfg->rope_theta)) {
        return err_set(PC_EFORMAT, "%s: rope base %g must be above 1", f->path,
                       (double)cfg->rope_theta);
    }
    if (s->factors && s->n_factors != cfg->rope_dim / 2) {
        return err_set(PC_EFORMAT, "%s: %d rope factors for %d pairs", f->path, s->n_factors,
                       cfg->rope_dim / 2);
    }
    for (int i = 0; i < s->n_factors; i++) {
        if (!(s->factors[i] > 0) || !isfinite(s->factors[i])) {
            return err_set(PC_EFORMAT, "%s: rope factor %d is %g, must be above 0", f->path, i,
                           (double)s->factors[i]);
        }
    }
    if (s->scaling == ROPE_NONE) return 0;
    if (!(s->factor > 0) || !isfinite(s->factor)) {
        return err_set(PC_EFORMAT, "%s: rope scaling factor %g must be above 0", f->path,
                       s->factor);
    }
    if (s->scaling == ROPE_LINEAR) return 0;
    if (!(s->original_len >= 1) || !isfinite(s->original_len)) {
        return err_set(PC_EFORMAT, "%s: rope scaling needs the original context length", f->path);
    }
    bool bands_fit =
        s->scaling == ROPE_LLAMA3
            ? s->low_freq > 0 && s->high_freq > s->low_freq && isfinite(s->high_freq)
            : s->beta_slow > 0 && s->beta_fast >= s->beta_slow && isfinite(s->beta_fast);
    if (!bands_fit)
        return err_set(PC_EFORMAT, "%s: the bands of its rope scaling are not in order", f->path);
    return 0;
}

int model_rope(struct ModelFile *f, const struct RopeSpec *spec, struct ModelConfig *cfg)
{
    static const char *const names[] = {"none", "linear", "llama3", "yarn"};
    TRY(check_spec(f, spec, cfg));
    cfg->inv_freq = model_keep(f, (size_t)cfg->rope_dim / 2, sizeof *cfg->inv_freq);
    if (!cfg->inv_freq) return PC_ENOMEM;
    for (int i = 0; i < cfg->rope_dim / 2; i++) cfg->inv_freq[i] = (float)scaled_freq(spec, cfg, i);
    cfg->rope_scale = (float)rope_scale(spec);
    if (!isfinite(cfg->rope_scale) || cfg->rope_scale <= 0) {
        return err_set(PC_EFORMAT, "%s: rope attention factor %g must be above 0", f->path,
                       (double)cfg->rope_scale);
    }
    /* Factors stored in the file are how GGUF carries Llama-3.1's rule. */
    const char *name =
        spec->scaling == ROPE_NONE && spec->factors ? "llama3" : names[spec->scaling];
    strcpy(cfg->rope_scaling, name);
    return 0;
}

/* ==== Stretching a model that has no rule of its own ==== */

/* Interpolates the slowest pair by the factor and leaves the fastest alone (bloc97, 2023). */
void rope_ntk(const struct ModelConfig *cfg, double factor, float *inv_freq)
{
    double d = cfg->rope_dim, theta = cfg->rope_theta;
    if (d > 2) theta *= pow(factor, d / (d - 2));
    for (int i = 0; i < cfg->rope_dim / 2; i++) inv_freq[i] = (float)pow(theta, -2.0 * i / d);
}

/* The paper's alpha 1 and beta 32. Its text lets the ramp run with a pair's turns; its code, and with it all who
 * have adopted it, with the pair's number. This is the latter, as in files that name the rule. */
void rope_yarn(const struct ModelConfig *cfg, double factor, float *inv_freq, float *scale)
{
    struct RopeSpec spec = {.scaling = ROPE_YARN,
                            .factor = factor,
                            .original_len = cfg->train_len,
                            .beta_fast = 32,
                            .beta_slow = 1};
    for (int i = 0; i < cfg->rope_dim / 2; i++) inv_freq[i] = (float)scaled_freq(&spec, cfg, i);
    *scale = (float)rope_scale(&spec);
}
