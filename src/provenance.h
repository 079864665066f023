/* provenance.h - a run's facts as JSON: what was asked, how it was done, what came of it. */
#ifndef PCOMP_PROVENANCE_H
#define PCOMP_PROVENANCE_H

#include "pcomp.h"

#include <cjson/cJSON.h>

#ifndef PCOMP_COMMIT
#define PCOMP_COMMIT "unknown" /* the Makefile defines it */
#endif

/* "eos", "text" (the request's stop text), "length" or "interrupted" */
const char *stop_reason(const struct Result *r, int status);

/* One object, schema "pcomp.run.v1"; the caller's: cJSON_Delete. NULL when memory is out. Numbers that are
 * not finite become null. status: what session_run() returned. */
cJSON *provenance_make(const struct Engine *engine, const char *model_path,
                       const struct Request *req, const struct Result *r, int status);
/* What a plan says, schema "pcomp.plan.v1". */
cJSON *provenance_plan(const struct Engine *engine, const char *model_path,
                       const struct PlanInfo *plan);
/* Appends the object as one line (or indented) with a line feed, and deletes it. */
int json_append(cJSON *object, bool indent, struct Str *out);
/* Adds a text that may hold bytes that are not UTF-8, such as a path: those become U+FFFD. */
void json_add_bytes(cJSON *object, const char *name, const char *data, size_t len);
/* Adds a hash as 16 hex digits, and the times of a run as an object "seconds". */
void json_add_hash(cJSON *object, const char *name, uint64_t hash);
/* With several rounds: "found", the sentence that each but the last handed on. */
void json_add_found(cJSON *root, const struct Result *r);
void json_add_seconds(cJSON *object, const struct Timings *time);

#endif
