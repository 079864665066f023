/* html_support.h - for tests of pages: counts, and whether markup is well-formed. */
#ifndef PCOMP_HTML_SUPPORT_H
#define PCOMP_HTML_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static inline int count(const char *text, const char *part)
{
    int n = 0;
    for (const char *at = text; (at = strstr(at, part)); at += strlen(part)) n++;
    return n;
}

/* Every element that is opened is closed in order; <, > and & stand for markup only. */
static inline void assert_well_formed(const char *page)
{
    static const char *const empty[] = {"meta", "br"};
    char stack[32][16];
    int depth = 0;
    for (const char *at = page; *at; at++) {
        assert_true(*at != '>');
        if (*at == '&') assert_non_null(strpbrk(at, ";"));
        if (*at != '<') continue;
        const char *end = strchr(at, '>');
        assert_non_null(end);
        bool close = at[1] == '/', single = end[-1] == '/' || at[1] == '!';
        char name[16] = "";
        sscanf(at + 1 + close, "%15[a-z0-9]", name);
        for (size_t i = 0; i < 2; i++) single |= strcmp(name, empty[i]) == 0;
        if (close) {
            assert_true(depth > 0);
            assert_string_equal(stack[--depth], name);
        } else if (!single) {
            assert_true(depth < 32);
            memcpy(stack[depth++], name, sizeof name);
        }
        at = strcmp(name, "style") == 0 && !close ? strstr(end, "</style>") - 1 : end;
    }
    assert_int_equal(depth, 0);
}

#endif
