/* peers.h - what ranks tell each other of their devices' memory: from device to device where these have a way, through the
 * host where they have none, and of a device without memory of its own by the team alone.
 */
#ifndef PCOMP_PEERS_H
#define PCOMP_PEERS_H

#include "backend.h"
#include "team.h"

struct Peers {
    const struct Backend *be;
    struct Device *dev;
    struct Team *team;
    bool direct;      /* devices pass memory to each other */
    bool own_memory;  /* a device's memory is no memory of the host */
    int sharers;      /* ranks that have this device */
    const char *none; /* why they do not; NULL where there is nothing to say */
};

/* Every rank of the team, each with its device open: finds out which of them share one, divides its memory between these,
 * and opens a way between devices that are all different. PC_ENOMEM when a share is too small. */
int peers_open(struct Peers *p, const struct Backend *be, struct Device *dev, struct Team *team);
/* As team_gather, parts [team size, bytes] being memory of the device; host: as much room in memory of the host, which is
 * needed where own_memory is set and direct is not. */
int peers_gather(const struct Peers *p, void *parts, size_t bytes, void *host);

#endif
