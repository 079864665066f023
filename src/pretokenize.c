/* pretokenize.c - see pretokenize.h. The expressions are those that the models were trained with,
 * with one change of spelling: white space is listed, since \s of PCRE2 has U+180E in it and that
 * of the trainers' engines has not. The digit rule of SmolLM, in truth a pass of its own before
 * the rule of GPT-2, is folded in: a digit ends the text as far as the look-ahead is concerned.
 *
 * Letters and digits are those of PCRE2's Unicode (10.42: version 14). Characters that are newer
 * count as neither, so they may be cut otherwise than by a trainer's engine that knew them.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "pretokenize.h"

#include <pcre2.h>
#include <string.h>

/* ==== Pre-types ==== */

#define SPACES                                                                                     \
    "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define SPACE_TAIL   "|[" SPACES "]+(?![^" SPACES "])|[" SPACES "]+"
#define GPT2_ENDINGS "'s|'t|'re|'ve|'m|'ll|'d"
#define MODERN(digits)                                                                             \
    "(?i:" GPT2_ENDINGS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" SPACES                   \
    "\\p{L}\\p{N}]+[\\r\\n]*|[" SPACES "]*[\\r\\n]+" SPACE_TAIL

static const struct {
    const char *name, *pattern;
} PRE_TYPES[PRE_COUNT] = {
    [PRE_GPT2] = {"gpt-2",
                  GPT2_ENDINGS "| ?\\p{L}+| ?\\p{N}+| ?[^" SPACES "\\p{L}\\p{N}]+" SPACE_TAIL},
    [PRE_SMOLLM] = {"smollm", GPT2_ENDINGS "| ?\\p{L}+|\\p{N}| ?[^" SPACES "\\p{L}\\p{N}]+|[" SPACES
                                           "]+(?![^" SPACES "\\p{N}])|[" SPACES "]+"},
    [PRE_LLAMA] = {"llama-bpe", MODERN("\\p{N}{1,3}")},
    [PRE_QWEN2] = {"qwen2", MODERN("\\p{N}")},
};

enum { LETTER = 1, DIGIT = 2, SPACE = 4, NEWLINE = 8, OTHER = 16, NOT_ASCII = 32 };

static uint8_t byte_class(int byte)
{
    int folded = byte | 0x20;
    if (byte >= 0x80) return NOT_ASCII;
    if (folded >= 'a' && folded <= 'z') return LETTER;
    if (byte >= '0' && byte <= '9') return DIGIT;
    if (byte == '\r' || byte == '\n') return NEWLINE;
    if (byte == ' ' || (byte >= '\t' && byte <= '\f')) return SPACE;
    return OTHER;
}

int pretokenizer_open(struct Pretokenizer *pre, const char *name)
{
    int kind = 0;
    while (kind < PRE_COUNT && strcmp(PRE_TYPES[kind].name, name) != 0) kind++;
    if (kind == PRE_COUNT) {
        return err_set(
            PC_EFORMAT,
            "pre-tokenizer '%s' is not supported (known: gpt-2, smollm, llama-bpe, qwen2)", name);
    }
    pre->kind = (enum PreKind)kind;
    for (int i = 0; i < 256; i++) pre->class_of[i] = byte_class(i);
    int code;
    PCRE2_SIZE at;
    pcre2_code *pattern = pcre2_compile((PCRE2_SPTR)PRE_TYPES[kind].pattern, PCRE2_ZERO_TERMINATED,
                                        PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &code, &at, NULL);
    if (!pattern) return err_set(PC_EINTERNAL, "pattern of '%s': error %d at %zu", name, code, at);
    /* Without JIT (some machines forbid it) pcre2_match interprets: slower, same ends. */
    pcre2_jit_compile(pattern, PCRE2_JIT_COMPLETE);
    pre->pattern = pattern;
    return PC_OK;
}

void pretokenizer_close(struct Pretokenizer *pre)
{
    pcre2_code_free(pre->pattern);
    pre->pattern = NULL;
}

/* ==== By hand ==== */

static uint8_t class_at(const struct PreScan *scan, size_t at)
{
    return scan->pre->class_of[scan->text[at]];
}

static size_t run_end(const struct PreScan *scan, size_t at, unsigned classes)
{
    while (at < scan->len && class_at(scan, at) & classes) at++;
    return at;
}

/* A run's end, or 0 when the next character, not being ASCII, might belong to the run. */
static size_t closed(const struct PreScan *scan, size_t end)
{
    return end < scan->len && class_at(scan, end) == NOT_ASCII ? 0 : end;
}

/* Length of 's, 't, 're, 've, 'm, 'll or 'd at an apostrophe; 0 when it is none of them. */
static size_t ending_length(const struct PreScan *scan, size_t at, bool any_case)
{
    unsigned char fold = any_case ? 0x20 : 0;
    size_t left = scan->len - at;
    if (left < 2) return 0;
    unsigned char a = scan->text[at + 1] | fold;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (left < 3) return 0;
    unsigned char b = scan->text[at + 2] | fold;
    return (b == 'e' && (a == 'r' || a == 'v')) || (a == 'l' && b == 'l') ? 3 : 0;
}

/* A run of white space leaves its last character to the word behind it. */
static size_t spaces_end(const struct PreScan *scan, size_t at, size_t end)
{
    if (end == scan->len) return end;
    if (class_at(scan, end) == NOT_ASCII) return 0;
    if (scan->pre->kind == PRE_SMOLLM && class_at(scan, end) == DIGIT) return end;
    return end - at > 1 ? end - 1 : end;
}

static size_t ascii_gpt2(const struct PreScan *scan, size_t at)
{
    unsigned char c = scan->text[at];
    size_t ending = c == '\'' ? ending_length(scan, at, false) : 0;
    if (ending) return at + ending;
    bool single_digits = scan->pre->kind == PRE_SMOLLM;
    size_t word = at + (c == ' ' && at + 1 < scan->len);
    uint8_t class = class_at(scan, word);
    if (class == NOT_ASCII) return 0;
    if (single_digits && class_at(scan, at) == DIGIT) return at + 1;
    if (class & (LETTER | OTHER) || (class == DIGIT && !single_digits))
        return closed(scan, run_end(scan, word, class));
    return spaces_end(scan, at, run_end(scan, at, SPACE | NEWLINE));
}

static size_t ascii_digits(const struct PreScan *scan, size_t at)
{
    size_t most = scan->pre->kind == PRE_LLAMA ? 3 : 1, end = at + 1;
    while (end < scan->len && end - at < most && class_at(scan, end) == DIGIT) end++;
    return end - at == most ? end : closed(scan, end);
}

static size_t ascii_modern(const struct PreScan *scan, size_t at)
{
    unsigned char c = scan->text[at];
    uint8_t class = class_at(scan, at);
    if (class == NOT_ASCII) return 0;
    size_t ending = c == '\'' ? ending_length(scan, at, true) : 0;
    if (ending) return at + ending;
    if (class == DIGIT) return ascii_digits(scan, at);
    size_t word = at + (class & (SPACE | OTHER) && at + 1 < scan->len);
    if (class_at(scan, word) == NOT_ASCII) return 0;
    if (class_at(scan, word) == LETTER) return closed(scan, run_end(scan, word, LETTER));
    word = at + (c == ' ' && at + 1 < scan->len);
    if (class_at(scan, word) == OTHER) {
        size_t end = closed(scan, run_end(scan, word, OTHER));
        return end ? run_end(scan, end, NEWLINE) : 0;
    }
    size_t end = run_end(scan, at, SPACE | NEWLINE);
    if (!closed(scan, end)) return 0;
    for (size_t i = end; i > at; i--) {
        if (class_at(scan, i - 1) == NEWLINE) return i;
    }
    return spaces_end(scan, at, end);
}

size_t prescan_ascii(const struct PreScan *scan, size_t at)
{
    bool modern = scan->pre->kind == PRE_LLAMA || scan->pre->kind == PRE_QWEN2;
    return modern ? ascii_modern(scan, at) : ascii_gpt2(scan, at);
}

/* ==== By regular expression ==== */

struct PreScan prescan_begin(const struct Pretokenizer *pre)
{
    return (struct PreScan){.pre = pre};
}

void prescan_text(struct PreScan *scan, const char *text, size_t len)
{
    scan->text = (const unsigned char *)text;
    scan->len = len;
}

void prescan_end(struct PreScan *scan)
{
    pcre2_match_data_free(scan->match);
    pcre2_match_context_free(scan->context);
    pcre2_jit_stack_free(scan->stack);
    *scan = (struct PreScan){0};
}

static int prescan_prepare(struct PreScan *scan)
{
    enum { STACK_FIRST = 32 << 10, STACK_MOST = 8 << 20 };
    scan->match = pcre2_match_data_create(1, NULL);
    scan->context = pcre2_match_context_create(NULL);
    scan->stack = pcre2_jit_stack_create(STACK_FIRST, STACK_MOST, NULL);
    if (!scan->match || !scan->context || !scan->stack) {
        prescan_end(scan);
        return err_set(PC_ENOMEM, "no memory to match text");
    }
    pcre2_jit_stack_assign(scan->context, NULL, scan->stack);
    /* A run of white space may be as long as the text; its matching is linear, so it needs no
     * limit. */
    pcre2_set_match_limit(scan->context, UINT32_MAX);
    return PC_OK;
}

int prescan_regex(struct PreScan *scan, size_t at, size_t *end)
{
    if (!scan->match) TRY(prescan_prepare(scan));
    int n = pcre2_match(scan->pre->pattern, scan->text, scan->len, at, PCRE2_NO_UTF_CHECK,
                        scan->match, scan->context);
    if (n < 0) return err_set(PC_EINTERNAL, "matching at byte %zu: PCRE2 error %d", at, n);
    *end = pcre2_get_ovector_pointer(scan->match)[1];
    return PC_OK;
}

int prescan_next(struct PreScan *scan, size_t at, size_t *end)
{
    *end = prescan_ascii(scan, at);
    return *end ? PC_OK : prescan_regex(scan, at, end);
}

/* ==== Certain cuts ==== */

/* The character that begins at `at`; 0 when it is cut off. */
static uint32_t char_at(const unsigned char *text, size_t len, size_t at)
{
    uint32_t c = text[at];
    int more = c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
    if ((size_t)more >= len - at) return 0;
    c = more ? c & (0x3fu >> more) : c;
    for (int i = 1; i <= more; i++) c = c << 6 | (text[at + (size_t)i] & 0x3f);
    return c;
}

static uint32_t char_before(const unsigned char *text, size_t at)
{
    size_t begin = at - 1;
    while (begin > 0 && at - begin < 4 && (text[begin] & 0xc0) == 0x80) begin--;
    return char_at(text, at, begin);
}

static bool any_range(uint32_t c, const uint32_t (*ranges)[2], size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (c >= ranges[i][0] && c <= ranges[i][1]) return true;
    return false;
}

/* Letters of scripts that are written without blanks, and of ASCII: every pre-type knows them as such. */
static bool surely_letter(uint32_t c)
{
    static const uint32_t ranges[][2] = {{'A', 'Z'},       {'a', 'z'},       {0x3041, 0x3096},
                                         {0x30a1, 0x30fa}, {0x4e00, 0x9fa5}, {0xac00, 0xd7a3}};
    return any_range(c, ranges, sizeof ranges / sizeof *ranges);
}

/* Neither a letter nor a mark on one: ASCII, and the stops and brackets of those scripts. */
static bool surely_no_letter(uint32_t c)
{
    static const uint32_t ranges[][2] = {
        {0x3000, 0x3002}, {0x3008, 0x3011}, {0xff01, 0xff0f}, {0xff1a, 0xff20}};
    if (c < 0x80) return c && !surely_letter(c);
    return any_range(c, ranges, sizeof ranges / sizeof *ranges);
}

static bool is_white(uint32_t c)
{
    static const uint32_t ranges[][2] = {
        {0x09, 0x0d},     {0x20, 0x20},     {0x85, 0x85},     {0xa0, 0xa0},     {0x1680, 0x1680},
        {0x2000, 0x200a}, {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f}, {0x3000, 0x3000}};
    return any_range(c, ranges, sizeof ranges / sizeof *ranges);
}

/* No expression looks back, and none looks ahead but from white space. So a cut is certain behind a character that
 * is none, where no word holds both it and the next one: a blank only begins words; letters are followed by letters only, and
 * digits by digits. */
bool precut_certain(const char *text, size_t len, size_t at)
{
    const unsigned char *bytes = (const unsigned char *)text;
    if ((bytes[at] & 0xc0) == 0x80) return false;
    uint32_t before = char_before(bytes, at), after = char_at(bytes, len, at);
    if (!before || !after || is_white(before)) return false;
    if (after == ' ' || after == '\t') return true;
    if (before >= '0' && before <= '9') return after < 0x80 && (after < '0' || after > '9');
    return surely_letter(before) && surely_no_letter(after);
}
