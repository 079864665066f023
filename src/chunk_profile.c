/* chunk_profile.c - see chunk_profile.h. What is written is made by hand, a head a line, so that two files compare. */
#include "chunk_profile.h"

#include <cjson/cJSON.h>
#include <glob.h>
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char SCHEMA[] = "pcomp.chunks.v1";
static const char *const MEASURES[N_MEASURES] = {"sum", "peak"};

/* ==== JSON in ==== */

static int refuse(const char *file, const char *what, const char *want)
{
    return err_set(PC_EFORMAT,
                   "%s: \"%s\" must be %s; make the profile anew with `pcomp calibrate chunks`",
                   file, what, want);
}

static const cJSON *member(const cJSON *object, const char *name)
{
    return cJSON_GetObjectItemCaseSensitive(object, name);
}

static int whole(const char *file, const char *what, const cJSON *item, const int limits[2],
                 int *out)
{
    char want[64];
    double value = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    snprintf(want, sizeof want, "a whole number, %d to %d", limits[0], limits[1]);
    if (!(value >= limits[0] && value <= limits[1]) || value != floor(value))
        return refuse(file, what, want);
    *out = (int)value;
    return PC_OK;
}

/* [layer, KV head, measure, rows, weight] */
static int read_head(const char *file, const cJSON *item, const struct ChunkProfile *p,
                     struct ChunkStop *stop)
{
    struct StopHead *h = &stop->heads[stop->n_heads];
    const int layers[2] = {0, stop->layer - 1}, heads[2] = {0, p->n_kv_heads - 1},
              rows[2] = {1, EARLY_ROWS};
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != 5)
        return refuse(file, "heads", "a list of [layer, head, measure, rows, weight]");
    TRY(whole(file, "heads", cJSON_GetArrayItem(item, 0), layers, &h->layer));
    TRY(whole(file, "heads", cJSON_GetArrayItem(item, 1), heads, &h->head));
    TRY(whole(file, "heads", cJSON_GetArrayItem(item, 3), rows, &h->rows));
    const cJSON *measure = cJSON_GetArrayItem(item, 2), *weight = cJSON_GetArrayItem(item, 4);
    int m = 0;
    while (m < N_MEASURES &&
           !(cJSON_IsString(measure) && !strcmp(measure->valuestring, MEASURES[m])))
        m++;
    if (m == N_MEASURES) return refuse(file, "measure", "\"sum\" or \"peak\"");
    if (!cJSON_IsNumber(weight) || !(weight->valuedouble > 0 && weight->valuedouble <= 1e6))
        return refuse(file, "weight", "a number above 0, 1e6 at most");
    h->measure = (enum EarlyMeasure)m;
    h->weight = (float)weight->valuedouble;
    stop->n_heads++;
    return PC_OK;
}

/* Files of before words counted have none. */
static int read_words(const char *file, const cJSON *item, struct ChunkStop *stop)
{
    if (!item) return PC_OK;
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= 1e6))
        return refuse(file, "words", "a number from 0, 1e6 at most");
    stop->words = (float)item->valuedouble;
    return PC_OK;
}

static int read_ahead(const char *file, const cJSON *list, struct ChunkStop *stop)
{
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) < 1 ||
        cJSON_GetArraySize(list) > STOP_SAMPLES_MAX)
        return refuse(file, "ahead", "a list of 1 to 512 shares");
    for (const cJSON *item = list->child; item; item = item->next) {
        if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= 1))
            return refuse(file, "ahead", "shares, 0 to 1");
        stop->ahead[stop->n_ahead++] = (float)item->valuedouble;
    }
    return PC_OK;
}

static int read_heads(const char *file, const cJSON *list, int least, const struct ChunkProfile *p,
                      struct ChunkStop *stop)
{
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) < least ||
        cJSON_GetArraySize(list) > STOP_HEADS_MAX)
        return refuse(file, "heads", "a list of 1 to 64 heads, none where words count");
    for (const cJSON *item = list->child; item; item = item->next)
        TRY(read_head(file, item, p, stop));
    return PC_OK;
}

/* Files of before attention counted in the end have none. */
static int read_last(const char *file, const cJSON *object, struct ChunkProfile *p)
{
    const cJSON *nats = member(object, "nats");
    if (!object) return PC_OK;
    if (!cJSON_IsNumber(nats) || !(nats->valuedouble > 0 && nats->valuedouble <= 1e6))
        return refuse(file, "nats", "a number above 0, 1e6 at most");
    p->nats = (float)nats->valuedouble;
    p->last.layer = p->n_layers;
    return read_heads(file, member(object, "heads"), 1, p, &p->last);
}

static int read_stop(const char *file, const cJSON *object, struct ChunkProfile *p)
{
    struct ChunkStop *stop = &p->stops[p->n_stops];
    const cJSON *heads = member(object, "heads");
    const int layers[2] = {p->n_stops ? stop[-1].layer + 1 : 1, p->n_layers - 1};
    TRY(whole(file, "layer", member(object, "layer"), layers, &stop->layer));
    TRY(read_words(file, member(object, "words"), stop));
    TRY(read_heads(file, heads, stop->words > 0 ? 0 : 1, p, stop));
    p->n_stops++;
    return read_ahead(file, member(object, "ahead"), stop);
}

/* "0123456789abcdef" */
static int read_hash(const char *file, const cJSON *root, uint64_t *out)
{
    const cJSON *item = member(root, "model_hash");
    char *end = NULL;
    if (cJSON_IsString(item)) *out = strtoull(item->valuestring, &end, 16);
    if (!end || *end || end != item->valuestring + 16)
        return refuse(file, "model_hash", "16 hexadecimal digits");
    return PC_OK;
}

static int read_object(const char *file, const cJSON *root, struct ChunkProfile *out)
{
    static const int layers[2] = {2, 4096}, heads[2] = {1, 4096};
    const cJSON *schema = member(root, "schema"), *stops = member(root, "stops");
    if (!cJSON_IsString(schema) || strcmp(schema->valuestring, SCHEMA))
        return refuse(file, "schema", "\"pcomp.chunks.v1\"");
    TRY(read_hash(file, root, &out->model_hash));
    TRY(whole(file, "n_layers", member(root, "n_layers"), layers, &out->n_layers));
    TRY(whole(file, "n_kv_heads", member(root, "n_kv_heads"), heads, &out->n_kv_heads));
    if (!cJSON_IsArray(stops) || cJSON_GetArraySize(stops) < 1 ||
        cJSON_GetArraySize(stops) > STOPS_MAX)
        return refuse(file, "stops", "a list of 1 to 4 decisions");
    for (const cJSON *item = stops->child; item; item = item->next) TRY(read_stop(file, item, out));
    return read_last(file, member(root, "last"), out);
}

static int read_any(const char *path, struct ChunkProfile *out)
{
    struct Str text = {0};
    cJSON *root = NULL;
    *out = (struct ChunkProfile){0};
    int status = file_read(path, &text);
    if (status == PC_OK) {
        root = cJSON_ParseWithLength(text.data ? text.data : "", text.len);
        status =
            root ? read_object(path, root, out) : err_set(PC_EFORMAT, "%s: not valid JSON", path);
    }
    cJSON_Delete(root);
    str_free(&text);
    if (status < 0) *out = (struct ChunkProfile){0};
    return status;
}

int chunk_profile_read(const char *path, int n_layers, int n_kv_heads, struct ChunkProfile *out)
{
    TRY(read_any(path, out));
    if (out->n_layers == n_layers && out->n_kv_heads == n_kv_heads) return PC_OK;
    int layers = out->n_layers, heads = out->n_kv_heads;
    *out = (struct ChunkProfile){0};
    return err_set(PC_ECONFIG,
                   "%s: the profile is of %d layers of %d KV heads, the model has %d of %d; run "
                   "`pcomp calibrate chunks` for this model",
                   path, layers, heads, n_layers, n_kv_heads);
}

/* ==== The folder ==== */

/* The first that fits; files that cannot be read are passed over. */
static int look_through(const glob_t *found, uint64_t model_hash, char *path, size_t room)
{
    struct ChunkProfile p;
    for (size_t i = 0; i < found->gl_pathc && !*path; i++) {
        int status = read_any(found->gl_pathv[i], &p);
        if (status == PC_ENOMEM) return status;
        if (status == PC_OK && p.model_hash == model_hash)
            snprintf(path, room, "%s", found->gl_pathv[i]);
    }
    return PC_OK;
}

int chunk_profile_find(uint64_t model_hash, char *path, size_t room)
{
    static const char *const places[] = {"../configs/chunks", "../../configs/chunks",
                                         "../../../configs/chunks",
                                         "../share/pcomp/configs/chunks"};
    char self[PATH_MAX], pattern[PATH_MAX + 64];
    ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
    *path = '\0';
    if (len <= 0) return err_set(PC_EIO, "cannot tell where this program lies");
    self[len] = '\0';
    const char *folder = dirname(self);
    for (size_t i = 0; i < sizeof places / sizeof places[0] && !*path; i++) {
        glob_t found = {0};
        snprintf(pattern, sizeof pattern, "%s/%s/*.json", folder, places[i]);
        int status = PC_OK;
        if (glob(pattern, 0, NULL, &found) == 0)
            status = look_through(&found, model_hash, path, room);
        globfree(&found);
        TRY(status);
    }
    return PC_OK;
}

/* ==== JSON out ==== */

/* "heads": a head a line */
static int heads_text(const struct ChunkStop *stop, const char *indent, struct Str *out)
{
    TRY(str_appendf(out, "%s\"heads\": [\n", indent));
    for (int i = 0; i < stop->n_heads; i++) {
        const struct StopHead *h = &stop->heads[i];
        TRY(str_appendf(out, "%s  [%d, %d, \"%s\", %d, %.9g]%s\n", indent, h->layer, h->head,
                        MEASURES[h->measure], h->rows, (double)h->weight,
                        i + 1 < stop->n_heads ? "," : ""));
    }
    return str_appendf(out, "%s]", indent);
}

static int last_text(const struct ChunkProfile *p, struct Str *out)
{
    if (p->nats == 0) return PC_OK;
    TRY(str_appendf(out, ",\n  \"last\": {\n    \"nats\": %.9g,\n", (double)p->nats));
    TRY(heads_text(&p->last, "    ", out));
    return str_appendf(out, "\n  }");
}

static int stop_text(const struct ChunkStop *stop, bool last, struct Str *out)
{
    TRY(str_appendf(out, "    {\n      \"layer\": %d,\n", stop->layer));
    TRY(heads_text(stop, "      ", out));
    TRY(str_appendf(out, ",\n      \"words\": %.9g,\n      \"ahead\": [", (double)stop->words));
    for (int i = 0; i < stop->n_ahead; i++)
        TRY(str_appendf(out, "%s%.4g", i ? ", " : "", (double)stop->ahead[i]));
    return str_appendf(out, "]\n    }%s\n", last ? "" : ",");
}

static int profile_text(const struct ChunkProfile *p, const char *facts, struct Str *out)
{
    TRY(str_appendf(out,
                    "{\n  \"schema\": \"%s\",\n  \"model_hash\": \"%016llx\",\n  \"n_layers\": "
                    "%d,\n  \"n_kv_heads\": %d,\n",
                    SCHEMA, (unsigned long long)p->model_hash, p->n_layers, p->n_kv_heads));
    if (facts) TRY(str_appendf(out, "  \"facts\": %s,\n", facts));
    TRY(str_appendf(out, "  \"stops\": [\n"));
    for (int i = 0; i < p->n_stops; i++) TRY(stop_text(&p->stops[i], i + 1 == p->n_stops, out));
    TRY(str_appendf(out, "  ]"));
    TRY(last_text(p, out));
    return str_appendf(out, "\n}\n");
}

int chunk_profile_write(const struct ChunkProfile *p, const char *facts, const char *path)
{
    struct Str text = {0};
    int status = profile_text(p, facts, &text);
    if (status == PC_OK) status = file_write(path, text.data, text.len);
    str_free(&text);
    return status;
}
