/* kv_ship.h - the pages of a table from one rank to another, byte for byte, by the way that their devices have: ranks of one run have the same backend and
 * precision, so what lies in a page is nobody's business here. */
#ifndef PCOMP_KV_SHIP_H
#define PCOMP_KV_SHIP_H

#include "kv_cache.h"
#include "peers.h"

/* Room for pages on their way: of the device where devices pass memory to each other, else of the host. */
struct KvParcel {
    uint8_t *data; /* [n_pages, page_bytes] owned */
    int n_pages;
    const struct Peers *peers; /* borrowed */
    struct KvGather *
        moves; /* [n_pages] owned, of a cache with pages below; these go through as many near pages */
    uint32_t through; /* the first of them */
};

int kv_parcel_pages(const struct Peers *peers, size_t page_bytes);
size_t kv_parcel_bytes(const struct Peers *peers, size_t page_bytes);
int kv_parcel_open(struct KvParcel *p, const struct Peers *peers, size_t page_bytes);
/* For a cache with a tier, in any order with its kv_run: takes kv_parcel_pages() near pages of it. */
int kv_parcel_through(struct KvParcel *p, struct KvCache *kv);
void kv_parcel_close(struct KvParcel *p);

/* Sends what a table holds; it stays as it is. */
int kv_send(const struct KvCache *kv, const struct HeadTable *t, int to, struct KvParcel *p);
/* Takes it into an empty table with as many heads, in pages of this pool. PC_EINTERNAL when pool or table are too small
 * or what comes is no table. */
int kv_receive(struct KvCache *kv, struct HeadTable *t, int from, struct KvParcel *p);

#endif
