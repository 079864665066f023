/* peers.c - see peers.h */
#include "peers.h"

#include <string.h>

/* What a rank says of its device. */
struct Facts {
    char name[PEER_NAME];
    int32_t able;
};

struct Invitation {
    int32_t status;
    uint8_t id[PEER_ID];
};

static int wait_for_team(void *user, int turns)
{
    return team_idle(user, turns);
}

/* Ranks with the device of rank `at`. */
static int count_same(const struct Facts *all, int n, int at)
{
    int same = 0;
    for (int i = 0; i < n; i++) same += strcmp(all[i].name, all[at].name) == 0;
    return same;
}

static const char *why_not(const struct Facts *all, int n)
{
    for (int i = 0; i < n; i++)
        if (count_same(all, n, i) > 1) return "some share a GPU";
    for (int i = 0; i < n; i++)
        if (!all[i].able) return "libnccl.so.2 is not there";
    return NULL;
}

/* Rank 0 invites, and all come, or none. */
static int meet(struct Peers *p)
{
    const struct DevicePeers *ops = p->be->peers;
    struct Team *t = p->team;
    struct PeerWait wait = {wait_for_team, t};
    struct Invitation made = {.status = PC_OK};
    if (t->rank == 0) made.status = ops->invite(p->dev, made.id);
    TRY(team_broadcast(t, &made, sizeof made));
    if (made.status < 0) {
        p->none = "NCCL did not start";
        return PC_OK;
    }
    TRY(ops->join(p->dev, made.id, t->rank, t->size, &wait));
    p->direct = true;
    return PC_OK;
}

static int divide(struct Peers *p, const struct Facts *all)
{
    p->sharers = count_same(all, p->team->size, p->team->rank);
    return p->sharers > 1 ? p->be->peers->divide(p->dev, p->sharers) : PC_OK;
}

static int open_ways(struct Peers *p, struct Facts *all)
{
    const struct DevicePeers *ops = p->be->peers;
    struct Facts *mine = &all[p->team->rank];
    ops->name(p->dev, mine->name);
    mine->able = ops->able(p->dev);
    TRY(team_gather(p->team, all, sizeof *all));
    TRY(divide(p, all));
    p->none = why_not(all, p->team->size);
    return p->none ? PC_OK : meet(p);
}

int peers_open(struct Peers *p, const struct Backend *be, struct Device *dev, struct Team *team)
{
    struct DeviceLimits limits;
    *p = (struct Peers){.be = be, .dev = dev, .team = team, .sharers = 1};
    be->limits(dev, &limits);
    p->own_memory = limits.own_memory;
    if (team->size <= 1 || !be->peers) return PC_OK;
    struct Facts *all = mem_alloc((size_t)team->size, sizeof *all);
    int status = all ? open_ways(p, all) : PC_ENOMEM;
    mem_free(all);
    return status;
}

int peers_gather(const struct Peers *p, void *parts, size_t bytes, void *host)
{
    size_t mine = (size_t)p->team->rank * bytes;
    if (p->direct) return p->be->peers->gather(p->dev, parts, bytes);
    if (!p->own_memory) return team_gather(p->team, parts, bytes);
    TRY(p->be->download(p->dev, (uint8_t *)host + mine, (uint8_t *)parts + mine, bytes));
    TRY(team_gather(p->team, host, bytes));
    return p->be->upload(p->dev, parts, host, (size_t)p->team->size * bytes);
}
