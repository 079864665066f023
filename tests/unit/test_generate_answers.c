/* test_generate_answers.c - the answers of the generated tasks, found once more by reading the context
 * as a solver would: no other knowledge, no shared code.
 */
#include "generate_support.h"

#include <ctype.h>

enum { SAMPLES = 12 };

static struct Sample sample_of(const char *task, int64_t tokens, int index)
{
    struct GenSpec spec = spec_of(task, tokens);
    spec.index = index;
    return make(&spec);
}

/* The words after a phrase in the text, up to one of `ends`. */
static void after(const char *text, const char *phrase, const char *ends, char out[128])
{
    const char *at = strstr(text, phrase);
    assert_non_null(at);
    at += strlen(phrase);
    size_t len = strcspn(at, ends);
    assert_true(len < 127);
    memcpy(out, at, len);
    out[len] = '\0';
}

/* ==== Numbers ==== */

static int compare_ints(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

/* The n-th different number of a sorted list, from its begin (step 1) or end (step -1). */
static int nth_different(const int *sorted, int n, int nth, int step)
{
    int at = step > 0 ? 0 : n - 1;
    for (int seen = 1; seen < nth; at += step)
        if (sorted[at] != sorted[at + step]) seen++;
    return sorted[at];
}

static double find_again(const char *kind, int *numbers, int n)
{
    qsort(numbers, (size_t)n, sizeof *numbers, compare_ints);
    if (strcmp(kind, "median") == 0)
        return n % 2 ? numbers[n / 2] : (numbers[n / 2 - 1] + numbers[n / 2]) / 2.0;
    int nth = starts(kind, "second") ? 2 : starts(kind, "third") ? 3 : 1;
    return nth_different(numbers, n, nth, strstr(kind, "largest") ? -1 : 1);
}

static void test_math_find(void **state)
{
    (void)state;
    for (int i = 0; i < 3 * 7; i++) {
        struct Sample s = sample_of("math_find", 3001 + i, i);
        int *numbers = calloc(s.context.len, sizeof *numbers), n = 0;
        char kind[128], *at = s.context.data;
        assert_int_equal(*at, '[');
        do numbers[n++] = (int)strtol(at + 1, &at, 10);
        while (*at == ',');
        assert_string_equal(at, "]");
        after(s.input.data, "The ", "\n", kind);
        *strstr(kind, " number of the list is: ") = '\0';
        assert_true(find_again(kind, numbers, n) == atof(s.answers[0].data));
        for (int a = 0; a < s.n_answer_at; a++)
            assert_true(atoi(s.context.data + s.answer_at[a]) == atoi(s.answers[0].data));
        free(numbers);
        sample_free(&s);
    }
}

static void test_math_calc(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        struct Sample s = sample_of("math_calc", 3000 + i, i);
        char *at = s.context.data;
        int value = (int)strtol(at, &at, 10), n = 0;
        while (*at) {
            assert_true(at[0] == ' ' && (at[1] == '+' || at[1] == '-') && at[2] == ' ');
            int sign = at[1] == '+' ? 1 : -1;
            value += sign * (int)strtol(at + 3, &at, 10);
            assert_true(value >= 0 && value <= 99);
            assert_true(n < s.n_answers && atoi(s.answers[n].data) == value);
            n++;
        }
        assert_int_equal(n, s.n_answers);
        sample_free(&s);
    }
}

/* ==== Code ==== */

/* Runs func_<id>(x) by looking its text up. *calls counts them. */
static long run_function(const char *code, long id, long x, int *calls)
{
    char head[64];
    snprintf(head, sizeof head, "def func_%ld(x):\n    return ", id);
    assert_int_equal(occurs(code, head), 1);
    char *at = strstr(code, head) + strlen(head);
    long value = x;
    assert_true(++*calls <= 200);
    if (starts(at, "func_"))
        value = run_function(code, strtol(at + 5, &at, 10), x, calls);
    else
        assert_int_equal(*at, 'x');
    at += starts(at, "(x)") ? 3 : 1;
    if (starts(at, " + ")) return value + strtol(at + 3, NULL, 10);
    if (starts(at, " - ")) return value - strtol(at + 3, NULL, 10);
    assert_int_equal(*at, '\n');
    return value;
}

static void test_code_run(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        struct Sample s = sample_of("code_run", 4000 + 1000 * i, i);
        char call[128], *at;
        int calls = 0;
        after(s.input.data, "return value of func_", ")", call);
        long id = strtol(call, &at, 10), x = strtol(at + 1, NULL, 10);
        assert_int_equal(run_function(s.context.data, id, x, &calls), atol(s.answers[0].data));
        assert_int_equal(calls, 2 + 2 * (i % 5));
        assert_int_equal(calls, s.n_answer_at);
        snprintf(call, sizeof call, "def func_%ld(x)", id);
        assert_true(starts(s.context.data + s.answer_at[0], call));
        assert_true(
            starts(s.context.data, "\nHere is the content of functions_module.py:\n\ndef "));
        sample_free(&s);
    }
}

/* ==== Chains ==== */

/* Follows "VAR A = 1" and "VAR B = VAR A": all names that hold the value asked for, in order. */
static void test_vt(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        struct GenSpec spec = spec_of("vt", 4000);
        spec.index = i;
        spec.n_keys = 1 + i % 3;
        struct Sample s = make(&spec);
        char names[16][16], name[16], value[16];
        int n = 0;
        for (const char *at = s.context.data; (at = strstr(at, "VAR ")); at += 4) {
            if (sscanf(at, "VAR %5[A-Z] = VAR %5[A-Z]", name, value) != 2 &&
                sscanf(at, "VAR %5[A-Z] = %5[0-9]", name, value) != 2)
                continue;
            bool holds = strcmp(value, s.input.data) == 0;
            for (int k = 0; k < n && !holds; k++) holds = strcmp(names[k], value) == 0;
            if (holds) snprintf(names[n++], 16, "%s", name);
        }
        assert_int_equal(n, 5);
        assert_int_equal(s.n_answers, 5);
        for (int k = 0; k < n; k++) {
            assert_string_equal(names[k], s.answers[k].data);
            assert_true(starts(s.context.data + s.answer_at[k], "VAR "));
            assert_true(starts(s.context.data + s.answer_at[k] + 4, names[k]));
        }
        assert_int_equal(occurs(s.context.data, "VAR "), spec.n_keys * 9);
        sample_free(&s);
    }
}

static void test_hops(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        struct GenSpec spec = spec_of("hops", 4000);
        spec.index = i;
        spec.n_hops = 1 + i % 4;
        struct Sample s = make(&spec);
        char phrase[256], name[128];
        snprintf(name, sizeof name, "%s", s.input.data);
        int hops = 0;
        for (;; hops++) {
            snprintf(phrase, sizeof phrase, "The locker code of %s is ", name);
            assert_int_equal(occurs(s.context.data, phrase), 1);
            assert_true(starts(s.context.data + s.answer_at[spec.n_hops - hops], phrase));
            after(s.context.data, phrase, ".", name);
            if (isdigit((unsigned char)*name)) break;
            memmove(name, strstr(name, "code of ") + 8, strlen(strstr(name, "code of ") + 8) + 1);
        }
        assert_int_equal(hops, spec.n_hops);
        assert_string_equal(name, s.answers[0].data);
        sample_free(&s);
    }
}

/* ==== Counts ==== */

struct Counted {
    char word[32];
    int n;
};

static int compare_counts(const void *a, const void *b)
{
    return ((const struct Counted *)b)->n - ((const struct Counted *)a)->n;
}

/* Counts the words of a text; returns how many different ones. */
static int count_words(const struct Str *text, bool numbered, struct Counted *list, int most)
{
    char *copy = strdup(text->data), *save = NULL;
    int n = 0, turn = 0;
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        if (numbered && turn++ % 2 == 0) {
            assert_int_equal(atoi(w), turn / 2 + 1);
            continue;
        }
        int k = 0;
        while (k < n && strcmp(list[k].word, w) != 0) k++;
        assert_true(k < most);
        if (k == n) snprintf(list[n++].word, sizeof list->word, "%s", w);
        list[k].n++;
    }
    free(copy);
    qsort(list, (size_t)n, sizeof *list, compare_counts);
    return n;
}

static bool is_answer(const struct Sample *s, const char *word)
{
    for (int i = 0; i < s->n_answers; i++)
        if (strcmp(s->answers[i].data, word) == 0) return true;
    return false;
}

static void test_cwe(void **state)
{
    (void)state;
    static const int64_t LENGTHS[] = {2000, 8000,
                                      90000}; /* the last has more words than the lists */
    for (int i = 0; i < 3 * 2; i++) {
        enum { MOST = 8000 };
        struct Counted *list = calloc(MOST, sizeof *list);
        struct Sample s = sample_of("cwe", LENGTHS[i % 3], i);
        int n = count_words(&s.context, true, list, MOST);
        assert_int_equal(s.n_answers, 10);
        for (int k = 0; k < n; k++) {
            assert_int_equal(list[k].n, k < 10 ? (i % 3 ? 30 : 6) : (i % 3 ? 3 : 1));
            assert_int_equal(is_answer(&s, list[k].word), k < 10);
        }
        free(list);
        sample_free(&s);
    }
}

static void test_fwe(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        enum { MOST = 4000 };
        struct Counted *list = calloc(MOST, sizeof *list);
        struct Sample s = sample_of("fwe", 1500 + 900 * i, i);
        int n = count_words(&s.context, false, list, MOST);
        assert_true(n > 4);
        assert_string_equal(list[0].word, "...");
        for (int k = 1; k <= 3; k++) {
            assert_string_equal(list[k].word, s.answers[k - 1].data);
            assert_true(list[k].n > list[k + 1].n);
        }
        free(list);
        sample_free(&s);
    }
}

/* ==== Retrieval ==== */

/* Every answer is what the text says of the asked key, and of no other value. */
static void check_magic(const char *task, int n_answers)
{
    for (int i = 0; i < SAMPLES; i++) {
        struct Sample s = sample_of(task, 5000, i);
        char keys[512], phrase[256], *save = NULL;
        int n = 0;
        snprintf(keys, sizeof keys, "%s", s.input.data);
        for (char *k = strtok_r(keys, ", ", &save); k; k = strtok_r(NULL, ", ", &save)) {
            if (strcmp(k, "and") == 0) continue;
            snprintf(phrase, sizeof phrase, " for %s is: ", k);
            for (const char *at = s.context.data; (at = strstr(at, phrase)); n++) {
                char value[128];
                after(at, phrase, ".", value);
                assert_true(is_answer(&s, value));
                at += strlen(phrase);
            }
        }
        assert_int_equal(n, n_answers);
        assert_int_equal(n, s.n_answers);
        sample_free(&s);
    }
}

static void test_niah(void **state)
{
    (void)state;
    static const char *const ONE[] = {"niah_single_1",   "niah_single_2",   "niah_single_3",
                                      "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
                                      "needle"};
    for (size_t i = 0; i < sizeof ONE / sizeof *ONE; i++) check_magic(ONE[i], 1);
    check_magic("niah_multivalue", 4);
    check_magic("niah_multiquery", 4);
    check_magic("needles", 10);
}

static void test_kv(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        struct Sample s = sample_of("kv_retrieval", 4000, i);
        char key[128], phrase[256], value[128];
        after(s.input.data, "\nKey: \"", "\"", key);
        snprintf(phrase, sizeof phrase, "\"%s\": \"", key);
        assert_int_equal(occurs(s.context.data, phrase), 1);
        after(s.context.data, phrase, "\"", value);
        assert_string_equal(value, s.answers[0].data);
        assert_true(starts(s.context.data, "JSON data:\n{\""));
        assert_string_equal(s.context.data + s.context.len - 2, "\"}");
        sample_free(&s);
    }
}

/* One passkey of that many words, said twice; other numbers of words begin alike. */
static void test_passphrase(void **state)
{
    (void)state;
    static const char lead[] = "The passkey to the vault is \"";
    for (int i = 0; i < SAMPLES; i++) {
        struct GenSpec spec = spec_of("passphrase", 2000);
        char value[512], five[512];
        spec.index = i;
        struct Sample s = make(&spec);
        after(s.context.data, lead, "\"", five);
        assert_int_equal(occurs(s.context.data, five), 2);
        assert_string_equal(five, s.answers[0].data);
        assert_int_equal(occurs(five, " "), 4);
        assert_string_equal(s.input.data, "What is the passkey to the vault?");
        sample_free(&s);
        spec.n_words = 1 + i;
        s = make(&spec);
        assert_int_equal(occurs(s.context.data, lead), 1);
        after(s.context.data, lead, "\"", value);
        assert_string_equal(value, s.answers[0].data);
        assert_int_equal(occurs(value, " "), i);
        assert_true(starts(i < 5 ? five : value, i < 5 ? value : five));
        sample_free(&s);
    }
    struct GenSpec spec = spec_of("passphrase", 2000);
    struct Sample s;
    spec.n_words = 33;
    assert_int_equal(generate(&spec, tok, &s), PC_ECONFIG);
}

static void test_digits(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        char value[128];
        struct Sample s = sample_of("passkey", 2000, i);
        after(s.context.data, "The pass key is ", ".", value);
        assert_string_equal(value, s.answers[0].data);
        assert_int_equal(strlen(value), 5);
        sample_free(&s);
        s = sample_of("number_string", 2000, i);
        after(s.context.data, "The sequence of digits is ", ".", value);
        assert_string_equal(value, s.answers[0].data);
        assert_int_equal(strlen(value), 10);
        sample_free(&s);
    }
}

/* ==== Questions of a set ==== */

static void test_squad(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        struct Sample s = sample_of("qa_1", 1500, i);
        int paragraph, article;
        char says[128];
        assert_int_equal(sscanf(s.input.data, "Which house %d %d?", &article, &paragraph), 2);
        snprintf(says, sizeof says, "Paragraph %d of article %d says that %s is", paragraph,
                 article, s.answers[0].data);
        assert_int_equal(s.n_answers, 1);
        assert_non_null(strstr(s.context.data + s.answer_at[0], says));
        assert_true(starts(s.context.data + s.answer_at[0], "Document "));
        assert_true(starts(s.context.data, "Document 1:\nParagraph "));
        sample_free(&s);
    }
}

static void test_hotpot(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        struct Sample s = sample_of("qa_2", 1200, i);
        int owner;
        char title[64];
        assert_int_equal(sscanf(s.input.data, "Who owns %d?", &owner), 1);
        snprintf(title, sizeof title, "owner %d", owner);
        assert_string_equal(s.answers[0].data, title);
        assert_int_equal(s.n_answer_at, 2);
        for (int d = 0; d < 3; d++) {
            snprintf(title, sizeof title, ":\nTitle %d\nFirst of ", 3 * owner + d);
            assert_int_equal(occurs(s.context.data, title), 1);
        }
        sample_free(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_math_find), cmocka_unit_test(test_math_calc),
        cmocka_unit_test(test_code_run),  cmocka_unit_test(test_vt),
        cmocka_unit_test(test_hops),      cmocka_unit_test(test_passphrase),
        cmocka_unit_test(test_cwe),       cmocka_unit_test(test_fwe),
        cmocka_unit_test(test_niah),      cmocka_unit_test(test_kv),
        cmocka_unit_test(test_digits),    cmocka_unit_test(test_squad),
        cmocka_unit_test(test_hotpot),
    };
    return cmocka_run_group_tests_name("generate answers", tests, tiny_open, tiny_close) != 0;
}
