/* test_share.c - processes that share a file of results: locks, news, torn lines, and every item once whoever dies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "results.h"

static char path[] = "/tmp/pcomp_share_XXXXXX";

static int set_up(void **state)
{
    (void)state;
    memcpy(path + sizeof path - 7, "XXXXXX", 6);
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int tear_down(void **state)
{
    (void)state;
    return unlink(path);
}

static void must(int status)
{
    if (status < 0) fail_msg("%s", err_text());
}

/* ==== The file ==== */

static void open_shared(struct Appender *a)
{
    struct Str old = {0};
    must(appender_open_shared(path, a, &old));
    str_free(&old);
}

static void test_use(void **state)
{
    (void)state;
    struct Appender a, b, alone;
    struct Str old = {0};
    open_shared(&a);
    open_shared(&b);
    assert_int_equal(appender_open(path, &alone, &old), PC_EIO);
    assert_non_null(strstr(err_text(), "another pcomp is writing"));
    appender_close(&alone);
    appender_close(&a);
    appender_close(&b);
    must(appender_open(path, &alone, &old));
    assert_int_equal(appender_open_shared(path, &a, &old), PC_EIO);
    assert_non_null(strstr(err_text(), "without --share"));
    appender_close(&a);
    appender_close(&alone);
    assert_int_equal(appender_open_shared("/dev/null", &a, &old), PC_EIO);
    assert_non_null(strstr(err_text(), "--output"));
    appender_close(&a);
    str_free(&old);
}

static void test_claims(void **state)
{
    (void)state;
    static const uint64_t keys[] = {0, 8, 1 << 20, UINT64_MAX, UINT64_MAX - 8};
    struct Appender a, b;
    open_shared(&a);
    open_shared(&b);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(appender_claim(&a, keys[i]), 1);
        for (int j = 0; j < 5; j++) {
            int got = appender_claim(&b, keys[j]);
            assert_int_equal(got, j != i); /* one item is no other */
            if (got) appender_release(&b, keys[j]);
        }
        appender_release(&a, keys[i]);
        assert_int_equal(appender_claim(&b, keys[i]), 1);
        appender_release(&b, keys[i]);
    }
    assert_int_equal(appender_claim(&a, 5), 1);
    appender_close(&a); /* as when its process ends */
    assert_int_equal(appender_claim(&b, 5), 1);
    appender_close(&b);
}

static void has_news(struct Appender *a, const char *want)
{
    must(appender_news(a));
    assert_string_equal(a->news.data ? a->news.data : "", want);
    str_clear(&a->news);
}

static void test_news(void **state)
{
    (void)state;
    struct Appender a, b;
    open_shared(&a);
    open_shared(&b);
    has_news(&a, "");
    must(appender_line(&a, "one", 3));
    must(appender_line(&b, "two", 3));
    must(appender_line(&a, "three", 5));
    has_news(&a, "two\n"); /* not its own */
    has_news(&b, "one\nthree\n");
    has_news(&b, "");
    appender_close(&a);
    appender_close(&b);
}

/* A process that died in the middle of a line. */
static void test_torn(void **state)
{
    (void)state;
    struct Appender a, b;
    struct Str text = {0};
    int fd = open(path, O_WRONLY | O_APPEND);
    open_shared(&a);
    open_shared(&b);
    must(appender_line(&a, "one", 3));
    assert_int_equal(write(fd, "tw", 2), 2);
    has_news(&b, "one\n");
    assert_int_equal(write(fd, "o\nthr", 5), 5); /* now behind the whole line */
    must(appender_line(&b, "four", 4));
    has_news(&a, "o\nfour\n");
    must(file_read(path, &text));
    assert_string_equal(text.data, "one\no\nfour\n");
    str_free(&text);
    close(fd);
    appender_close(&a);
    appender_close(&b);
}

/* ==== Items ==== */

enum { ITEMS = 60 };

static bool never(void *user)
{
    (void)user;
    return false;
}

static bool always(void *user)
{
    (void)user;
    return true;
}

static uint64_t key_of(int item)
{
    return hash64(&item, sizeof item, 1);
}

static int write_item(struct Results *r, int item, bool failed)
{
    struct Str id = {0};
    int status = str_appendf(&id, "%d", item);
    cJSON *line = cJSON_CreateObject();
    results_head(r, line, &id, key_of(item));
    if (failed) {
        err_set(PC_EIO, "gone");
        results_error(line, PC_EIO);
    }
    str_free(&id);
    return status < 0 ? status : results_add(r, line, key_of(item), failed);
}

/* One process of several: does all items that it can get, and dies at the one where it is told to. */
static int work(int dies_at, int fails_at)
{
    struct Results r;
    bool again = true;
    TRY(results_open(&r, path, 7, RESULTS_SHARED));
    for (int n = 0; again;) {
        again = false;
        for (int i = 0; i < ITEMS; i++) {
            int got = results_claim(&r, key_of(i));
            TRY(got);
            if (got != CLAIM_MINE) continue;
            usleep(2000);
            if (n++ == dies_at) raise(SIGKILL);
            TRY(write_item(&r, i, i == fails_at));
            results_release(&r, key_of(i));
        }
        TRY(results_settle(&r, never, &again));
    }
    results_close(&r);
    return PC_OK;
}

/* Each item has one line, and all are there. */
static void check_lines(int fails_at)
{
    struct Results r = {0};
    struct Str text = {0};
    int lines = 0;
    must(file_read(path, &text));
    for (size_t i = 0; i < text.len; i++) lines += text.data[i] == '\n';
    assert_int_equal(lines, ITEMS);
    must(results_open(&r, path, 7, 0));
    for (int i = 0; i < ITEMS; i++) assert_int_equal(results_has(&r, key_of(i)), i != fails_at);
    results_close(&r);
    str_free(&text);
}

static void run_workers(int n, int n_dying, int fails_at)
{
    pid_t pid[8];
    assert_int_equal(truncate(path, 0), 0);
    for (int i = 0; i < n; i++) {
        pid[i] = fork();
        if (pid[i] == 0) _exit(work(i < n_dying ? 2 + i : -1, fails_at) < 0);
    }
    for (int i = 0; i < n; i++) {
        int how;
        assert_int_equal(waitpid(pid[i], &how, 0), pid[i]);
        assert_int_equal(i < n_dying ? WTERMSIG(how) : how, i < n_dying ? SIGKILL : 0);
    }
    check_lines(fails_at);
}

static void test_workers(void **state)
{
    (void)state;
    for (int n = 1; n <= 8; n *= 2) run_workers(n, 0, -1);
    run_workers(4, 0, 11); /* what fails is not tried again by the others */
    run_workers(3, 2, -1); /* what the dead were at is done by those who are left */
    run_workers(8, 7, 30);
}

static void test_settle(void **state)
{
    (void)state;
    struct Results a, b;
    bool again = false;
    must(results_open(&a, path, 7, RESULTS_SHARED));
    must(results_open(&b, path, 7, RESULTS_SHARED));
    assert_int_equal(results_claim(&a, key_of(1)), CLAIM_MINE);
    assert_int_equal(results_claim(&b, key_of(1)), CLAIM_TAKEN);
    assert_int_equal(results_settle(&b, always, &again), PC_EINTR);
    must(write_item(&a, 1, false));
    results_release(&a, key_of(1));
    must(results_settle(&b, always, &again)); /* nothing left to wait for */
    assert_false(again);
    assert_int_equal(results_claim(&b, key_of(1)), CLAIM_DONE);
    assert_int_equal(results_claim(&a, key_of(2)), CLAIM_MINE);
    assert_int_equal(results_claim(&b, key_of(2)), CLAIM_TAKEN);
    results_close(&a); /* given up */
    must(results_settle(&b, always, &again));
    assert_true(again);
    assert_int_equal(results_claim(&b, key_of(2)), CLAIM_MINE);
    results_close(&b);
}

/* Alone, everything is one's own. */
static void test_alone(void **state)
{
    (void)state;
    struct Results r;
    must(results_open(&r, path, 7, 0));
    assert_int_equal(results_claim(&r, key_of(1)), CLAIM_MINE);
    must(write_item(&r, 1, true));
    assert_int_equal(results_claim(&r, key_of(1)), CLAIM_MINE); /* a failure may be tried again */
    must(write_item(&r, 1, false));
    assert_int_equal(results_claim(&r, key_of(1)), CLAIM_DONE);
    results_close(&r);
}

/* One that cannot get memory says so, keeps nothing, and leaves its items to others. */
static void test_faults(void **state)
{
    (void)state;
    struct Results other;
    int status = PC_ENOMEM;
    must(results_open(&other, path, 7, RESULTS_SHARED));
    must(write_item(&other, 1, false));
    assert_int_equal(results_claim(&other, key_of(3)), CLAIM_MINE);
    size_t before = mem_in_use();
    for (long n = 1; status < 0; n++) {
        struct Results r;
        assert_true(n < 100);
        mem_fail_after(n);
        status = results_open(&r, path, 7, RESULTS_SHARED);
        if (status == PC_OK) status = results_claim(&r, key_of(2));
        if (status == CLAIM_MINE) status = results_claim(&r, key_of(3));
        mem_fail_after(0);
        results_close(&r);
        assert_int_equal(mem_in_use(), before);
        assert_int_equal(appender_claim(&other.out, key_of(2)), 1);
        appender_release(&other.out, key_of(2));
    }
    assert_int_equal(status, CLAIM_TAKEN);
    results_close(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_use, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_claims, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_news, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_torn, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_workers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_settle, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_alone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_faults, set_up, tear_down),
    };
    return cmocka_run_group_tests_name("share", tests, NULL, NULL) != 0;
}
