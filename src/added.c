/* added.c - see added.h. A byte that begins no spelling costs one table look-up, so plain prose is
 * passed over at memory speed however many tokens were added.
 */
#include "added.h"

struct AddedNode {
    int child, sibling; /* -1 when none */
    int id;             /* token that ends here, or -1 */
    uint8_t byte, type; /* type: of that token */
};

static int node_child(const struct Added *added, int node, uint8_t byte)
{
    int child = added->nodes[node].child;
    while (child >= 0 && added->nodes[child].byte != byte) child = added->nodes[child].sibling;
    return child;
}

/* Appends a node; returns its index or a negative status. */
static int node_new(struct Added *added, uint8_t byte, int sibling)
{
    if (added->n_nodes == added->cap) {
        int cap = added->cap ? added->cap * 2 : 256;
        struct AddedNode *nodes =
            mem_grow(added->nodes, (size_t)added->cap, (size_t)cap, sizeof(*nodes));
        if (!nodes) return PC_ENOMEM;
        added->nodes = nodes;
        added->cap = cap;
    }
    added->nodes[added->n_nodes] = (struct AddedNode){-1, sibling, -1, byte, 0};
    return added->n_nodes++;
}

static int added_insert(struct Added *added, struct Slice piece, int id, uint8_t type)
{
    int node = 0;
    for (size_t i = 0; i < piece.len; i++) {
        uint8_t byte = (uint8_t)piece.data[i];
        int child = node_child(added, node, byte);
        if (child < 0) {
            child = node_new(added, byte, added->nodes[node].child);
            TRY(child);
            added->nodes[node].child = child;
        }
        node = child;
    }
    added->nodes[node].id = id;
    added->nodes[node].type = type;
    added->first[(uint8_t)piece.data[0]] = true;
    return PC_OK;
}

int added_open(struct Added *added, const struct VocabSpec *spec, const struct Slice *pieces)
{
    TRY(node_new(added, 0, -1));
    for (int id = 0; id < spec->n_tokens; id++) {
        uint8_t type = spec->types[id];
        if ((type == TOKEN_CONTROL || type == TOKEN_USER) && pieces[id].len > 0)
            TRY(added_insert(added, pieces[id], id, type));
        if (type == TOKEN_USER && pieces[id].len > added->longest) added->longest = pieces[id].len;
    }
    return PC_OK;
}

void added_close(struct Added *added)
{
    mem_free(added->nodes);
    *added = (struct Added){0};
}

struct AddedHit added_find(const struct Added *added, const char *text, size_t len, size_t from,
                           bool control)
{
    struct AddedHit hit = {.id = -1};
    for (hit.begin = from; hit.begin < len; hit.begin++) {
        if (!added->first[(uint8_t)text[hit.begin]]) continue;
        int node = 0;
        for (size_t at = hit.begin; at < len; at++) {
            node = node_child(added, node, (uint8_t)text[at]);
            if (node < 0) break;
            const struct AddedNode *found = &added->nodes[node];
            if (found->id >= 0 && (control || found->type == TOKEN_USER)) {
                hit.id = found->id;
                hit.end = at + 1;
            }
        }
        if (hit.id >= 0) return hit;
    }
    hit.end = hit.begin;
    return hit;
}

bool added_touches(const struct Added *added, const char *text, size_t len, size_t at)
{
    for (size_t begin = at > added->longest ? at - added->longest : 0; begin < at; begin++) {
        int node = 0;
        for (size_t i = begin; i < len; i++) {
            node = node_child(added, node, (uint8_t)text[i]);
            if (node < 0) break;
            const struct AddedNode *found = &added->nodes[node];
            if (i + 1 >= at && found->id >= 0 && found->type == TOKEN_USER) return true;
        }
    }
    return false;
}
