/* gen_qa.c - qa_1 and qa_2: a question of the user's own set among the documents of that set.
 *
 * SQuAD: one paragraph answers; those of its article come next, then any. HotpotQA: the ten documents
 * of the question come first, then any.
 */
#include "gen_task.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

struct Docs {
    const struct Gen *g;
    struct Units *u;
    bool hotpot;
    cJSON *json;
    char **texts; /* [n] sorted, all different */
    int64_t n, cap;
    int64_t *order; /* [n] the documents needed, then the others in drawn order */
    int64_t needed;
    const cJSON *question, *article; /* the one asked; SQuAD: its article */
    int64_t answering;               /* SQuAD: its paragraph */
};

static int bad_set(const char *why)
{
    return err_set(PC_EFORMAT, "the question set %s; give SQuAD 2 JSON for qa_1, HotpotQA for qa_2",
                   why);
}

/* ==== Documents ==== */

static int doc_push(struct Docs *d, const char *text, size_t len)
{
    if (d->n == d->cap) {
        int64_t cap = d->cap ? 2 * d->cap : 1024;
        char **texts = d->texts ? mem_grow(d->texts, (size_t)d->cap, (size_t)cap, sizeof *texts)
                                : mem_alloc((size_t)cap, sizeof *texts);
        if (!texts) return PC_ENOMEM;
        d->texts = texts;
        d->cap = cap;
    }
    char *copy = mem_alloc(len + 1, 1);
    if (!copy) return PC_ENOMEM;
    memcpy(copy, text, len);
    d->texts[d->n++] = copy;
    return PC_OK;
}

static const cJSON *get(const cJSON *of, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(of, key);
}

/* The first of an array's items, or NULL; ->next follows. */
static const cJSON *first(const cJSON *of)
{
    return of ? of->child : NULL;
}

/* HotpotQA's ["title", ["sentence", …]] as one text. */
static int hotpot_text(const cJSON *pair, struct Str *out)
{
    const cJSON *title = cJSON_GetArrayItem(pair, 0);
    if (!cJSON_IsString(title)) return bad_set("has a document without a title");
    TRY(str_appendf(out, "%s\n", title->valuestring));
    const cJSON *sentence = first(cJSON_GetArrayItem(pair, 1));
    for (; sentence; sentence = sentence->next)
        if (cJSON_IsString(sentence))
            TRY(str_append(out, sentence->valuestring, strlen(sentence->valuestring)));
    return PC_OK;
}

static int hotpot_docs(struct Docs *d)
{
    struct Str text = {0};
    int status = PC_OK;
    for (const cJSON *item = first(d->json); item; item = item->next)
        for (const cJSON *pair = first(get(item, "context")); pair; pair = pair->next) {
            str_clear(&text);
            if (status == PC_OK) status = hotpot_text(pair, &text);
            if (status == PC_OK) status = doc_push(d, text.data, text.len);
        }
    str_free(&text);
    return status;
}

static int article_docs(struct Docs *d, const cJSON *article)
{
    for (const cJSON *p = first(get(article, "paragraphs")); p; p = p->next) {
        const cJSON *text = get(p, "context");
        if (!cJSON_IsString(text)) return bad_set("has a paragraph without a context");
        TRY(doc_push(d, text->valuestring, strlen(text->valuestring)));
    }
    return PC_OK;
}

static int squad_docs(struct Docs *d)
{
    const cJSON *article = first(get(d->json, "data"));
    for (; article; article = article->next) TRY(article_docs(d, article));
    return PC_OK;
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void docs_unique(struct Docs *d)
{
    int64_t kept = 0;
    if (d->n) qsort(d->texts, (size_t)d->n, sizeof *d->texts, compare_texts);
    for (int64_t i = 0; i < d->n; i++) {
        if (kept && strcmp(d->texts[kept - 1], d->texts[i]) == 0)
            mem_free(d->texts[i]);
        else
            d->texts[kept++] = d->texts[i];
    }
    d->n = kept;
}

static int64_t doc_find(const struct Docs *d, const char *text)
{
    char **found = bsearch(&text, d->texts, (size_t)d->n, sizeof *d->texts, compare_texts);
    return found ? found - d->texts : -1;
}

/* ==== The question ==== */

static bool answerable(const cJSON *qa)
{
    return cJSON_IsString(get(qa, "question")) && !cJSON_IsTrue(get(qa, "is_impossible")) &&
           cJSON_GetArraySize(get(qa, "answers")) > 0;
}

/* Counts the answerable questions of an article on from n; the one of number `wanted` becomes
 * d->question. */
static int64_t article_questions(struct Docs *d, const cJSON *article, int64_t n, int64_t wanted)
{
    for (const cJSON *p = first(get(article, "paragraphs")); p; p = p->next)
        for (const cJSON *qa = first(get(p, "qas")); qa; qa = qa->next) {
            if (!answerable(qa) || n++ != wanted) continue;
            d->question = qa;
            d->article = article;
            d->answering = doc_find(d, get(p, "context")->valuestring);
        }
    return n;
}

static int64_t squad_questions(struct Docs *d, int64_t wanted)
{
    int64_t n = 0;
    const cJSON *article = first(get(d->json, "data"));
    for (; article; article = article->next) n = article_questions(d, article, n, wanted);
    return n;
}

/* Questions come in drawn order, none twice before all had their turn. */
static int question_pick(struct Docs *d)
{
    int64_t n = d->hotpot ? cJSON_GetArraySize(d->json) : squad_questions(d, -1);
    if (n < 1 || d->n < 1) return bad_set("holds no question");
    uint64_t turn = (uint64_t)(d->g->spec->index % n);
    int64_t at = (int64_t)rng_place(rng_join(d->g->spec->seed, DRAW_PICK), turn, (uint64_t)n);
    if (d->hotpot)
        d->question = cJSON_GetArrayItem(d->json, (int)at);
    else
        squad_questions(d, at);
    return cJSON_IsString(get(d->question, "question")) ? PC_OK : bad_set("has no question text");
}

static int question_write(struct Gen *g, const struct Docs *d)
{
    const char *question = get(d->question, "question")->valuestring;
    TRY(str_append(&g->out->input, question, strlen(question)));
    const cJSON *one = get(d->question, "answer");
    if (d->hotpot)
        return cJSON_IsString(one) ? gen_answer(g, one->valuestring, strlen(one->valuestring))
                                   : bad_set("has a question without an answer");
    const cJSON *answer = first(get(d->question, "answers"));
    for (; answer; answer = answer->next) {
        const char *text = cJSON_GetStringValue(get(answer, "text"));
        bool again = !text;
        for (int i = 0; i < g->out->n_answers && !again; i++)
            again = strcmp(g->out->answers[i].data, text) == 0;
        if (!again) TRY(gen_answer(g, text, strlen(text)));
    }
    return PC_OK;
}

/* ==== Which documents, in which order ==== */

/* Moves the documents that `marked` names to the front of the drawn order, keeping it else. */
static int64_t order_front(struct Docs *d, int64_t from, const bool *marked, int64_t *spare)
{
    int64_t front = from, n_spare = 0;
    for (int64_t i = from; i < d->n; i++) {
        if (marked[d->order[i]])
            d->order[front++] = d->order[i];
        else
            spare[n_spare++] = d->order[i];
    }
    memcpy(d->order + front, spare, (size_t)n_spare * sizeof *spare);
    return front;
}

static int mark_hotpot(const struct Docs *d, bool *marked)
{
    struct Str text = {0};
    int status = PC_OK;
    for (const cJSON *pair = first(get(d->question, "context")); pair; pair = pair->next) {
        str_clear(&text);
        if (status == PC_OK) status = hotpot_text(pair, &text);
        if (status == PC_OK) marked[doc_find(d, text.data)] = true;
    }
    str_free(&text);
    return status;
}

static void mark_article(const struct Docs *d, bool *marked)
{
    for (const cJSON *p = first(get(d->article, "paragraphs")); p; p = p->next)
        marked[doc_find(d, get(p, "context")->valuestring)] = true;
}

static int order_settle(struct Docs *d, bool *marked, int64_t *spare)
{
    for (int64_t i = 0; i < d->n; i++)
        d->order[i] =
            (int64_t)rng_place(rng_join(d->g->key, DRAW_ORDER), (uint64_t)i, (uint64_t)d->n);
    if (d->hotpot)
        TRY(mark_hotpot(d, marked));
    else
        marked[d->answering] = true;
    d->needed = order_front(d, 0, marked, spare);
    if (d->hotpot) return PC_OK;
    mark_article(d, marked);
    order_front(d, d->needed, marked, spare);
    return PC_OK;
}

static int docs_order(struct Docs *d)
{
    bool *marked = mem_alloc((size_t)d->n, sizeof *marked);
    int64_t *spare = mem_alloc((size_t)d->n, sizeof *spare);
    d->order = mem_alloc((size_t)d->n, sizeof *d->order);
    int status = marked && spare && d->order ? order_settle(d, marked, spare) : PC_ENOMEM;
    mem_free(marked);
    mem_free(spare);
    return status;
}

/* ==== The context ==== */

/* Document i; drawn anew, one from the end of the order that is not in the list, if any is left. */
static int doc_unit(void *user, int64_t i, int again, struct Str *out)
{
    const struct Docs *d = user;
    int64_t at = again ? d->n - GEN_REDRAW * (int64_t)again - i % GEN_REDRAW : i;
    if (at < d->u->n || i < d->needed) at = i;
    return str_appendf(out, "Document %lld:\n%s\n\n", (long long)i + 1, d->texts[d->order[at]]);
}

/* Whether a needed document holds what answers: for HotpotQA one of the supporting facts' titles. */
static bool doc_answers(const struct Docs *d, const char *text)
{
    const cJSON *facts = get(d->question, "supporting_facts");
    if (!d->hotpot || !facts) return true;
    for (const cJSON *fact = first(facts); fact; fact = fact->next) {
        const char *title = cJSON_GetStringValue(cJSON_GetArrayItem(fact, 0));
        size_t len = title ? strlen(title) : 0;
        if (title && strncmp(text, title, len) == 0 && text[len] == '\n') return true;
    }
    return false;
}

static int docs_write(struct Gen *g, const struct Docs *d)
{
    struct Str *context = &g->out->context;
    uint64_t key = rng_join(rng_join(g->key, DRAW_ORDER), 1);
    TRY(str_reserve(context, d->u->text.len));
    TRY(gen_places(g, (int)d->needed));
    for (int64_t i = 0; i < d->u->n; i++) {
        int64_t at = (int64_t)rng_place(key, (uint64_t)i, (uint64_t)d->u->n);
        struct Slice unit = units_at(d->u, at);
        const char *text = memchr(unit.data, '\n', unit.len);
        size_t len = unit.len - (size_t)(++text - unit.data);
        if (at < d->needed && doc_answers(d, text)) gen_place(g, context->len);
        TRY(str_appendf(context, "Document %lld:\n", (long long)i + 1));
        TRY(str_append(context, text, len));
    }
    context->len -= 2; /* the blank line stands between documents only */
    context->data[context->len] = '\0';
    return question_write(g, d);
}

static int docs_fill(struct Gen *g, struct Docs *d, int64_t budget)
{
    enum { NEAR = 8 }; /* tokens that a set may be short of the length */
    struct Units *u = d->u;
    u->least = d->needed;
    u->most = d->n;
    TRY(units_fill(g, u, budget, 0));
    g->estimate = u->tokens;
    if (u->n == d->n && budget - u->tokens > NEAR)
        return err_set(PC_ERANGE, "the question set has %lld tokens of documents; %lld were wanted",
                       (long long)u->tokens, (long long)budget);
    return docs_write(g, d);
}

static int docs_build(struct Gen *g, struct Docs *d, int64_t budget)
{
    d->json = cJSON_ParseWithLength(g->spec->qa->data, g->spec->qa->len);
    if (!d->json) return bad_set("is not JSON");
    TRY(d->hotpot ? hotpot_docs(d) : squad_docs(d));
    docs_unique(d);
    TRY(question_pick(d));
    TRY(docs_order(d));
    return docs_fill(g, d, budget);
}

int gen_qa(struct Gen *g, int64_t budget)
{
    struct Docs d = {.g = g, .hotpot = strcmp(g->how, "hotpotqa") == 0};
    struct Units u = {.unit = doc_unit, .user = &d, .before = "The end.\n\n", .redraw = GEN_REDRAW};
    d.u = &u;
    int status = docs_build(g, &d, budget);
    units_free(&u);
    for (int64_t i = 0; i < d.n; i++) mem_free(d.texts[i]);
    mem_free(d.texts);
    mem_free(d.order);
    cJSON_Delete(d.json);
    return status;
}
