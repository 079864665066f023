/* test_jieba.c - Chinese words: the real dictionary against what jieba 0.42.1 gives (skips when
 * models/jieba is absent: `make jieba`), the rules on a tiny one, and what is wrong with bad files.
 */
#include "eval/jieba.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* ==== Help ==== */

static int join(void *user, const char *word, size_t len)
{
    struct Str *out = user;
    TRY(str_append(out, word, len));
    return str_append(out, "|", 1);
}

static void check(const struct Jieba *j, const char *text, size_t len, const char *want)
{
    struct Str out = {0};
    assert_int_equal(jieba_cut(j, text, len, join, &out), PC_OK);
    const char *have = out.data ? out.data : "";
    if (strcmp(have, want) != 0) fail_msg("\"%s\" is cut %s, not %s", text, have, want);
    str_free(&out);
}

static void check_text(const struct Jieba *j, const char *text, const char *want)
{
    check(j, text, strlen(text), want);
}

/* ==== The real dictionary ==== */

static struct Jieba *open_real(void)
{
    const char *models = getenv("PCOMP_MODELS");
    char folder[4096];
    struct Jieba *j = NULL;
    snprintf(folder, sizeof folder, "%s/jieba", models ? models : "models");
    if (access(folder, R_OK) != 0) {
        print_message("SKIP: no %s; `make jieba` fetches it\n", folder);
        skip();
    }
    if (jieba_open(folder, &j) < 0) fail_msg("%s", err_text());
    return j;
}

/* What jieba 0.42.1 of PyPI gives. */
static const struct {
    const char *text, *words;
} REAL[] = {
    {"我来到北京清华大学", "我|来到|北京|清华大学|"},
    {"他来到了网易杭研大厦", "他|来到|了|网易|杭研|大厦|"},
    {"小明硕士毕业于中国科学院计算所，后在日本京都大学深造",
     "小明|硕士|毕业|于|中国科学院|计算所|，|后|在|日本京都大学|深造|"},
    {"工信处女干事每月经过下属科室都要亲口交代24口交换机等技术性器件的安装工作",
     "工信处|女干事|每月|经过|下属|科室|都|要|亲口|交代|24|口|交换机|等|技术性|器件|的|安装|工作|"},
    {"“台中”正确应该不会被切开。", "“|台|中|”|正确|应该|不会|被|切开|。|"},
    {"臺灣電腦軟體資訊網路", "臺|灣電腦|軟體|資訊|網路|"},
    {"結過婚的和尚未結過婚的", "結過|婚|的|和|尚未|結過|婚|的|"},
    {"乒乓球拍卖完了", "乒乓球|拍卖|完|了|"},
    {"C++和c#是什么关系？11+122=133，是吗？PI=3.14159",
     "C++|和|c#|是|什么|关系|？|11|+|122|=|133|，|是|吗|？|PI|=|3.14159|"},
    {"B超 T恤 4S店 AT&T 江南style", "B超| |T恤| |4S店| |AT&T| |江南style|"},
    {"\xce\xb3"
     "射线",
     "\xce\xb3"
     "|射线|"},
    {"1.5% 50%的a.5b 1.2.3 v1.0.2-beta .9 9. a%b",
     "1.5%| |50%|的|a.5|b| |1.2|.|3| |v1.0|.|2|-|beta| |.|9| |9|.| |a%|b|"},
    {"龘靐齉爩鱻麤", "龘|靐|齉|爩|鱻|麤|"},
    {"\xe4\xb7\xbf"
     "一鿕鿖",
     "\xe4\xb7\xbf"
     "|一|鿕|鿖|"},
    {"\xf0\xa0\x80\x80"
     "\xf0\xa0\x80\x81"
     "中国",
     "\xf0\xa0\x80\x80"
     "|\xf0\xa0\x80\x81"
     "|中国|"},
    {"\r\n中\r国\n\n \xe3\x80\x80"
     "a",
     "\r\n|中|\r|国|\n|\n| |\xe3\x80\x80"
     "|a|"},
    {"\xf0\x9f\x98\x80"
     "\xf0\x9f\x91\xa8"
     "\xe2\x80\x8d"
     "\xf0\x9f\x91\xa9"
     "\xe2\x80\x8d"
     "\xf0\x9f\x91\xa7"
     "笑",
     "\xf0\x9f\x98\x80"
     "|\xf0\x9f\x91\xa8"
     "|\xe2\x80\x8d"
     "|\xf0\x9f\x91\xa9"
     "|\xe2\x80\x8d"
     "|\xf0\x9f\x91\xa7"
     "|笑|"},
    {"王军虎去广州了", "王军|虎|去|广州|了|"},
    {"伊藤洋华堂总府店", "伊藤|洋华堂|总府|店|"},
    {"IBM是一家不错的公司，给你发offer了吗？",
     "IBM|是|一家|不错|的|公司|，|给|你|发|offer|了|吗|？|"},
    {"韩玉赏鉴", "韩玉|赏鉴|"},
    {"一分钟内有60秒", "一分钟|内有|60|秒|"},
    {"aaa_bbb-ccc+ddd", "aaa|_|bbb|-|ccc|+|ddd|"},
    {"１２３ＡＢＣ", "１|２|３|Ａ|Ｂ|Ｃ|"},
};
enum { N_REAL = sizeof REAL / sizeof REAL[0] };

static void test_real(void **state)
{
    (void)state;
    struct Jieba *j = open_real();
    for (int i = 0; i < N_REAL; i++) check_text(j, REAL[i].text, REAL[i].words);
    check(j, "\xe4\xb8\xad\0\xe5\x9b\xbd", 7, "\xe4\xb8\xad|"); /* NUL ends what is compared */
    jieba_close(j);
    assert_int_equal(mem_in_use(), 0);
}

static void *cut_real(void *j)
{
    for (int round = 0; round < 20; round++)
        for (int i = 0; i < N_REAL; i++) check_text(j, REAL[i].text, REAL[i].words);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct Jieba *j = open_real();
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, cut_real, j), 0);
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    jieba_close(j);
}

static int stop_at_second(void *user, const char *word, size_t len)
{
    (void)word, (void)len;
    return ++*(int *)user == 2 ? PC_EINTR : PC_OK;
}

/* ==== A tiny dictionary ==== */

static const char *const NAMES[] = {"dict.txt", "prob_start.py", "prob_trans.py", "prob_emit.py"};
/* Characters: 一 4e00, 丁 4e01, 七 4e03, 万 4e07, 丈 4e08 */
static const char *const TINY[] = {
    "一丁 8 n\n一丁七 1 n\n七 4\n丁 2 x\n万丈七 3 n\nA一 2 n\n",
    "P={'B': -0.5,\n 'E': -3.14e+100,\n 'M': -3.14e+100,\n 'S': -1.5}\n",
    "P={'B': {'E': -0.5, 'M': -0.9},\n 'E': {'B': -0.6, 'S': -0.8},\n"
    " 'M': {'E': -0.3, 'M': -1.2},\n 'S': {'B': -0.7, 'S': -0.6}}\n",
    "from __future__ import unicode_literals\n\nP={'B': {'\\u4e07': -2.0,\n '\\u2236': -6},\n"
    " 'E': {'\\u4e08': -2, '\\u4e00': -1},\n 'M': {},\n 'S': {\"\\u4e08\": -9.0,},}\n",
};

static char folder[64];

static void write_file(const char *name, const char *data, size_t len)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path); /* some file systems wait for the disk when a file is cut and closed */
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/test_jieba.XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char path[128];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, NAMES[i]);
        unlink(path);
    }
    return rmdir(folder);
}

static void write_tiny(void)
{
    for (int i = 0; i < 4; i++) write_file(NAMES[i], TINY[i], strlen(TINY[i]));
}

static void test_tiny(void **state)
{
    (void)state;
    struct Jieba *j;
    write_tiny();
    if (jieba_open(folder, &j) < 0) fail_msg("%s", err_text());
    check_text(j, "一丁七", "一丁|七|");
    check_text(j, "一丁", "一丁|");
    check_text(j, "万丈", "万丈|");
    check_text(j, "万", "万|");
    check_text(j, "丈万", "丈|万|");
    check_text(j, "丈丈", "丈|丈|");
    check_text(j, "一万", "一|万|");
    check_text(j, "一一", "一一|");
    check_text(j, "万丈一丁", "万丈|一丁|");
    check_text(j, "丁丁", "丁|丁|");
    check_text(j, "丁七", "丁|七|");
    check_text(j, "A一", "A一|");
    check_text(j, "AB一", "AB|一|");
    check_text(j, "万一丈", "万一|丈|");
    check_text(j, "七一", "七一|");
    check_text(j, "1.5%.a", "1.5%|.|a|");
    check_text(j, "++a", "++|a|");
    check_text(j, "万A丈", "万|A|丈|");
    check_text(j, " 一 \r\n", " |一| |\r\n|");
    check_text(j, "一一一丁七万丈七", "一一|一丁|七|万丈七|");
    check(j, "", 0, "");
    /* Bytes that are no UTF-8 stand alone; a lone surrogate's three bytes stay together. */
    check(j, "\xff\xe4\xb8\xe4\xb8\x80\xed\xa0\xbd\xe4", 10,
          "\xff|\xe4|\xb8|\xe4\xb8\x80|\xed\xa0\xbd|\xe4|");
    int calls = 0;
    assert_int_equal(jieba_cut(j, "a b c", 5, stop_at_second, &calls), PC_EINTR);
    assert_int_equal(calls, 2);
    jieba_close(j);
    assert_int_equal(mem_in_use(), 0);
}

/* A block is cut whole, however long; what is found does not depend on where memory grew. */
static void test_long(void **state)
{
    (void)state;
    struct Jieba *j;
    struct Str text = {0}, out = {0};
    write_tiny();
    if (jieba_open(folder, &j) < 0) fail_msg("%s", err_text());
    for (int i = 0; i < 20000; i++) assert_int_equal(str_append(&text, "万丈七一丁", 15), PC_OK);
    assert_int_equal(jieba_cut(j, text.data, text.len, join, &out), PC_OK);
    assert_int_equal(out.len, text.len + 40000);
    assert_memory_equal(out.data, "万丈七|一丁|万丈七|", 27);
    jieba_close(j);
    str_free(&text);
    str_free(&out);
}

/* ==== Bad files ==== */

static void assert_bad(int file, const char *data, size_t len, const char *part)
{
    struct Jieba *j = NULL;
    size_t before = mem_in_use();
    write_tiny();
    write_file(NAMES[file], data, len);
    int status = jieba_open(folder, &j);
    if (status != PC_EFORMAT) fail_msg("status %d for: %.60s", status, data);
    assert_null(j);
    if (!strstr(err_text(), part) || !strstr(err_text(), NAMES[file]))
        fail_msg("\"%s\" and %s are not in: %s", part, NAMES[file], err_text());
    assert_int_equal(mem_in_use(), before);
}

static void test_bad_files(void **state)
{
    (void)state;
    static const struct {
        int file;
        const char *data, *part;
    } bad[] = {
        {0, "", "no word has a frequency"},
        {0, "一 0 n\n", "no word has a frequency"},
        {0, "一 1 n\n\n丁 1\n", "line 2: the line is empty"},
        {0, "一 1 n\n丁", "line 2: there is no frequency"},
        {0, "一 1 n\n丁 \n", "line 2: there is no frequency"},
        {0, "一 n 1\n", "line 1: the frequency is not a whole number"},
        {0, "一  1\n", "line 1: the frequency is not a whole number"},
        {0, "一 -1\n", "line 1: the frequency is not a whole number"},
        {0, "一 1.5 n\n", "line 1: the frequency is not a whole number"},
        {0, "一 99999999999999999999\n", "line 1: the frequency is too large"},
        {0, "一 9007199254740991\n丁 1\n", "line 2: the frequencies add up"},
        {0, "一 1\n丁\xff 1\n", "line 2: not UTF-8"},
        {0, "一 1\n\xed\xa0\xbd 1\n", "line 2: not UTF-8"},
        {1, "", "line 1: no line begins with P="},
        {1, "# nothing\n", "line 2: no line begins with P="},
        {1, "P", "line 1: expected '='"},
        {1, "P=[]", "line 1: expected '{'"},
        {1, "P={", "line 1: expected a string"},
        {1, "P={'B", "more than one character or no end"},
        {1, "P={'B': -1,\n 'E': -1,\n 'M': -1}", "line 3: not all of the states"},
        {1, "P={'B': -1,\n 'X': -1}", "line 2: a state is one of"},
        {1, "P={'B': -1e999}", "expected a finite number"},
        {1, "P={'B': nan}", "expected a finite number"},
        {1, "P={'B': {}}", "expected a finite number"},
        {1, "P={'B': -1 'E': -1}", "line 1: expected '}'"},
        {1, "P={'B': 1,'E': 1,'M': 1,'S': 1}\nx", "line 2: something follows"},
        {2, "P={'B': 1}", "expected '{'"},
        {2, "P={'B': {'\\u4e00': 1}}", "a state is one of"},
        {3, "P={'B': {'\\u4e0': 1}}", "four hexadecimal digits"},
        {3, "P={'B': {'\\n': 1}}", "only \\uXXXX"},
        {3, "P={'B': {'\\u4e", "only \\uXXXX"},
        {3, "P={'B': {'': 1}}", "one character"},
        {3, "P={'B': {'ab': 1}}", "more than one character"},
        {3, "P={'B': {'一': 1}}", "ASCII or \\uXXXX"},
        {3, "P={'B':\n{'\\u4e00': --1}}", "line 2: expected a finite number"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_bad(bad[i].file, bad[i].data, strlen(bad[i].data), bad[i].part);
}

/* Every beginning of a good file but the whole is refused, or for the list of words is a shorter list. */
static void test_truncated(void **state)
{
    (void)state;
    for (int file = 1; file < 4; file++)
        for (size_t len = 0; len + 1 < strlen(TINY[file]); len++)
            assert_bad(file, TINY[file], len, "line ");
    for (size_t len = 0; len < strlen(TINY[0]); len++) {
        struct Jieba *j = NULL;
        write_tiny();
        write_file(NAMES[0], TINY[0], len);
        int status = jieba_open(folder, &j);
        assert_true(status == PC_OK || status == PC_EFORMAT);
        jieba_close(j);
    }
}

static void test_long_word(void **state)
{
    (void)state;
    struct Str line = {0};
    struct Jieba *j;
    for (int i = 0; i < 256; i++) assert_int_equal(str_append(&line, "一", 3), PC_OK);
    assert_int_equal(str_append(&line, " 1\n", 3), PC_OK);
    assert_bad(0, line.data, line.len, "line 1: the word has more than 255 characters");
    write_file(NAMES[0], line.data + 3, line.len - 3);
    if (jieba_open(folder, &j) < 0) fail_msg("%s", err_text());
    struct Str out = {0};
    assert_int_equal(jieba_cut(j, line.data, 256 * 3, join, &out), PC_OK);
    assert_int_equal(out.len, 256 * 3 + 2); /* 255 of them a word */
    jieba_close(j);
    str_free(&out);
    str_free(&line);
}

static void test_missing(void **state)
{
    (void)state;
    struct Jieba *j;
    char path[128];
    for (int i = 0; i < 4; i++) {
        write_tiny();
        snprintf(path, sizeof path, "%s/%s", folder, NAMES[i]);
        unlink(path);
        assert_int_equal(jieba_open(folder, &j), PC_EIO);
        assert_non_null(strstr(err_text(), NAMES[i]));
        assert_non_null(strstr(err_text(), "make jieba"));
    }
    assert_int_equal(setenv("PCOMP_JIEBA", "/nowhere/at/all", 1), 0);
    assert_int_equal(jieba_open(NULL, &j), PC_EIO);
    assert_non_null(strstr(err_text(), "/nowhere/at/all/dict.txt"));
    write_tiny();
    setenv("PCOMP_JIEBA", folder, 1);
    assert_int_equal(jieba_open(NULL, &j), PC_OK);
    jieba_close(j);
    unsetenv("PCOMP_JIEBA");
}

/* Whatever allocation fails: an error, nothing kept. */
static void test_no_memory(void **state)
{
    (void)state;
    write_tiny();
    for (long n = 1;; n++) {
        struct Jieba *j = NULL;
        struct Str out = {0};
        mem_fail_after(n);
        int status = jieba_open(folder, &j);
        if (status == PC_OK) status = jieba_cut(j, "万丈七 AB万丈", 18, join, &out);
        mem_fail_after(0);
        str_free(&out);
        jieba_close(j);
        assert_int_equal(mem_in_use(), 0);
        if (status == PC_OK) break;
        assert_int_equal(status, PC_ENOMEM);
        assert_true(n < 100);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_real),      cmocka_unit_test(test_threads),
        cmocka_unit_test(test_tiny),      cmocka_unit_test(test_long),
        cmocka_unit_test(test_bad_files), cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_long_word), cmocka_unit_test(test_missing),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests_name("jieba", tests, make_folder, remove_folder) != 0;
}
