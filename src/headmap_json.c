/* headmap_json.c - head maps as JSON: our own schema "pcomp.heads.v1", RTP-LLM's headwise configuration, and the
 * config.json beside DuoAttention's table.
 *
 * cJSON reads; its nesting limit (1000) bounds the stack, and headmap_read bounds the length. What is written is
 * made by hand, a layer a line, so that a difference between two maps can be read.
 */
#include "headmap.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char SCHEMA[] = "pcomp.heads.v1";

/* What is being read. */
struct Source {
    const char *file;
    const cJSON *object;
};

/* ==== Text to JSON ==== */

int headmap_check_text(const char *text, size_t len, const char *file)
{
    const char *nul = len ? memchr(text, '\0', len) : NULL;
    size_t end = nul ? (size_t)(nul - text) : len, bad = utf8_invalid_at(text, end);
    if (bad == len) return PC_OK;
    int line = 1;
    for (size_t i = 0; i < bad; i++) line += text[i] == '\n';
    return err_set(PC_EFORMAT,
                   "%s: line %d: byte %zu of the file is %s: this is no head map; give a .tsv or a "
                   "JSON file in UTF-8",
                   file, line, bad, bad == end ? "NUL" : "not UTF-8");
}

static int parse_object(const char *text, size_t len, const char *file, cJSON **out)
{
    *out = NULL;
    TRY(headmap_check_text(text, len, file));
    const char *end = text;
    cJSON *root = cJSON_ParseWithLengthOpts(text, len, &end, false);
    if (end < text || end > text + len) end = text + len;
    while (root && end < text + len && strchr(" \t\r\n", *end)) end++;
    if (cJSON_IsObject(root) && end == text + len) {
        *out = root;
        return PC_OK;
    }
    bool whole = root && end == text + len;
    int line = 1;
    for (const char *c = text; c < end; c++) line += *c == '\n';
    cJSON_Delete(root);
    if (whole)
        return err_set(PC_EFORMAT, "%s: line 1: the JSON is not an object; a head map is one",
                       file);
    return err_set(PC_EFORMAT,
                   "%s: line %d: not valid JSON at byte %zu (or out of memory); is the file whole?",
                   file, line, (size_t)(end - text));
}

/* ==== Members ==== */

enum { FOUND_ROOM = 64 };

/* What stands there, for an error's text. */
static const char *found(const cJSON *item, char text[FOUND_ROOM])
{
    if (!item)
        snprintf(text, FOUND_ROOM, "nothing");
    else if (cJSON_IsNumber(item))
        snprintf(text, FOUND_ROOM, "%.9g", item->valuedouble);
    else if (cJSON_IsArray(item))
        snprintf(text, FOUND_ROOM, "a list of %d", cJSON_GetArraySize(item));
    else
        snprintf(text, FOUND_ROOM, "%s",
                 cJSON_IsString(item)   ? "a string"
                 : cJSON_IsObject(item) ? "an object"
                 : cJSON_IsBool(item)   ? "true or false"
                                        : "null");
    return text;
}

static const cJSON *member(const struct Source *s, const char *name)
{
    return cJSON_GetObjectItemCaseSensitive(s->object, name);
}

/* A member that is not what it must be. */
static int refuse(const struct Source *s, const char *name, const cJSON *item, const char *want)
{
    char text[FOUND_ROOM];
    return err_set(PC_EFORMAT, "%s: \"%s\" must be %s, not %s; correct it or make the map anew",
                   s->file, name, want, found(item, text));
}

/* A whole number lo..hi; absent: *out stays. */
static int take_int(const struct Source *s, const char *name, int lo, int hi, int *out)
{
    const cJSON *item = member(s, name);
    if (!item) return PC_OK;
    double value = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    if (!(value >= lo && value <= hi) || value != floor(value)) {
        char want[FOUND_ROOM];
        snprintf(want, sizeof want, "a whole number, %d to %d", lo, hi);
        return refuse(s, name, item, want);
    }
    *out = (int)value;
    return PC_OK;
}

static int require(const struct Source *s, const char *name, const char *want)
{
    return member(s, name) ? PC_OK : refuse(s, name, NULL, want);
}

static int take_text(const struct Source *s, const char *name, struct Str *out)
{
    const cJSON *item = member(s, name);
    if (!item) return PC_OK;
    if (!cJSON_IsString(item)) return refuse(s, name, item, "a string");
    str_clear(out);
    return str_append(out, item->valuestring, strlen(item->valuestring));
}

/* A number 0..1; absent: *out stays. */
static int take_share(const struct Source *s, const char *name, float *out)
{
    const cJSON *item = member(s, name);
    if (!item) return PC_OK;
    double value = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    if (!(value >= 0 && value <= 1)) return refuse(s, name, item, "a number, 0 to 1");
    *out = (float)value;
    return PC_OK;
}

static int take_method(const struct Source *s, struct HeadMap *map)
{
    const cJSON *item = member(s, "method");
    if (!item) return PC_OK;
    if (!cJSON_IsString(item) || strlen(item->valuestring) >= sizeof map->method)
        return refuse(s, "method", item, "a name of at most 31 bytes");
    memset(map->method, 0, sizeof map->method);
    memcpy(map->method, item->valuestring, strlen(item->valuestring));
    return PC_OK;
}

/* A number up to 2^53, or digits as a string: JSON numbers above lose their last ones. */
static int take_seed(const struct Source *s, uint64_t *out)
{
    static const char want[] = "a whole number up to 2^53, or up to 2^64 - 1 as a string of digits";
    const cJSON *item = member(s, "seed");
    if (!item) return PC_OK;
    if (cJSON_IsNumber(item)) {
        double value = item->valuedouble;
        if (!(value >= 0 && value <= 0x1p53) || value != floor(value))
            return refuse(s, "seed", item, want);
        *out = (uint64_t)value;
        return PC_OK;
    }
    const char *digit = cJSON_IsString(item) ? item->valuestring : "";
    uint64_t value = 0;
    bool good = *digit != '\0';
    for (; *digit && good; digit++)
        good = *digit >= '0' && *digit <= '9' && !__builtin_mul_overflow(value, 10, &value) &&
               !__builtin_add_overflow(value, (uint64_t)(*digit - '0'), &value);
    if (!good) return refuse(s, "seed", item, want);
    *out = value;
    return PC_OK;
}

static int take_hash(const struct Source *s, uint64_t *out)
{
    const cJSON *item = member(s, "model_hash");
    if (!item) return PC_OK;
    const char *digits = cJSON_IsString(item) ? item->valuestring : "";
    uint64_t value = 0;
    if (strlen(digits) != 16 || strspn(digits, "0123456789abcdef") != 16)
        return refuse(s, "model_hash", item, "a string of 16 hexadecimal digits, lower case");
    for (int i = 0; i < 16; i++)
        value = value << 4 | (uint64_t)(digits[i] <= '9' ? digits[i] - '0' : digits[i] - 'a' + 10);
    *out = value;
    return PC_OK;
}

/* Appends an object on one line. */
static int print_object(const cJSON *object, struct Str *out)
{
    char *text = cJSON_PrintUnformatted(object);
    if (!text) return err_set(PC_ENOMEM, "out of memory for JSON");
    int status = str_append(out, text, strlen(text));
    cJSON_free(text);
    return status;
}

static int take_settings(const struct Source *s, struct Str *out)
{
    const cJSON *item = member(s, "settings");
    if (!item) return PC_OK;
    if (!cJSON_IsObject(item)) return refuse(s, "settings", item, "an object");
    str_clear(out);
    return print_object(item, out);
}

/* What every file of ours says beside scores and sizes. */
static int take_facts(const struct Source *s, struct HeadMap *map)
{
    TRY(take_method(s, map));
    TRY(take_seed(s, &map->seed));
    TRY(take_hash(s, &map->model_hash));
    TRY(take_share(s, "ratio", &map->ratio));
    TRY(take_text(s, "note", &map->note));
    TRY(take_settings(s, &map->settings));
    return take_int(s, "seqlen_threshold", 0, HEADMAP_THRESHOLD_MAX, &map->threshold);
}

/* ==== Our own ==== */

static const char *const MEMBERS[] = {
    "schema",  "model_hash", "method", "seed",     "n_layers",
    "n_heads", "n_kv_heads", "sink",   "recent",   "seqlen_threshold",
    "scores",  "q_scores",   "note",   "settings", "ratio",
};
enum { N_MEMBERS = sizeof MEMBERS / sizeof *MEMBERS };

/* A member that we do not know, or one that comes twice, is a slip or a later format. */
static int check_members(const struct Source *s)
{
    unsigned seen = 0;
    for (const cJSON *item = s->object->child; item; item = item->next) {
        int i = 0;
        while (i < N_MEMBERS && strcmp(MEMBERS[i], item->string) != 0) i++;
        if (i == N_MEMBERS)
            return err_set(PC_EFORMAT, "%s: \"%.32s\" is no member of %s; did you mean \"%s\"?",
                           s->file, item->string, SCHEMA,
                           word_nearest(item->string, MEMBERS, N_MEMBERS, sizeof *MEMBERS));
        if (seen & (1u << i))
            return err_set(PC_EFORMAT, "%s: \"%s\" is given twice; remove one", s->file,
                           MEMBERS[i]);
        seen |= 1u << i;
    }
    return PC_OK;
}

static int check_shape(const struct Source *s, const struct HeadShape *model)
{
    struct HeadShape here = {0};
    TRY(require(s, "n_layers", "a whole number"));
    TRY(require(s, "n_heads", "a whole number"));
    TRY(require(s, "n_kv_heads", "a whole number"));
    TRY(take_int(s, "n_layers", 1, HEADMAP_LAYERS_MAX, &here.n_layers));
    TRY(take_int(s, "n_heads", 1, HEADMAP_HEADS_MAX, &here.n_heads));
    TRY(take_int(s, "n_kv_heads", 1, HEADMAP_HEADS_MAX, &here.n_kv_heads));
    if (here.n_layers == model->n_layers && here.n_heads == model->n_heads &&
        here.n_kv_heads == model->n_kv_heads)
        return PC_OK;
    return err_set(PC_EFORMAT,
                   "%s: the map is for %d layers of %d query and %d KV heads, the model has %d "
                   "layers of %d and %d; use a map made for this model",
                   s->file, here.n_layers, here.n_heads, here.n_kv_heads, model->n_layers,
                   model->n_heads, model->n_kv_heads);
}

/* One layer's list of n scores. */
static int take_row(const struct Source *s, const char *name, const cJSON *row, int layer, int n,
                    float *out)
{
    char text[FOUND_ROOM];
    if (!cJSON_IsArray(row) || cJSON_GetArraySize(row) != n)
        return err_set(PC_EFORMAT,
                       "%s: \"%s\", layer %d: %s; the model has %d heads there; use a map made for "
                       "this model",
                       s->file, name, layer, found(row, text), n);
    int head = 0;
    for (const cJSON *item = row->child; item; item = item->next, head++) {
        double value = cJSON_IsNumber(item) ? item->valuedouble : NAN;
        if (!(value >= 0 && value <= 1))
            return err_set(PC_EFORMAT,
                           "%s: \"%s\", layer %d, head %d: a score must be a number, 0 to 1, not "
                           "%s; make the map anew",
                           s->file, name, layer, head, found(item, text));
        out[head] = (float)value;
    }
    return PC_OK;
}

static int take_scores(const struct Source *s, const char *name, int n_layers, int n_heads,
                       float *out)
{
    const cJSON *list = member(s, name);
    char text[FOUND_ROOM];
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != n_layers)
        return err_set(PC_EFORMAT,
                       "%s: \"%s\" must be a list of lists: it is %s, the model has %d layers; use "
                       "a map made for this model",
                       s->file, name, found(list, text), n_layers);
    int layer = 0;
    for (const cJSON *row = list->child; row; row = row->next, layer++)
        TRY(take_row(s, name, row, layer, n_heads, out + (size_t)layer * n_heads));
    return PC_OK;
}

static int fill_own(const struct Source *s, struct HeadMap *map)
{
    const struct HeadShape *shape = &map->shape;
    TRY(require(s, "sink", "a whole number"));
    TRY(require(s, "recent", "a whole number"));
    TRY(take_int(s, "sink", 0, HEADMAP_SINK_MAX, &map->sink));
    TRY(take_int(s, "recent", 1, HEADMAP_RECENT_MAX, &map->recent));
    TRY(take_facts(s, map));
    TRY(take_scores(s, "scores", shape->n_layers, shape->n_kv_heads, map->scores));
    if (!map->q_scores) return PC_OK;
    return take_scores(s, "q_scores", shape->n_layers, shape->n_heads, map->q_scores);
}

static int read_own(const struct Source *s, const struct HeadShape *model, struct HeadMap *out)
{
    const cJSON *schema = member(s, "schema");
    if (!cJSON_IsString(schema) || strcmp(schema->valuestring, SCHEMA) != 0)
        return err_set(PC_EFORMAT, "%s: the schema is \"%.32s\"; this pcomp reads \"%s\"", s->file,
                       cJSON_IsString(schema) ? schema->valuestring : "", SCHEMA);
    TRY(check_members(s));
    TRY(check_shape(s, model));
    TRY(headmap_open(model, member(s, "q_scores") != NULL, out));
    return fill_own(s, out);
}

/* ==== RTP-LLM ==== */

/* The layer that a member's name says, or -1. */
static int layer_of(const char *name)
{
    size_t len = strlen(name);
    if (len == 0 || len > 6 || strspn(name, "0123456789") != len || (len > 1 && name[0] == '0'))
        return -1;
    int layer = 0;
    for (; *name; name++) layer = layer * 10 + (*name - '0');
    return layer;
}

static int take_flags(const struct Source *s, const cJSON *list, int layer, struct HeadMap *map)
{
    const struct HeadShape *model = &map->shape;
    char text[FOUND_ROOM];
    float *flags = map->q_scores + (size_t)layer * model->n_heads;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != model->n_heads)
        return err_set(PC_EFORMAT,
                       "%s: layer %d: %s; the model has %d query heads a layer, so it needs a list "
                       "of as many flags",
                       s->file, layer, found(list, text), model->n_heads);
    int head = 0;
    for (const cJSON *item = list->child; item; item = item->next, head++) {
        bool one = cJSON_IsNumber(item) && item->valuedouble == 1;
        if (!one && !(cJSON_IsNumber(item) && item->valuedouble == 0))
            return err_set(PC_EFORMAT,
                           "%s: layer %d, query head %d: a flag must be 0 or 1, not %s; correct it",
                           s->file, layer, head, found(item, text));
        flags[head] = one ? 1 : 0;
    }
    return PC_OK;
}

enum { N_SIZES = 3 };
static const char *const SIZES[N_SIZES] = {"sink_token_num", "swa_token_num", "seqlen_threshold"};

/* Every member is a size or a layer of the model, and comes once. Layers not seen keep the mark of fill_rtp. */
static int take_rtp_members(const struct Source *s, struct HeadMap *map)
{
    const struct HeadShape *model = &map->shape;
    unsigned seen = 0;
    for (const cJSON *item = s->object->child; item; item = item->next) {
        int i = 0, layer = layer_of(item->string);
        bool twice = false;
        while (i < N_SIZES && strcmp(SIZES[i], item->string) != 0) i++;
        if (i < N_SIZES) {
            twice = seen & (1u << i);
            seen |= 1u << i;
        } else if (layer < 0) {
            return err_set(PC_EFORMAT,
                           "%s: \"%.32s\" is neither a layer's number nor one of %s, %s and %s; "
                           "remove or correct it",
                           s->file, item->string, SIZES[0], SIZES[1], SIZES[2]);
        } else if (layer >= model->n_layers) {
            return err_set(PC_EFORMAT,
                           "%s: layer %d is given, the model has %d layers (0 to %d); use a map "
                           "made for this model",
                           s->file, layer, model->n_layers, model->n_layers - 1);
        } else {
            twice = map->q_scores[(size_t)layer * model->n_heads] >= 0;
        }
        if (twice)
            return err_set(PC_EFORMAT, "%s: \"%s\" is given twice; remove one", s->file,
                           item->string);
        if (i == N_SIZES) TRY(take_flags(s, item, layer, map));
    }
    return PC_OK;
}

/* Of a layer that is not there RTP-LLM keeps every head, with a warning at run time. */
static int check_layers(const struct Source *s, const struct HeadMap *map)
{
    for (int l = 0; l < map->shape.n_layers; l++)
        if (map->q_scores[(size_t)l * map->shape.n_heads] < 0)
            return err_set(PC_EFORMAT,
                           "%s: layer %d is missing, the model has %d layers; add \"%d\" with %d "
                           "flags (all 1 to keep every head of it)",
                           s->file, l, map->shape.n_layers, l, map->shape.n_heads);
    return PC_OK;
}

static int fill_rtp(const struct Source *s, struct HeadMap *map)
{
    int window = 8192;
    map->sink = 4; /* RTP-LLM's own defaults */
    map->threshold = 16384;
    for (int l = 0; l < map->shape.n_layers; l++)
        map->q_scores[(size_t)l * map->shape.n_heads] = -1;
    TRY(take_int(s, SIZES[0], 0, HEADMAP_SINK_MAX, &map->sink));
    TRY(take_int(s, SIZES[1], 0, HEADMAP_RECENT_MAX - 1, &window));
    TRY(take_int(s, SIZES[2], 0, HEADMAP_THRESHOLD_MAX, &map->threshold));
    map->recent = window + 1;
    TRY(take_rtp_members(s, map));
    TRY(check_layers(s, map));
    headmap_from_q(map);
    memcpy(map->method, "rtp-llm", sizeof "rtp-llm");
    return PC_OK;
}

static int read_rtp(const struct Source *s, const struct HeadShape *model, struct HeadMap *out)
{
    if (!cJSON_IsObject(s->object))
        return err_set(PC_EFORMAT, "%s: \"headwise_config\" is not an object; correct it", s->file);
    TRY(headmap_open(model, true, out));
    return fill_rtp(s, out);
}

/* ==== Either ==== */

static int read_root(const struct Source *s, const struct HeadShape *model, struct HeadMap *out)
{
    if (member(s, "schema")) return read_own(s, model, out);
    const cJSON *inner = member(s, "headwise_config");
    if (inner) return read_rtp(&(struct Source){s->file, inner}, model, out);
    for (const cJSON *item = s->object->child; item; item = item->next)
        if (layer_of(item->string) >= 0) return read_rtp(s, model, out);
    if (member(s, "sink_size") || member(s, "recent_size"))
        return err_set(
            PC_EFORMAT,
            "%s: this is DuoAttention's config.json, which has no heads; give its folder", s->file);
    return err_set(PC_EFORMAT,
                   "%s: no head map: neither \"schema\" nor \"headwise_config\" nor lists of flags "
                   "\"0\", \"1\", … for the model's %d layers; give another file",
                   s->file, model->n_layers);
}

int headmap_parse_json(const char *text, size_t len, const char *file,
                       const struct HeadShape *model, struct HeadMap *out)
{
    cJSON *root;
    *out = (struct HeadMap){0};
    TRY(parse_object(text, len, file, &root));
    int status = read_root(&(struct Source){file, root}, model, out);
    cJSON_Delete(root);
    if (status < 0) headmap_close(out);
    return status;
}

int headmap_parse_config(const char *text, size_t len, const char *file, struct HeadMap *map)
{
    cJSON *root;
    TRY(parse_object(text, len, file, &root));
    struct Source s = {file, root};
    int sink = -1, recent = -1, status;
    TRY_GOTO(take_int(&s, "sink_size", 0, HEADMAP_SINK_MAX, &sink));
    TRY_GOTO(take_int(&s, "recent_size", 1, HEADMAP_RECENT_MAX, &recent));
    TRY_GOTO(take_facts(&s, map));
    if (sink < 0 || recent < 0)
        log_msg(LOG_WARN, "%s: no %s; %d and %d are taken for sink_size and recent_size", file,
                sink < 0 ? "sink_size" : "recent_size", sink < 0 ? HEADMAP_SINK : sink,
                recent < 0 ? HEADMAP_RECENT : recent);
    map->sink = sink < 0 ? HEADMAP_SINK : sink;
    map->recent = recent < 0 ? HEADMAP_RECENT : recent;
fail:
    cJSON_Delete(root);
    return status;
}

/* ==== Writing ==== */

static int add_string(struct Str *out, const char *text)
{
    TRY(str_append(out, "\"", 1));
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 0x20)
            TRY(str_appendf(out, "\\u%04x", c));
        else
            TRY(str_appendf(out, c == '"' || c == '\\' ? "\\%c" : "%c", c));
    }
    return str_append(out, "\"", 1);
}

/* A line `  "name": text,`. */
static int add_text(struct Str *out, const char *name, const char *text)
{
    TRY(str_appendf(out, "  \"%s\": ", name));
    TRY(add_string(out, text));
    return str_append(out, ",\n", 2);
}

/* The settings as our reader will give them back. */
static int add_settings(struct Str *out, const struct Str *settings)
{
    cJSON *object;
    if (!settings->len) return PC_OK;
    if (parse_object(settings->data, settings->len, "settings", &object) < 0)
        return err_prefix(PC_EINTERNAL, "head map");
    int status = str_appendf(out, "  \"settings\": ");
    if (status == PC_OK) status = print_object(object, out);
    if (status == PC_OK) status = str_append(out, ",\n", 2);
    cJSON_Delete(object);
    return status;
}

static int add_facts(struct Str *out, const struct HeadMap *map)
{
    if (map->model_hash)
        TRY(str_appendf(out, "  \"model_hash\": \"%016llx\",\n",
                        (unsigned long long)map->model_hash));
    if (map->method[0]) TRY(add_text(out, "method", map->method));
    const char *quote = map->seed > UINT64_C(1) << 53 ? "\"" : "";
    TRY(str_appendf(out, "  \"seed\": %s%llu%s,\n", quote, (unsigned long long)map->seed, quote));
    if (map->ratio > 0) TRY(str_appendf(out, "  \"ratio\": %.9g,\n", (double)map->ratio));
    if (map->note.len) TRY(add_text(out, "note", map->note.data));
    TRY(add_settings(out, &map->settings));
    if (map->threshold) TRY(str_appendf(out, "  \"seqlen_threshold\": %d,\n", map->threshold));
    return PC_OK;
}

static int add_scores(struct Str *out, const char *name, const float *scores, int n_layers,
                      int n_heads)
{
    TRY(str_appendf(out, "  \"%s\": [\n", name));
    for (int l = 0; l < n_layers; l++) {
        TRY(str_append(out, "    [", 5));
        for (int h = 0; h < n_heads; h++)
            TRY(str_appendf(out, "%s%.9g", h ? ", " : "",
                            (double)scores[(size_t)l * n_heads + h] + 0.0)); /* no -0 */
        TRY(str_append(out, l + 1 < n_layers ? "],\n" : "]\n", l + 1 < n_layers ? 3 : 2));
    }
    return str_append(out, "  ]", 3);
}

int headmap_json_text(const struct HeadMap *map, struct Str *out)
{
    const struct HeadShape *s = &map->shape;
    TRY(headmap_check(map));
    TRY(str_appendf(out, "{\n  \"schema\": \"%s\",\n", SCHEMA));
    TRY(add_facts(out, map));
    TRY(str_appendf(out, "  \"n_layers\": %d,\n  \"n_heads\": %d,\n  \"n_kv_heads\": %d,\n",
                    s->n_layers, s->n_heads, s->n_kv_heads));
    TRY(str_appendf(out, "  \"sink\": %d,\n  \"recent\": %d,\n", map->sink, map->recent));
    TRY(add_scores(out, "scores", map->scores, s->n_layers, s->n_kv_heads));
    if (map->q_scores) {
        TRY(str_append(out, ",\n", 2));
        TRY(add_scores(out, "q_scores", map->q_scores, s->n_layers, s->n_heads));
    }
    return str_append(out, "\n}\n", 3);
}

int headmap_config_text(const struct HeadMap *map, struct Str *out)
{
    TRY(headmap_check(map));
    TRY(str_append(out, "{\n", 2));
    TRY(add_facts(out, map));
    return str_appendf(out, "  \"sink_size\": %d,\n  \"recent_size\": %d\n}\n", map->sink,
                       map->recent);
}

static int add_flags(struct Str *out, const struct HeadShape *s, const uint8_t *flags)
{
    for (int l = 0; l < s->n_layers; l++) {
        TRY(str_appendf(out, "    \"%d\": [", l));
        for (int h = 0; h < s->n_heads; h++)
            TRY(str_appendf(out, "%s%d", h ? ", " : "", flags[(size_t)l * s->n_heads + h]));
        TRY(str_appendf(out, "]%s\n", l + 1 < s->n_layers ? "," : ""));
    }
    return PC_OK;
}

int headmap_rtp_text(const struct HeadMap *map, const uint8_t *keep, struct Str *out)
{
    const struct HeadShape *s = &map->shape;
    TRY(headmap_check(map));
    uint8_t *flags = mem_alloc((size_t)s->n_layers * (size_t)s->n_heads, 1);
    if (!flags) return PC_ENOMEM;
    headmap_q_flags(map, keep, flags);
    int status =
        str_appendf(out,
                    "{\n  \"headwise_config\": {\n    \"%s\": %d,\n    \"%s\": %d,\n"
                    "    \"%s\": %d,\n",
                    SIZES[0], map->sink, SIZES[1], map->recent - 1, SIZES[2], map->threshold);
    if (status == PC_OK) status = add_flags(out, s, flags);
    if (status == PC_OK) status = str_append(out, "  }\n}\n", 6);
    mem_free(flags);
    return status;
}
