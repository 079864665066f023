/* python_list.c - see python_list.h */
#include "python_list.h"

#include "pytext.h"

#include <string.h>

static int bad_list(void)
{
    return err_set(PC_EFORMAT, "all_classes is text, but no Python list");
}

static int hex_digits(struct PythonList *l, int n, uint32_t *value)
{
    *value = 0;
    for (int i = 0; i < n; i++, l->at++) {
        static const char DIGITS[] = "0123456789abcdef"; /* as repr() writes them */
        const char *digit = l->at < l->end && *l->at ? strchr(DIGITS, *l->at) : NULL;
        if (!digit) return bad_list();
        *value = *value << 4 | (uint32_t)(digit - DIGITS);
    }
    return PC_OK;
}

/* One escape of repr(), behind its backslash. */
static int escape_read(struct PythonList *l, struct Str *out)
{
    static const char FROM[] = "\\'\"nrt", INTO[] = "\\'\"\n\r\t";
    if (l->at >= l->end) return bad_list();
    char c = *l->at++;
    const char *known = c ? strchr(FROM, c) : NULL;
    int n = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    uint32_t cp;
    if (known) return py_put(out, (uint32_t)INTO[known - FROM]);
    if (!n) return bad_list();
    TRY(hex_digits(l, n, &cp));
    return cp > 0x10FFFF ? bad_list() : py_put(out, cp);
}

static int string_read(struct PythonList *l, struct Str *out)
{
    char quote = *l->at++;
    if (quote != '\'' && quote != '"') return bad_list();
    while (l->at < l->end && *l->at != quote) {
        char c = *l->at++;
        TRY(c == '\\' ? escape_read(l, out) : str_append(out, &c, 1));
    }
    if (l->at >= l->end) return bad_list();
    l->at++;
    return PC_OK;
}

static void skip_spaces(struct PythonList *l)
{
    while (l->at < l->end && (*l->at == ' ' || *l->at == '\n' || *l->at == '\t')) l->at++;
}

int python_list_next(struct PythonList *l, struct Str *item)
{
    skip_spaces(l);
    if (!l->begun && (l->at >= l->end || *l->at++ != '[')) return bad_list();
    l->begun = true;
    skip_spaces(l);
    if (l->at >= l->end) return bad_list();
    if (*l->at == ']') return 0;
    str_clear(item);
    TRY(string_read(l, item));
    skip_spaces(l);
    if (l->at >= l->end || (*l->at != ',' && *l->at != ']')) return bad_list();
    l->at += *l->at == ',';
    return 1;
}
