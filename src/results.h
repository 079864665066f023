/* results.h - a file of results that a stopped command goes on with: JSON lines, each with the key of its item.
 *
 * A line's "key" is a hash of the item and of the settings that shape its answer, "settings_key" one of
 * these settings alone. Lines with an "error" do not count as finished. Each line is on the disk before
 * the next item begins, so that a crash loses at most the item in flight.
 */
#ifndef PCOMP_RESULTS_H
#define PCOMP_RESULTS_H

#include "jsonl.h"

struct Results {
    const char *path;
    struct Appender out; /* fd is -1 while closed */
    uint64_t *done;      /* [n_done] keys of finished results */
    size_t n_done, room;
    uint64_t settings_key;
    uint64_t *taken; /* [n_taken] keys that other processes were at */
    size_t n_taken, room_taken;
};

enum { RESULTS_FRESH = 1, RESULTS_QUIET = 2, RESULTS_SHARED = 4 };

/* Hash of the settings that shape an answer, with the model: what changes speed only is left out. */
int settings_key(const struct Settings *settings, uint64_t model_hash, uint64_t *out);

/* Opens path (borrowed) and notes what is finished. QUIET keeps a repaired last line to itself. SHARED: other processes
 * that open it so do other items. PC_ECONFIG when it holds results of other settings, without FRESH; PC_EFORMAT when lines are no results;
 * CLI_EOUTPUT when it cannot be written. results_close always. */
int results_open(struct Results *r, const char *path, uint64_t key, int flags);
/* Takes an item for this process: MINE until results_release; DONE: it is finished, or has failed under another process
 * since we began; TAKEN: another process is at it. */
enum Claim { CLAIM_MINE, CLAIM_DONE, CLAIM_TAKEN };
int results_claim(struct Results *r, uint64_t key);
void results_release(struct Results *r, uint64_t key);
/* Waits for the items that were TAKEN. *again: one was given up, so that the items have to be gone through again. PC_EINTR when
 * `stop` says so. */
int results_settle(struct Results *r, bool (*stop)(void *user), bool *again);
/* Shared: notes what all processes have written since, failures as well. */
int results_news(struct Results *r);
bool results_has(const struct Results *r, uint64_t key);
/* Adds id, key and settings_key to a line that is being made. */
void results_head(const struct Results *r, cJSON *line, const struct Str *id, uint64_t key);
/* Writes the line (and deletes it); key is finished then, unless `failed` in a file that is not shared. */
int results_add(struct Results *r, cJSON *line, uint64_t key, bool failed);
/* Adds {"error":{"code","message"}} from a status and err_text(). */
void results_error(cJSON *line, int status);
void results_close(struct Results *r);

#endif
