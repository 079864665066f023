/* model_keys.c - what all keys of a head have in common, for backends that keep keys in few bits.
 *
 * A bias of the keys (Qwen2) can be a hundred times as large as what tells keys apart. In columns that hardly turn over the
 * trained positions it is the same for all keys of a head, and may be left out. In the others it turns with the position;
 * there keys can be made smaller and queries larger by the same factor, which no logit sees.
 */
#include "model.h"

#include <math.h>

/* The pair of a head's column, or -1 where it does not turn. */
static int pair_of_column(const struct ModelConfig *m, int column)
{
    if (column >= m->rope_dim) return -1;
    return m->rope_style == ROPE_PAIRS ? column / 2 : column % (m->rope_dim / 2);
}

bool key_column_slow(const struct ModelConfig *m, int column)
{
    int pair = pair_of_column(m, column);
    return pair < 0 || m->inv_freq[pair] * (float)m->train_len <= 1;
}

/* Mean square that a head's columns of one pair, or one column that does not turn, have at least: of their biases, and what
 * keys and queries are like without (2 fits Qwen2 as well as the norms of its weights' rows do). */
static double mean_square(const struct ModelConfig *m, const float *bias, int column, bool key)
{
    enum { PLAIN = 2 };
    int pair = pair_of_column(m, column), n = 0;
    double sum = 0;
    for (int i = 0; bias && i < m->head_dim; i++) {
        if (pair < 0 ? i != column : pair_of_column(m, i) != pair) continue;
        if (!key || !key_column_slow(m, i)) sum += (double)bias[i] * bias[i];
        n++;
    }
    return PLAIN + (n ? sum / n : 0);
}

void key_balance(const struct ModelConfig *m, const struct Layer *l, float *out)
{
    int group = m->n_heads / m->n_kv_heads, dim = m->head_dim;
    for (int h = 0; h < m->n_kv_heads; h++)
        for (int i = 0; i < dim; i++) {
            double queries = 0, keys = mean_square(m, l->bk + (size_t)h * dim, i, true);
            for (int g = 0; g < group; g++)
                queries +=
                    mean_square(m, l->bq ? l->bq + (size_t)(h * group + g) * dim : NULL, i, false);
            out[h * dim + i] = (float)pow(keys * group / queries, 0.25);
        }
}
