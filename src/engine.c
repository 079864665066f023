/* engine.c - opens what outlives a run: model, tokenizer, chat template, backend. */
#include "geometry.h"
#include "session.h"

#include <omp.h>
#include <stdio.h>
#include <string.h>

static int open_chat(struct Engine *e)
{
    const char *name = e->settings.chat_template;
    if (strcmp(name, "auto")) return chat_by_name(name, &e->chat);
    return chat_detect(e->model.vocab.chat_template, &e->chat);
}

/* The head map that the settings name; one that is not in use any more goes. */
static int open_heads(struct Engine *e)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct HeadShape shape = {m->n_layers, m->n_heads, m->n_kv_heads};
    struct HeadMap map = {0};
    if (*e->settings.heads) TRY(headmap_read(e->settings.heads, &shape, &map));
    headmap_close(&e->heads);
    e->heads = map;
    if (map.model_hash && map.model_hash != e->model.hash)
        log_msg(LOG_WARN, "%s was made for another model than %s", e->settings.heads, m->name);
    return PC_OK;
}

static bool wants_chunks(const struct Settings *set)
{
    return set->early != EARLY_OFF || set->chunk_score == SCORE_ATTENTION ||
           set->chunk_score == SCORE_AUTO;
}

/* The profile that early and the score by attention go by, where one of them is on. */
static int open_chunks(struct Engine *e)
{
    const struct ModelConfig *m = &e->model.cfg;
    const struct Settings *set = &e->settings;
    struct ChunkProfile profile = {0};
    char found[1024] = "";
    const char *path = set->chunk_profile;
    if (wants_chunks(set) && !*path) TRY(chunk_profile_find(e->model.hash, found, sizeof found));
    if (!*path) path = found;
    if (wants_chunks(set) && *path)
        TRY(chunk_profile_read(path, m->n_layers, m->n_kv_heads, &profile));
    e->chunks = profile;
    if (profile.n_stops && profile.model_hash != e->model.hash)
        log_msg(LOG_WARN, "%s was made for another model than %s", path, m->name);
    return PC_OK;
}

static int open_device(struct Engine *e)
{
    if (e->settings.threads == AUTO) e->settings.threads = omp_get_num_procs();
    struct DeviceOptions o = {.model = &e->model,
                              .precision = e->settings.precision,
                              .kv_type = e->settings.kv_type,
                              .threads = e->settings.threads,
                              .isa = e->settings.isa,
                              .gpu_memory = e->settings.gpu_memory};
    TRY(backend_by_name(e->settings.backend, &e->be));
    return e->be->open(&o, &e->dev);
}

size_t engine_made_bytes(const struct Engine *e)
{
    return e->model.geometry && !e->be->makes_weights ? geometry_bytes(&e->model) : 0;
}

size_t engine_available(const struct Engine *e, struct DeviceLimits *limits)
{
    e->be->limits(e->dev, limits);
    if (e->settings.memory && !limits->own_memory) return e->settings.memory;
    limits->memory += e->resident.bytes; /* used again, or given back */
    if (limits->most && limits->memory > limits->most) limits->memory = limits->most;
    return limits->memory + (e->model.tok_embd.data ? engine_made_bytes(e) : 0);
}

int engine_weights(struct Engine *e)
{
    struct DeviceLimits limits;
    if (!engine_made_bytes(e) || e->model.tok_embd.data) return PC_OK;
    return geometry_materialise(&e->model, e->settings.threads, engine_available(e, &limits));
}

int engine_open(const char *model_path, const struct Settings *settings, struct Engine **out)
{
    struct Engine *e = mem_alloc(1, sizeof *e);
    int status = PC_OK;
    if (!e) return PC_ENOMEM;
    e->alone.size = 1;
    e->settings = *settings;
    e->team = &e->alone;
    TRY_GOTO(model_open(model_path, &e->model));
    e->file_bytes = e->model.weight_bytes;
    TRY_GOTO(tokenizer_open(&e->model.vocab, &e->tok));
    if (e->model.vocab.n_tokens > e->model.cfg.vocab_size)
        TRY_GOTO(err_set(PC_EFORMAT, "%s: the vocabulary has %d tokens, the embedding %d",
                         model_path, e->model.vocab.n_tokens, e->model.cfg.vocab_size));
    TRY_GOTO(open_chat(e));
    TRY_GOTO(open_heads(e));
    TRY_GOTO(open_chunks(e));
    TRY_GOTO(open_device(e));
    TRY_GOTO(peers_open(&e->peers, e->be, e->dev, &e->alone));
    *out = e;
    return PC_OK;
fail:
    engine_close(e);
    return status;
}

void engine_close(struct Engine *e)
{
    if (!e) return;
    resident_close(e);
    if (e->dev) e->be->close(e->dev);
    headmap_close(&e->heads);
    if (e->tok) tokenizer_close(e->tok);
    if (e->model.source) model_close(&e->model);
    mem_free(e);
}

/* Rank 0 says what its user should know of the others' devices. */
static void say_peers(const struct Engine *e)
{
    const struct Peers *p = &e->peers;
    if (p->team->rank > 0) return;
    if (p->sharers > 1)
        log_msg(LOG_INFO, "%d of %d ranks share a GPU: each may use its part of the memory",
                p->sharers, p->team->size);
    if (p->none)
        log_msg(LOG_INFO, "keys and values of other ranks come through the host: %s", p->none);
    if (p->direct) log_msg(LOG_INFO, "%d GPUs, joined by NCCL", p->team->size);
}

int engine_join(struct Engine *e, struct Team *team)
{
    if (team->size <= 1) return PC_OK;
    e->team = team;
    TRY(peers_open(&e->peers, e->be, e->dev, team));
    say_peers(e);
    return PC_OK;
}

const struct Model *engine_model(const struct Engine *e)
{
    return &e->model;
}
const struct Tokenizer *engine_tokenizer(const struct Engine *e)
{
    return e->tok;
}
const struct Settings *engine_settings(const struct Engine *e)
{
    return &e->settings;
}
const char *engine_device(const struct Engine *e)
{
    return e->be->describe(e->dev);
}

bool engine_on_gpu(const struct Engine *e)
{
    struct DeviceLimits limits;
    e->be->limits(e->dev, &limits);
    return limits.own_memory;
}

int engine_configure(struct Engine *e, const struct Settings *settings)
{
    struct Settings old = e->settings;
    const struct Settings *n = settings;
    bool same = !strcmp(old.backend, n->backend) && !strcmp(old.isa, n->isa) &&
                old.precision == n->precision && old.kv_type == n->kv_type &&
                old.gpu_memory == n->gpu_memory &&
                (n->threads == AUTO || n->threads == old.threads);
    if (!same)
        return err_set(
            PC_ECONFIG,
            "backend, isa, precision, kv_type, gpu_memory and threads are fixed once the engine is open (%s)",
            engine_device(e));
    e->settings = *settings;
    e->settings.threads = old.threads;
    int status = open_chat(e);
    if (status == PC_OK && strcmp(old.heads, n->heads)) status = open_heads(e);
    if (status == PC_OK &&
        (wants_chunks(&old) != wants_chunks(n) || strcmp(old.chunk_profile, n->chunk_profile)))
        status = open_chunks(e);
    if (status < 0) e->settings = old;
    return status;
}
