/* chunk_facts.c - see chunk_facts.h. */
#include "chunk_facts.h"

#include "passkey.h"

enum { STREAM_TURN = 1 << 21, STREAM_VALUE };

static const char *const NAMES[CHUNK_FACTS_MAX] = {
    "Marlow",  "Ingrid", "Tobias",  "Yasmin",  "Pavel",   "Odette",   "Rafael", "Signe",
    "Umberto", "Wilma",  "Anselm",  "Beatrix", "Casimir", "Dorothea", "Emeric", "Fenella",
    "Gideon",  "Hester", "Isidore", "Jocasta", "Konrad",  "Leonie",   "Magnus", "Nadezhda"};
static const char *const PLACES[] = {"Lisbon",  "Tromso", "Valletta", "Kyoto", "Cusco",  "Ghent",
                                     "Tallinn", "Oaxaca", "Perth",    "Izmir", "Quebec", "Zadar"};
static const char *const WORK[] = {"repairs church organs",    "teaches deaf children",
                                   "designs wind turbines",    "breeds racing pigeons",
                                   "restores old photographs", "translates Persian poetry",
                                   "pilots a harbour tug",     "bakes rye bread"};
static const char *const DEEDS[] = {"eat grilled sardines by the quay",
                                    "ride the oldest tram uphill",
                                    "watch the herons at dawn",
                                    "buy honey from the monks",
                                    "climb the water tower",
                                    "hear the blind fiddler play"};

#define COUNT(list) (sizeof(list) / sizeof *(list))

static uint64_t value_of(uint64_t seed, int i)
{
    return passkey_draw(seed, STREAM_VALUE, (uint64_t)i);
}

static int number_fact(const char *name, uint64_t value, struct Str *needle, struct Str *question)
{
    TRY(str_appendf(needle, "The locker number of %s is %07llu.", name,
                    (unsigned long long)(value % 10000000)));
    return str_appendf(question, "What is the locker number of %s?", name);
}

static int passkey_fact(const char *name, uint64_t value, struct Str *needle, struct Str *question)
{
    TRY(str_appendf(
        needle, "The secret pass key that %s chose is %05llu. Remember it: %05llu is the key.",
        name, (unsigned long long)(value % 100000), (unsigned long long)(value % 100000)));
    return str_appendf(question, "Which pass key did %s choose?", name);
}

static int work_fact(const char *name, uint64_t value, struct Str *needle, struct Str *question)
{
    TRY(str_appendf(needle, "%s, who was born in %s, %s.", name, PLACES[value % COUNT(PLACES)],
                    WORK[(value >> 8) % COUNT(WORK)]));
    return str_appendf(question, "How does %s earn a living?", name);
}

static int deed_fact(const char *name, uint64_t value, struct Str *needle, struct Str *question)
{
    TRY(str_appendf(needle, "In %s, says %s, the best thing a traveller can do is to %s.",
                    PLACES[value % COUNT(PLACES)], name, DEEDS[(value >> 8) % COUNT(DEEDS)]));
    return str_appendf(question, "What would %s advise visitors to do?", name);
}

int chunk_fact(uint64_t seed, int i, struct Str *needle, struct Str *question)
{
    static int (*const kinds[])(const char *, uint64_t, struct Str *,
                                struct Str *) = {number_fact, work_fact, passkey_fact, deed_fact};
    uint64_t turn = passkey_draw(seed, STREAM_TURN, 0);
    const char *name = NAMES[(turn + (uint64_t)i) % CHUNK_FACTS_MAX];
    return kinds[(turn / CHUNK_FACTS_MAX + (uint64_t)i) % COUNT(kinds)](name, value_of(seed, i),
                                                                        needle, question);
}
