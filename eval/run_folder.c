/* run_folder.c - see run_folder.h */
#include "run_folder.h"

#include "provenance.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ==== Folders and files ==== */

static int make_folder(const char *path)
{
    struct Str parent = {0};
    int status = PC_OK;
    for (const char *p = path + 1; status == PC_OK; p++) {
        if (*p != '/' && *p) continue;
        str_clear(&parent);
        status = str_append(&parent, path, (size_t)(p - path));
        if (status == PC_OK && mkdir(parent.data, 0777) != 0 && errno != EEXIST)
            status = err_set(CLI_EOUTPUT, "%s: cannot make the folder: %s", parent.data,
                             strerror(errno));
        if (!*p) break;
    }
    str_free(&parent);
    return status;
}

/* Gives a file of other settings another name, so that nothing is lost. */
static int set_aside(const char *path)
{
    struct Str name = {0};
    int status = PC_OK;
    for (int i = 1; status == PC_OK; i++) {
        str_clear(&name);
        status = str_appendf(&name, "%s.old-%d", path, i);
        if (status == PC_OK && access(name.data, F_OK) != 0) break;
    }
    if (status == PC_OK && rename(path, name.data) != 0)
        status = err_set(CLI_EOUTPUT, "%s: cannot rename: %s", path, strerror(errno));
    str_free(&name);
    return status;
}

static int open_file(struct Runner *r, struct Results *file, const char *path, int arm)
{
    const struct Cli *cli = &r->eval->cli;
    int flags = (cli->quiet ? RESULTS_QUIET : 0) | (cli->share ? RESULTS_SHARED : 0);
    int status = results_open(file, path, r->arm_key[arm], flags);
    if (status != PC_ECONFIG) return status;
    if (!cli->fresh)
        return err_set(PC_ECONFIG,
                       "%s: holds results of another model, other settings or other prompts; use "
                       "the same, give another --run folder, or --fresh to set them aside",
                       path);
    if (cli->share)
        return err_set(PC_ECONFIG,
                       "%s: only a process alone can set results aside; run it once without "
                       "mpirun, srun or --share, or give another --run folder",
                       path);
    results_close(file);
    TRY(set_aside(path));
    return results_open(file, path, r->arm_key[arm], flags);
}

static int open_arm(struct Runner *r, const char *folder, int arm)
{
    const char *before = r->bench->infinite_form ? "preds_" : "";
    struct Str path = {0};
    int status = str_appendf(&path, "%s/%s", folder, r->arms[arm].label);
    if (status == PC_OK) status = make_folder(path.data);
    str_free(&path);
    for (int t = 0; t <= r->n_tasks && status == PC_OK; t++) {
        struct Str *name = &r->paths[arm * (r->n_tasks + 1) + t];
        bool last = t == r->n_tasks;
        status = last ? str_appendf(name, "%s/%s/errors.ndjson", folder, r->arms[arm].label)
                      : str_appendf(name, "%s/%s/%s%s.jsonl", folder, r->arms[arm].label, before,
                                    r->tasks[t]->name);
        if (status == PC_OK)
            status = open_file(r, last ? &r->errors[arm] : &r->files[arm * r->n_tasks + t],
                               name->data, arm);
    }
    return status;
}

/* ==== run.json ==== */

static void add_tasks(cJSON *root, const struct Runner *r)
{
    cJSON *tasks = cJSON_AddObjectToObject(root, "tasks");
    for (int t = 0; t < r->n_tasks; t++) {
        cJSON *task = cJSON_AddObjectToObject(tasks, r->tasks[t]->name);
        cJSON_AddStringToObject(task, "metric", r->bench->metric(r->tasks[t]->name, &r->score));
        cJSON_AddStringToObject(task, "group", r->tasks[t]->group);
        cJSON_AddNumberToObject(task, "rows", (double)r->rows[t]);
        cJSON_AddNumberToObject(task, "max_tokens", r->tasks[t]->max_tokens);
        cJSON_AddBoolToObject(task, "chat", r->tasks[t]->chat);
        if (r->tasks[t]->official_rows)
            cJSON_AddNumberToObject(task, "official_rows", r->tasks[t]->official_rows);
    }
}

/* Methods of earlier commands on this folder stay on record. */
static void keep_methods(cJSON *methods, const struct Runner *r, const char *folder)
{
    struct Str path = {0}, json = {0};
    bool read = str_appendf(&path, "%s/run.json", folder) == PC_OK &&
                access(path.data, R_OK) == 0 && file_read(path.data, &json) == PC_OK;
    cJSON *old = read ? cJSON_ParseWithLength(json.data, json.len) : NULL;
    cJSON *item = cJSON_GetObjectItemCaseSensitive(old, "methods");
    for (item = item ? item->child : NULL; item; item = item->next) {
        bool mine = false;
        for (int i = 0; i < r->n_arms; i++) mine |= strcmp(r->arms[i].label, item->string) == 0;
        if (!mine) cJSON_AddItemToObject(methods, item->string, cJSON_Duplicate(item, true));
    }
    cJSON_Delete(old);
    str_free(&path);
    str_free(&json);
}

static int add_methods(cJSON *root, const struct Runner *r, const char *folder)
{
    cJSON *methods = cJSON_AddObjectToObject(root, "methods");
    keep_methods(methods, r, folder);
    for (int i = 0; i < r->n_arms; i++) {
        struct Str json = {0};
        int status = settings_json(&r->arms[i].settings, &json);
        cJSON *settings = status == PC_OK ? cJSON_ParseWithLength(json.data, json.len) : NULL;
        str_free(&json);
        if (!settings) return err_set(PC_ENOMEM, "no memory for run.json");
        cJSON_AddItemToObject(methods, r->arms[i].label, settings);
    }
    return PC_OK;
}

static int write_head(const struct Runner *r, const char *folder)
{
    const struct Model *m = engine_model(r->engine);
    struct Str path = {0}, text = {0};
    char split[32] = "all";
    if (r->split_of) snprintf(split, sizeof split, "%d/%d", r->split_at + 1, r->split_of);
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "schema", "pcomp.eval.v1");
    cJSON_AddStringToObject(root, "benchmark", r->bench->name);
    cJSON_AddStringToObject(root, "profile", r->profile);
    cJSON_AddStringToObject(root, "scorer", r->bench->scorer);
    cJSON_AddStringToObject(root, "code_sim",
                            r->score.code_sim == CODE_SIM_INDEL ? "indel" : "difflib");
    cJSON_AddStringToObject(root, "version", PCOMP_VERSION);
    cJSON_AddStringToObject(root, "commit", PCOMP_COMMIT);
    cJSON_AddStringToObject(root, "device", engine_device(r->engine));
    cJSON *model = cJSON_AddObjectToObject(root, "model");
    json_add_bytes(model, "name", m->cfg.name, strlen(m->cfg.name));
    json_add_hash(model, "hash", m->hash);
    cJSON *data = cJSON_AddObjectToObject(root, "data");
    json_add_bytes(data, "name", r->source.name, strlen(r->source.name));
    json_add_hash(data, "hash", r->data_hash);
    cJSON_AddStringToObject(root, "split", split);
    if (r->eval->limit) cJSON_AddNumberToObject(root, "limit", r->eval->limit);
    add_tasks(root, r);
    int status = add_methods(root, r, folder);
    if (status < 0)
        cJSON_Delete(root);
    else
        status = json_append(root, true, &text);
    if (status == PC_OK) status = str_appendf(&path, "%s/run.json", folder);
    if (status == PC_OK) status = out_file(path.data, text.data, text.len);
    str_free(&path);
    str_free(&text);
    return status;
}

/* ==== The folder ==== */

int run_folder_open(struct Runner *r, const char *folder)
{
    size_t arms = (size_t)r->n_arms, tasks = (size_t)r->n_tasks;
    r->files = mem_alloc(arms * tasks, sizeof *r->files);
    r->errors = mem_alloc(arms, sizeof *r->errors);
    r->paths = mem_alloc(arms * (tasks + 1), sizeof *r->paths);
    if (!r->files || !r->errors || !r->paths) return PC_ENOMEM;
    for (size_t i = 0; i < arms * tasks; i++) r->files[i].out.fd = -1;
    for (size_t i = 0; i < arms; i++) r->errors[i].out.fd = -1;
    TRY(make_folder(folder));
    for (int arm = 0; arm < r->n_arms; arm++) TRY(open_arm(r, folder, arm));
    return write_head(r, folder);
}

void run_folder_close(struct Runner *r)
{
    for (int i = 0; r->files && i < r->n_arms * r->n_tasks; i++) results_close(&r->files[i]);
    for (int i = 0; r->errors && i < r->n_arms; i++) results_close(&r->errors[i]);
    for (int i = 0; r->paths && i < r->n_arms * (r->n_tasks + 1); i++) str_free(&r->paths[i]);
    mem_free(r->files);
    mem_free(r->errors);
    mem_free(r->paths);
}
