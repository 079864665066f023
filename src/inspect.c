/* inspect.c - says what is in a model file, in text for people or as one JSON object.
 *
 * Two layers: what model_open found out, when it took the model; and the stored directory (metadata,
 * tensor types, tensors), which is shown also for a model that is refused, with the reason. Texts
 * from the file are always quoted and escaped: a file must not be able to write to the terminal.
 */
#include "model_load.h"

#include <cjson/cJSON.h>
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    SHOWN_ITEMS = 4,  /* of a long array */
    WHOLE_ITEMS = 8,  /* arrays up to this long are shown whole */
    SHOWN_TEXT = 160, /* bytes of a long string in the text form */
    MAX_TYPES = 64,
};

struct TypeTotal {
    const char *name;
    size_t n, bytes;
};

struct Report {
    struct Str *out;
    bool json;
    const struct ModelFile *f;
    const struct Model *m; /* NULL when refused */
    const char *refusal;
    size_t *sizes; /* [n_tensors] bytes in the file */
    struct TypeTotal types[MAX_TYPES];
    int n_types;
};

/* ==== Writing ==== */

static bool is_plain(char c)
{
    return c >= 32 && c < 127 && c != '"' && c != '\\';
}

/* A JSON string of at most `max` bytes of the text; bytes that are no UTF-8 become U+FFFD. */
static int quote(struct Str *out, const char *data, size_t len, size_t max)
{
    bool cut = len > max;
    if (cut) len = max;
    TRY(str_append(out, "\"", 1));
    for (size_t i = 0; i < len;) {
        size_t plain = i;
        while (plain < len && is_plain(data[plain])) plain++;
        TRY(str_append(out, data + i, plain - i));
        i = plain;
        if (i == len) break;
        unsigned char c = (unsigned char)data[i];
        size_t width = c < 0xc0 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
        if (c == '\n')
            TRY(str_append(out, "\\n", 2));
        else if (c == '"' || c == '\\')
            TRY(str_appendf(out, "\\%c", c));
        else if (c < 32 || c == 127 ||
                 (c == 0xc2 && i + 1 < len && (unsigned char)data[i + 1] < 0xa0)) {
            /* C1 control characters are terminal commands too */
            unsigned code = c == 0xc2 ? (unsigned char)data[i + 1] : c;
            TRY(str_appendf(out, "\\u%04x", code));
        } else if (width <= len - i && utf8_invalid_at(data + i, width) == width) {
            TRY(str_append(out, data + i, width));
        } else {
            if (cut && len - i < 4) break; /* the cut went through a character */
            TRY(str_append(out, "\\ufffd", 6));
            width = 1;
        }
        i += width;
    }
    return str_append(out, cut ? "…\"" : "\"", cut ? 4 : 1);
}

static int quote_text(struct Report *r, const char *text)
{
    return quote(r->out, text, strlen(text), SIZE_MAX);
}

/* A name from the file; plain in the text form when it is a plain word. */
static int put_name(struct Report *r, const char *data, size_t len)
{
    size_t plain = 0;
    while (plain < len && (isalnum((unsigned char)data[plain]) || memchr("._-", data[plain], 3)))
        plain++;
    if (!r->json && plain == len) return str_append(r->out, data, len);
    return quote(r->out, data, len, SIZE_MAX);
}

static int human_bytes(struct Str *out, double n)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    while (n >= 1024 && unit < 4) {
        n /= 1024;
        unit++;
    }
    return str_appendf(out, unit == 0 ? "%.0f %s" : "%.1f %s", n, units[unit]);
}

static int number(struct Str *out, double v, int digits, bool json)
{
    if (json && !isfinite(v)) return str_appendf(out, "null");
    return str_appendf(out, "%.*g", digits, v);
}

/* ==== Metadata ==== */

static int put_item(struct Report *r, const struct GgufKey *key, uint64_t i)
{
    int64_t whole;
    double real;
    if (key->type == GGUF_BOOL) return str_appendf(r->out, key->data[i] ? "true" : "false");
    if (gguf_int(key, i, &whole)) return str_appendf(r->out, "%lld", (long long)whole);
    if (gguf_double(key, i, &real))
        return number(r->out, real, key->type == GGUF_F32 ? 7 : 17, r->json);
    if (key->type == GGUF_U64) {
        uint64_t large;
        memcpy(&large, key->data + i * sizeof large, sizeof large);
        return str_appendf(r->out, "%llu", (unsigned long long)large);
    }
    return str_appendf(r->out, r->json ? "null" : "…"); /* an array within an array */
}

static int put_items(struct Report *r, const struct GgufKey *key, uint64_t n)
{
    const uint8_t *pos = key->data;
    for (uint64_t i = 0; i < n; i++) {
        if (i > 0) TRY(str_append(r->out, ", ", 2));
        if (key->type == GGUF_STRING) {
            struct GgufText text = gguf_next_text(&pos);
            TRY(quote(r->out, text.data, text.len, r->json ? SIZE_MAX : SHOWN_TEXT));
        } else {
            TRY(put_item(r, key, i));
        }
    }
    return 0;
}

/* Long arrays: the first items and the count. */
static int put_value(struct Report *r, const struct GgufKey *key)
{
    if (!key->is_array) return put_items(r, key, 1);
    bool whole = key->n <= WHOLE_ITEMS;
    uint64_t n = whole ? key->n : SHOWN_ITEMS;
    if (r->json && !whole)
        TRY(str_appendf(r->out, "{\"n\": %llu, \"first\": ", (unsigned long long)key->n));
    TRY(str_append(r->out, "[", 1));
    TRY(put_items(r, key, n));
    if (!r->json && !whole) TRY(str_appendf(r->out, ", … %llu in all", (unsigned long long)key->n));
    TRY(str_append(r->out, "]", 1));
    return r->json && !whole ? str_append(r->out, "}", 1) : 0;
}

static int put_gguf_keys(struct Report *r)
{
    const struct Gguf *g = &r->f->gguf;
    for (int i = 0; i < g->n_keys; i++) {
        const struct GgufKey *key = &g->keys[i];
        if (r->json) {
            if (i > 0) TRY(str_append(r->out, ", ", 2));
            TRY(put_name(r, key->name.data, key->name.len));
            TRY(str_append(r->out, ": ", 2));
            TRY(put_value(r, key));
            continue;
        }
        TRY(str_append(r->out, "  ", 2));
        TRY(put_name(r, key->name.data, key->name.len));
        TRY(str_appendf(r->out, " %s%s = ", gguf_type_name(key->type), key->is_array ? "[]" : ""));
        TRY(put_value(r, key));
        TRY(str_append(r->out, "\n", 1));
    }
    return 0;
}

/* cJSON escapes control characters, except DEL and those from U+0080. */
static void hide_controls(char *text)
{
    for (unsigned char *c = (unsigned char *)text; *c; c++) {
        if (c[0] == 127) c[0] = '?';
        if (c[0] == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0) c[0] = c[1] = '?';
    }
}

static int put_config_keys(struct Report *r)
{
    const cJSON *item;
    bool first = true;
    cJSON_ArrayForEach(item, r->f->config)
    {
        char *text = cJSON_PrintUnformatted(item);
        if (!text) return err_set(PC_ENOMEM, "out of memory");
        int status =
            r->json ? (first ? 0 : str_append(r->out, ", ", 2)) : str_append(r->out, "  ", 2);
        if (status == 0) status = put_name(r, item->string, strlen(item->string));
        if (!r->json) hide_controls(text);
        if (status == 0) status = str_appendf(r->out, r->json ? ": %s" : " = %s\n", text);
        cJSON_free(text);
        if (status < 0) return status;
        first = false;
    }
    return 0;
}

static int put_metadata(struct Report *r)
{
    int n = r->f->is_gguf ? r->f->gguf.n_keys : cJSON_GetArraySize(r->f->config);
    TRY(r->json ? str_appendf(r->out, ",\n\"metadata\": {")
                : str_appendf(r->out, "\nMetadata (%d keys)\n", n));
    TRY(r->f->is_gguf ? put_gguf_keys(r) : put_config_keys(r));
    return r->json ? str_append(r->out, "}", 1) : 0;
}

/* ==== Tensors ==== */

static int compare_places(const void *a, const void *b)
{
    const uint8_t *x = *(const uint8_t *const *)a, *y = *(const uint8_t *const *)b;
    return (x > y) - (x < y);
}

/* Room from p to whatever begins next: the size of a tensor whose type we cannot size. */
static size_t gap_after(const struct ModelFile *f, const uint8_t *const *places, const uint8_t *p)
{
    int low = 0, high = f->n_tensors;
    while (low < high) {
        int mid = (low + high) / 2;
        if (places[mid] > p)
            high = mid;
        else
            low = mid + 1;
    }
    const uint8_t *end = low < f->n_tensors ? places[low] : f->gguf.data + f->gguf.len;
    return (size_t)(end - p);
}

static int measure_tensors(struct Report *r)
{
    const struct ModelFile *f = r->f;
    const uint8_t **places = mem_alloc((size_t)f->n_tensors, sizeof *places);
    r->sizes = mem_alloc((size_t)f->n_tensors, sizeof *r->sizes);
    if (!places || !r->sizes) {
        mem_free(places);
        return PC_ENOMEM;
    }
    for (int i = 0; i < f->n_tensors; i++) places[i] = f->tensors[i].data;
    if (f->is_gguf && f->n_tensors > 0)
        qsort(places, (size_t)f->n_tensors, sizeof *places, compare_places);
    for (int i = 0; i < f->n_tensors; i++) {
        const struct StoredTensor *t = &f->tensors[i];
        r->sizes[i] = t->bytes || !f->is_gguf ? t->bytes : gap_after(f, places, t->data);
        int k = 0;
        while (k < r->n_types && strcmp(r->types[k].name, t->type_name) != 0) k++;
        if (k == MAX_TYPES) k--; /* a file of made-up types: the last line takes the rest */
        if (k == r->n_types) r->types[r->n_types++].name = t->type_name;
        r->types[k].n++;
        r->types[k].bytes += r->sizes[i];
    }
    mem_free(places);
    return 0;
}

static int put_types(struct Report *r)
{
    TRY(str_appendf(r->out, r->json ? ",\n\"tensor_types\": {" : "\nTensor types\n"));
    for (int i = 0; i < r->n_types; i++) {
        const struct TypeTotal *t = &r->types[i];
        if (r->json) {
            TRY(str_appendf(r->out, "%s\"%s\": {\"n\": %zu, \"bytes\": %zu}", i ? ", " : "",
                            t->name, t->n, t->bytes));
            continue;
        }
        TRY(str_appendf(r->out, "  %-10s %6zu tensors  ", t->name, t->n));
        TRY(human_bytes(r->out, (double)t->bytes));
        TRY(str_append(r->out, "\n", 1));
    }
    return r->json ? str_append(r->out, "}", 1) : 0;
}

static int put_tensors(struct Report *r)
{
    TRY(r->json ? str_appendf(r->out, ",\n\"tensors\": [\n")
                : str_appendf(r->out, "\nTensors (%d; shapes as [out, in])\n", r->f->n_tensors));
    for (int i = 0; i < r->f->n_tensors; i++) {
        const struct StoredTensor *t = &r->f->tensors[i];
        TRY(str_appendf(r->out, r->json ? "%s{\"name\": " : "%s  ", r->json && i ? ",\n" : ""));
        TRY(put_name(r, t->name.data, t->name.len));
        TRY(str_appendf(r->out, r->json ? ", \"type\": \"%s\", \"shape\": [" : " %s [",
                        t->type_name));
        for (int d = 0; d < t->n_dims; d++) {
            TRY(str_appendf(r->out, "%s%llu", d ? ", " : "", (unsigned long long)t->dims[d]));
        }
        TRY(r->json ? str_appendf(r->out, "], \"bytes\": %zu}", r->sizes[i])
                    : str_append(r->out, "] ", 2));
        if (r->json) continue;
        TRY(human_bytes(r->out, (double)r->sizes[i]));
        TRY(str_append(r->out, "\n", 1));
    }
    return r->json ? str_append(r->out, "\n]", 2) : 0;
}

/* ==== What the model is ==== */

static double kv_bytes(const struct ModelConfig *c)
{
    const double k_and_v = 2, f16 = 2;
    return k_and_v * f16 * c->n_layers * c->n_kv_heads * c->head_dim;
}

static bool has_bias(const struct Model *m)
{
    const struct Layer *l = &m->layers[0];
    return l->bq || l->bk || l->bv || l->bo;
}

static const char *style_name(const struct ModelConfig *c)
{
    return c->rope_style == ROPE_PAIRS ? "pairs" : "halves";
}

static int text_shape(struct Report *r)
{
    const struct ModelConfig *c = &r->m->cfg;
    double bits = 8.0 * (double)r->m->weight_bytes / (double)r->m->n_params;
    TRY(str_appendf(r->out, "Architecture  %s, %d layers\n", c->arch, c->n_layers));
    TRY(str_appendf(r->out, "Shape         width %d, feed-forward %d, vocabulary %d\n", c->dim,
                    c->hidden_dim, c->vocab_size));
    TRY(str_appendf(r->out, "Attention     %d query heads share %d key heads, each %d wide\n",
                    c->n_heads, c->n_kv_heads, c->head_dim));
    TRY(str_appendf(r->out, "Rotation      base %g, %d of %d elements, in %s, scaling %s",
                    (double)c->rope_theta, c->rope_dim, c->head_dim, style_name(c),
                    c->rope_scaling));
    if (c->rope_scale != 1)
        TRY(str_appendf(r->out, ", cos and sin times %g", (double)c->rope_scale));
    TRY(str_appendf(r->out, "\nTrained on    contexts of %d tokens\n", c->train_len));
    TRY(str_appendf(r->out, "Parameters    %.1f million, ", (double)r->m->n_params / 1e6));
    TRY(human_bytes(r->out, (double)r->m->weight_bytes));
    TRY(str_appendf(r->out, " (%.2f bits each)\nKV cache      ", bits));
    TRY(human_bytes(r->out, kv_bytes(c)));
    TRY(str_appendf(r->out, " a token in f16, "));
    TRY(human_bytes(r->out, kv_bytes(c) * c->train_len));
    return str_appendf(r->out, " for the trained context\n");
}

static int put_special(struct Report *r, const char *name, int id)
{
    const struct VocabSpec *v = &r->m->vocab;
    if (id < 0) return 0;
    TRY(str_appendf(r->out, "  %s %d ", name, id));
    return quote(r->out, v->tokens[id].data, v->tokens[id].len, SHOWN_TEXT);
}

static int text_vocab(struct Report *r)
{
    const struct VocabSpec *v = &r->m->vocab;
    if (v->kind == VOCAB_BPE) {
        TRY(str_appendf(r->out,
                        "Tokenizer     byte-level BPE, words as in %s, %d tokens, %d merges\n",
                        v->pre, v->n_tokens, v->n_merges));
    } else {
        TRY(str_appendf(r->out, "Tokenizer     SentencePiece, %d tokens\n", v->n_tokens));
    }
    TRY(str_appendf(r->out, "Special       "));
    TRY(put_special(r, "bos", v->bos_id));
    TRY(put_special(r, "eos", v->eos_id));
    TRY(put_special(r, "eot", v->eot_id));
    TRY(put_special(r, "unk", v->unk_id));
    TRY(put_special(r, "pad", v->pad_id));
    TRY(str_appendf(r->out, "  (bos is %sput first)\n", v->add_bos ? "" : "not "));
    TRY(str_appendf(r->out, "Facts         %s output, %s biases, %s q/k norms, ",
                    r->m->tied ? "tied" : "separate", has_bias(r->m) ? "attention" : "no",
                    r->m->layers[0].q_norm ? "with" : "no"));
    if (v->chat_template.len == 0) return str_appendf(r->out, "no chat template\n");
    return str_appendf(r->out, "chat template of %zu bytes\n", v->chat_template.len);
}

static int text_head(struct Report *r, size_t file_bytes)
{
    TRY(str_appendf(r->out, "File          "));
    TRY(quote_text(r, r->f->path));
    TRY(str_appendf(r->out, ", %s, ", r->f->is_gguf ? "GGUF v3" : "safetensors folder"));
    TRY(human_bytes(r->out, (double)file_bytes));
    TRY(str_append(r->out, "\n", 1));
    if (!r->m) return str_appendf(r->out, "Refused       %s\n", r->refusal);
    TRY(str_appendf(r->out, "Name          "));
    TRY(quote_text(r, r->m->cfg.name));
    TRY(str_appendf(r->out, "\n"));
    TRY(text_shape(r));
    TRY(text_vocab(r));
    return str_appendf(r->out, "Hash          %016llx\n", (unsigned long long)r->m->hash);
}

static int json_model(struct Report *r)
{
    const struct ModelConfig *c = &r->m->cfg;
    const struct VocabSpec *v = &r->m->vocab;
    TRY(str_appendf(r->out, ",\n\"name\": "));
    TRY(quote_text(r, c->name));
    TRY(str_appendf(
        r->out,
        ",\n\"arch\": \"%s\", \"n_layers\": %d, \"dim\": %d, \"hidden_dim\": %d, \"n_heads\": %d, "
        "\"n_kv_heads\": %d, \"head_dim\": %d, \"vocab_size\": %d, \"train_len\": %d",
        c->arch, c->n_layers, c->dim, c->hidden_dim, c->n_heads, c->n_kv_heads, c->head_dim,
        c->vocab_size, c->train_len));
    TRY(str_appendf(
        r->out,
        ",\n\"norm_eps\": %.7g, \"rope\": {\"theta\": %.7g, \"dim\": %d, \"style\": \"%s\", "
        "\"scaling\": \"%s\", \"scale\": %.7g}",
        (double)c->norm_eps, (double)c->rope_theta, c->rope_dim, style_name(c), c->rope_scaling,
        (double)c->rope_scale));
    TRY(str_appendf(
        r->out,
        ",\n\"n_params\": %llu, \"weight_bytes\": %zu, \"kv_bytes_per_token_f16\": %.0f, "
        "\"hash\": \"%016llx\"",
        (unsigned long long)r->m->n_params, r->m->weight_bytes, kv_bytes(c),
        (unsigned long long)r->m->hash));
    TRY(str_appendf(r->out, ",\n\"tied\": %s, \"biases\": %s, \"qk_norms\": %s",
                    r->m->tied ? "true" : "false", has_bias(r->m) ? "true" : "false",
                    r->m->layers[0].q_norm ? "true" : "false"));
    TRY(str_appendf(r->out, ",\n\"tokenizer\": {\"kind\": \"%s\", \"pre\": ",
                    v->kind == VOCAB_BPE ? "bpe" : "spm"));
    TRY(quote_text(r, v->pre));
    return str_appendf(
        r->out,
        ", \"n_tokens\": %d, \"n_merges\": %d, \"bos_id\": %d, \"eos_id\": %d, \"eot_id\": %d, "
        "\"unk_id\": %d, \"pad_id\": %d, \"add_bos\": %s, \"chat_template_bytes\": %zu}",
        v->n_tokens, v->n_merges, v->bos_id, v->eos_id, v->eot_id, v->unk_id, v->pad_id,
        v->add_bos ? "true" : "false", v->chat_template.len);
}

static int json_head(struct Report *r, size_t file_bytes)
{
    TRY(str_appendf(r->out, "{\"file\": "));
    TRY(quote_text(r, r->f->path));
    TRY(str_appendf(r->out, ", \"format\": \"%s\", \"file_bytes\": %zu",
                    r->f->is_gguf ? "gguf" : "safetensors", file_bytes));
    if (r->m) return json_model(r);
    TRY(str_appendf(r->out, ",\n\"refused\": "));
    return quote_text(r, r->refusal);
}

static int put_report(struct Report *r)
{
    size_t file_bytes = 0;
    for (int i = 0; i < r->f->n_maps; i++) file_bytes += r->f->maps[i].len;
    TRY(measure_tensors(r));
    TRY(r->json ? json_head(r, file_bytes) : text_head(r, file_bytes));
    TRY(put_types(r));
    TRY(put_metadata(r));
    TRY(put_tensors(r));
    return r->json ? str_append(r->out, "\n}\n", 3) : 0;
}

int model_inspect(const char *path, bool json, struct Str *out)
{
    struct Model m;
    struct ModelFile apart = {0};
    struct Str refusal = {0};
    struct Report r = {.out = out, .json = json};
    int status = model_open(path, &m);
    if (status == 0 && m.geometry)
        TRY_GOTO(err_set(PC_ECONFIG,
                         "%s is no file that could be inspected; `pcomp plan` tells what it needs",
                         path));
    if (status == 0) {
        r.f = m.source;
        r.m = &m;
    } else {
        if (status != PC_EFORMAT) goto fail;
        TRY_GOTO(str_appendf(&refusal, "%s", err_text()));
        TRY_GOTO(model_file_open(path, &apart));
        r.f = &apart;
        r.refusal = refusal.data;
    }
    status = put_report(&r);
fail:
    mem_free(r.sizes);
    str_free(&refusal);
    model_file_close(&apart);
    model_close(&m);
    return status;
}
