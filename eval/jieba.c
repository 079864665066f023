/* jieba.c - see jieba.h: cutting text into words.
 *
 * Text is taken in blocks of Chinese characters, Latin letters, digits and a few signs; all else is
 * cut into single characters, but for CR LF. Within a block the most probable sequence of dictionary
 * words is found from its end; single characters in a row are then cut again by the hidden Markov model, and
 * their letters and digits by rule. Equal probabilities are told apart as Python's max() of tuples
 * does: the longer word, the state with the later name.
 */
#include "jieba.h"

#include "jieba_parts.h"
#include "pytext.h"

#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ==== Opening ==== */

static const char *const FILES[] = {"dict.txt", "prob_start.py", "prob_trans.py", "prob_emit.py"};
enum { N_FILES = 4, FOLDER_ROOM = PATH_MAX + 64, PATH_ROOM = FOLDER_ROOM + 64 };

static bool has_dict(const char *folder)
{
    char path[PATH_ROOM];
    snprintf(path, sizeof path, "%s/dict.txt", folder);
    return access(path, R_OK) == 0;
}

/* models/jieba beside the folder build/, in which this binary lies up to three folders deep. */
static bool folder_beside(char folder[FOLDER_ROOM])
{
    static const char *const places[] = {"../models", "../../models", "../../../models"};
    char self[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
    if (len <= 0) return false;
    self[len] = '\0';
    const char *home = dirname(self);
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        snprintf(folder, FOLDER_ROOM, "%s/%s/jieba", home, places[i]);
        if (has_dict(folder)) return true;
    }
    return false;
}

static int choose_folder(const char *named, char folder[FOLDER_ROOM])
{
    if (!named) named = getenv("PCOMP_JIEBA");
    if (!named || !*named) {
        if (folder_beside(folder)) return PC_OK;
        named = "/usr/share/pcomp/jieba";
    }
    if (strlen(named) >= PATH_MAX)
        return err_set(PC_ECONFIG, "the path of jieba's folder is longer than %d bytes",
                       PATH_MAX - 1);
    memcpy(folder, named, strlen(named) + 1);
    return PC_OK;
}

static int file_path(const char *folder, int i, char path[PATH_ROOM])
{
    snprintf(path, PATH_ROOM, "%s/%s", folder, FILES[i]);
    if (access(path, R_OK) == 0) return PC_OK;
    return err_set(PC_EIO,
                   "%s: cannot be read, and cutting Chinese text needs it; `make jieba` fetches it "
                   "into models/jieba, or set PCOMP_JIEBA to a folder that holds %s, %s, %s and %s",
                   path, FILES[0], FILES[1], FILES[2], FILES[3]);
}

static int read_all(struct Jieba *j, const char *folder)
{
    char path[PATH_ROOM];
    for (int i = 0; i < N_FILES; i++) TRY(file_path(folder, i, path)); /* before the long reading */
    TRY(jieba_hmm_init(&j->hmm));
    for (int table = 0; table < HMM_TABLES; table++) {
        TRY(file_path(folder, 1 + table, path));
        TRY(jieba_hmm_read(path, (enum HmmTable)table, &j->hmm));
    }
    TRY(file_path(folder, 0, path));
    return jieba_dict_read(path, &j->dict);
}

int jieba_open(const char *folder, struct Jieba **out)
{
    char chosen[FOLDER_ROOM];
    *out = NULL;
    TRY(choose_folder(folder, chosen));
    struct Jieba *j = mem_alloc(1, sizeof *j);
    if (!j) return PC_ENOMEM;
    int status = read_all(j, chosen);
    if (status == PC_OK)
        *out = j;
    else
        jieba_close(j);
    return status;
}

void jieba_close(struct Jieba *j)
{
    if (!j) return;
    jieba_dict_free(&j->dict);
    jieba_hmm_free(&j->hmm);
    mem_free(j);
}

/* ==== Work space ==== */

enum { CUT_FEW = 128 }; /* characters of a block that needs no allocation: nearly every one */

/* One call's state. The arrays hold one block, by character. */
struct Cut {
    const struct Jieba *jieba;
    int (*word)(void *user, const char *word, size_t len);
    void *user;
    const char *text; /* what was not given out yet */
    size_t room;
    uint16_t *c;    /* [room] the characters: all of a block's are below 1 << 16 */
    double *score;  /* [room + 1] log probability of the best way from here to the block's end */
    uint8_t *step;  /* [room] characters of that way's first word */
    uint8_t *state; /* [room] the model's: first where each state came from, then the best path */
    uint16_t few_c[CUT_FEW];
    double few_score[CUT_FEW + 1];
    uint8_t few_step[CUT_FEW], few_state[CUT_FEW];
};

static void cut_open(struct Cut *cut)
{
    cut->room = CUT_FEW;
    cut->c = cut->few_c;
    cut->score = cut->few_score;
    cut->step = cut->few_step;
    cut->state = cut->few_state;
}

static void cut_close(struct Cut *cut)
{
    if (cut->room == CUT_FEW) return;
    mem_free(cut->c);
    mem_free(cut->score);
    mem_free(cut->step);
}

/* Room for more characters; all that are there stay. */
static int cut_grow(struct Cut *cut)
{
    size_t room = 2 * cut->room;
    uint16_t *c = mem_alloc(room, sizeof *c);
    double *score = mem_alloc(room + 1, sizeof *score);
    uint8_t *step = mem_alloc(room, 2);
    if (!c || !score || !step) {
        mem_free(c);
        mem_free(score);
        mem_free(step);
        return PC_ENOMEM;
    }
    memcpy(c, cut->c, cut->room * sizeof *c);
    cut_close(cut);
    cut->c = c;
    cut->score = score;
    cut->step = step;
    cut->state = step + room;
    cut->room = room;
    return PC_OK;
}

/* Gives out the block's characters from begin to end as one word; they are the next of the text. */
static int give(struct Cut *cut, size_t begin, size_t end)
{
    size_t len = 0;
    for (size_t i = begin; i < end; i++) len += cut->c[i] < 0x80 ? 1 : 3;
    const char *word = cut->text;
    cut->text += len;
    return cut->word(cut->user, word, len);
}

static int give_each(struct Cut *cut, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++) TRY(give(cut, i, i + 1));
    return PC_OK;
}

/* ==== Hidden Markov model ==== */

/* Only S and E may come before B and S, only M and B before M and E: the two that may, the one that
 * wins a tie last. */
static const uint8_t BEFORE[HMM_STATES][2] = {
    [HMM_B] = {HMM_E, HMM_S},
    [HMM_E] = {HMM_B, HMM_M},
    [HMM_M] = {HMM_B, HMM_M},
    [HMM_S] = {HMM_E, HMM_S},
};

/* From the log probabilities before a character to those after it. Returns bit s when the second of
 * BEFORE[s] was the better one. */
static uint8_t hmm_step(const struct JiebaHmm *h, const double *emit, double v[HMM_STATES])
{
    double next[HMM_STATES];
    uint8_t second = 0;
    for (int s = 0; s < HMM_STATES; s++) {
        double first_way = v[BEFORE[s][0]] + h->trans[BEFORE[s][0]][s] + emit[s];
        double second_way = v[BEFORE[s][1]] + h->trans[BEFORE[s][1]][s] + emit[s];
        bool better = second_way >= first_way;
        next[s] = better ? second_way : first_way;
        second |= (uint8_t)(better << s);
    }
    memcpy(v, next, sizeof next);
    return second;
}

/* The best path through the states for Chinese characters, into cut->state[begin..end). */
static void hmm_path(struct Cut *cut, size_t begin, size_t end)
{
    const struct JiebaHmm *h = &cut->jieba->hmm;
    double v[HMM_STATES];
    for (int s = 0; s < HMM_STATES; s++) v[s] = h->start[s] + h->emit[cut->c[begin] - HAN_FIRST][s];
    for (size_t i = begin + 1; i < end; i++)
        cut->state[i] = hmm_step(h, h->emit[cut->c[i] - HAN_FIRST], v);
    uint8_t s = v[HMM_S] >= v[HMM_E] ? HMM_S : HMM_E;
    for (size_t i = end; i-- > begin;) {
        uint8_t second = cut->state[i];
        cut->state[i] = s;
        if (i > begin) s = BEFORE[s][second >> s & 1];
    }
}

/* The path may begin within a word (M, E) when the tables know a character in no other state. */
static int cut_han(struct Cut *cut, size_t begin, size_t end)
{
    size_t from = begin, done = begin;
    hmm_path(cut, begin, end);
    for (size_t i = begin; i < end; i++) {
        uint8_t s = cut->state[i];
        if (s == HMM_B) from = i;
        if (s != HMM_E && s != HMM_S) continue;
        TRY(give(cut, s == HMM_S ? i : from, i + 1));
        done = i + 1;
    }
    return done < end ? give(cut, done, end) : PC_OK;
}

/* ==== Runs that are no words of the dictionary ==== */

/* End of the letters and digits from `at`, with what makes them a decimal or a percentage. */
static size_t number_end(const uint16_t *c, size_t at, size_t end)
{
    while (at < end && is_letter_or_digit(c[at])) at++;
    size_t digit = at + 1;
    if (at < end && c[at] == '.')
        while (digit < end && c[digit] >= '0' && c[digit] <= '9') digit++;
    if (digit > at + 1) at = digit;
    return at < end && c[at] == '%' ? at + 1 : at;
}

static int cut_latin(struct Cut *cut, size_t begin, size_t end)
{
    while (begin < end) {
        size_t to = begin;
        if (is_letter_or_digit(cut->c[begin]))
            to = number_end(cut->c, begin, end);
        else
            while (to < end && !is_letter_or_digit(cut->c[to])) to++;
        TRY(give(cut, begin, to));
        begin = to;
    }
    return PC_OK;
}

static int cut_unknown(struct Cut *cut, size_t begin, size_t end)
{
    while (begin < end) {
        bool han = is_han(cut->c[begin]);
        size_t to = begin + 1;
        while (to < end && is_han(cut->c[to]) == han) to++;
        TRY(han ? cut_han(cut, begin, to) : cut_latin(cut, begin, to));
        begin = to;
    }
    return PC_OK;
}

static bool is_word(const struct JiebaDict *d, const uint16_t *c, size_t n)
{
    const struct DictSlot *slot = dict_begin(d, c[0]);
    for (size_t i = 1; slot && i < n; i++) slot = dict_step(d, slot, c[i]);
    return slot && slot->weight != DICT_NO_WORD;
}

/* Single characters in a row. Should they be a word that lost to its parts, they stay apart. */
static int cut_singles(struct Cut *cut, size_t begin, size_t end)
{
    if (end - begin <= 1 || is_word(&cut->jieba->dict, cut->c + begin, end - begin))
        return give_each(cut, begin, end);
    return cut_unknown(cut, begin, end);
}

/* ==== Blocks ==== */

/* Best word that begins at `at`, given the best ways from behind it. */
static void route_at(struct Cut *cut, size_t at, size_t n)
{
    const struct JiebaDict *d = &cut->jieba->dict;
    double best = -INFINITY;
    const struct DictSlot *slot = dict_begin(d, cut->c[at]);
    size_t end = at, step = 0;
    while (slot) {
        double way = slot->weight + cut->score[++end];
        if (slot->weight != DICT_NO_WORD && way >= best) {
            best = way;
            step = end - at;
        }
        slot = end < n ? dict_step(d, slot, cut->c[end]) : NULL;
    }
    cut->score[at] = step ? best : d->unknown + cut->score[at + 1];
    cut->step[at] = step ? (uint8_t)step : 1;
}

/* The best ways from all places. A way waits for those behind it, but the dictionary's memory need not: the first
 * step from each character is asked for some characters ahead. */
static void route_block(struct Cut *cut, size_t n)
{
    enum { AHEAD = 12 };
    const struct JiebaDict *d = &cut->jieba->dict;
    size_t fetched = n - 1;
    cut->score[n] = 0;
    for (size_t i = n; i-- > 0;) {
        for (; fetched > 0 && fetched + AHEAD > i; fetched--)
            dict_fetch(d, cut->c[fetched - 1], cut->c[fetched]);
        route_at(cut, i, n);
    }
}

static int cut_block(struct Cut *cut, size_t n)
{
    route_block(cut, n);
    size_t singles = 0; /* where the single characters not given out begin */
    for (size_t at = 0; at < n; at += cut->step[at]) {
        if (cut->step[at] == 1) continue;
        TRY(cut_singles(cut, singles, at));
        singles = at + cut->step[at];
        TRY(give(cut, at, singles));
    }
    return cut_singles(cut, singles, n);
}

/* Bytes of the block's character at s, 0 when it is none: *c. */
static size_t block_char(const unsigned char *s, size_t left, uint32_t *c)
{
    *c = s[0];
    if (s[0] < 0x80) return in_block(*c) ? 1 : 0;
    if (left < 3 || s[0] < 0xe4 || s[0] > 0xe9 || (s[1] & 0xc0) != 0x80 || (s[2] & 0xc0) != 0x80)
        return 0;
    *c = (s[0] & 15u) << 12 | (s[1] & 63u) << 6 | (s[2] & 63u);
    return is_han(*c) ? 3 : 0;
}

/* The characters of the block that begins here, into cut->c. */
static int read_block(struct Cut *cut, const char *end, size_t *n)
{
    const unsigned char *s = (const unsigned char *)cut->text;
    size_t left = (size_t)(end - cut->text), bytes;
    uint32_t c;
    for (*n = 0; left && (bytes = block_char(s, left, &c)) > 0; ++*n) {
        if (*n == cut->room) TRY(cut_grow(cut));
        cut->c[*n] = (uint16_t)c;
        s += bytes;
        left -= bytes;
    }
    return PC_OK;
}

/* Bytes of what stands alone at text: CR LF, a character, or a byte that is part of none. */
static size_t alone_length(const char *text, size_t left)
{
    size_t at = 0;
    if (text[0] == '\r' && left > 1 && text[1] == '\n') return 2;
    py_next(text, left, &at);
    return at;
}

static int cut_text(struct Cut *cut, const char *end)
{
    while (cut->text < end) {
        size_t n;
        TRY(read_block(cut, end, &n));
        if (n) {
            TRY(cut_block(cut, n));
            continue;
        }
        size_t len = alone_length(cut->text, (size_t)(end - cut->text));
        cut->text += len;
        TRY(cut->word(cut->user, cut->text - len, len));
    }
    return PC_OK;
}

int jieba_cut(const struct Jieba *j, const char *text, size_t len,
              int (*word)(void *user, const char *word, size_t len), void *user)
{
    struct Cut cut;
    cut_open(&cut);
    cut.jieba = j;
    cut.word = word;
    cut.user = user;
    cut.text = text;
    int status = len ? cut_text(&cut, text + len) : PC_OK;
    cut_close(&cut);
    return status;
}
