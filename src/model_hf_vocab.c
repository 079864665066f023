/* model_hf_vocab.c - the vocabulary of a model folder: tokenizer.json and the files beside it.
 *
 * A tokenizer.json can describe any chain of steps. Four chains are known here, by exact
 * comparison; each is what a pre-type name of GGUF stands for. Qwen2's NFC normaliser is accepted
 * and not applied: text in the composed form, which is nearly all text, is not changed by it.
 */
#include "model_load.h"
#include "safetensors.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char llama3_rule[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char qwen2_rule[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

struct Folder {
    struct ModelFile *f;
    struct VocabSpec *v;
    cJSON *tokenizer, *settings,
        *generation; /* tokenizer.json, tokenizer_config.json, generation_config.json */
};

static const cJSON *get(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    return cJSON_IsNull(item) ? NULL : item;
}

static const char *text_of(const cJSON *object, const char *name)
{
    const cJSON *item = get(object, name);
    return cJSON_IsString(item) ? item->valuestring : "";
}

static bool has_type(const cJSON *object, const char *type)
{
    return strcmp(text_of(object, "type"), type) == 0;
}

static int refuse(const struct Folder *d, const char *what, const char *found)
{
    return err_set(
        PC_EFORMAT,
        "%s: tokenizer.json: %s \"%.200s\" is not supported; use a GGUF file of this model",
        d->f->path, what, *found ? found : "none");
}

/* ==== Pre-tokeniser ==== */

static bool is_byte_level(const cJSON *step, bool splits_words)
{
    /* use_regex is true when absent. */
    return has_type(step, "ByteLevel") && cJSON_IsFalse(get(step, "use_regex")) == !splits_words;
}

static int read_split(const struct Folder *d, const cJSON *split)
{
    const char *rule = text_of(get(split, "pattern"), "Regex");
    bool plain =
        strcmp(text_of(split, "behavior"), "Isolated") == 0 && !cJSON_IsTrue(get(split, "invert"));
    const char *pre = strcmp(rule, llama3_rule) == 0  ? "llama-bpe"
                      : strcmp(rule, qwen2_rule) == 0 ? "qwen2"
                                                      : NULL;
    if (!pre || !plain) return refuse(d, "word rule", rule);
    strcpy(d->v->pre, pre);
    return 0;
}

static int read_pre_tokenizer(const struct Folder *d)
{
    const cJSON *pre = get(d->tokenizer, "pre_tokenizer"), *steps = get(pre, "pretokenizers");
    const cJSON *first = pre, *second = NULL;
    if (has_type(pre, "Sequence")) {
        if (!cJSON_IsArray(steps) || cJSON_GetArraySize(steps) > 2)
            return refuse(d, "pre_tokenizer", "long Sequence");
        first = steps->child;
        second = first ? first->next : NULL;
    }
    const cJSON *last = second ? second : first;
    d->v->add_space_prefix = cJSON_IsTrue(get(last, "add_prefix_space"));
    if (!second && is_byte_level(first, true)) {
        strcpy(d->v->pre, "gpt-2");
        return 0;
    }
    if (second && has_type(first, "Digits") && cJSON_IsTrue(get(first, "individual_digits")) &&
        is_byte_level(second, true)) {
        strcpy(d->v->pre, "smollm");
        return 0;
    }
    if (second && has_type(first, "Split") && is_byte_level(second, false))
        return read_split(d, first);
    char found[96];
    snprintf(found, sizeof found, "%.30s%s%.30s", text_of(first, "type"), second ? " + " : "",
             text_of(second, "type"));
    return refuse(d, "pre_tokenizer", found);
}

static int check_model(const struct Folder *d, const cJSON *model)
{
    if (!has_type(model, "BPE")) return refuse(d, "model", text_of(model, "type"));
    if (cJSON_IsTrue(get(model, "byte_fallback")))
        return refuse(d, "model", "BPE with byte_fallback");
    const cJSON *normalizer = get(d->tokenizer, "normalizer");
    if (normalizer && !has_type(normalizer, "NFC"))
        return refuse(d, "normalizer", text_of(normalizer, "type"));
    return 0;
}

/* ==== Tokens ==== */

static int keep_text(const struct Folder *d, const char *text, struct Slice *out)
{
    size_t len = strlen(text);
    char *copy = model_keep(d->f, len + 1, 1);
    if (!copy) return PC_ENOMEM;
    *out = (struct Slice){memcpy(copy, text, len + 1), len};
    return 0;
}

static int token_id(const struct Folder *d, const cJSON *item, const char *text, int *out)
{
    uint64_t id;
    if (!json_whole(item, MAX_VOCAB - 1, &id)) {
        return err_set(PC_EFORMAT, "%s: tokenizer.json: the id of token \"%.40s\" is not 0 to %d",
                       d->f->path, text, MAX_VOCAB - 1);
    }
    *out = (int)id;
    return 0;
}

/* Sets n_tokens to the highest id + 1, and *text_len to what all pieces take. */
static int count_tokens(const struct Folder *d, const cJSON *vocab, const cJSON *added,
                        size_t *text_len)
{
    const cJSON *item;
    int id = 0, top = -1;
    *text_len = 0;
    cJSON_ArrayForEach(item, vocab)
    {
        TRY(token_id(d, item, item->string, &id));
        if (id > top) top = id;
        *text_len += strlen(item->string);
    }
    cJSON_ArrayForEach(item, added)
    {
        TRY(token_id(d, get(item, "id"), text_of(item, "content"), &id));
        if (id > top) top = id;
        *text_len += strlen(text_of(item, "content"));
    }
    if (!cJSON_IsObject(vocab) || top < 0) {
        return err_set(PC_EFORMAT, "%s: tokenizer.json: the vocabulary is missing", d->f->path);
    }
    d->v->n_tokens = top + 1;
    return 0;
}

static void place_token(struct VocabSpec *v, int id, const char *text, enum TokenType type,
                        char **room)
{
    size_t len = strlen(text);
    v->tokens[id] = (struct Slice){memcpy(*room, text, len), len};
    v->types[id] = (uint8_t)type;
    *room += len;
}

static int read_tokens(const struct Folder *d, const cJSON *vocab)
{
    struct VocabSpec *v = d->v;
    const cJSON *added = get(d->tokenizer, "added_tokens"), *item;
    size_t text_len = 0;
    int id = 0;
    TRY(count_tokens(d, vocab, added, &text_len));
    char *room = model_keep(d->f, text_len + 1, 1);
    v->tokens = model_keep(d->f, (size_t)v->n_tokens, sizeof *v->tokens);
    v->types = model_keep(d->f, (size_t)v->n_tokens, 1);
    if (!room || !v->tokens || !v->types) return PC_ENOMEM;
    for (int i = 0; i < v->n_tokens; i++) { /* ids nobody has keep an empty text */
        v->tokens[i].data = room;
        v->types[i] = TOKEN_UNUSED;
    }
    cJSON_ArrayForEach(item, vocab)
    {
        TRY(token_id(d, item, item->string, &id));
        if (v->types[id] != TOKEN_UNUSED) {
            return err_set(PC_EFORMAT, "%s: tokenizer.json: two tokens have id %d", d->f->path, id);
        }
        place_token(v, id, item->string, TOKEN_NORMAL, &room);
    }
    cJSON_ArrayForEach(item, added)
    {
        TRY(token_id(d, get(item, "id"), text_of(item, "content"), &id));
        enum TokenType type = cJSON_IsTrue(get(item, "special")) ? TOKEN_CONTROL : TOKEN_USER;
        place_token(v, id, text_of(item, "content"), type, &room);
    }
    return 0;
}

/* A merge is "left right" or, in newer files, ["left", "right"]; both become the former. */
static int merge_sides(const struct Folder *d, const cJSON *item, int i, const char *sides[2])
{
    const cJSON *left = cJSON_IsArray(item) ? item->child : NULL, *right = left ? left->next : NULL;
    bool pair = right && !right->next && cJSON_IsString(left) && cJSON_IsString(right);
    if (!pair && !cJSON_IsString(item)) {
        return err_set(PC_EFORMAT, "%s: tokenizer.json: merge %d is neither a string nor a pair",
                       d->f->path, i);
    }
    sides[0] = pair ? left->valuestring : item->valuestring;
    sides[1] = pair ? right->valuestring : NULL;
    return 0;
}

static int read_merges(const struct Folder *d, const cJSON *merges)
{
    struct VocabSpec *v = d->v;
    const cJSON *item;
    const char *sides[2];
    size_t text_len = 0;
    int i = 0, n = cJSON_GetArraySize(merges);
    if (!cJSON_IsArray(merges) || n > MAX_VOCAB) {
        return err_set(PC_EFORMAT, "%s: tokenizer.json: merges must be an array of at most %d",
                       d->f->path, MAX_VOCAB);
    }
    cJSON_ArrayForEach(item, merges)
    {
        TRY(merge_sides(d, item, i++, sides));
        text_len += strlen(sides[0]) + (sides[1] ? 1 + strlen(sides[1]) : 0);
    }
    char *room = model_keep(d->f, text_len + 1, 1);
    v->merges = model_keep(d->f, (size_t)n, sizeof *v->merges);
    if (!room || !v->merges) return PC_ENOMEM;
    cJSON_ArrayForEach(item, merges)
    {
        TRY(merge_sides(d, item, v->n_merges, sides));
        char *begin = room;
        room = stpcpy(room, sides[0]);
        if (sides[1]) {
            *room++ = ' ';
            room = stpcpy(room, sides[1]);
        }
        v->merges[v->n_merges++] = (struct Slice){begin, (size_t)(room - begin)};
    }
    return 0;
}

/* ==== Special tokens ==== */

/* The id of a token given as text, or as an object with "content"; -1 when there is none. */
static int named_id(const struct Folder *d, const char *name)
{
    const cJSON *item = get(d->settings, name);
    const char *text = cJSON_IsString(item) ? item->valuestring : text_of(item, "content");
    size_t len = strlen(text);
    for (int i = 0; len > 0 && i < d->v->n_tokens; i++) {
        if (d->v->tokens[i].len == len && memcmp(d->v->tokens[i].data, text, len) == 0) return i;
    }
    return -1;
}

/* First and last id of a number or a list of numbers; false when it is neither. */
static bool id_range(const struct Folder *d, const cJSON *item, int *first, int *last)
{
    const cJSON *each = cJSON_IsArray(item) ? item->child : item;
    uint64_t id;
    bool found = false;
    for (; each; each = cJSON_IsArray(item) ? each->next : NULL) {
        if (!json_whole(each, d->v->n_tokens - 1, &id)) return false;
        if (!found) *first = (int)id;
        *last = (int)id;
        found = true;
    }
    return found;
}

/* A text that a TemplateProcessing step puts before every input means a BOS token. */
static bool template_adds_bos(const cJSON *step)
{
    const cJSON *each;
    if (has_type(step, "Sequence")) {
        cJSON_ArrayForEach(each, get(step, "processors"))
        {
            if (has_type(each, "TemplateProcessing")) return template_adds_bos(each);
        }
        return false;
    }
    const cJSON *single = has_type(step, "TemplateProcessing") ? get(step, "single") : NULL;
    return cJSON_IsArray(single) && single->child && get(single->child, "SpecialToken");
}

static void read_special(const struct Folder *d)
{
    struct VocabSpec *v = d->v;
    int first = -1, last = -1, ignored;
    v->bos_id = named_id(d, "bos_token");
    if (v->bos_id < 0) id_range(d, get(d->f->config, "bos_token_id"), &v->bos_id, &ignored);
    if (!id_range(d, get(d->generation, "eos_token_id"), &first, &last)) {
        id_range(d, get(d->f->config, "eos_token_id"), &first, &last);
    }
    int spoken = named_id(d, "eos_token"); /* the one chat models end a turn with */
    v->eos_id = first >= 0 ? first : spoken;
    v->eot_id = spoken >= 0 && spoken != v->eos_id ? spoken : last != v->eos_id ? last : -1;
    v->unk_id = named_id(d, "unk_token");
    v->pad_id = named_id(d, "pad_token");
    const cJSON *add_bos = get(d->settings, "add_bos_token");
    v->add_bos =
        add_bos ? cJSON_IsTrue(add_bos) : template_adds_bos(get(d->tokenizer, "post_processor"));
    v->add_bos = v->add_bos && v->bos_id >= 0;
    v->add_eos = cJSON_IsTrue(get(d->settings, "add_eos_token"));
}

static int read_template_file(const struct Folder *d)
{
    struct Str path = {0}, text = {0};
    int status;
    TRY_GOTO(str_appendf(&path, "%s/chat_template.jinja", d->f->path));
    if (access(path.data, F_OK) != 0) goto fail;
    TRY_GOTO(file_read(path.data, &text));
    if (text.len > 0) TRY_GOTO(keep_text(d, text.data, &d->v->chat_template));
fail:
    str_free(&path);
    str_free(&text);
    return status;
}

static int read_template(const struct Folder *d)
{
    const cJSON *item = get(d->settings, "chat_template"), *each;
    if (cJSON_IsString(item)) return keep_text(d, item->valuestring, &d->v->chat_template);
    cJSON_ArrayForEach(each, item)
    { /* a list of named templates */
        if (strcmp(text_of(each, "name"), "default") == 0) {
            return keep_text(d, text_of(each, "template"), &d->v->chat_template);
        }
    }
    return read_template_file(d);
}

int model_hf_vocab(struct ModelFile *f, struct VocabSpec *v)
{
    struct Folder d = {.f = f, .v = v};
    int status;
    TRY_GOTO(folder_json(f->path, "tokenizer.json", true, &d.tokenizer, NULL));
    TRY_GOTO(folder_json(f->path, "tokenizer_config.json", false, &d.settings, NULL));
    TRY_GOTO(folder_json(f->path, "generation_config.json", false, &d.generation, NULL));
    const cJSON *model = get(d.tokenizer, "model");
    v->kind = VOCAB_BPE;
    TRY_GOTO(check_model(&d, model));
    TRY_GOTO(read_pre_tokenizer(&d));
    TRY_GOTO(read_tokens(&d, get(model, "vocab")));
    TRY_GOTO(read_merges(&d, get(model, "merges")));
    read_special(&d);
    TRY_GOTO(read_template(&d));
fail:
    cJSON_Delete(d.tokenizer);
    cJSON_Delete(d.settings);
    cJSON_Delete(d.generation);
    return status;
}
