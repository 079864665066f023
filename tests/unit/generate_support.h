/* generate_support.h - for tests of the generators: the tiny model's tokenizer, a text to hide in, and
 * short ways to make a sample. Each test program has its own copy.
 */
#ifndef PCOMP_GENERATE_SUPPORT_H
#define PCOMP_GENERATE_SUPPORT_H

#include "eval/generate.h"
#include "tests/tiny.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static struct Model model;
static struct Tokenizer *tok;
static struct Str hay, squad, hotpot;

/* Sentences of several lengths, some over two lines, with quotes. */
static inline void hay_make(struct Str *out, int sentences)
{
    static const char *const PARTS[] = {
        "The ship left the harbour in the morning",
        "and nobody on the pier had seen the captain",
        "while the gulls went on about their business",
        "\"Tell them I was here\"",
        "a long letter lay open on the table",
        "Rain came in from the west",
    };
    for (int i = 0; i < sentences; i++) {
        for (int p = 0; p <= i % 4; p++)
            str_appendf(out, "%s%s", p ? ", " : "", PARTS[(i * 7 + p * 5) % 6]);
        str_appendf(out, " (%d).%s", i, i % 5 == 4 ? "\n\n" : i % 3 == 2 ? "\n" : " ");
    }
}

static inline void squad_make(struct Str *out)
{
    str_appendf(out, "{\"version\":\"v2.0\",\"data\":[");
    for (int a = 0; a < 6; a++) {
        str_appendf(out, "%s{\"title\":\"T%d\",\"paragraphs\":[", a ? "," : "", a);
        for (int p = 0; p < 5; p++)
            str_appendf(out,
                        "%s{\"context\":\"Paragraph %d of article %d says that %d is the "
                        "number of its house.%s\",\"qas\":[{\"question\":\"Which house "
                        "%d %d?\",\"is_impossible\":false,\"answers\":[{\"text\":\"%d\"},"
                        "{\"text\":\"%d\"}]},{\"question\":\"No?\",\"is_impossible\":true,"
                        "\"answers\":[]}]}",
                        p ? "," : "", p, a, 1000 + 10 * a + p, p % 2 ? " It is red." : "", a, p,
                        1000 + 10 * a + p, 1000 + 10 * a + p);
        str_appendf(out, "]}");
    }
    str_appendf(out, "]}");
}

static inline void hotpot_make(struct Str *out)
{
    str_appendf(out, "[");
    for (int q = 0; q < 12; q++) {
        str_appendf(out,
                    "%s{\"question\":\"Who owns %d?\",\"answer\":\"owner %d\","
                    "\"supporting_facts\":[[\"Title %d\",0],[\"Title %d\",1]],\"context\":[",
                    q ? "," : "", q, q, 3 * q, 3 * q + 2);
        for (int d = 0; d < 3; d++)
            str_appendf(out, "%s[\"Title %d\",[\"First of %d.\",\" Then owner %d.\"]]",
                        d ? "," : "", 3 * q + d, 3 * q + d, q);
        str_appendf(out, "]}");
    }
    str_appendf(out, "]");
}

static inline int tiny_open(void **state)
{
    (void)state;
    char path[] = "/tmp/pcomp-gen-XXXXXX";
    struct TinySpec spec = tiny_spec("llama");
    int fd = mkstemp(path);
    if (fd < 0) return -1;
    close(fd);
    int status = tiny_gguf(path, &spec);
    if (status == PC_OK) status = model_open(path, &model);
    if (status == PC_OK) status = tokenizer_open(&model.vocab, &tok);
    unlink(path);
    hay_make(&hay, 400);
    squad_make(&squad);
    hotpot_make(&hotpot);
    return status;
}

static inline int tiny_close(void **state)
{
    (void)state;
    tokenizer_close(tok);
    model_close(&model);
    str_free(&hay);
    str_free(&squad);
    str_free(&hotpot);
    return 0;
}

static inline struct GenSpec spec_of(const char *task, int64_t tokens)
{
    return (struct GenSpec){.task = task,
                            .tokens = tokens,
                            .depth = -1,
                            .seed = 7,
                            .haystack = &hay,
                            .qa = strcmp(task, "qa_2") == 0 ? &hotpot : &squad};
}

static inline struct Sample make(const struct GenSpec *spec)
{
    struct Sample s;
    int status = generate(spec, tok, &s);
    if (status != PC_OK) fail_msg("%s %lld: %s", spec->task, (long long)spec->tokens, err_text());
    return s;
}

static inline int count(const struct Tokenizer *t, const struct Str *text)
{
    struct Tokens ids = {0};
    assert_int_equal(tokenizer_encode(t, text->data, text->len, false, &ids), PC_OK);
    int n = ids.n;
    tokens_free(&ids);
    return n;
}

/* How often `part` stands in text. */
static inline int occurs(const char *text, const char *part)
{
    int n = 0;
    for (const char *at = text; (at = strstr(at, part)); at++) n++;
    return n;
}

static inline bool starts(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

/* Tasks that are lists: they may be short of the length by up to a unit. */
static inline bool is_list(const char *task)
{
    static const char *const LISTS[] = {
        "kv_retrieval",    "math_find", "math_calc", "code_run", "niah_multikey_2",
        "niah_multikey_3", "cwe",       "fwe",       "qa_1",     "qa_2"};
    for (size_t i = 0; i < sizeof LISTS / sizeof *LISTS; i++)
        if (strcmp(LISTS[i], task) == 0) return true;
    return false;
}

#endif
