/* session_positions.c - baselines that change where tokens stand.
 *
 * Rope scaling (NTK-aware, YaRN) stretches the rotation, for any method. Self-extend and streaming-llm let a row
 * see keys far behind it from another place; near ones stand at their true distance. With i the row's position, j the key's:
 *
 *   self-extend (Jin et al. 2024): keys with i - j >= w, w neighbours, groups of G:
 *       the query stands at floor(i / G) + w - floor(w / G), the key at floor(j / G)
 *   streaming-llm (Xiao et al. 2024): a cache of S sinks and the last L - S tokens, which stand in it at 0 .. L - 1:
 *       of keys with i - j >= L - S the first S are seen, by a query at min(i, L - 1)
 *
 * In the second, positions in the cache and in the text differ by the same number for the row and for all its
 * neighbours, so only the sinks' distances are not the true ones. Keys are cached at their true place and turned on.
 */
#include "session.h"

#include <limits.h>
#include <string.h>

/* ==== Rope scaling ==== */

int rope_plan(struct Session *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    struct PlanInfo *p = &s->plan;
    p->rope_factor = 1;
    if (s->set.rope_scaling == SCALING_AUTO) return PC_OK;
    if (strcmp(m->rope_scaling, "none"))
        return err_set(PC_ECONFIG,
                       "the model file scales its positions already (%s); use --rope-scaling auto",
                       m->rope_scaling);
    if (s->set.rope_factor > 0)
        p->rope_factor = s->set.rope_factor;
    else if (s->store)
        p->rope_factor = s->store->info.rope_factor;
    else if (p->n_positions > m->train_len)
        p->rope_factor = (double)p->n_positions / m->train_len;
    return PC_OK;
}

int rope_open(struct Session *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    if (s->plan.rope_factor == 1) return PC_OK;
    s->inv_freq = mem_alloc((size_t)m->rope_dim / 2, sizeof *s->inv_freq);
    if (!s->inv_freq) return PC_ENOMEM;
    s->tf.rope = (struct Rope){s->inv_freq, 1};
    if (s->set.rope_scaling == SCALING_NTK)
        rope_ntk(m, s->plan.rope_factor, s->inv_freq);
    else
        rope_yarn(m, s->plan.rope_factor, s->inv_freq, &s->tf.rope.scale);
    return PC_OK;
}

/* ==== Far keys ==== */

/* Where the row at `pos` stands for keys far behind it. */
static int far_place(const struct Session *s, int pos)
{
    const struct PlanInfo *p = &s->plan;
    if (s->set.method == METHOD_SELF_EXTEND)
        return pos / p->group + p->neighbours - p->neighbours / p->group;
    return pos < p->window ? pos : p->window - 1;
}

static int plan_self_extend(struct Session *s, int total)
{
    struct PlanInfo *p = &s->plan;
    p->neighbours = s->set.neighbours == AUTO ? p->window / 4 : s->set.neighbours;
    if (p->neighbours >= p->window)
        return err_set(PC_ECONFIG,
                       "%d neighbours leave no position of a window of %d to groups; "
                       "lower --neighbours or raise --window",
                       p->neighbours, p->window);
    p->group = s->set.group == AUTO ? 1 : s->set.group;
    while (s->set.group == AUTO && far_place(s, total - 1) >= p->window) p->group++;
    s->far = (struct FarKeys){.window = p->neighbours, .n = INT_MAX};
    return PC_OK;
}

static int plan_streaming(struct Session *s)
{
    struct PlanInfo *p = &s->plan;
    p->sinks = s->set.sinks;
    if (p->sinks >= p->window)
        return err_set(PC_ECONFIG, "%d sinks leave no room in a window of %d; lower --sinks",
                       p->sinks, p->window);
    s->far = (struct FarKeys){.window = p->window - p->sinks, .n = p->sinks};
    return PC_OK;
}

int far_plan(struct Session *s, int total)
{
    struct PlanInfo *p = &s->plan;
    p->n_positions = total;
    if (s->set.method == METHOD_SELF_EXTEND) TRY(plan_self_extend(s, total));
    if (s->set.method == METHOD_STREAMING) TRY(plan_streaming(s));
    if (total <= s->far.window + p->sinks) s->far.window = 0; /* nothing is far from anything */
    if (s->far.window == 0) return PC_OK;
    int far = far_place(s, total - 1) + 1;
    p->n_positions = far > s->far.window ? far : s->far.window;
    return PC_OK;
}

/* out[i] turns a head from `at + i` on to where far rows see it. */
static int turn_keys(struct Session *s, int at, int n, float *out)
{
    for (int i = 0; i < n; i++) s->rows[i] = (at + i) / s->plan.group - (at + i);
    return s->tf.be->turns(s->tf.dev, &s->tf.rope, s->rows, n, out);
}

int far_open(struct Session *s)
{
    size_t row = (size_t)s->e->model.cfg.rope_dim;
    int keys = s->answer_shape.turned_keys;
    if (s->far.window == 0) return PC_OK;
    s->q_turn = s->tf.be->alloc(s->tf.dev, sizeof(float) * row * (size_t)s->batch_rows);
    if (!s->q_turn) return PC_ENOMEM;
    s->far.q_turn = s->q_turn;
    if (keys == 0) return PC_OK;
    s->k_turn = s->tf.be->alloc(s->tf.dev, sizeof(float) * row * (size_t)keys);
    if (!s->k_turn) return PC_ENOMEM;
    s->far.k_turn = s->k_turn;
    for (int at = 0; at < keys; at += s->batch_rows) {
        int n = keys - at < s->batch_rows ? keys - at : s->batch_rows;
        TRY(turn_keys(s, at, n, s->k_turn + row * (size_t)at));
    }
    return PC_OK;
}

void far_close(struct Session *s)
{
    if (s->q_turn) s->e->be->release(s->e->dev, s->q_turn);
    if (s->k_turn) s->e->be->release(s->e->dev, s->k_turn);
    mem_free(s->inv_freq);
}

int far_batch(struct Session *s, struct Batch *b)
{
    int n = b->seq_begin[b->n_seqs];
    if (s->far.window == 0) return PC_OK;
    b->far = &s->far;
    for (int i = 0; i < n; i++) s->rows[i] = far_place(s, b->pos[i]) - b->pos[i];
    return s->tf.be->turns(s->tf.dev, &s->tf.rope, s->rows, n, s->q_turn);
}

void far_forget(struct Session *s, struct HeadTable *past)
{
    if (s->set.method != METHOD_STREAMING || s->far.window == 0) return;
    for (int h = 0; h < past->n_heads; h++)
        kv_slide(&s->kv, past, h, s->far.n,
                 s->far.window - 1); /* the next row is one of its window */
}
