/* test_store.c - document stores as files, whole and capped: what is written reads back; a store that is cut, changed in any byte or put
 * together from two is refused; an interrupted one goes on behind its last whole section; locks, a full disk, and
 * allocations that fail.
 */
#include "store.h"

#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* ==== Seeded stores ==== */

enum { HEADS_MAX = 12, IDS_MAX = 900, CHUNKS_MAX = 9, TEXT_MAX = 4 * IDS_MAX };

struct Made {
    struct StoreInfo info;
    uint8_t streams[HEADS_MAX];
    int prefix[16], context[IDS_MAX];
    size_t offset[IDS_MAX + 1];
    struct Chunk chunks[CHUNKS_MAX];
    char text[TEXT_MAX];
    uint64_t seed;
};

static uint64_t state;

static int below(int n)
{
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int)((state >> 33) % (uint64_t)n);
}

static void make_chunks(struct Made *m, int n, int overlap)
{
    int most = 0, each = (m->info.n_context + n - 1) / n;
    m->info.n_chunks = n;
    for (int c = 0; c < n; c++) {
        int begin = c * each - (c ? overlap : 0),
            end = c == n - 1 ? m->info.n_context : (c + 1) * each;
        m->chunks[c] = (struct Chunk){begin, end};
        if (end - begin > most) most = end - begin;
    }
    m->info.chunk_tokens = most;
}

static void make(struct Made *m, uint64_t seed)
{
    memset(m, 0, sizeof *m);
    m->seed = state = seed;
    struct StoreInfo *i = &m->info;
    *i = (struct StoreInfo){
        .model_hash = seed * 77,
        .page_format = "cpu f16, int16",
        .page_bytes = (size_t)8 * (size_t)(1 + below(9)),
        .n_layers = 1 + below(4),
        .n_kv_heads = 1 + below(3),
        .dim = 1 + below(40),
        .n_prefix = below(16),
        .n_all = 1000,
        .rope_factor = 1 + below(3),
        .settings = {"{\"chunk\":64}", 12},
    };
    if (below(2)) i->sinks = below(30), i->recent = 1 + below(150), i->heads_hash = seed;
    for (int h = 0; h < HEADS_MAX && i->recent; h++) m->streams[h] = (uint8_t)below(2);
    i->n_context = 30 + below(IDS_MAX - 30);
    for (int t = 0; t < i->n_prefix; t++) m->prefix[t] = below(500);
    for (int t = 0; t < i->n_context; t++) {
        m->context[t] = below(500);
        m->offset[t + 1] = m->offset[t] + (size_t)below(4);
    }
    for (size_t b = 0; b < m->offset[i->n_context]; b++) m->text[b] = (char)('a' + below(26));
    make_chunks(m, 1 + below(CHUNKS_MAX - 1), below(3));
    if (seed % 2) i->cap = 1 + below(i->chunk_tokens); /* some chunks may be shorter */
    i->streams = m->streams;
    i->prefix = m->prefix;
    i->context = m->context;
    i->offset = m->offset;
    i->chunks = m->chunks;
    i->text = (struct Slice){m->text, m->offset[i->n_context]};
}

/* Byte i of chunk c's pages, and value i of its last row. */
static uint8_t page_byte(const struct Made *m, int c, size_t i)
{
    return (uint8_t)(m->seed * 31 + (uint64_t)c * 7 + i * 13 + i / 251);
}
static float last_value(const struct Made *m, int c, int i)
{
    return (float)(m->seed % 100) + (float)c * 0.5f + (float)i;
}

static int chunk_len(const struct Made *m, int c)
{
    return m->chunks[c].end - m->chunks[c].begin;
}

static size_t chunk_bytes(const struct Made *m, int c)
{
    return store_pages(&m->info, chunk_len(m, c)) * m->info.page_bytes;
}

/* Whether a head has token t of chunk c, of which it has as many as the cap. */
static bool has(const struct Made *m, int c, int h, int t)
{
    int n = chunk_len(m, c), turned = (t + 5 * h + c) % n, cap = m->info.cap;
    return !m->streams[h] && (int64_t)(turned + 1) * cap / n > (int64_t)turned * cap / n;
}

static void mark_tokens(const struct Made *m, int c, uint8_t *marks)
{
    size_t bytes = store_mark_bytes(&m->info, chunk_len(m, c));
    for (int h = 0; bytes && h < m->info.n_layers * m->info.n_kv_heads; h++)
        for (int t = 0; t < chunk_len(m, c); t++)
            if (has(m, c, h, t)) store_mark(marks + (size_t)h * bytes, t);
}

static int write_chunk(const struct Made *m, struct StoreWriter *w)
{
    int c = w->n_done;
    struct StoreRoom room = store_section(w);
    for (int i = 0; i < m->info.dim; i++) room.last[i] = last_value(m, c, i);
    for (size_t i = 0; i < chunk_bytes(m, c); i++) room.pages[i] = page_byte(m, c, i);
    mark_tokens(m, c, room.marks);
    return store_write(w);
}

static int write_store(const struct Made *m, const char *path, bool fresh)
{
    struct StoreWriter w;
    int status = store_create(path, &m->info, fresh, &w);
    while (status == PC_OK && w.n_done < m->info.n_chunks) status = write_chunk(m, &w);
    if (status == PC_OK && w.fd >= 0) status = store_finish(&w);
    store_writer_close(&w);
    return status;
}

static int read_all(struct Store *s)
{
    for (int c = 0; c < s->info.n_chunks; c++) {
        struct StoreChunk chunk;
        TRY(store_chunk(s, c, &chunk));
    }
    return PC_OK;
}

static void check_marks(const struct Made *m, int c, const uint8_t *marks)
{
    int n = chunk_len(m, c);
    size_t bytes = store_mark_bytes(&m->info, n);
    assert_true((marks != NULL) == (m->info.cap && m->info.cap < n));
    for (int h = 0; marks && h < m->info.n_layers * m->info.n_kv_heads; h++)
        for (int t = 0; t < n; t++)
            assert_true(store_marked(marks + (size_t)h * bytes, t) == has(m, c, h, t));
}

/* Opens and reads everything. */
static int whole(const char *path)
{
    struct Store s;
    int status = store_open(path, &s);
    if (status == PC_OK) status = read_all(&s);
    store_close(&s);
    return status;
}

static void check_store(const struct Made *m, const char *path)
{
    struct Store s;
    const struct StoreInfo *i = &m->info;
    if (store_open(path, &s) < 0) fail_msg("%s", err_text());
    assert_true(s.info.model_hash == i->model_hash && s.info.heads_hash == i->heads_hash);
    assert_string_equal(s.info.page_format, i->page_format);
    assert_int_equal(s.info.n_context, i->n_context);
    assert_int_equal(s.info.cap, i->cap);
    assert_int_equal(s.info.n_chunks, i->n_chunks);
    assert_int_equal(s.info.n_all, i->n_all);
    assert_true(s.info.rope_factor == i->rope_factor);
    assert_memory_equal(s.info.streams, m->streams, (size_t)i->n_layers * i->n_kv_heads);
    assert_memory_equal(s.info.prefix, m->prefix, sizeof(int) * (size_t)i->n_prefix);
    assert_memory_equal(s.info.context, m->context, sizeof(int) * (size_t)i->n_context);
    assert_memory_equal(s.info.chunks, m->chunks, sizeof(struct Chunk) * (size_t)i->n_chunks);
    assert_memory_equal(s.info.offset, m->offset, sizeof(size_t) * (size_t)(i->n_context + 1));
    assert_int_equal(s.info.settings.len, i->settings.len);
    assert_memory_equal(s.info.settings.data, i->settings.data, i->settings.len);
    assert_int_equal(s.info.text.len, i->text.len);
    assert_memory_equal(s.info.text.data, m->text, i->text.len);
    for (int c = 0; c < i->n_chunks; c++) {
        struct StoreChunk chunk;
        if (store_chunk(&s, c, &chunk) < 0) fail_msg("%s", err_text());
        assert_int_equal(chunk.n_pages * i->page_bytes, chunk_bytes(m, c));
        check_marks(m, c, chunk.marks);
        for (int d = 0; d < i->dim; d++) assert_true(chunk.last[d] == last_value(m, c, d));
        for (size_t b = 0; b < chunk_bytes(m, c); b++)
            assert_int_equal(chunk.pages[b], page_byte(m, c, b));
        store_expect(&s, c);
    }
    store_close(&s);
}

/* ==== Files ==== */

static char folder[] = "/tmp/pcomp_store_XXXXXX", path[64], part[64];

static int open_folder(void **unused)
{
    (void)unused;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/s", folder);
    snprintf(part, sizeof part, "%s/s.part", folder);
    return 0;
}

static int close_folder(void **unused)
{
    (void)unused;
    unlink(path);
    unlink(part);
    return rmdir(folder);
}

static int clean(void **unused)
{
    (void)unused;
    unlink(path);
    unlink(part);
    assert_int_equal(mem_in_use(), 0);
    return 0;
}

static void must(int status)
{
    if (status < 0) fail_msg("%s", err_text());
}

static void put(const char *name, const void *data, size_t len)
{
    FILE *f = fopen(name, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

static void is_refused(int status, int want, const char *words)
{
    if (status != want || !strstr(err_text(), words))
        fail_msg("status %d for %d, '%s' for '%s'", status, want, err_text(), words);
}

/* ==== Written and read ==== */

static void test_round_trip(void **unused)
{
    (void)unused;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct Made m;
        make(&m, seed);
        unlink(path);
        must(write_store(&m, path, false));
        check_store(&m, path);
        assert_true(access(part, F_OK) != 0);
        struct stat file;
        size_t bytes;
        must(store_bytes(&m.info, &bytes));
        assert_int_equal(stat(path, &file), 0);
        assert_int_equal(file.st_size, bytes);
    }
}

/* What a full head of a capped store has, the pages that takes and the bits that say which. */
static void test_capped(void **unused)
{
    (void)unused;
    uint8_t streams[3] = {0, 1, 0};
    for (int n = 1; n < 300; n += 7)
        for (int cap = 0; cap < 300; cap += 13) {
            struct StoreInfo i = {.n_layers = 1,
                                  .n_kv_heads = 3,
                                  .recent = 10,
                                  .n_prefix = 3,
                                  .cap = cap,
                                  .streams = streams};
            int held = cap && cap < n ? cap : n, ends = n < 9 ? n : 9;
            struct HeadEnds full = store_tokens(&i, 2, n), ring = store_tokens(&i, 1, n);
            assert_int_equal(full.first + full.last, held);
            assert_int_equal(ring.first + ring.last, ends);
            assert_int_equal(store_pages(&i, n), 2 * ((held + 63) / 64) + (ends + 63) / 64);
            assert_int_equal(store_mark_bytes(&i, n), held < n ? (n + 7) / 8 : 0);
        }
}

/* What a head keeps, token by token: sinks that the prefix has not, and the last recent - 1. */
static void test_tokens(void **unused)
{
    (void)unused;
    uint8_t streams[2] = {0, 1};
    for (int n = 1; n < 90; n += 4)
        for (int sinks = 0; sinks < 40; sinks += 5)
            for (int recent = 1; recent < 100; recent += 9)
                for (int prefix = 0; prefix < 30; prefix += 7) {
                    struct StoreInfo i = {.n_layers = 1,
                                          .n_kv_heads = 2,
                                          .sinks = sinks,
                                          .recent = recent,
                                          .n_prefix = prefix,
                                          .streams = streams};
                    int kept = 0, first = 0;
                    for (int t = 0; t < n; t++) {
                        bool sink = prefix + t < sinks, near = n - t < recent;
                        kept += sink || near;
                        first += sink;
                    }
                    struct HeadEnds full = store_tokens(&i, 0, n), part_of = store_tokens(&i, 1, n);
                    assert_int_equal(full.first + full.last, n);
                    assert_int_equal(part_of.first, first);
                    assert_int_equal(part_of.first + part_of.last, kept);
                    assert_int_equal(store_pages(&i, n), (n + 63) / 64 + (kept + 63) / 64);
                }
}

/* ==== Damage ==== */

static void test_every_bit(void **unused)
{
    (void)unused;
    struct Made m;
    struct Str file = {0};
    make(&m, 5);
    make_chunks(&m, 3, 1);
    must(write_store(&m, path, false));
    must(file_read(path, &file));
    assert_int_equal(whole(path), PC_OK);
    for (size_t i = 0; i<file.len; i += file.len> 40000 && i > 2048 && i < file.len - 128 ? 3 : 1) {
        file.data[i] ^= (char)(1 << i % 8);
        put(path, file.data, file.len);
        int status = whole(path);
        if (status != PC_EFORMAT)
            fail_msg("byte %zu of %zu changed: status %d", i, file.len, status);
        if (!strstr(err_text(), path)) fail_msg("byte %zu: '%s'", i, err_text());
        file.data[i] ^= (char)(1 << i % 8);
    }
    put(path, file.data, file.len);
    assert_int_equal(whole(path), PC_OK);
    for (size_t len = 0; len < file.len; len += len < 300 ? 1 : 211) {
        put(path, file.data, len);
        assert_int_equal(whole(path), PC_EFORMAT);
    }
    str_append(&file, "x", 1);
    put(path, file.data, file.len);
    is_refused(whole(path), PC_EFORMAT, "behind its end");
    str_free(&file);
}

/* A store of the version before is read as one without a cap; marks that say otherwise than the cap are refused, though all
 * hashes are right. */
static void test_versions(void **unused)
{
    (void)unused;
    struct Made m;
    struct Str file = {0};
    struct StoreWriter w;
    make(&m, 6);
    must(write_store(&m, path, false));
    must(file_read(path, &file));
    assert_int_equal(file.data[8], 1);
    file.data[8] = 3;
    put(path, file.data, file.len);
    is_refused(whole(path), PC_EFORMAT,
               "is a store of version 3, and this program reads versions up to 2");
    str_free(&file);
    for (int wrong = 0; wrong < 3; wrong++) {
        unlink(path);
        make(&m, 6);
        make_chunks(&m, 2, 0);
        m.info.cap = m.info.chunk_tokens / 2;
        memset(m.streams, 0, sizeof m.streams);
        must(store_create(path, &m.info, false, &w));
        struct StoreRoom room = store_section(&w);
        mark_tokens(&m, 0, room.marks);
        int t = 0, n = chunk_len(&m, 0);
        while (has(&m, 0, 0, t) != (wrong == 0)) t++;
        if (wrong == 2) t = n + 7 - (n + 7) % 8; /* a bit that is no token's, or another head's */
        room.marks[t / 8] ^= (uint8_t)(1 << t % 8);
        must(store_write(&w));
        must(write_chunk(&m, &w));
        must(store_finish(&w));
        store_writer_close(&w);
        is_refused(whole(path), PC_EFORMAT, "a head has other tokens than its cap says");
    }
}

/* A chunk of the same place and size from another store has another seed. */
static void test_transplant(void **unused)
{
    (void)unused;
    struct Made m;
    struct Str one = {0}, two = {0};
    make(&m, 8);
    must(write_store(&m, path, false));
    must(file_read(path, &one));
    m.info.model_hash++;
    must(write_store(&m, path, true));
    must(file_read(path, &two));
    assert_int_equal(one.len, two.len);
    struct Store s;
    must(store_open(path, &s));
    size_t at = s.sections;
    store_close(&s);
    memcpy(two.data + at, one.data + at, one.len - at - 64);
    put(path, two.data, two.len);
    is_refused(whole(path), PC_EFORMAT, "chunk 1 of");
    str_free(&one);
    str_free(&two);
}

static void test_no_store(void **unused)
{
    (void)unused;
    put(path, "just a text", 11);
    is_refused(whole(path), PC_EFORMAT, "no document store");
    put(path, "", 0);
    is_refused(whole(path), PC_EFORMAT, "no document store");
    is_refused(whole("/tmp"), PC_EIO, "directory");
    is_refused(whole("/tmp/pcomp_none"), PC_EIO, "cannot open");
}

/* ==== Interrupted ==== */

/* Whole sections in the first `len` bytes. */
static int sections_in(const struct Made *m, size_t front, size_t len)
{
    size_t end = front;
    for (int c = 0; c < m->info.n_chunks; c++) {
        size_t dim = ((size_t)m->info.dim * sizeof(float) + 63) / 64 * 64;
        size_t heads = (size_t)m->info.n_layers * (size_t)m->info.n_kv_heads,
               marks = (heads * store_mark_bytes(&m->info, chunk_len(m, c)) + 63) / 64 * 64;
        end += (64 + dim + marks + chunk_bytes(m, c) + 4095) / 4096 * 4096;
        if (end > len) return c;
    }
    return m->info.n_chunks;
}

static void test_resume_anywhere(void **unused)
{
    (void)unused;
    struct Made m;
    struct Str file = {0};
    make(&m, 12);
    make_chunks(&m, 4, 0);
    must(write_store(&m, path, false));
    must(file_read(path, &file));
    struct Store s;
    must(store_open(path, &s));
    size_t front = s.sections;
    store_close(&s);
    int tried = 0;
    for (size_t len = 0; len <= file.len; len += len % 4096 < 4095 && len % 4096 > 1 ? 1021 : 1) {
        struct StoreWriter w;
        unlink(path);
        put(part, file.data, len);
        must(store_create(path, &m.info, false, &w));
        int want = len < front ? 0 : sections_in(&m, front, len);
        if (w.n_done != want) fail_msg("%zu bytes: %d sections, not %d", len, w.n_done, want);
        store_writer_close(&w);
        if (tried++ % 8) continue; /* finishing waits for the disk */
        must(write_store(&m, path, false));
        check_store(&m, path);
    }
    str_free(&file);
}

/* A section that was torn in its middle, with bytes of its size there, is written again; so is all after it. */
static void test_resume_damaged(void **unused)
{
    (void)unused;
    struct Made m;
    struct Str file = {0};
    struct StoreWriter w;
    make(&m, 21);
    make_chunks(&m, 5, 0);
    must(write_store(&m, path, false));
    must(file_read(path, &file));
    struct Store s;
    must(store_open(path, &s));
    size_t at = s.sections;
    store_close(&s);
    unlink(path);
    file.data[at + 4096 * 2 + 70] ^= 4; /* these sections have one block each or more */
    put(part, file.data, file.len - 64);
    must(store_create(path, &m.info, false, &w));
    assert_true(w.n_done < 3);
    store_writer_close(&w);
    must(write_store(&m, path, false));
    check_store(&m, path);
    str_free(&file);
}

/* What another text left unfinished is begun anew. */
static void test_foreign_part(void **unused)
{
    (void)unused;
    struct Made m, other;
    struct StoreWriter w;
    make(&m, 30);
    make(&other, 31);
    must(store_create(path, &other.info, false, &w));
    must(write_chunk(&other, &w));
    store_writer_close(&w);
    must(store_create(path, &m.info, false, &w));
    assert_int_equal(w.n_done, 0);
    store_writer_close(&w);
    must(write_store(&m, path, false));
    check_store(&m, path);
}

/* ==== What is there already ==== */

static void test_there(void **unused)
{
    (void)unused;
    struct Made m, other;
    struct StoreWriter w;
    struct Store reader, second;
    make(&m, 40);
    make(&other, 41);
    must(write_store(&m, path, false));
    must(store_create(path, &m.info, false, &w));
    assert_int_equal(w.n_done, m.info.n_chunks);
    assert_int_equal(w.fd, -1);
    store_writer_close(&w);
    is_refused(write_store(&other, path, false), PC_ECONFIG, "another text, model or settings");
    must(store_open(path, &reader)); /* two readers, and the file replaced under them */
    must(store_open(path, &second));
    must(write_store(&other, path, true));
    must(read_all(&reader));
    must(read_all(&second));
    store_close(&reader);
    store_close(&second);
    check_store(&other, path);
    put(path, "a text that must not be lost", 28);
    is_refused(write_store(&m, path, true), PC_ECONFIG, "is no document store");
    unlink(path);
    is_refused(write_store(&m, "/tmp", true), PC_ECONFIG, "not a regular file");
    is_refused(write_store(&m, "/tmp/pcomp_none/s", true), PC_EIO, "cannot write");
}

static void test_locked(void **unused)
{
    (void)unused;
    struct Made m;
    struct StoreWriter w, late;
    make(&m, 50);
    must(store_create(path, &m.info, false, &w));
    is_refused(store_create(path, &m.info, false, &late), PC_ECONFIG, "another pcomp");
    assert_true(late.busy && !w.busy);
    store_writer_close(&late);
    while (w.n_done < m.info.n_chunks) must(write_chunk(&m, &w));
    must(store_finish(&w));
    store_writer_close(&w);
    check_store(&m, path);
}

/* A file that may not grow is what a full disk is. */
static void test_full_disk(void **unused)
{
    (void)unused;
    struct Made m;
    struct StoreWriter w;
    struct rlimit old, small;
    make(&m, 60);
    make_chunks(&m, 4, 0);
    size_t bytes;
    must(store_bytes(&m.info, &bytes));
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    must(store_create(path, &m.info, false, &w));
    must(write_chunk(&m, &w));
    small = (struct rlimit){bytes - 64 - 100, old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    int status = PC_OK;
    while (status == PC_OK) status = write_chunk(&m, &w);
    setrlimit(RLIMIT_FSIZE, &old);
    is_refused(status, PC_EIO, "repeat the command to go on");
    assert_int_equal(w.n_done, 3);
    store_writer_close(&w);
    assert_true(access(path, F_OK) != 0);
    must(store_create(path, &m.info, false, &w));
    assert_int_equal(w.n_done, 3);
    store_writer_close(&w);
    must(write_store(&m, path, false));
    check_store(&m, path);
}

/* ==== Allocations that fail ==== */

static void test_faults(void **unused)
{
    (void)unused;
    struct Made m;
    make(&m, 70);
    for (long n = 1, failed = 1; failed; n++) {
        unlink(path);
        mem_fail_after(n);
        int status = write_store(&m, path, false);
        if (status == PC_OK) status = whole(path);
        mem_fail_after(0);
        failed = status < 0;
        assert_true(status == PC_OK || status == PC_ENOMEM);
        assert_true(n < 50);
        if (!failed) assert_true(n > 4);
        assert_int_equal(mem_in_use(), 0);
    }
    check_store(&m, path);
}

/* One of several writers of the same store, each of which goes on until the store is there; its exit code. */
static int compete(const struct Made *m)
{
    for (;;) {
        struct StoreWriter w;
        int status = store_create(path, &m->info, false, &w);
        while (status == PC_OK && w.n_done < m->info.n_chunks) status = write_chunk(m, &w);
        if (status == PC_OK && w.fd >= 0) status = store_finish(&w);
        bool busy = w.busy;
        store_writer_close(&w);
        if (status == PC_OK) return whole(path) == PC_OK ? 0 : 1;
        if (!busy) return 2;
        usleep(300);
    }
}

/* However their steps fall between each other's, all end with one whole store. */
static void test_writers(void **unused)
{
    (void)unused;
    enum { WRITERS = 4, ROUNDS = 20 };
    struct Made m;
    make(&m, 51);
    for (int round = 0; round < ROUNDS; round++) {
        pid_t pid[WRITERS];
        unlink(path);
        fflush(NULL);
        for (int i = 0; i < WRITERS; i++) {
            pid[i] = fork();
            assert_true(pid[i] >= 0);
            if (pid[i] == 0) _exit(compete(&m));
        }
        for (int i = 0; i < WRITERS; i++) {
            int how;
            assert_int_equal(waitpid(pid[i], &how, 0), pid[i]);
            assert_int_equal(how, 0);
        }
        check_store(&m, path);
    }
}

/* A writer that is killed leaves no more than an unfinished file, with which the next one goes on. */
static void test_killed(void **unused)
{
    (void)unused;
    struct Made m;
    make(&m, 52);
    for (int kills = 0; kills < 24; kills++) {
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) _exit(compete(&m));
        usleep((useconds_t)(kills * 37 % 1500));
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        assert_true(access(path, F_OK) != 0 || whole(path) == PC_OK);
        if (kills % 8 == 7) {
            assert_int_equal(compete(&m), 0);
            check_store(&m, path);
            unlink(path);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_round_trip, clean),
        cmocka_unit_test_teardown(test_capped, clean),
        cmocka_unit_test_teardown(test_tokens, clean),
        cmocka_unit_test_teardown(test_every_bit, clean),
        cmocka_unit_test_teardown(test_versions, clean),
        cmocka_unit_test_teardown(test_transplant, clean),
        cmocka_unit_test_teardown(test_no_store, clean),
        cmocka_unit_test_teardown(test_resume_anywhere, clean),
        cmocka_unit_test_teardown(test_resume_damaged, clean),
        cmocka_unit_test_teardown(test_foreign_part, clean),
        cmocka_unit_test_teardown(test_there, clean),
        cmocka_unit_test_teardown(test_locked, clean),
        cmocka_unit_test_teardown(test_full_disk, clean),
        cmocka_unit_test_teardown(test_writers, clean),
        cmocka_unit_test_teardown(test_killed, clean),
        cmocka_unit_test_teardown(test_faults, clean),
    };
    return cmocka_run_group_tests_name("store", tests, open_folder, close_folder) != 0;
}
