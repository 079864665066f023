/* store.c - the layout of a document store and its reader: see store.h. What a file says is believed only when its
 * hashes are right, and even then no size or index is used that was not checked.
 */
#include "store_parts.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* ==== Layout ==== */

struct HeadEnds store_tokens(const struct StoreInfo *info, int head, int n)
{
    bool capped = info->cap && info->cap < n;
    if (!info->streams || !info->streams[head]) return (struct HeadEnds){capped ? info->cap : n, 0};
    return headmap_ends(info->sinks, info->recent, info->n_prefix, n);
}

size_t store_pages_before(const struct StoreInfo *info, int layer, int n)
{
    size_t pages = 0;
    for (int h = 0; h < layer * info->n_kv_heads; h++) {
        struct HeadEnds t = store_tokens(info, h, n);
        pages += ((size_t)t.first + (size_t)t.last + PAGE_TOKENS - 1) / PAGE_TOKENS;
    }
    return pages;
}

size_t store_pages(const struct StoreInfo *info, int n)
{
    return store_pages_before(info, info->n_layers, n);
}

static bool round_up(size_t at, size_t step, size_t *out)
{
    if (!size_add(at, step - 1, out)) return false;
    *out -= *out % step;
    return true;
}

/* The place behind n elements of `size` bytes at *at. */
static bool behind(size_t *at, size_t n, size_t size)
{
    size_t bytes;
    return size_mul(n, size, &bytes) && size_add(*at, bytes, &bytes) &&
           round_up(bytes, STORE_ALIGN, at);
}

bool store_body(const struct StoreInfo *info, struct StoreBody *out)
{
    size_t at = sizeof(struct StoreHead);
    const struct {
        size_t *place, n, size;
    } parts[] = {
        {&out->streams, (size_t)info->n_layers * (size_t)info->n_kv_heads, 1},
        {&out->prefix, (size_t)info->n_prefix, sizeof(int32_t)},
        {&out->context, (size_t)info->n_context, sizeof(int32_t)},
        {&out->chunks, (size_t)info->n_chunks, sizeof(struct Chunk)},
        {&out->offset, (size_t)info->n_context + 1, sizeof(uint64_t)},
        {&out->settings, info->settings.len, 1},
        {&out->text, info->text.len, 1},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        *parts[i].place = at;
        if (!behind(&at, parts[i].n, parts[i].size)) return false;
    }
    return round_up(at, STORE_SECTION, &out->end);
}

static size_t aligned(size_t bytes)
{
    return (bytes + STORE_ALIGN - 1) / STORE_ALIGN * STORE_ALIGN;
}

size_t store_last_bytes(const struct StoreInfo *info)
{
    return aligned((size_t)info->dim * sizeof(float));
}

size_t store_mark_bytes(const struct StoreInfo *info, int n)
{
    return info->cap && info->cap < n ? ((size_t)n + 7) / 8 : 0;
}

size_t store_marks_bytes(const struct StoreInfo *info, int n)
{
    size_t heads = (size_t)info->n_layers * (size_t)info->n_kv_heads;
    return aligned(heads * store_mark_bytes(info, n));
}

size_t store_section_bytes(const struct StoreInfo *info, int chunk)
{
    int len = info->chunks[chunk].end - info->chunks[chunk].begin;
    size_t bytes, front = sizeof(struct SectionHead) + store_last_bytes(info);
    bool counted = size_mul(store_pages(info, len), info->page_bytes, &bytes) &&
                   size_add(bytes, front + store_marks_bytes(info, len), &bytes) &&
                   round_up(bytes, STORE_SECTION, &bytes);
    return counted ? bytes : 0;
}

/* Where the sections end, from where they begin. */
static bool sections_end(const struct StoreInfo *info, size_t begin, size_t *end)
{
    *end = begin;
    for (int c = 0; c < info->n_chunks; c++) {
        size_t bytes = store_section_bytes(info, c);
        if (bytes == 0 || !size_add(*end, bytes, end)) return false;
    }
    return true;
}

int store_bytes(const struct StoreInfo *info, size_t *bytes)
{
    struct StoreBody body;
    if (store_body(info, &body) && sections_end(info, body.end, bytes) &&
        size_add(*bytes, sizeof(struct StoreTrailer), bytes))
        return PC_OK;
    return err_set(PC_ERANGE, "a store of %d chunks is larger than can be counted", info->n_chunks);
}

uint64_t store_section_hash(const uint8_t *section, size_t bytes, uint64_t seed)
{
    size_t head = sizeof(struct SectionHead);
    seed = hash64(section, offsetof(struct SectionHead, hash), seed);
    return hash64(section + head, bytes - head, seed);
}

void store_trailer(size_t bytes, uint64_t seed, struct StoreTrailer *out)
{
    memset(out, 0, sizeof *out);
    memcpy(out->magic, TRAILER_MAGIC, sizeof out->magic);
    out->bytes = bytes;
    out->hash = hash64(out, offsetof(struct StoreTrailer, hash), seed);
}

/* ==== Checks ==== */

static int damaged(const struct Store *s, const char *what)
{
    return err_set(PC_EFORMAT,
                   "%s: the store is damaged: %s; delete it and run `pcomp index` again", s->path,
                   what);
}

static int check_magic(const struct Store *s, const struct StoreHead *h)
{
    if (s->map.len < sizeof *h || memcmp(h->magic, STORE_MAGIC, sizeof h->magic))
        return err_set(PC_EFORMAT,
                       "%s: is no document store; `pcomp index FILE -o STORE` makes one", s->path);
    if (h->version < STORE_WHOLE || h->version > STORE_CAPPED || h->head_bytes != sizeof *h)
        return err_set(PC_EFORMAT,
                       "%s: is a store of version %u, and this program reads versions up to %d; "
                       "run `pcomp index` again",
                       s->path, h->version, STORE_CAPPED);
    if (h->hash != hash64(h, offsetof(struct StoreHead, hash), 0))
        return damaged(s, "its head does not fit its hash");
    return PC_OK;
}

/* Sizes that no arithmetic here overflows with. */
static bool sizes_good(const struct StoreHead *h)
{
    enum { MOST_HEADS = 1 << 16, MOST_DIM = 1 << 20, MOST_PAGE = 1 << 24 };
    uint32_t most = INT32_MAX / 2;
    return h->page_tokens == PAGE_TOKENS && h->n_layers && h->n_kv_heads &&
           (uint64_t)h->n_layers * h->n_kv_heads <= MOST_HEADS && h->dim && h->dim <= MOST_DIM &&
           h->page_bytes && h->page_bytes <= MOST_PAGE && h->sinks <= most && h->recent <= most &&
           h->n_prefix <= most && h->n_context && h->n_context <= most && h->n_chunks &&
           h->n_chunks <= h->n_context && h->chunk_tokens && h->chunk_tokens <= most &&
           h->cap <= most && (h->cap != 0) == (h->version == STORE_CAPPED) &&
           h->n_all <= INT64_MAX && h->rope_factor >= 1 && h->rope_factor <= 1e6 &&
           h->page_format[sizeof h->page_format - 1] == '\0';
}

static void take_head(const struct StoreHead *h, struct StoreInfo *out)
{
    *out = (struct StoreInfo){
        .model_hash = h->model_hash,
        .heads_hash = h->heads_hash,
        .page_bytes = h->page_bytes,
        .n_layers = (int)h->n_layers,
        .n_kv_heads = (int)h->n_kv_heads,
        .dim = (int)h->dim,
        .sinks = (int)h->sinks,
        .recent = (int)h->recent,
        .cap = (int)h->cap,
        .n_prefix = (int)h->n_prefix,
        .n_context = (int)h->n_context,
        .n_chunks = (int)h->n_chunks,
        .chunk_tokens = (int)h->chunk_tokens,
        .n_all = (int64_t)h->n_all,
        .rope_factor = h->rope_factor,
        .settings = {NULL, h->settings_bytes},
        .text = {NULL, h->text_bytes},
    };
    memcpy(out->page_format, h->page_format, sizeof out->page_format);
}

static void place_body(struct Store *s, const struct StoreBody *b)
{
    const uint8_t *file = s->map.data;
    s->info.streams = file + b->streams;
    s->info.prefix = (const int *)(const void *)(file + b->prefix);
    s->info.context = (const int *)(const void *)(file + b->context);
    s->info.chunks = (const struct Chunk *)(const void *)(file + b->chunks);
    s->info.offset = (const size_t *)(const void *)(file + b->offset);
    s->info.settings.data = (const char *)file + b->settings;
    s->info.text.data = (const char *)file + b->text;
}

/* Chunks cover the context in order; offsets ascend and end with the text. */
static bool body_good(const struct StoreInfo *i)
{
    for (int h = 0; h < i->n_layers * i->n_kv_heads; h++)
        if (i->streams[h] > 1 || (i->streams[h] && i->recent == 0)) return false;
    for (int c = 0, end = 0; c < i->n_chunks; end = i->chunks[c++].end) {
        const struct Chunk *k = &i->chunks[c];
        if (k->begin < 0 || k->begin > end || k->end <= end || k->end > i->n_context ||
            k->end - k->begin > i->chunk_tokens || (c && k->begin <= k[-1].begin))
            return false;
    }
    for (int t = 0; t < i->n_context; t++)
        if (i->offset[t] > i->offset[t + 1]) return false;
    return i->chunks[i->n_chunks - 1].end == i->n_context &&
           i->offset[i->n_context] == i->text.len &&
           utf8_invalid_at(i->text.data, i->text.len) == i->text.len;
}

static int check_body(struct Store *s, const struct StoreHead *h)
{
    struct StoreBody body;
    size_t at = sizeof *h;
    take_head(h, &s->info);
    if (!sizes_good(h) || !store_body(&s->info, &body) || body.end - at != h->body_bytes)
        return damaged(s, "its sizes contradict each other");
    if (body.end > s->map.len) return damaged(s, "it ends within its text");
    if (hash64(s->map.data + at, body.end - at, 0) != h->body_hash)
        return damaged(s, "its text does not fit its hash");
    place_body(s, &body);
    if (!body_good(&s->info)) return damaged(s, "its chunks contradict each other");
    s->sections = body.end;
    return PC_OK;
}

static int check_trailer(struct Store *s)
{
    struct StoreTrailer want;
    size_t bytes;
    TRY(store_bytes(&s->info, &bytes));
    store_trailer(bytes, s->seed, &want);
    if (s->map.len != bytes)
        return damaged(s, s->map.len < bytes ? "it is cut off" : "something stands behind its end");
    if (memcmp(s->map.data + bytes - sizeof want, &want, sizeof want))
        return damaged(s, "its end is not one");
    return PC_OK;
}

/* ==== Open and read ==== */

int store_parse(struct FileMap file, const char *name, struct Store *out)
{
    memset(out, 0, sizeof *out);
    snprintf(out->path, sizeof out->path, "%s", name);
    out->map = file;
    const struct StoreHead *h = (const struct StoreHead *)(const void *)out->map.data;
    TRY(check_magic(out, h));
    out->seed = h->hash;
    TRY(check_body(out, h));
    TRY(check_trailer(out));
    out->checked = mem_alloc((size_t)out->info.n_chunks, 1);
    return out->checked ? PC_OK : PC_ENOMEM;
}

int store_open(const char *path, struct Store *out)
{
    struct FileMap file;
    memset(out, 0, sizeof *out);
    TRY(file_map(path, &file));
    return store_parse(file, path, out);
}

void store_close(struct Store *s)
{
    mem_free(s->checked);
    file_unmap(&s->map);
    memset(s, 0, sizeof *s);
}

static const uint8_t *section_of(const struct Store *s, int chunk)
{
    const uint8_t *at = s->map.data + s->sections;
    for (int c = 0; c < chunk; c++) at += store_section_bytes(&s->info, c);
    return at;
}

static int chunk_len(const struct Store *s, int chunk)
{
    return s->info.chunks[chunk].end - s->info.chunks[chunk].begin;
}

static const uint8_t *marks_of(const struct Store *s, const uint8_t *section)
{
    return section + sizeof(struct SectionHead) + store_last_bytes(&s->info);
}

/* As many as the head has tokens, and none behind the chunk's end. */
static bool marks_good(const struct StoreInfo *info, int n, const uint8_t *marks)
{
    size_t bytes = store_mark_bytes(info, n);
    for (int h = 0; bytes && h < info->n_layers * info->n_kv_heads; h++, marks += bytes) {
        int set = 0, last = (int)bytes * 8;
        for (int t = 0; t < last; t++) {
            if (store_marked(marks, t) && t >= n) return false;
            set += store_marked(marks, t);
        }
        if (set != (info->streams[h] ? 0 : info->cap)) return false;
    }
    return true;
}

static int check_section(const struct Store *s, int chunk, const uint8_t *section)
{
    const struct SectionHead *h = (const struct SectionHead *)(const void *)section;
    size_t bytes = store_section_bytes(&s->info, chunk);
    bool good = !memcmp(h->magic, SECTION_MAGIC, sizeof h->magic) && h->chunk == (uint64_t)chunk &&
                h->bytes == bytes && h->hash == store_section_hash(section, bytes, s->seed);
    char what[64];
    if (good && !marks_good(&s->info, chunk_len(s, chunk), marks_of(s, section)))
        return damaged(s, "a head has other tokens than its cap says");
    if (good) return PC_OK;
    snprintf(what, sizeof what, "chunk %d of %d does not fit its hash", chunk + 1,
             s->info.n_chunks);
    return damaged(s, what);
}

int store_chunk(struct Store *s, int chunk, struct StoreChunk *out)
{
    const uint8_t *section = section_of(s, chunk), *marks = marks_of(s, section);
    int n = chunk_len(s, chunk);
    if (!s->checked[chunk]) TRY(check_section(s, chunk, section));
    s->checked[chunk] = 1;
    out->last = (const float *)(const void *)(section + sizeof(struct SectionHead));
    out->marks = store_mark_bytes(&s->info, n) ? marks : NULL;
    out->pages = marks + store_marks_bytes(&s->info, n);
    out->n_pages = store_pages(&s->info, n);
    return PC_OK;
}

void store_check(struct Store *s, const int *chunks, int n, int threads)
{
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int i = 0; i < n; i++) {
        int c = chunks[i];
        s->checked[c] = s->checked[c] || check_section(s, c, section_of(s, c)) == PC_OK;
    }
}

void store_expect(const struct Store *s, int chunk)
{
    if (chunk >= s->info.n_chunks) return;
    uintptr_t at = (uintptr_t)section_of(s, chunk), page = STORE_SECTION;
    madvise((void *)(at / page * page), store_section_bytes(&s->info, chunk), MADV_WILLNEED);
}
