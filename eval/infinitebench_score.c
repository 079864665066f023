/* infinitebench_score.c - the twelve tasks of InfiniteBench, scored as its own scorer of June 2024 does
 * (infinitebench@2024-06), with the oddities that its published table was made with.
 *
 * What answers[] holds: the elements of the row's ground_truth (or label), or that alone when it is no
 * list; of a list of lists (math_calc) the inner one's. A number's text is spelled as the JSON spells
 * it, since math_find tells an integer (48) from a float (48.0) by that. code_debug and
 * longbook_choice_eng: the option's content, then its letter. Where the original raises (math_find:
 * int("3.5"); more digits than Python converts) the answer is wrong here.
 */
#include "answers.h"
#include "pytext.h"
#include "rouge.h"
#include "score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One prediction under way. */
struct Job {
    const struct ScoreInput *in;
    const struct ScoreOptions *options;
    struct Str text; /* a copy of the prediction, for what changes it */
    struct ScoreOutput *out;
};

/* ==== Common ==== */

static struct Span span_of(const struct Str *s)
{
    return (struct Span){s->data ? s->data : "", s->len};
}

static struct Span answer(const struct Job *job, int i)
{
    return span_of(&job->in->answers[i]);
}

static bool same(struct Span a, struct Span b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

static bool starts_with(struct Span text, struct Span with)
{
    return text.len >= with.len && same((struct Span){text.data, with.len}, with);
}

static bool is_answer(const struct Job *job, struct Span word)
{
    for (int i = 0; i < job->in->n_answers; i++)
        if (same(answer(job, i), word)) return true;
    return false;
}

static int verdict(struct Job *job, bool right)
{
    job->out->score = right;
    return PC_OK;
}

static int unparsed(struct Job *job)
{
    job->out->unparsed = true;
    return PC_OK; /* the score is 0 */
}

/* The prediction without white space around it, into job->text. */
static int copy_stripped(struct Job *job)
{
    struct Span s = py_strip(job->in->pred, job->in->pred_len);
    return str_append(&job->text, s.data, s.len);
}

/* Takes the first n code points of text. */
static struct Span first_points(struct Span text, int n)
{
    size_t at = 0;
    while (n-- > 0 && at < text.len) py_next(text.data, text.len, &at);
    return (struct Span){text.data, at};
}

/* Makes one space of each row of spaces. */
static void squeeze_spaces(struct Str *s)
{
    size_t to = 0;
    for (size_t i = 0; i < s->len; i++)
        if (s->data[i] != ' ' || to == 0 || s->data[to - 1] != ' ') s->data[to++] = s->data[i];
    s->len = to;
}

/* Looks for the phrases in their order. Of the first that is there: what comes one character behind
 * it; PHRASE_LAST when nothing does. */
enum Phrase { PHRASE_NONE, PHRASE_LAST, PHRASE_FOUND };

static enum Phrase find_phrase(const struct Str *text, const char *const *phrases, int n,
                               struct Span *rest)
{
    for (int i = 0; i < n; i++) {
        size_t len = strlen(phrases[i]);
        const char *found = text->len ? memmem(text->data, text->len, phrases[i], len) : NULL;
        if (!found) continue;
        *rest = (struct Span){found + len, text->len - (size_t)(found + len - text->data)};
        if (rest->len == 0) return PHRASE_LAST;
        size_t skip = first_points(*rest, 1).len;
        *rest = (struct Span){rest->data + skip, rest->len - skip};
        return PHRASE_FOUND;
    }
    return PHRASE_NONE;
}

/* ==== Retrieval ==== */

/* Next run of ASCII digits from *at. */
static bool ascii_digits_next(struct Span text, size_t *at, struct Span *digits)
{
    size_t begin = *at;
    while (begin < text.len && (text.data[begin] < '0' || text.data[begin] > '9')) begin++;
    size_t end = begin;
    while (end < text.len && text.data[end] >= '0' && text.data[end] <= '9') end++;
    *at = end;
    *digits = (struct Span){text.data + begin, end - begin};
    return end > begin;
}

/* passkey, number_string: the first digits in a row, as text. */
static int score_first_digits(struct Job *job)
{
    size_t at = 0;
    struct Span digits, pred = {job->in->pred, job->in->pred_len};
    job->out->unparsed = !ascii_digits_next(pred, &at, &digits);
    return verdict(job, same(digits, answer(job, 0)));
}

/* kv_retrieval, longdialogue_qa_eng: the answer is one of the words, punctuation being space. So an
 * answer of two words, or with such a sign, is never found. */
static int score_word(struct Job *job, const struct Str *text)
{
    struct Span word;
    size_t at = 0;
    bool any = false, found = false;
    while (text->len && py_split_next(text->data, text->len, &at, &word)) {
        any = true;
        found |= same(word, answer(job, 0));
    }
    job->out->unparsed = !any;
    return verdict(job, found);
}

static const char WORD_SIGNS[] = "\n:\"'.,?!{}";

static int score_kv(struct Job *job)
{
    TRY(copy_stripped(job));
    py_blank(job->text.data, job->text.len, WORD_SIGNS);
    return score_word(job, &job->text);
}

/* Words in capitals; of the accepted names only the first counts. */
static int score_dialogue(struct Job *job)
{
    struct Str upper = {0};
    TRY(copy_stripped(job));
    py_blank(job->text.data, job->text.len, WORD_SIGNS);
    int status = job->text.len ? py_upper(job->text.data, job->text.len, &upper) : PC_OK;
    if (status == PC_OK) status = score_word(job, &upper);
    str_free(&upper);
    return status;
}

/* ==== Code ==== */

/* Whether two texts are the same integer: 1, 0, or an error. *is_int tells of the first. */
static int same_int(struct Span a, struct Span b, bool *is_int)
{
    struct Str x = {0}, y = {0};
    int first = py_int(a.data, a.len, &x), second = 0;
    if (first > 0) second = py_int(b.data, b.len, &y);
    int result = first < 0 ? first : second < 0 ? second : 0;
    if (first > 0 && second > 0) result = same(span_of(&x), span_of(&y));
    *is_int = first > 0;
    str_free(&x);
    str_free(&y);
    return result;
}

/* code_run: the last word, as an integer. */
static int score_code_run(struct Job *job)
{
    struct Span word, last = {"", 0};
    size_t at = 0;
    bool is_int;
    TRY(copy_stripped(job));
    py_blank(job->text.data, job->text.len, "\n.`'\":");
    while (job->text.len && py_split_next(job->text.data, job->text.len, &at, &word)) last = word;
    int right = same_int(last, answer(job, 0), &is_int);
    TRY(right);
    job->out->unparsed = !is_int;
    return verdict(job, right);
}

static const char *const DEBUG_PHRASES[] = {"answer is:", "is:", "answer:", "correct option is:"};

/* "B." or "B:" at the begin. */
static bool is_letter_mark(struct Span head, struct Span letter)
{
    if (head.len != letter.len + 1 || !starts_with(head, letter)) return false;
    return head.data[letter.len] == '.' || head.data[letter.len] == ':';
}

static void blank_word(struct Str *s, const char *word)
{
    size_t len = strlen(word);
    char *at = s->data, *end = s->data + s->len;
    while ((at = memmem(at, (size_t)(end - at), word, len)) != NULL) memset(at, ' ', len);
}

/* The word "option", quotes, stars and dashes become space. */
static void clean_debug(struct Str *s)
{
    py_blank(s->data, s->len, "\n`'\"-*");
    blank_word(s, "Option");
    blank_word(s, "option");
    squeeze_spaces(s);
}

/* code_debug: the letter at the begin, or letter or function's name behind a phrase. */
static int score_code_debug(struct Job *job)
{
    struct Span rest;
    TRY(copy_stripped(job));
    if (job->text.len == 0) return unparsed(job);
    struct Span head = first_points(span_of(&job->text), 2);
    if (is_letter_mark(head, answer(job, 1))) return verdict(job, true);
    bool marked = head.len == 2 && head.data[0] >= 'A' && head.data[0] <= 'D' &&
                  (head.data[1] == '.' || head.data[1] == ':');
    clean_debug(&job->text);
    enum Phrase phrase = find_phrase(&job->text, DEBUG_PHRASES, 4, &rest);
    job->out->unparsed = phrase != PHRASE_FOUND && !marked;
    return verdict(job, phrase == PHRASE_FOUND && (starts_with(rest, answer(job, 1)) ||
                                                   starts_with(rest, answer(job, 0))));
}

/* ==== Books ==== */

static const char *const CHOICE_PHRASES[] = {"answer is:", "answer:", "answer is", "option is"};

/* The first word that is a piece of "ABCD", as it is no letter alone that is looked for. */
static int score_choice_word(struct Job *job)
{
    struct Span word;
    size_t at = 0;
    while (py_split_next(job->text.data, job->text.len, &at, &word))
        if (memmem("ABCD", 4, word.data, word.len)) return verdict(job, is_answer(job, word));
    return unparsed(job);
}

/* longbook_choice_eng: a capital A to D at the begin, or the whole answer, or what follows a phrase,
 * or the first such letter alone. */
static int score_choice(struct Job *job)
{
    struct Span rest;
    TRY(copy_stripped(job));
    if (job->text.len == 0) return unparsed(job);
    struct Span text = span_of(&job->text), letter = first_points(text, 1);
    if (memmem("ABCD", 4, letter.data, letter.len)) return verdict(job, is_answer(job, letter));
    if (is_answer(job, text)) return verdict(job, true);
    py_blank(job->text.data, job->text.len, "\n\"'.,?!{}");
    squeeze_spaces(&job->text);
    enum Phrase phrase = find_phrase(&job->text, CHOICE_PHRASES, 4, &rest);
    if (phrase == PHRASE_NONE) return score_choice_word(job);
    if (phrase == PHRASE_LAST) return unparsed(job);
    for (int i = 0; i < job->in->n_answers; i++)
        if (starts_with(rest, answer(job, i))) return verdict(job, true);
    return PC_OK;
}

/* F1 of the words, the best over the answers. `words` appends a text's words with spaces between. */
static int score_f1(struct Job *job, int (*words)(const char *text, size_t len, struct Str *out))
{
    struct Str truth = {0};
    struct Bag bag;
    int status = words(job->in->pred, job->in->pred_len, &job->text);
    bag_open(&bag);
    if (status == PC_OK) status = bag_fill(&bag, &job->text);
    for (int i = 0; status == PC_OK && i < job->in->n_answers; i++) {
        struct Span text = answer(job, i);
        str_clear(&truth);
        status = words(text.data, text.len, &truth);
        if (status == PC_OK) job->out->score = fmax(job->out->score, bag_f1(&bag, &truth));
    }
    bag_close(&bag);
    str_free(&truth);
    return status;
}

static int score_qa(struct Job *job)
{
    return score_f1(job, answer_normalize);
}

/* Every character is a word. */
static int score_qa_zh(struct Job *job)
{
    return score_f1(job, answer_chars_zh);
}

static int score_summary(struct Job *job)
{
    for (int i = 0; i < job->in->n_answers; i++) {
        struct Span truth = answer(job, i);
        double f = rouge_lsum(job->in->pred, job->in->pred_len, truth.data, truth.len);
        if (f < 0) return PC_ENOMEM;
        job->out->score = fmax(job->out->score, f);
    }
    return PC_OK;
}

/* ==== Numbers ==== */

/* First match of \d+\.\d+|\d+ ; the digits may be of any script. */
static bool first_number(struct Span text, struct Span *number)
{
    struct Span fraction;
    size_t at = 0;
    if (!py_digits_next(text.data, text.len, &at, number)) return false;
    const char *point = number->data + number->len, *end = text.data + text.len;
    at = (size_t)(point - text.data);
    if (point < end && *point == '.' && py_digits_next(text.data, text.len, &at, &fraction) &&
        fraction.data == point + 1)
        number->len = (size_t)(fraction.data + fraction.len - number->data);
    return true;
}

/* float(text) of a number as first_number finds it. */
static int to_float(struct Span text, double *out)
{
    struct Str ascii = {0};
    int status = PC_OK;
    for (size_t at = 0; status == PC_OK && at < text.len;) {
        uint32_t cp = py_next(text.data, text.len, &at);
        int digit = py_digit(cp);
        char c = digit < 0 ? '.' : (char)('0' + digit);
        status = str_append(&ascii, &c, 1);
    }
    if (status == PC_OK) *out = strtod(ascii.data, NULL);
    str_free(&ascii);
    return status;
}

/* Whether a label is a number of the JSON, and which kind. */
enum NumberKind { NOT_A_NUMBER, NUMBER_INT, NUMBER_FLOAT };

static enum NumberKind number_kind(struct Span label, double *value)
{
    char text[400], *end;
    if (label.len == 0 || label.len >= sizeof text) return NOT_A_NUMBER;
    memcpy(text, label.data, label.len);
    text[label.len] = '\0';
    if (strspn(text, "+-.0123456789eE") != label.len) return NOT_A_NUMBER;
    *value = strtod(text, &end);
    if (*end) return NOT_A_NUMBER;
    return strpbrk(text, ".eE") ? NUMBER_FLOAT : NUMBER_INT;
}

/* math_find: the first number. Where the label is an integer one is looked for, and 3.0 is none. */
static int score_math_find(struct Job *job)
{
    struct Span number, pred = {job->in->pred, job->in->pred_len};
    double want = 0, have = 0;
    bool is_int;
    enum NumberKind kind = number_kind(answer(job, 0), &want);
    if (kind == NOT_A_NUMBER)
        return err_set(PC_EFORMAT, "math_find: the answer is not a number; it is spelled as in the "
                                   "JSON, as 48 or 48.0");
    if (!first_number(pred, &number)) return unparsed(job);
    if (kind == NUMBER_FLOAT) {
        TRY(to_float(number, &have));
        return verdict(job, have == want);
    }
    int right = same_int(number, answer(job, 0), &is_int);
    TRY(right);
    job->out->unparsed = !is_int;
    return verdict(job, right);
}

/* math_calc: how many values from the first are right, as share of all; signs are not seen. Those of
 * "gpt4" begin with a number too many, which its prompt asked for. */
static int score_math_calc(struct Job *job)
{
    struct Span number, pred = {job->in->pred, job->in->pred_len};
    size_t at = 0;
    bool is_int, more = true;
    int right = 0;
    const char *model = job->options ? job->options->model_name : NULL;
    job->out->unparsed = !ascii_digits_next(pred, &at, &number);
    if (!model || strcmp(model, "gpt4") != 0) at = 0;
    while (more && right < job->in->n_answers && ascii_digits_next(pred, &at, &number)) {
        int equal = same_int(number, answer(job, right), &is_int);
        TRY(equal);
        more = equal;
        right += equal;
    }
    job->out->score = (double)right / job->in->n_answers;
    return PC_OK;
}

/* ==== Tasks ==== */

static const struct Task {
    const char *name, *metric;
    int (*score)(struct Job *job);
    int min_answers;
} TASKS[] = {
    {"passkey", "first_int", score_first_digits, 1},
    {"number_string", "first_int", score_first_digits, 1},
    {"kv_retrieval", "word", score_kv, 1},
    {"kv_retrieval_prefix", "word", score_kv, 1},
    {"kv_retrieval_both", "word", score_kv, 1},
    {"longbook_sum_eng", "rougeLsum", score_summary, 1},
    {"longbook_qa_eng", "qa_f1", score_qa, 1},
    {"longbook_choice_eng", "choice", score_choice, 1},
    {"longdialogue_qa_eng", "upper_word", score_dialogue, 1},
    {"longbook_qa_chn", "char_f1", score_qa_zh, 1},
    {"code_debug", "option", score_code_debug, 2},
    {"code_run", "last_int", score_code_run, 1},
    {"math_calc", "prefix_share", score_math_calc, 1},
    {"math_find", "first_number", score_math_find, 1},
};
enum { N_TASKS = sizeof TASKS / sizeof TASKS[0] };

static const struct Task *find_task(const char *name)
{
    for (int i = 0; i < N_TASKS; i++)
        if (strcmp(TASKS[i].name, name) == 0) return &TASKS[i];
    return NULL;
}

static int unknown_task(const char *name)
{
    return err_set(PC_ECONFIG, "InfiniteBench has no task '%s'; the nearest is '%s'", name,
                   word_nearest(name, TASKS, N_TASKS, sizeof TASKS[0]));
}

int infinitebench_score(const char *task, const struct ScoreOptions *o, const struct ScoreInput *in,
                        struct ScoreOutput *out)
{
    const struct Task *t = find_task(task);
    struct ScoreInput input = *in;
    struct Job job = {.in = &input, .options = o, .out = out};
    *out = (struct ScoreOutput){0};
    if (!t) return unknown_task(task);
    if (in->n_answers < t->min_answers)
        return err_set(PC_EFORMAT, "%s: a row has %d answers and needs %d%s", task, in->n_answers,
                       t->min_answers, t->min_answers == 2 ? ": the option, then its letter" : "");
    if (!input.pred) input.pred = "";
    int status = t->score(&job);
    str_free(&job.text);
    return status;
}

const char *infinitebench_metric(const char *task)
{
    const struct Task *t = find_task(task);
    return t ? t->metric : NULL;
}
