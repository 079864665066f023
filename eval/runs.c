/* runs.c - see runs.h. Files are read in blocks and taken line by line: a run may be large, a line not. */
#include "runs.h"
#include "runs_line.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *const RUN_FACT_NAMES[N_FACTS] = {
    [FACT_BENCHMARK] = "Benchmark", [FACT_PROFILE] = "Profile",       [FACT_SCORER] = "Scorer",
    [FACT_VERSION] = "Version",     [FACT_COMMIT] = "Commit",         [FACT_DEVICE] = "Device",
    [FACT_MODEL] = "Model",         [FACT_MODEL_HASH] = "Model hash", [FACT_DATA] = "Data",
    [FACT_DATA_HASH] = "Data hash",
};

/* ==== Parts of a run ==== */

const char *run_text(const struct RunMethod *method, size_t at)
{
    return at < method->texts.len ? method->texts.data + at : "";
}

int run_problem(struct Run *run, const char *file, long line, const char *fmt, ...)
{
    char text[400];
    va_list args;
    run->n_problems_all++;
    if (run->n_problems == RUNS_PROBLEMS_MAX) return PC_OK;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (!run->problems) {
        run->problems = mem_alloc(RUNS_PROBLEMS_MAX, sizeof *run->problems);
        if (!run->problems) return PC_ENOMEM;
    }
    struct RunProblem *p = &run->problems[run->n_problems++];
    p->line = line;
    TRY(str_append(&p->file, file, strlen(file)));
    return str_append(&p->what, text, strlen(text));
}

int run_task(struct Run *run, const char *name, int *out)
{
    *out = -1;
    for (int i = 0; i < run->n_tasks; i++) {
        if (strcmp(run->tasks[i].name.data, name) != 0) continue;
        *out = i;
        return PC_OK;
    }
    if (run->n_tasks == RUNS_TASKS_MAX) return PC_OK;
    if (!run->tasks) {
        run->tasks = mem_alloc(RUNS_TASKS_MAX, sizeof *run->tasks);
        if (!run->tasks) return PC_ENOMEM;
    }
    struct RunTask *task = &run->tasks[run->n_tasks];
    *task = (struct RunTask){.rows = NAN, .official_rows = NAN};
    TRY(str_append(&task->name, name, strlen(name)));
    *out = run->n_tasks++;
    return PC_OK;
}

int run_add_method(struct Run *run, const char *label, struct RunMethod **out)
{
    *out = NULL;
    for (int i = 0; i < run->n_methods; i++)
        if (strcmp(run->methods[i].label.data, label) == 0) *out = &run->methods[i];
    if (*out || run->n_methods == RUNS_METHODS_MAX) return PC_OK;
    if (!run->methods) {
        run->methods = mem_alloc(RUNS_METHODS_MAX, sizeof *run->methods);
        if (!run->methods) return PC_ENOMEM;
    }
    struct RunMethod *method = &run->methods[run->n_methods];
    TRY(str_append(&method->label, label, strlen(label)));
    run->n_methods++;
    *out = method;
    return PC_OK;
}

static void method_free(struct RunMethod *m)
{
    for (int i = 0; i < m->n_settings; i++) {
        str_free(&m->settings[i].name);
        str_free(&m->settings[i].value);
    }
    mem_free(m->settings);
    mem_free(m->samples);
    mem_free(m->heads);
    str_free(&m->texts);
    str_free(&m->label);
}

void run_free(struct Run *run)
{
    for (int i = 0; i < N_FACTS; i++) str_free(&run->facts[i]);
    for (int i = 0; i < run->n_methods; i++) method_free(&run->methods[i]);
    /* the one after the last may hold a name whose adding failed */
    for (int i = 0; run->tasks && i < RUNS_TASKS_MAX; i++) {
        str_free(&run->tasks[i].name);
        str_free(&run->tasks[i].metric);
    }
    for (int i = 0; i < run->n_problems; i++) {
        str_free(&run->problems[i].file);
        str_free(&run->problems[i].what);
    }
    mem_free(run->methods);
    mem_free(run->tasks);
    mem_free(run->problems);
    str_free(&run->name);
    *run = (struct Run){0};
}

/* ==== run.json ==== */

static const cJSON *member(const cJSON *object, const char *name)
{
    return cJSON_GetObjectItemCaseSensitive(object, name);
}

static int take_fact(struct Run *run, enum RunFact fact, const cJSON *item)
{
    if (!cJSON_IsString(item)) return PC_OK;
    return str_append(&run->facts[fact], item->valuestring, strlen(item->valuestring));
}

/* A part of a benchmark must not bear its proper name, whatever the run calls it. */
static void lower(struct Str *text)
{
    for (size_t i = 0; i < text->len; i++)
        if (text->data[i] >= 'A' && text->data[i] <= 'Z') text->data[i] += 'a' - 'A';
}

static int take_facts(struct Run *run, const cJSON *root)
{
    const cJSON *model = member(root, "model"), *data = member(root, "data");
    TRY(take_fact(run, FACT_BENCHMARK, member(root, "benchmark")));
    lower(&run->facts[FACT_BENCHMARK]);
    TRY(take_fact(run, FACT_PROFILE, member(root, "profile")));
    TRY(take_fact(run, FACT_SCORER, member(root, "scorer")));
    TRY(take_fact(run, FACT_VERSION, member(root, "version")));
    TRY(take_fact(run, FACT_COMMIT, member(root, "commit")));
    TRY(take_fact(run, FACT_DEVICE, member(root, "device")));
    TRY(take_fact(run, FACT_MODEL, cJSON_IsString(model) ? model : member(model, "name")));
    TRY(take_fact(run, FACT_MODEL_HASH, member(model, "hash")));
    TRY(take_fact(run, FACT_DATA, cJSON_IsString(data) ? data : member(data, "name")));
    return take_fact(run, FACT_DATA_HASH, member(data, "hash"));
}

static double rows_of(const cJSON *task, const char *name)
{
    const cJSON *item = member(task, name);
    bool good = cJSON_IsNumber(item) && item->valuedouble >= 0 && item->valuedouble < 1e9;
    return good ? floor(item->valuedouble) : NAN;
}

static int take_tasks(struct Run *run, const cJSON *tasks)
{
    for (const cJSON *item = cJSON_IsObject(tasks) ? tasks->child : NULL; item; item = item->next) {
        int at;
        TRY(run_task(run, item->string, &at));
        if (at < 0) return run_problem(run, "run.json", 0, "more than %d tasks", RUNS_TASKS_MAX);
        const cJSON *metric = member(item, "metric");
        struct RunTask *task = &run->tasks[at];
        task->rows = rows_of(item, "rows");
        task->official_rows = rows_of(item, "official_rows");
        str_clear(&task->metric);
        if (cJSON_IsString(metric))
            TRY(str_append(&task->metric, metric->valuestring, strlen(metric->valuestring)));
    }
    return PC_OK;
}

enum { SETTINGS_MAX = 256 };

static int take_settings(struct RunMethod *method, const cJSON *settings)
{
    int n = cJSON_IsObject(settings) ? cJSON_GetArraySize(settings) : 0;
    if (n > SETTINGS_MAX) n = SETTINGS_MAX;
    if (n == 0 || method->settings) return PC_OK;
    method->settings = mem_alloc((size_t)n, sizeof *method->settings);
    if (!method->settings) return PC_ENOMEM;
    for (const cJSON *item = settings->child; item && method->n_settings < n; item = item->next) {
        struct RunSetting *s = &method->settings[method->n_settings++];
        TRY(str_append(&s->name, item->string, strlen(item->string)));
        char *text = cJSON_IsString(item) ? NULL : cJSON_PrintUnformatted(item);
        const char *value = cJSON_IsString(item) ? item->valuestring : text ? text : "";
        int status = str_append(&s->value, value, strlen(value));
        cJSON_free(text);
        TRY(status);
    }
    return PC_OK;
}

/* A label is the name of a folder in the run's folder, and of nothing else. */
static bool is_folder_name(const char *label)
{
    return *label && !strchr(label, '/') && strcmp(label, ".") != 0 && strcmp(label, "..") != 0 &&
           strlen(label) <= NAME_MAX;
}

static int take_methods(struct Run *run, const cJSON *methods)
{
    for (const cJSON *item = cJSON_IsObject(methods) ? methods->child : NULL; item;
         item = item->next) {
        struct RunMethod *method;
        if (!is_folder_name(item->string)) {
            TRY(run_problem(run, "run.json", 0, "method '%.64s' is not the name of a folder",
                            item->string));
            continue;
        }
        TRY(run_add_method(run, item->string, &method));
        if (!method)
            return run_problem(run, "run.json", 0, "more than %d methods", RUNS_METHODS_MAX);
        TRY(take_settings(method, item));
    }
    return PC_OK;
}

static int take_head(struct Run *run, const cJSON *root)
{
    const cJSON *schema = member(root, "schema");
    if (!cJSON_IsString(schema) || strcmp(schema->valuestring, "pcomp.eval.v1") != 0)
        TRY(run_problem(run, "run.json", 0, "its schema is '%.64s', not pcomp.eval.v1",
                        cJSON_IsString(schema) ? schema->valuestring : ""));
    TRY(take_facts(run, root));
    TRY(take_tasks(run, member(root, "tasks")));
    return take_methods(run, member(root, "methods"));
}

int run_read_head(struct Run *run, const char *text, size_t len)
{
    cJSON *root = cJSON_ParseWithLength(text, len);
    int status = cJSON_IsObject(root) ? take_head(run, root)
                                      : run_problem(run, "run.json", 0,
                                                    "not a JSON object; what was run is unknown");
    cJSON_Delete(root);
    return status;
}

/* ==== Lines ==== */

struct Feed {
    struct Run *run;
    struct RunMethod *method;
    struct LineAt at;
    struct Str line;
    bool over; /* this line is too long: its bytes are dropped until it ends */
};

static int feed_end(struct Feed *f)
{
    size_t len = f->line.len;
    int status = PC_OK;
    f->at.number++;
    if (len && f->line.data[len - 1] == '\r') len--;
    if (f->over)
        status = run_problem(f->run, f->at.file, f->at.number, "longer than %d MiB, left out",
                             RUNS_LINE_MAX >> 20);
    else if (len && strspn(f->line.data, " \t") < len)
        status = run_take_line(f->run, f->method, &f->at, f->line.data, len);
    f->over = false;
    str_clear(&f->line);
    return status;
}

static int feed(struct Feed *f, const char *data, size_t len)
{
    while (len > 0) {
        const char *end = memchr(data, '\n', len);
        size_t n = end ? (size_t)(end - data) : len;
        if (f->line.len + n > RUNS_LINE_MAX) f->over = true;
        if (!f->over) TRY(str_append(&f->line, data, n));
        if (end) TRY(feed_end(f));
        data += n + (end != NULL);
        len -= n + (end != NULL);
    }
    return PC_OK;
}

static int feed_rest(struct Feed *f)
{
    if (f->line.len == 0 && !f->over) return PC_OK;
    f->at.torn = true;
    return feed_end(f);
}

int run_read_lines(struct Run *run, struct RunMethod *method, const char *file, const char *text,
                   size_t len)
{
    struct Feed f = {.run = run, .method = method, .at.file = file};
    int status = feed(&f, text, len);
    if (status == PC_OK) status = feed_rest(&f);
    str_free(&f.line);
    return status;
}

/* Only regular files: a pipe of that name would wait for ever. */
static int open_regular(const char *path)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return -1;
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode)) return fd;
    close(fd);
    errno = EINVAL;
    return -1;
}

static int read_blocks(struct Feed *f, int fd)
{
    char block[1 << 15];
    for (;;) {
        ssize_t n = read(fd, block, sizeof block);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return run_problem(f->run, f->at.file, f->at.number, "cannot be read further: %s",
                               strerror(errno));
        if (n == 0) return feed_rest(f);
        TRY(feed(f, block, (size_t)n));
    }
}

static int read_file(struct Run *run, struct RunMethod *method, const char *path, const char *shown)
{
    struct Feed f = {.run = run, .method = method, .at.file = shown};
    int fd = open_regular(path);
    if (fd < 0) return run_problem(run, shown, 0, "cannot be opened: %s", strerror(errno));
    int status = read_blocks(&f, fd);
    close(fd);
    str_free(&f.line);
    return status;
}

/* ==== Repeated keys ==== */

struct Place {
    const char *key;
    int task, at;
};

static int by_key(const void *a, const void *b)
{
    const struct Place *x = a, *y = b;
    if (x->task != y->task) return x->task < y->task ? -1 : 1;
    int order = strcmp(x->key, y->key);
    return order ? order : (x->at > y->at) - (x->at < y->at);
}

/* Of places[0..n), all of one key, the sample that stays. */
static int winner(const struct RunMethod *method, const struct Place *places, int n)
{
    for (int i = n - 1; i >= 0; i--)
        if (method->samples[places[i].at].state != SAMPLE_FAILED) return places[i].at;
    return places[n - 1].at;
}

int run_settle(struct RunMethod *method)
{
    int n = method->n_samples, left = 0;
    struct Place *places = mem_alloc((size_t)n, sizeof *places);
    bool *stays = mem_alloc((size_t)n, sizeof *stays);
    if (places && stays) {
        for (int i = 0; i < n; i++)
            places[i] = (struct Place){run_text(method, method->samples[i].key),
                                       method->samples[i].task, i};
        if (n > 1) qsort(places, (size_t)n, sizeof *places, by_key);
        for (int i = 0, end; i < n; i = end) {
            for (end = i + 1; end < n && places[end].task == places[i].task &&
                              strcmp(places[end].key, places[i].key) == 0;)
                end++;
            stays[winner(method, places + i, end - i)] = true;
        }
        for (int i = 0; i < n; i++)
            if (stays[i]) method->samples[left++] = method->samples[i];
        method->n_samples = left;
        method->n_replaced += n - left;
    }
    int status = places && stays ? PC_OK : PC_ENOMEM;
    mem_free(places);
    mem_free(stays);
    return status;
}

/* ==== Folders ==== */

static int plain_names(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static bool is_lines_file(const char *name)
{
    size_t len = strlen(name);
    return len > 6 && strcmp(name + len - 6, ".jsonl") == 0;
}

static void names_free(struct dirent **names, int n)
{
    for (int i = 0; i < n; i++) free(names[i]);
    free(names);
}

static int read_method(struct Run *run, struct RunMethod *method, const char *folder)
{
    char path[PATH_MAX], shown[2 * NAME_MAX + 2];
    struct dirent **names = NULL;
    int status = PC_OK;
    snprintf(path, sizeof path, "%s/%s", folder, method->label.data);
    int n = scandir(path, &names, plain_names, alphasort);
    if (n < 0)
        return run_problem(run, method->label.data, 0, "its folder cannot be read: %s",
                           strerror(errno));
    for (int i = 0; i < n && status == PC_OK; i++) {
        if (!is_lines_file(names[i]->d_name)) continue;
        int len =
            snprintf(path, sizeof path, "%s/%s/%s", folder, method->label.data, names[i]->d_name);
        snprintf(shown, sizeof shown, "%s/%s", method->label.data, names[i]->d_name);
        status = len < (int)sizeof path ? read_file(run, method, path, shown)
                                        : run_problem(run, shown, 0, "its path is too long");
    }
    names_free(names, n);
    return status == PC_OK ? run_settle(method) : status;
}

static bool has_lines(const char *folder, const char *name)
{
    char path[PATH_MAX];
    struct dirent **names = NULL;
    bool found = false;
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) return false;
    int n = scandir(path, &names, plain_names, alphasort);
    if (n < 0) return false;
    for (int i = 0; i < n; i++) found |= is_lines_file(names[i]->d_name);
    names_free(names, n);
    return found;
}

/* Folders that run.json does not name but that hold results. */
static int find_methods(struct Run *run, const char *folder)
{
    struct dirent **names = NULL;
    int status = PC_OK, n = scandir(folder, &names, plain_names, alphasort);
    if (n < 0)
        return err_set(PC_EIO, "%s: not a run's folder: %s; give the folder that holds run.json",
                       folder, strerror(errno));
    for (int i = 0; i < n && status == PC_OK; i++) {
        int before = run->n_methods;
        struct RunMethod *method;
        if (!has_lines(folder, names[i]->d_name)) continue;
        status = run_add_method(run, names[i]->d_name, &method);
        if (status == PC_OK && (!method || run->n_methods > before))
            status = run_problem(run, names[i]->d_name, 0,
                                 method ? "run.json does not name this method"
                                        : "too many methods: not read");
    }
    names_free(names, n);
    return status;
}

static int read_head_file(struct Run *run, const char *folder)
{
    char path[PATH_MAX];
    struct stat info;
    struct Str text = {0};
    if (snprintf(path, sizeof path, "%s/run.json", folder) >= (int)sizeof path)
        return err_set(PC_EIO, "the path of a run is longer than %d bytes", PATH_MAX - 16);
    if (stat(path, &info) != 0 || !S_ISREG(info.st_mode))
        return run_problem(run, "run.json", 0, "is not there; what was run is unknown");
    if (info.st_size > RUNS_LINE_MAX)
        return run_problem(run, "run.json", 0, "is larger than %d MiB; not read",
                           RUNS_LINE_MAX >> 20);
    int status = file_read(path, &text);
    if (status == PC_EIO) status = run_problem(run, "run.json", 0, "cannot be read");
    if (status == PC_OK && text.data) status = run_read_head(run, text.data, text.len);
    if (status == PC_OK && !text.data) status = run_problem(run, "run.json", 0, "is empty");
    str_free(&text);
    return status;
}

/* The last part of the path, also of "." and "..". */
static int take_name(struct Run *run, const char *folder)
{
    char *real = realpath(folder, NULL);
    const char *path = real ? real : folder, *slash = strrchr(path, '/');
    const char *name = slash && slash[1] ? slash + 1 : path;
    int status = str_append(&run->name, name, strlen(name));
    free(real);
    return status;
}

int run_read(const char *folder, struct Run *out)
{
    *out = (struct Run){0};
    TRY(take_name(out, folder));
    TRY(read_head_file(out, folder));
    TRY(find_methods(out, folder));
    for (int i = 0; i < out->n_methods; i++) TRY(read_method(out, &out->methods[i], folder));
    if (out->n_methods == 0)
        return err_set(PC_EFORMAT,
                       "%s: no run in this folder: neither run.json with methods nor "
                       "METHOD/TASK.jsonl; give the folder that `pcomp-eval` wrote",
                       folder);
    return PC_OK;
}
