/* peers.cu - GPUs of several processes that pass memory to each other, by NCCL.
 *
 * NCCL is loaded when ranks meet: builds do without it, and so do runs, whose bytes then go through the host. Of its interface,
 * which is stable, the few declarations below are all that is used. A communicator is opened so that no call of it blocks: what
 * is under way is asked after, and between two looks the rank hears of the others. One that is lost would leave kernels on
 * the stream that wait for ever; the communicator is aborted then, which ends them.
 */
#include "device.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* ==== NCCL's interface ==== */

enum { NCCL_OK = 0, NCCL_IN_PROGRESS = 7, NCCL_UINT8 = 1 };

struct NcclId {
    uint8_t bytes[PEER_ID];
};

/* As of version 2.14: a later library fills the rest in. */
struct NcclConfig {
    size_t size;
    unsigned magic, version;
    int blocking;
};

struct Nccl {
    int (*get_id)(struct NcclId *id);
    int (*init)(void **comm, int size, struct NcclId id, int rank, struct NcclConfig *config);
    int (*state)(void *comm, int *state);
    int (*abort)(void *comm);
    int (*send)(const void *from, size_t n, int type, int to, void *comm, cudaStream_t s);
    int (*receive)(void *to, size_t n, int type, int from, void *comm, cudaStream_t s);
    int (*gather)(const void *from, void *to, size_t n, int type, void *comm, cudaStream_t s);
    const char *(*text)(int code);
};

static bool find(void *library, const char *name, void *out)
{
    void *at = dlsym(library, name);
    memcpy(out, &at, sizeof at);
    return at;
}

static bool find_all(void *library, struct Nccl *n)
{
    return find(library, "ncclGetUniqueId", &n->get_id) &&
           find(library, "ncclCommInitRankConfig", &n->init) &&
           find(library, "ncclCommGetAsyncError", &n->state) &&
           find(library, "ncclCommAbort", &n->abort) && find(library, "ncclSend", &n->send) &&
           find(library, "ncclRecv", &n->receive) && find(library, "ncclAllGather", &n->gather) &&
           find(library, "ncclGetErrorString", &n->text);
}

/* ==== State ==== */

struct CudaPeers {
    void *comm;
    struct Nccl nccl;
    struct PeerWait wait;
    int rank;
    bool under_way; /* something was queued and not waited for */
};

/* Ends what is under way, so that the stream moves on. */
static void give_up(struct CudaPeers *p)
{
    if (p->comm) p->nccl.abort(p->comm);
    p->comm = NULL;
    p->under_way = false;
}

static int nccl_failed(struct CudaPeers *p, int code, const char *what)
{
    give_up(p);
    return err_set(PC_EDEVICE, "NCCL: %s: %s; without NCCL, keys and values go through the host",
                   what, p->nccl.text(code));
}

/* Until NCCL has taken what it was given. */
static int settle(struct CudaPeers *p, int code, const char *what)
{
    for (int turns = 0; code == NCCL_IN_PROGRESS; turns++) {
        int status = p->wait.idle(p->wait.user, turns);
        if (status < 0) {
            give_up(p);
            return status;
        }
        int asked = p->nccl.state(p->comm, &code);
        if (asked != NCCL_OK) code = asked;
    }
    return code == NCCL_OK ? PC_OK : nccl_failed(p, code, what);
}

/* Of another rank that failed, too: the text says which. */
static int no_peers(struct Device *d)
{
    if (d->peers && d->peers->comm) return PC_OK;
    return err_set(PC_EDEVICE, "this GPU has no way to those of the other ranks");
}

/* ==== Which devices ==== */

static void peers_name(struct Device *d, char out[PEER_NAME])
{
    struct cudaDeviceProp p;
    (void)d;
    memset(out, 0, PEER_NAME);
    if (cudaGetDeviceProperties(&p, 0) != cudaSuccess) return;
    for (int i = 0; i < 16; i++) snprintf(out + 2 * i, 3, "%02x", (uint8_t)p.uuid.bytes[i]);
}

static int peers_divide(struct Device *d, int n)
{
    size_t free_bytes = 0, total = 0, reserve = (size_t)256 << 20; /* for the driver's own needs */
    CUDA_TRY(cudaMemGetInfo(&free_bytes, &total));
    d->limit = (d->limit ? d->limit : total > reserve ? total - reserve : total) / (size_t)n;
    if (d->in_use < d->limit) return PC_OK;
    return err_set(PC_ENOMEM,
                   "%d ranks share a GPU: each may use %.2f GiB, and the weights alone take %.2f; "
                   "start fewer ranks",
                   n, (double)d->limit / (1 << 30), (double)d->in_use / (1 << 30));
}

/* ==== Memory on its way ==== */

static int peers_copy(struct Device *d, void *to, const void *from, size_t bytes)
{
    CUDA_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, d->stream));
    return PC_OK;
}

static int peers_send(struct Device *d, const void *data, size_t bytes, int to)
{
    TRY(no_peers(d));
    struct CudaPeers *p = d->peers;
    p->under_way = true;
    return settle(p, p->nccl.send(data, bytes, NCCL_UINT8, to, p->comm, d->stream), "send");
}

static int peers_receive(struct Device *d, void *data, size_t bytes, int from)
{
    TRY(no_peers(d));
    struct CudaPeers *p = d->peers;
    p->under_way = true;
    return settle(p, p->nccl.receive(data, bytes, NCCL_UINT8, from, p->comm, d->stream), "receive");
}

static int peers_gather(struct Device *d, void *parts, size_t bytes)
{
    TRY(no_peers(d));
    struct CudaPeers *p = d->peers;
    const uint8_t *mine = (const uint8_t *)parts + (size_t)p->rank * bytes;
    p->under_way = true;
    return settle(p, p->nccl.gather(mine, parts, bytes, NCCL_UINT8, p->comm, d->stream), "gather");
}

/* Until the stream is empty; while peers may keep it from that, others are heard. */
int dev_wait(struct Device *d)
{
    struct CudaPeers *p = d->peers;
    for (int turns = 0; p && p->under_way; turns++) {
        cudaError_t e = cudaStreamQuery(d->stream);
        if (e == cudaSuccess) p->under_way = false;
        if (e != cudaErrorNotReady) CUDA_TRY(e);
        if (e != cudaErrorNotReady) break;
        int code = NCCL_OK, asked = p->nccl.state(p->comm, &code);
        if (asked != NCCL_OK || (code != NCCL_OK && code != NCCL_IN_PROGRESS))
            return nccl_failed(p, asked != NCCL_OK ? asked : code, "what is under way");
        int status = p->wait.idle(p->wait.user, turns);
        if (status == PC_OK) continue;
        give_up(p);
        return status;
    }
    CUDA_TRY(cudaStreamSynchronize(d->stream));
    return tier_status(d);
}

/* ==== Meeting ==== */

static bool peers_able(struct Device *d)
{
    struct Nccl nccl;
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library || !find_all(library, &nccl)) return false;
    if (!d->peers) d->peers = (struct CudaPeers *)mem_alloc(1, sizeof *d->peers);
    if (d->peers) d->peers->nccl = nccl;
    return d->peers;
}

static int peers_invite(struct Device *d, uint8_t id[PEER_ID])
{
    struct NcclId made;
    int code = d->peers->nccl.get_id(&made);
    if (code != NCCL_OK) return nccl_failed(d->peers, code, "ncclGetUniqueId");
    memcpy(id, made.bytes, sizeof made.bytes);
    return PC_OK;
}

/* One exchange between all before the first that counts: NCCL makes its ways when they are first used. */
static int warm_up(struct Device *d, int rank, int size)
{
    enum { BYTES = 256 };
    uint8_t *room = (uint8_t *)dev_alloc(d, (size_t)size * BYTES);
    if (!room) return PC_ENOMEM;
    int status = peers_gather(d, room, BYTES);
    for (int r = 1; r < size && status == PC_OK; r++) {
        if (rank == 0) status = peers_receive(d, room, BYTES, r);
        if (rank == r) status = peers_send(d, room, BYTES, 0);
    }
    if (status == PC_OK) status = dev_wait(d);
    dev_free(d, room);
    return status;
}

static int peers_join(struct Device *d, const uint8_t id[PEER_ID], int rank, int size,
                      const struct PeerWait *wait)
{
    struct CudaPeers *p = d->peers;
    struct NcclConfig config = {sizeof config, 0xcafebeef, 21400, 0};
    struct NcclId meet;
    memcpy(meet.bytes, id, sizeof meet.bytes);
    p->wait = *wait;
    p->rank = rank;
    TRY(settle(p, p->nccl.init(&p->comm, size, meet, rank, &config), "ranks that meet"));
    return warm_up(d, rank, size);
}

/* The library stays: threads of its own may still be on their way out. */
void peers_close(struct Device *d)
{
    struct CudaPeers *p = d->peers;
    if (!p) return;
    give_up(p);
    mem_free(p);
    d->peers = NULL;
}

extern "C" const struct DevicePeers cuda_peers = {
    .name = peers_name,
    .divide = peers_divide,
    .able = peers_able,
    .invite = peers_invite,
    .join = peers_join,
    .copy = peers_copy,
    .send = peers_send,
    .receive = peers_receive,
    .gather = peers_gather,
    .wait = dev_wait,
};
