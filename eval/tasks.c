/* tasks.c - see tasks.h */
#include "tasks.h"

#include <cjson/cJSON.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ==== Where the files are ==== */

static int config_path(const char *name, char *path, size_t room)
{
    static const char *const places[] = {"../configs/tasks", "../../configs/tasks",
                                         "../../../configs/tasks", "../share/pcomp/configs/tasks"};
    const char *given = getenv("PCOMP_TASKS");
    char self[PATH_MAX];
    if (given && *given) {
        snprintf(path, room, "%s/%s.json", given, name);
        return PC_OK;
    }
    ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
    if (len <= 0) return err_set(PC_EIO, "cannot tell where this program lies");
    self[len] = '\0';
    const char *folder = dirname(self);
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        snprintf(path, room, "%s/%s/%s.json", folder, places[i], name);
        if (access(path, R_OK) == 0) return PC_OK;
    }
    return err_set(
        PC_EIO, "configs/tasks/%s.json is not beside this program; set PCOMP_TASKS to its folder",
        name);
}

/* ==== Reading ==== */

static char *text_copy(const char *text)
{
    size_t len = strlen(text);
    char *copy = mem_alloc(len + 1, 1);
    if (copy) memcpy(copy, text, len + 1);
    return copy;
}

static const char *member_text(const cJSON *object, const char *name, const char *def)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    return cJSON_IsString(item) ? item->valuestring : def;
}

static int member_int(const cJSON *object, const char *name, int def)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    return cJSON_IsNumber(item) && item->valuedouble >= 0 && item->valuedouble < 1e9
               ? (int)item->valuedouble
               : def;
}

static bool member_bool(const cJSON *object, const char *name, bool def)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    return cJSON_IsBool(item) ? cJSON_IsTrue(item) : def;
}

/* A profile changes chat and stop_text of all tasks, and max_tokens of those it names. */
static int task_read(const cJSON *object, const cJSON *profile, struct Task *t)
{
    const cJSON *lengths = cJSON_GetObjectItemCaseSensitive(profile, "max_tokens");
    if (!object->string || strlen(object->string) >= sizeof t->name || !cJSON_IsObject(object))
        return err_set(PC_EFORMAT, "a task is not an object with a short name");
    snprintf(t->name, sizeof t->name, "%s", object->string);
    snprintf(t->group, sizeof t->group, "%s", member_text(object, "group", ""));
    t->before = text_copy(member_text(object, "before", ""));
    t->after = text_copy(member_text(object, "after", ""));
    t->answer_prefix = text_copy(member_text(object, "answer_prefix", ""));
    t->stop_text =
        text_copy(member_text(profile, "stop_text", member_text(object, "stop_text", "")));
    if (!t->before || !t->after || !t->answer_prefix || !t->stop_text) return PC_ENOMEM;
    t->max_tokens = member_int(lengths, t->name, member_int(object, "max_tokens", 0));
    t->official_rows = member_int(object, "rows", 0);
    t->chat = member_bool(profile, "chat", member_bool(object, "chat", true));
    t->covers = member_bool(object, "covers", false);
    if (t->max_tokens < 1) return err_set(PC_EFORMAT, "task '%s' has no max_tokens", t->name);
    return PC_OK;
}

static int profile_find(const cJSON *root, const char *name, const cJSON **out)
{
    const cJSON *all = cJSON_GetObjectItemCaseSensitive(root, "profiles");
    *out = cJSON_GetObjectItemCaseSensitive(all, name);
    if (*out || strcmp(name, "official") == 0) return PC_OK;
    struct Str names = {0};
    int status = PC_OK;
    for (const cJSON *p = all ? all->child : NULL; p && status == PC_OK; p = p->next)
        status = str_appendf(&names, "%s%s", names.len ? ", " : "", p->string);
    if (status == PC_OK)
        status = err_set(PC_ECONFIG, "unknown profile '%.64s' (%s)", name,
                         names.len ? names.data : "official");
    str_free(&names);
    return status;
}

static int set_read(const cJSON *root, const char *profile_name, struct TaskSet *set)
{
    const cJSON *tasks = cJSON_GetObjectItemCaseSensitive(root, "tasks"), *profile;
    int n = cJSON_IsObject(tasks) ? cJSON_GetArraySize(tasks) : 0;
    if (n == 0) return err_set(PC_EFORMAT, "has no object \"tasks\"");
    TRY(profile_find(root, profile_name, &profile));
    snprintf(set->benchmark, sizeof set->benchmark, "%s", member_text(root, "benchmark", ""));
    set->truncate = member_int(root, "truncate", 0);
    set->reserve = member_int(root, "reserve", 0);
    set->tasks = mem_alloc((size_t)n, sizeof *set->tasks);
    if (!set->tasks) return PC_ENOMEM;
    for (const cJSON *t = tasks->child; t; t = t->next)
        TRY(task_read(t, profile, &set->tasks[set->n++]));
    return PC_OK;
}

int task_set_parse(const char *json, size_t len, const char *what, const char *profile,
                   struct TaskSet *out)
{
    *out = (struct TaskSet){0};
    cJSON *root = cJSON_ParseWithLength(json, len);
    int status = root ? set_read(root, profile, out) : err_set(PC_EFORMAT, "is not JSON");
    cJSON_Delete(root);
    return status < 0 ? err_prefix(status, "%s", what) : PC_OK;
}

int task_set_open(const char *benchmark, const char *profile, struct TaskSet *out)
{
    char path[2 * PATH_MAX];
    struct Str json = {0};
    *out = (struct TaskSet){0};
    int status = config_path(benchmark, path, sizeof path);
    if (status == PC_OK) status = file_read(path, &json);
    if (status == PC_OK) status = task_set_parse(json.data, json.len, path, profile, out);
    str_free(&json);
    return status;
}

void task_set_close(struct TaskSet *set)
{
    for (int i = 0; i < set->n; i++) {
        mem_free(set->tasks[i].before);
        mem_free(set->tasks[i].after);
        mem_free(set->tasks[i].answer_prefix);
        mem_free(set->tasks[i].stop_text);
    }
    mem_free(set->tasks);
    *set = (struct TaskSet){0};
}

const struct Task *task_find(const struct TaskSet *set, const char *name)
{
    const char *best = NULL;
    int least = (int)strlen(name) / 2 + 2;
    for (int i = 0; i < set->n; i++) {
        if (strcmp(set->tasks[i].name, name) == 0) return &set->tasks[i];
        int distance = word_distance(name, set->tasks[i].name);
        if (distance >= least) continue;
        least = distance;
        best = set->tasks[i].name;
    }
    err_set(PC_ECONFIG, "unknown task '%.64s' of %s%s%s%s", name, set->benchmark,
            best ? ": did you mean '" : "", best ? best : "", best ? "'?" : "");
    return NULL;
}

/* ==== Prompts ==== */

/* "func_12(-3)" in text: its place and length, and the name's length. False when there is none. */
static bool find_call(const char *text, size_t *at, size_t *len, size_t *name_len)
{
    for (const char *p = text; (p = strstr(p, "func_")); p++) {
        const char *q = p + 5;
        size_t digits = strspn(q, "0123456789");
        q += digits;
        if (!digits || *q != '(') continue;
        *name_len = (size_t)(q - p);
        q += 1 + (q[1] == '-');
        digits = strspn(q, "0123456789");
        if (!digits || q[digits] != ')') continue;
        *at = (size_t)(p - text);
        *len = (size_t)(q + digits + 1 - p);
        return true;
    }
    return false;
}

/* InfiniteBench's math_find repeats above the list what is looked for: of "The smallest number of the
 * list is" it takes "the smallest number". */
static int find_prefix(const struct Str *input, struct Str *out)
{
    const char *text = input->data ? input->data : "", *begin = strstr(text, "The "), *last = NULL;
    if (begin)
        for (const char *p = begin + 5;
             (p = strstr(p, " of")) && !memchr(begin, '\n', (size_t)(p - begin)); p++)
            last = p;
    if (!last)
        return err_set(PC_EFORMAT,
                       "the input has no words \"The … of\" that say which number is meant");
    TRY(str_append(out, "What is ", 8));
    size_t at = out->len;
    TRY(str_append(out, begin, (size_t)(last - begin)));
    for (; at < out->len; at++)
        if (out->data[at] >= 'A' && out->data[at] <= 'Z') out->data[at] += 'a' - 'A';
    return str_appendf(out, " in the following list?");
}

static int field(const struct Sample *s, const char *name, size_t len, struct Str *out)
{
    const char *input = s->input.data ? s->input.data : "";
    if (len == 5 && memcmp(name, "input", len) == 0) return str_append(out, input, s->input.len);
    if (len == 8 && memcmp(name, "option_", 7) == 0) {
        int i = name[7] - 'a';
        if (i < 0 || i >= s->n_options)
            return err_set(PC_EFORMAT, "the row has no option %c", name[7]);
        return str_append(out, s->options[i].data ? s->options[i].data : "", s->options[i].len);
    }
    if (len == 9 && memcmp(name, "n_answers", len) == 0)
        return str_appendf(out, "%d", s->n_answers);
    if (len == 11 && memcmp(name, "find_prefix", len) == 0) return find_prefix(&s->input, out);
    size_t at, call, function;
    if (!find_call(input, &at, &call, &function))
        return err_set(PC_EFORMAT, "the input has no call like func_1(2)");
    return str_append(out, input + at, len == 4 ? function : call);
}

/* Puts fields in; *at and *n tell where {input} went (n 0: nowhere). */
static int render(const char *half, const struct Sample *s, struct Str *out, size_t *at, size_t *n)
{
    static const char *const names[] = {"input",    "n_answers", "option_a",
                                        "option_b", "option_c",  "option_d",
                                        "func",     "func_call", "find_prefix"};
    TRY(str_append(out, "", 0));
    for (const char *p = half; *p;) {
        size_t plain = strcspn(p, "{"), len = 0;
        TRY(str_append(out, p, plain));
        p += plain;
        for (size_t i = 0; *p && i < sizeof names / sizeof names[0] && !len; i++) {
            size_t want = strlen(names[i]);
            if (strncmp(p + 1, names[i], want) == 0 && p[1 + want] == '}') len = want;
        }
        if (len) {
            size_t begin = out->len;
            TRY(field(s, p + 1, len, out));
            if (p[1] == 'i') *at = begin, *n = out->len - begin;
            p += len + 2;
        } else if (*p) {
            TRY(str_append(out, p++, 1));
        }
    }
    return PC_OK;
}

int task_prompt(const struct Task *task, const struct Sample *s, struct TaskPrompt *out, int *moved)
{
    size_t at, n;
    *out = (struct TaskPrompt){0};
    TRY(render(task->before, s, &out->before, &at, &n));
    TRY(render(task->answer_prefix, s, &out->answer_prefix, &at, &n));
    TRY(render(task->after, s, &out->after, &out->question_at, &out->question_len));
    *moved = out->before.len && out->before.data[out->before.len - 1] == ' ';
    if (*moved) {
        out->before.data[--out->before.len] = '\0';
        TRY(str_append(&out->context, " ", 1));
    }
    return str_append(&out->context, s->context.data ? s->context.data : "", s->context.len);
}

void task_prompt_free(struct TaskPrompt *p)
{
    str_free(&p->before);
    str_free(&p->context);
    str_free(&p->after);
    str_free(&p->answer_prefix);
}
