/* results.c - see results.h */
#include "results.h"

#include "cli.h"
#include "provenance.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ==== Keys ==== */

int settings_key(const struct Settings *settings, uint64_t model_hash, uint64_t *out)
{
    struct Settings shape = *settings, plain;
    struct Str json = {0};
    settings_default(&plain);
    memcpy(shape.backend, plain.backend, sizeof shape.backend);
    memcpy(shape.isa, plain.isa, sizeof shape.isa);
    shape.threads = plain.threads;
    shape.wave = plain.wave;
    shape.memory = plain.memory;
    int status = settings_json(&shape, &json);
    if (status == PC_OK) *out = hash64(json.data, json.len, model_hash);
    str_free(&json);
    return status;
}

static void key_text(uint64_t key, char text[20])
{
    snprintf(text, 20, "%016llx", (unsigned long long)key);
}

bool results_has(const struct Results *r, uint64_t key)
{
    for (size_t i = 0; i < r->n_done; i++)
        if (r->done[i] == key) return true;
    return false;
}

static int push(uint64_t **keys, size_t *n, size_t *room, uint64_t key)
{
    if (*n == *room) {
        size_t more = *room ? 2 * *room : 256;
        uint64_t *grown = mem_grow(*keys, *room, more, sizeof *grown);
        if (!grown) return PC_ENOMEM;
        *keys = grown;
        *room = more;
    }
    (*keys)[(*n)++] = key;
    return PC_OK;
}

static int note(struct Results *r, uint64_t key)
{
    return push(&r->done, &r->n_done, &r->room, key);
}

/* ==== Reading what is there ==== */

/* Lines of the file that are no results, and results of other settings. */
struct Strange {
    long foreign, other;
};

/* What a line says of itself. */
struct Said {
    bool result;  /* it is a line of results at all */
    bool ours;    /* ... of this run's settings */
    bool error;   /* it tells of a failure */
    uint64_t key; /* of its item */
};

static struct Said line_says(const struct Results *r, const char *line, size_t len)
{
    struct Said said = {false, false, false, 0};
    char mine[20];
    key_text(r->settings_key, mine);
    cJSON *root = cJSON_ParseWithLength(line, len);
    const cJSON *key = cJSON_GetObjectItemCaseSensitive(root, "key");
    const cJSON *settings = cJSON_GetObjectItemCaseSensitive(root, "settings_key");
    if (cJSON_IsString(key) && cJSON_IsString(settings)) {
        said.result = true;
        said.ours = strcmp(settings->valuestring, mine) == 0;
        said.error = cJSON_GetObjectItemCaseSensitive(root, "error") != NULL;
        said.key = strtoull(key->valuestring, NULL, 16);
    }
    cJSON_Delete(root);
    return said;
}

static int old_line(struct Results *r, const char *line, size_t len, struct Strange *strange)
{
    struct Said said = line_says(r, line, len);
    strange->foreign += !said.result;
    strange->other += said.result && !said.ours && !said.error;
    return said.ours && !said.error ? note(r, said.key) : PC_OK;
}

int results_open(struct Results *r, const char *path, uint64_t key, int flags)
{
    struct Str old = {0};
    struct Strange strange = {0};
    *r = (struct Results){.path = path, .settings_key = key};
    int status =
        (flags & RESULTS_SHARED ? appender_open_shared : appender_open)(path, &r->out, &old);
    if (status < 0) status = CLI_EOUTPUT;
    if (status == PC_OK && r->out.torn && !(flags & RESULTS_QUIET))
        fprintf(stderr, "%s: a torn last line of %lld bytes was cut off; its text is done again\n",
                path, (long long)r->out.torn);
    size_t at = 0, len;
    const char *line;
    while (status == PC_OK && line_next(old.data ? old.data : "", old.len, &at, &line, &len))
        if (len) status = old_line(r, line, len, &strange);
    str_free(&old);
    if (status == PC_OK && strange.foreign)
        return err_set(PC_EFORMAT, "%s: %ld lines are not results; give another --output", path,
                       strange.foreign);
    if (status == PC_OK && strange.other && !(flags & RESULTS_FRESH))
        return err_set(
            PC_ECONFIG,
            "%s: holds %ld results made with another model or other settings; use the same, "
            "give another --output, or --fresh to add new ones below",
            path, strange.other);
    return status;
}

/* ==== Sharing ==== */

/* The key of a line of this run's settings, whether it tells of a result or of a failure. */
static int new_line(struct Results *r, const char *line, size_t len)
{
    struct Said said = line_says(r, line, len);
    return said.ours ? note(r, said.key) : PC_OK;
}

int results_news(struct Results *r)
{
    struct Str *news = &r->out.news;
    size_t at = 0, len;
    const char *line;
    if (appender_news(&r->out) < 0) return err_prefix(CLI_EOUTPUT, "%s", r->path);
    while (news->len && line_next(news->data, news->len, &at, &line, &len))
        TRY(new_line(r, line, len));
    str_clear(news);
    return PC_OK;
}

/* Looked up again once the item is ours: whoever had it before has written its line before letting it go. */
static int claim(struct Results *r, uint64_t key)
{
    if (results_has(r, key)) return CLAIM_DONE;
    int got = appender_claim(&r->out, key);
    if (got < 0) return err_prefix(CLI_EOUTPUT, "%s", r->path);
    if (got == 0) return CLAIM_TAKEN;
    int status = results_news(r);
    if (status == PC_OK && !results_has(r, key)) return CLAIM_MINE;
    appender_release(&r->out, key);
    return status < 0 ? status : CLAIM_DONE;
}

int results_claim(struct Results *r, uint64_t key)
{
    int got = claim(r, key);
    if (got == CLAIM_TAKEN) TRY(push(&r->taken, &r->n_taken, &r->room_taken, key));
    return got;
}

void results_release(struct Results *r, uint64_t key)
{
    appender_release(&r->out, key);
}

int results_settle(struct Results *r, bool (*stop)(void *user), bool *again)
{
    while (r->n_taken > 0) {
        int got = claim(r, r->taken[r->n_taken - 1]);
        TRY(got);
        if (got == CLAIM_TAKEN) {
            if (stop(NULL)) return err_set(PC_EINTR, "stopped");
            nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
            continue;
        }
        if (got == CLAIM_MINE) *again = true;
        r->n_taken--;
        appender_release(&r->out, r->taken[r->n_taken]);
    }
    return PC_OK;
}

/* ==== Writing ==== */

void results_head(const struct Results *r, cJSON *line, const struct Str *id, uint64_t key)
{
    char text[20];
    json_add_bytes(line, "id", id->data ? id->data : "", id->len);
    key_text(key, text);
    cJSON_AddStringToObject(line, "key", text);
    key_text(r->settings_key, text);
    cJSON_AddStringToObject(line, "settings_key", text);
}

int results_add(struct Results *r, cJSON *line, uint64_t key, bool failed)
{
    struct Str text = {0};
    int status = json_append(line, false, &text);
    /* appender_line() adds the line feed. */
    if (status == PC_OK && appender_line(&r->out, text.data, text.len - 1) < 0) {
        err_prefix(CLI_EOUTPUT, "%s", r->path);
        status = CLI_EOUTPUT;
    }
    str_free(&text);
    /* where others take part, a failure is not tried again by any of them */
    return status == PC_OK && (!failed || r->out.shared) ? note(r, key) : status;
}

static const char *error_code(int status)
{
    switch (status) {
    case PC_EIO:
        return "io";
    case PC_EFORMAT:
        return "format";
    case PC_ECONFIG:
        return "config";
    case PC_ENOMEM:
        return "memory";
    case PC_EDEVICE:
        return "device";
    case PC_ERANGE:
        return "range";
    case PC_ELOST:
        return "lost";
    default:
        return "internal";
    }
}

void results_error(cJSON *line, int status)
{
    cJSON *error = cJSON_AddObjectToObject(line, "error");
    cJSON_AddStringToObject(error, "code", error_code(status));
    json_add_bytes(error, "message", err_text(), strlen(err_text()));
}

void results_close(struct Results *r)
{
    appender_close(&r->out);
    mem_free(r->done);
    mem_free(r->taken);
    r->done = r->taken = NULL;
    r->n_done = r->room = r->n_taken = r->room_taken = 0;
}
