/* bias_json.c - a bias study as numbers, and its rules as settings. */
#include "bias_page.h"
#include "provenance.h"

#include <math.h>
#include <string.h>

static const char *const CLASS_WORDS[BIAS_CLASSES] = {"sink", "middle", "recent"};

/* The rules of an arm as the settings "calib" and "calib_layers" have them. */
static int add_rules(cJSON *object, const struct BiasArm *arm)
{
    struct Settings set;
    struct Str text = {0};
    settings_default(&set);
    memcpy(set.calib, arm->rules, sizeof set.calib);
    set.n_calib = arm->n_rules;
    TRY(settings_json(&set, &text));
    cJSON *all = cJSON_ParseWithLength(text.data, text.len);
    str_free(&text);
    cJSON *rules = cJSON_DetachItemFromObjectCaseSensitive(all, "calib");
    cJSON_Delete(all);
    if (!rules) return err_set(PC_ENOMEM, "out of memory while writing rules");
    cJSON_AddItemToObject(object, "calib", rules);
    if (arm->layers != AUTO) cJSON_AddNumberToObject(object, "calib_layers", arm->layers);
    return PC_OK;
}

int bias_settings(const struct BiasStudy *s, struct Str *out)
{
    cJSON *object = cJSON_CreateObject();
    int status = add_rules(object, s->best);
    cJSON_AddNumberToObject(object, "calib_layers", s->after.n_layers);
    if (status == PC_OK) return json_append(object, true, out);
    cJSON_Delete(object);
    return status;
}

/* ==== Numbers ==== */

static void add_half(cJSON *arm, const char *name, const struct Paired *x)
{
    if (x->n == 0) return;
    cJSON *half = cJSON_AddObjectToObject(arm, name);
    cJSON_AddNumberToObject(half, "questions", x->n);
    cJSON_AddNumberToObject(half, "nll", x->b);
    cJSON_AddNumberToObject(half, "difference", x->diff);
    if (x->n > 1) cJSON_AddNumberToObject(half, "standard_error", x->error);
    cJSON_AddNumberToObject(half, "better", x->n_better);
}

static int add_arm(cJSON *arms, const struct BiasStudy *s, const struct BiasArm *arm)
{
    static const char *const halves[BIAS_HALVES] = {"choosing_half", "reported_half"};
    cJSON *object = cJSON_CreateObject();
    cJSON_AddItemToArray(arms, object);
    cJSON_AddStringToObject(object, "name", arm->name);
    TRY(add_rules(object, arm));
    for (int h = 0; h < BIAS_HALVES; h++) {
        struct Paired x = study_paired(s, arm, (enum BiasHalf)h);
        add_half(object, halves[h], &x);
    }
    return PC_OK;
}

static int add_arms(cJSON *root, const struct BiasStudy *s)
{
    cJSON *arms = cJSON_AddArrayToObject(root, "arms");
    TRY(add_arm(arms, s, &s->none));
    TRY(add_arm(arms, s, &s->paper));
    if (s->own.nll) TRY(add_arm(arms, s, &s->own));
    for (int i = 0; i < s->n_tries; i++) TRY(add_arm(arms, s, &s->tries[i]));
    cJSON_AddNumberToObject(root, "best", s->best ? s->best - s->tries : -1);
    cJSON_AddBoolToObject(root, "proposed", s->helps);
    return PC_OK;
}

/* One head, or ALL_HEADS of a layer. */
static void add_head(cJSON *object, const struct BiasProfile *p, int layer, int head)
{
    static const char *const parts[BIAS_PARTS] = {"sink", "middle", "recent", "prefix", "question"};
    double bins[BIAS_BINS];
    cJSON *shares = cJSON_AddObjectToObject(object, "share"),
          *density = cJSON_AddObjectToObject(object, "density");
    for (int i = 0; i < BIAS_PARTS; i++)
        cJSON_AddNumberToObject(shares, parts[i], bias_share(p, layer, head, (enum BiasPart)i));
    for (int c = 0; c < BIAS_CLASSES; c++)
        cJSON_AddNumberToObject(density, CLASS_WORDS[c],
                                bias_density(p, layer, head, (enum TokenClass)c));
    for (int b = 0; b < BIAS_BINS; b++) bins[b] = bias_bin_density(p, layer, head, b);
    cJSON_AddStringToObject(object, "shape", bias_shape_name(bias_shape_of(p, layer, head)));
    cJSON_AddItemToObject(object, "bin_density", cJSON_CreateDoubleArray(bins, BIAS_BINS));
}

static void add_profile(cJSON *root, const char *name, const struct BiasProfile *p)
{
    cJSON *object = cJSON_AddObjectToObject(root, name);
    cJSON_AddNumberToObject(object, "views", p->n_views);
    cJSON_AddNumberToObject(object, "chunks", p->n_chunks);
    cJSON *layers = cJSON_AddArrayToObject(object, "layers");
    for (int l = 0; l < p->n_layers; l++) {
        cJSON *layer = cJSON_CreateObject();
        cJSON_AddItemToArray(layers, layer);
        add_head(layer, p, l, ALL_HEADS);
        cJSON *heads = cJSON_AddArrayToObject(layer, "heads");
        for (int h = 0; h < p->n_heads; h++) {
            cJSON *head = cJSON_CreateObject();
            cJSON_AddItemToArray(heads, head);
            add_head(head, p, l, h);
        }
    }
}

static void add_facts(cJSON *root, const struct BiasPage *page)
{
    const struct BiasStudy *s = page->study;
    int hits = 0;
    for (int i = 0; i < s->items->n; i++) hits += s->seen[i].hit;
    cJSON_AddStringToObject(root, "schema", "pcomp.bias.v1");
    cJSON_AddStringToObject(root, "version", PCOMP_VERSION);
    json_add_bytes(root, "model", page->model, strlen(page->model));
    json_add_bytes(root, "device", page->device, strlen(page->device));
    json_add_bytes(root, "text", page->source, strlen(page->source));
    cJSON_AddNumberToObject(root, "n_context", s->plan.n_context);
    cJSON_AddNumberToObject(root, "n_chunks", s->plan.n_chunks);
    cJSON_AddNumberToObject(root, "chunk_tokens", s->plan.chunk_tokens);
    cJSON_AddNumberToObject(root, "keep", s->plan.keep);
    cJSON_AddNumberToObject(root, "kv_cap", s->plan.kv_cap);
    cJSON_AddNumberToObject(root, "rows", s->rows);
    cJSON_AddNumberToObject(root, "region", s->after.region);
    cJSON_AddNumberToObject(root, "questions", s->items->n);
    if (s->items->items[0].answer.len) cJSON_AddNumberToObject(root, "found", hits);
}

int bias_json(const struct BiasPage *page, struct Str *out)
{
    const struct BiasStudy *s = page->study;
    cJSON *root = cJSON_CreateObject();
    add_facts(root, page);
    int status = add_arms(root, s);
    add_profile(root, "chunks", &s->local[HALF_REPORT]);
    add_profile(root, "merged", &s->merged[HALF_REPORT]);
    add_profile(root, "merged_with_rules", &s->after);
    if (status == PC_OK) return json_append(root, false, out);
    cJSON_Delete(root);
    return status;
}
