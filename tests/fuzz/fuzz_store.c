/* fuzz_store.c - any bytes as a document store: its hashes are made right first, so that what stands behind them is
 * reached; then all that it offers is read.
 */
#include "src/store_parts.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Magic, version and hashes of head, body and end, where there is room for them. */
static void mend_front(uint8_t *file, size_t size)
{
    struct StoreHead *h = (struct StoreHead *)(void *)file;
    struct StoreTrailer end;
    memcpy(h->magic, STORE_MAGIC, sizeof h->magic);
    h->version = h->cap ? STORE_CAPPED : STORE_WHOLE;
    h->head_bytes = sizeof *h;
    h->page_format[sizeof h->page_format - 1] = '\0';
    if (h->body_bytes <= size - sizeof *h)
        h->body_hash = hash64(file + sizeof *h, h->body_bytes, 0);
    h->hash = hash64(h, offsetof(struct StoreHead, hash), 0);
    store_trailer(size, h->hash, &end);
    if (size >= sizeof *h + sizeof end) memcpy(file + size - sizeof end, &end, sizeof end);
}

/* A store that was opened has all its sections. */
static void mend_sections(uint8_t *file, const struct Store *s)
{
    size_t at = s->sections;
    for (int c = 0; c < s->info.n_chunks; c++) {
        size_t bytes = store_section_bytes(&s->info, c);
        struct SectionHead h = {.magic = SECTION_MAGIC, .chunk = (uint64_t)c, .bytes = bytes};
        memcpy(file + at, &h, sizeof h);
        h.hash = store_section_hash(file + at, bytes, s->seed);
        memcpy(file + at, &h, sizeof h);
        at += bytes;
    }
}

static uint64_t touch(struct Store *s)
{
    const struct StoreInfo *i = &s->info;
    uint64_t sum = hash64(i->text.data, i->text.len, 0);
    sum = hash64(i->settings.data, i->settings.len, sum);
    sum = hash64(i->prefix, sizeof *i->prefix * (size_t)i->n_prefix, sum);
    sum = hash64(i->context, sizeof *i->context * (size_t)i->n_context, sum);
    for (int c = 0; c < i->n_chunks; c++) {
        struct StoreChunk chunk;
        int n = i->chunks[c].end - i->chunks[c].begin;
        bool marked = store_mark_bytes(i, n) > 0;
        if (store_chunk(s, c, &chunk) < 0) {
            if (!marked) abort(); /* its hash was made right */
            continue;
        }
        for (int t = 0; marked && t < n; t++) sum += store_marked(chunk.marks, t);
        sum = hash64(chunk.last, sizeof *chunk.last * (size_t)i->dim, sum);
        sum = hash64(chunk.pages, chunk.n_pages * i->page_bytes, sum);
        sum += i->offset[i->chunks[c].begin] + i->offset[i->chunks[c].end];
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct Store s;
    uint8_t *file = mem_alloc(size, 1); /* where it begins, as a map does, at a round place */
    if (!file) return 0;
    memcpy(file, data, size);
    if (size >= sizeof(struct StoreHead)) mend_front(file, size);
    int status = store_parse((struct FileMap){file, size}, "fuzz", &s);
    if (status != PC_OK && status != PC_EFORMAT && status != PC_ERANGE && status != PC_ENOMEM)
        abort();
    if (status == PC_OK) {
        mend_sections(file, &s);
        /* The sum is used, so that the reads are not optimised away. */
        if (touch(&s) == 0x5eed && size == 1) abort();
    }
    s.map.len = 0; /* not a map */
    store_close(&s);
    mem_free(file);
    return 0;
}
