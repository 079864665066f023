/* test_base.c - base.h: error text, sizes, memory accounting and faults, strings, files, hash. */
#include "base.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/pcomp-test-base-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

static const char *in_folder(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* ==== Status ==== */

static void test_error_text(void **state)
{
    (void)state;
    assert_int_equal(err_set(PC_EFORMAT, "tensor %s", "a"), PC_EFORMAT);
    assert_string_equal(err_text(), "tensor a");
    assert_int_equal(err_prefix(PC_EFORMAT, "file %d", 3), PC_EFORMAT);
    assert_string_equal(err_text(), "file 3: tensor a");
    err_set(PC_EIO, "again: %s", err_text());
    assert_string_equal(err_text(), "again: file 3: tensor a");
    char *filler = malloc(5000);
    memset(filler, 'x', 4999);
    filler[4999] = '\0';
    err_set(PC_EIO, "%s", filler);
    assert_int_equal(strlen(err_text()), 1023);
    err_prefix(PC_EIO, "%s", filler);
    assert_int_equal(strlen(err_text()), 1023);
    free(filler);
}

/* What another thread has met is told with its text, the first of several; and as it was, whatever happens meanwhile. */
static void test_error_kept(void **state)
{
    (void)state;
    struct ErrKept kept = {0};
    err_set(PC_EIO, "of this thread");
    assert_int_equal(err_tell(&kept), PC_OK);
    assert_string_equal(err_text(), "of this thread");
#pragma omp parallel for num_threads(2)
    for (int i = 0; i < 2; i++)
        if (i == 1) err_keep(&kept, err_set(PC_ENOMEM, "of another"));
    err_keep(&kept, err_set(PC_EFORMAT, "later"));
    assert_int_equal(err_tell(&kept), PC_ENOMEM);
    assert_string_equal(err_text(), "of another");
}

static int relay(int code)
{
    TRY(code);
    return PC_OK;
}

static void test_try(void **state)
{
    (void)state;
    assert_int_equal(relay(PC_ERANGE), PC_ERANGE);
    assert_int_equal(relay(5), PC_OK);
}

static void test_sizes(void **state)
{
    (void)state;
    size_t out = 7;
    assert_false(size_mul(SIZE_MAX / 2, 3, &out));
    assert_false(size_add(SIZE_MAX, 1, &out));
    assert_int_equal(out, 7);
    assert_true(size_mul(SIZE_MAX, 1, &out));
    assert_true(out == SIZE_MAX);
    assert_true(size_add(2, 3, &out));
    assert_int_equal(out, 5);
}

/* ==== Memory ==== */

static void check_zero(const unsigned char *p, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (p[i]) fail_msg("byte %zu of %zu is not zero", i, len);
}

static void test_alloc_zeroed_aligned_counted(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 63, 64, 65, 4096, (1 << 20) - 1, 1 << 20, 5 << 20};
    size_t before = mem_in_use();
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        unsigned char *p = mem_alloc(sizes[i], 1);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        assert_int_equal(mem_in_use(), before + sizes[i]);
        assert_true(mem_peak() >= mem_in_use());
        check_zero(p, sizes[i]);
        memset(p, 0xAB, sizes[i]);
        mem_free(p);
        assert_int_equal(mem_in_use(), before);
    }
    mem_free(NULL);
}

static void test_alloc_refuses_overflow(void **state)
{
    (void)state;
    size_t before = mem_in_use();
    assert_null(mem_alloc(SIZE_MAX / 2, 4));
    assert_null(mem_alloc(SIZE_MAX, 1));
    assert_null(mem_alloc((size_t)PTRDIFF_MAX - 1000, 1));
    assert_non_null(strstr(err_text(), "allocate"));
    assert_int_equal(mem_in_use(), before);
}

static void test_large_blocks_are_lazy(void **state)
{
    (void)state;
    size_t before = mem_resident();
    void *p = mem_alloc(512, 1 << 20);
    assert_non_null(p);
    assert_true(mem_resident() < before + ((size_t)64 << 20));
    mem_free(p);
}

static void test_grow(void **state)
{
    (void)state;
    size_t before = mem_in_use();
    size_t n = 3;
    uint32_t *p = mem_grow(NULL, 0, n, sizeof *p);
    assert_non_null(p);
    for (size_t i = 0; i < n; i++) p[i] = (uint32_t)i + 1;
    while (n < 3000000) { /* passes from the heap to mapped blocks */
        size_t more = n * 2 + 5;
        p = mem_grow(p, n, more, sizeof *p);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        assert_int_equal(mem_in_use(), before + more * sizeof *p);
        for (size_t i = 0; i < n; i++)
            if (p[i] != i + 1) fail_msg("element %zu changed", i);
        check_zero((unsigned char *)(p + n), (more - n) * sizeof *p);
        for (size_t i = n; i < more; i++) p[i] = (uint32_t)i + 1;
        n = more;
    }
    assert_ptr_equal(mem_grow(p, n, n, sizeof *p), p);
    assert_null(mem_grow(p, n, SIZE_MAX / 4, sizeof *p));
    assert_int_equal(p[n - 1], n);
    mem_free(p);
    assert_int_equal(mem_in_use(), before);
}

/* A block whose caller used only a part of it: what lies behind must come back zeroed. */
static void test_grow_clears_stale_part(void **state)
{
    (void)state;
    static const size_t sizes[] = {1000, 2 << 20};
    for (size_t i = 0; i < 2; i++) {
        size_t full = sizes[i];
        unsigned char *p = mem_alloc(full, 1);
        memset(p, 1, full);
        p = mem_grow(p, 10, full / 2, 1);
        check_zero(p + 10, full / 2 - 10);
        memset(p, 1, full);
        p = mem_grow(p, 10, full * 2, 1);
        assert_int_equal(p[9], 1);
        check_zero(p + 10, full * 2 - 10);
        mem_free(p);
    }
}

static void test_guard(void **state)
{
    (void)state;
    void *p = mem_alloc(2 << 20, 1);
    int hits = mem_guard_hits();
    mem_guard(true);
    assert_null(mem_alloc(8, 1));
    assert_null(mem_grow(p, 2 << 20, 4 << 20, 1));
    mem_free(p);
    mem_guard(false);
    assert_int_equal(mem_guard_hits(), hits + 2);
    p = mem_alloc(8, 1);
    assert_non_null(p);
    mem_free(p);
}

static void test_fault_injection(void **state)
{
    (void)state;
    mem_fail_after(3);
    void *a = mem_alloc(8, 1), *b = mem_alloc(8, 1), *c = mem_alloc(8, 1), *d = mem_alloc(8, 1);
    assert_non_null(a);
    assert_non_null(b);
    assert_null(c);
    assert_non_null(d);
    mem_fail_after(1);
    mem_fail_after(0);
    c = mem_alloc(8, 1);
    assert_non_null(c);
    mem_free(a);
    mem_free(b);
    mem_free(c);
    mem_free(d);
}

static void test_system_memory(void **state)
{
    (void)state;
    assert_true(mem_resident() > 0);
    assert_true(mem_resident_peak() >= mem_resident() / 2);
    assert_true(mem_available() > (size_t)1 << 20);
    assert_true(mem_available() < (size_t)1 << 50);
}

/* ==== Strings ==== */

static void test_str(void **state)
{
    (void)state;
    size_t before = mem_in_use();
    struct Str s = {0};
    str_clear(&s);
    assert_int_equal(str_append(&s, NULL, 0), PC_OK);
    assert_string_equal(s.data, "");
    for (int i = 0; i < 1000; i++) assert_int_equal(str_appendf(&s, "%d,", i), PC_OK);
    assert_int_equal(s.len, 10 * 2 + 90 * 3 + 900 * 4);
    assert_int_equal(strlen(s.data), s.len);
    assert_int_equal(str_append(&s, "a\0b", 3), PC_OK);
    assert_memory_equal(s.data + s.len - 3, "a\0b", 4);
    str_clear(&s);
    assert_string_equal(s.data, "");
    assert_int_equal(str_append(&s, "kept", 4), PC_OK);
    mem_fail_after(1);
    char big[8192];
    memset(big, 'y', sizeof big);
    assert_int_equal(str_append(&s, big, sizeof big), PC_ENOMEM);
    assert_string_equal(s.data, "kept");
    mem_fail_after(0);
    str_free(&s);
    assert_null(s.data);
    assert_int_equal(mem_in_use(), before);
}

static void test_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t len, at;
    } cases[] = {
        {"", 0, 0},
        {"plain", 5, 5},
        {"\xC3\xA9\xE6\x97\xA5\xF0\x9F\x98\x80", 9, 9},
        {"\xF4\x8F\xBF\xBF", 4, 4},  /* U+10FFFF, the last */
        {"a\xF4\x90\x80\x80", 5, 1}, /* beyond it */
        {"\xEF\xBF\xBF\xED\x9F\xBF", 6, 6},
        {"ab\x80", 3, 2},   /* lone continuation */
        {"\xC0\x80", 2, 0}, /* overlong */
        {"\xE0\x9F\xBF", 3, 0},
        {"\xF0\x8F\xBF\xBF", 4, 0},
        {"x\xED\xA0\x80", 4, 1}, /* surrogate */
        {"\xE6\x97", 2, 0},      /* cut */
        {"\xE6\x97"
         "a",
         3, 0},
        {"\xFF", 1, 0},
        {"\0\x7F", 2, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(utf8_invalid_at(cases[i].text, cases[i].len), cases[i].at);
}

static void test_word_distance(void **state)
{
    (void)state;
    assert_int_equal(word_distance("", ""), 0);
    assert_int_equal(word_distance("", "abc"), 3);
    assert_int_equal(word_distance("chunk", "chunk"), 0);
    assert_int_equal(word_distance("chunk", "chonk"), 1);
    assert_int_equal(word_distance("chunk_score", "chunkscore"), 1);
    assert_int_equal(word_distance("kitten", "sitting"), 3);
    char longest[100];
    memset(longest, 'a', 99);
    longest[99] = '\0';
    assert_int_equal(word_distance(longest, "a"), 99);
    static const struct {
        const char *name;
        int other;
    } table[] = {{"trec", 1}, {"lsht", 2}, {"tree", 3}};
    assert_string_equal(word_nearest("lshd", table, 3, sizeof table[0]), "lsht");
    assert_string_equal(word_nearest("trex", table, 3, sizeof table[0]),
                        "trec"); /* as near: the first */
}

/* ==== Files ==== */

static void test_file_round_trip(void **state)
{
    (void)state;
    const char *path = in_folder("data");
    char data[200000];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (char)(i * 31 >> 3);
    assert_int_equal(file_write(path, data, sizeof data), PC_OK);
    struct FileMap map;
    assert_int_equal(file_map(path, &map), PC_OK);
    assert_int_equal(map.len, sizeof data);
    assert_memory_equal(map.data, data, sizeof data);
    file_unmap(&map);
    assert_int_equal(map.len, 0);
    struct Str text = {0};
    assert_int_equal(str_append(&text, "head", 4), PC_OK);
    assert_int_equal(file_read(path, &text), PC_OK);
    assert_int_equal(text.len, 4 + sizeof data);
    assert_memory_equal(text.data + 4, data, sizeof data);
    assert_int_equal(text.data[text.len], 0);

    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(file_write(path, "", 0), PC_OK); /* replaces, and keeps the mode */
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0640);
    assert_int_equal(file_map(path, &map), PC_OK);
    assert_int_equal(map.len, 0);
    assert_non_null(map.data);
    file_unmap(&map);
    str_clear(&text);
    assert_int_equal(file_read(path, &text), PC_OK);
    assert_string_equal(text.data, "");
    str_free(&text);
    assert_int_equal(unlink(path), 0);
}

static void test_file_refusals(void **state)
{
    (void)state;
    struct FileMap map;
    struct Str text = {0};
    assert_int_equal(file_map(in_folder("absent"), &map), PC_EIO);
    assert_non_null(strstr(err_text(), "absent"));
    assert_non_null(strstr(err_text(), "No such file"));
    file_unmap(&map);
    assert_int_equal(file_map(folder, &map), PC_EIO);
    assert_non_null(strstr(err_text(), "directory"));
    assert_int_equal(file_map("/dev/null", &map), PC_EIO);
    assert_non_null(strstr(err_text(), "regular"));
    assert_int_equal(file_read(folder, &text), PC_EIO);
    assert_non_null(strstr(err_text(), "directory"));
    assert_int_equal(file_read(in_folder("absent"), &text), PC_EIO);
    assert_int_equal(file_write(folder, "x", 1), PC_EIO);
    assert_int_equal(file_write(in_folder("no/such"), "x", 1), PC_EIO);
    assert_int_equal(file_write("/dev/null", "x", 1), PC_OK);
    assert_int_equal(file_write("/dev/full", "x", 1), PC_EIO);
    assert_non_null(strstr(err_text(), "No space"));
    assert_int_equal(file_read("/dev/null", &text), PC_OK);
    assert_int_equal(text.len, 0);
    str_free(&text);
}

static void test_file_read_stdin(void **state)
{
    (void)state;
    int ends[2], saved = dup(STDIN_FILENO);
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], "from a pipe", 11), 11);
    close(ends[1]);
    assert_true(dup2(ends[0], STDIN_FILENO) >= 0);
    close(ends[0]);
    struct Str text = {0};
    int status = file_read("-", &text);
    if (saved >= 0) {
        assert_true(dup2(saved, STDIN_FILENO) >= 0);
        close(saved);
    }
    assert_int_equal(status, PC_OK);
    assert_string_equal(text.data, "from a pipe");
    str_free(&text);
}

/* Every allocation of a call fails once: right code, nothing leaked, no half-written file. */
static void test_file_faults(void **state)
{
    (void)state;
    const char *path = in_folder("fault");
    size_t before = mem_in_use();
    mem_fail_after(1);
    assert_int_equal(file_write(path, "x", 1), PC_ENOMEM);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(file_write(path, "x", 1), PC_OK);
    struct Str text = {0};
    mem_fail_after(1);
    assert_int_equal(file_read(path, &text), PC_ENOMEM);
    mem_fail_after(0);
    str_free(&text);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mem_in_use(), before);
}

/* ==== Clock, log, hash ==== */

static void test_clock(void **state)
{
    (void)state;
    double first = clock_seconds();
    usleep(2000);
    double waited = clock_seconds() - first;
    assert_true(waited >= 0.002 && waited < 10);
}

static void test_log_levels(void **state)
{
    (void)state;
    const char *path = in_folder("log");
    int saved = dup(STDERR_FILENO);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    assert_true(saved >= 0 && fd >= 0);
    assert_true(dup2(fd, STDERR_FILENO) >= 0);
    log_set(LOG_WARN);
    log_msg(LOG_INFO, "unseen");
    log_msg(LOG_WARN, "seen %d", 1);
    log_msg(LOG_ERROR, "%4000s", "long");
    log_set(LOG_INFO);
    log_msg(LOG_INFO, "plain");
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(fd);
    struct Str text = {0};
    assert_int_equal(file_read(path, &text), PC_OK);
    assert_memory_equal(text.data, "warning: seen 1\nerror: ", 23);
    assert_non_null(strstr(text.data, "\nplain\n"));
    assert_null(strstr(text.data, "unseen"));
    str_free(&text);
    unlink(path);
}

static void test_hash(void **state)
{
    (void)state;
    /* The published XXH3-64 value of the empty input. */
    assert_true(hash64(NULL, 0, 0) == UINT64_C(0x2D06800538D394C2));
    assert_true(hash64("abc", 3, 0) == UINT64_C(0x78AF5F94892F3950));
    assert_true(hash64("abc", 3, 1) != hash64("abc", 3, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error_text),
        cmocka_unit_test(test_error_kept),
        cmocka_unit_test(test_try),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_alloc_zeroed_aligned_counted),
        cmocka_unit_test(test_alloc_refuses_overflow),
        cmocka_unit_test(test_large_blocks_are_lazy),
        cmocka_unit_test(test_grow),
        cmocka_unit_test(test_grow_clears_stale_part),
        cmocka_unit_test(test_guard),
        cmocka_unit_test(test_fault_injection),
        cmocka_unit_test(test_system_memory),
        cmocka_unit_test(test_str),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_word_distance),
        cmocka_unit_test(test_file_round_trip),
        cmocka_unit_test(test_file_refusals),
        cmocka_unit_test(test_file_read_stdin),
        cmocka_unit_test(test_file_faults),
        cmocka_unit_test(test_clock),
        cmocka_unit_test(test_log_levels),
        cmocka_unit_test(test_hash),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
