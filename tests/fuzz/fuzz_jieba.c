/* fuzz_jieba.c - the segmenter with hostile files: the first byte picks what the input is, a table of the
 * model or, with 3, a dictionary and behind the first byte 0xff the text. Words must be the text.
 */
#include "eval/jieba.h"
#include "eval/jieba_parts.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char DICT[] = "一丁 8 n\n一丁七 1 n\n七 4\n丁 2 x\n万丈七 3 n\nA一 2 n\n";
static const char TEXT[] = "一丁七万丈, 万一丁丈七A一B1.5%\r\n丈万万丈丈";
static const char *const TABLES[HMM_TABLES] = {
    "P={'B': -0.5, 'E': -3.14e+100, 'M': -3.14e+100, 'S': -1.5}",
    "P={'B': {'E': -0.5, 'M': -0.9}, 'E': {'B': -0.6, 'S': -0.8}, 'M': {'E': -0.3}, 'S': {'S': -1}}",
    "P={'B': {'\\u4e07': -2.0}, 'E': {'\\u4e08': -2, '\\u4e00': -1}, 'M': {}, 'S': {'\\u4e08': -9}}",
};

/* What is left of the text. */
struct Rest {
    const char *at, *end;
};

static int take_word(void *user, const char *word, size_t len)
{
    struct Rest *rest = user;
    if (len == 0 || word != rest->at || len > (size_t)(rest->end - rest->at)) abort();
    rest->at += len;
    return PC_OK;
}

static void cut(const struct Jieba *j, const char *text, size_t len)
{
    struct Rest rest = {text, text + len};
    if (jieba_cut(j, text, len, take_word, &rest) < 0 || rest.at != rest.end) abort();
}

static struct Jieba tiny;
static size_t baseline; /* memory that it holds */

static void set_up(void)
{
    if (jieba_hmm_init(&tiny.hmm) < 0) abort();
    for (int i = 0; i < HMM_TABLES; i++)
        if (jieba_hmm_parse("tiny", TABLES[i], strlen(TABLES[i]), (enum HmmTable)i, &tiny.hmm) < 0)
            abort();
    if (jieba_dict_parse("tiny", DICT, sizeof DICT - 1, &tiny.dict) < 0) abort();
    baseline = mem_in_use();
}

static void check_refusal(int status)
{
    if (status != PC_EFORMAT || !*err_text()) abort();
}

static void run_table(enum HmmTable table, const char *data, size_t len)
{
    struct Jieba j = tiny;
    if (table == HMM_EMIT && jieba_hmm_init(&j.hmm) < 0) abort();
    int status = jieba_hmm_parse("fuzz", data, len, table, &j.hmm);
    if (status == PC_OK)
        cut(&j, TEXT, sizeof TEXT - 1);
    else
        check_refusal(status);
    if (table == HMM_EMIT) jieba_hmm_free(&j.hmm);
}

static void run_dict(const char *dict, size_t dict_len, const char *text, size_t len)
{
    struct Jieba j = tiny;
    int status = jieba_dict_parse("fuzz", dict, dict_len, &j.dict);
    if (status == PC_OK)
        cut(&j, text, len);
    else
        check_refusal(status);
    jieba_dict_free(&j.dict);
    cut(&tiny, text, len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!tiny.dict.n_nodes) set_up();
    if (size == 0) return 0;
    int table = data[0] % (HMM_TABLES + 1);
    const char *own = (const char *)data + 1, *end = (const char *)data + size;
    const char *split = size > 1 ? memchr(own, 0xff, size - 1) : NULL;
    if (table < HMM_TABLES)
        run_table((enum HmmTable)table, own, size - 1);
    else if (split)
        run_dict(own, (size_t)(split - own), split + 1, (size_t)(end - split - 1));
    if (mem_in_use() != baseline) abort();
    return 0;
}
