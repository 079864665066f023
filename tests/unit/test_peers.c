/* test_peers.c - ways between devices of several ranks, with stand-ins for devices that have memory of their own and pass it to
 * each other: who shares one, who can, and runs whose pages and parts go these ways, which change no bit.
 */
#include "tests/unit/session_team_support.h"

#include "peers.h"

/* ==== Stand-ins ==== */

/* Each process has its own copy. */
static struct {
    struct PeerWait wait;
    bool shared, unable, no_invitation, own_memory;
    int no_join; /* the rank that fails there; 0: none */
    int divided, queued, waited, copied;
} fake;

static void fake_name(struct Device *d, char out[PEER_NAME])
{
    (void)d;
    snprintf(out, PEER_NAME, "device %d", fake.shared ? 0 : (int)getpid());
}

static int fake_divide(struct Device *d, int n)
{
    (void)d;
    fake.divided = n;
    return PC_OK;
}

static bool fake_able(struct Device *d)
{
    (void)d;
    return !fake.unable;
}

static int fake_invite(struct Device *d, uint8_t id[PEER_ID])
{
    (void)d;
    for (int i = 0; i < PEER_ID; i++) id[i] = (uint8_t)(3 * i + 1);
    return fake.no_invitation ? err_set(PC_EDEVICE, "no invitation") : PC_OK;
}

static struct Team *fake_team(void)
{
    return fake.wait.user;
}

static int fake_join(struct Device *d, const uint8_t id[PEER_ID], int rank, int size,
                     const struct PeerWait *wait)
{
    (void)d;
    fake.wait = *wait;
    for (int i = 0; i < PEER_ID; i++)
        if (id[i] != (uint8_t)(3 * i + 1)) return err_set(PC_EINTERNAL, "not the invitation");
    if (rank != fake_team()->rank || size != fake_team()->size)
        return err_set(PC_EINTERNAL, "rank %d of %d", rank, size);
    if (fake.no_join && rank == fake.no_join) return err_set(PC_EDEVICE, "cannot join");
    int all[TEAM_MAX] = {0};
    return team_gather(fake_team(), all, sizeof *all); /* nobody comes before all do */
}

static int fake_copy(struct Device *d, void *to, const void *from, size_t bytes)
{
    (void)d;
    memcpy(to, from, bytes);
    fake.copied++;
    return PC_OK;
}

static int fake_send(struct Device *d, const void *data, size_t bytes, int to)
{
    (void)d;
    fake.queued++;
    return team_send(fake_team(), to, data, bytes);
}

static int fake_receive(struct Device *d, void *data, size_t bytes, int from)
{
    (void)d;
    fake.queued++;
    return team_receive(fake_team(), from, data, bytes);
}

static int fake_gather(struct Device *d, void *parts, size_t bytes)
{
    (void)d;
    fake.queued++;
    return team_gather(fake_team(), parts, bytes);
}

static int fake_wait(struct Device *d)
{
    (void)d;
    fake.waited++;
    return PC_OK;
}

static const struct DevicePeers fake_peers = {fake_name,   fake_divide, fake_able, fake_invite,
                                              fake_join,   fake_copy,   fake_send, fake_receive,
                                              fake_gather, fake_wait};

static void fake_limits(const struct Device *d, struct DeviceLimits *out)
{
    backend_cpu.limits(d, out);
    out->own_memory = fake.own_memory;
}

static const struct Backend *fake_backend(void)
{
    static struct Backend be;
    be = backend_cpu;
    be.limits = fake_limits;
    be.peers = &fake_peers;
    return &be;
}

/* ==== Meeting ==== */

/* What rank 1 alone, or every rank, is like; and what all find. */
struct Meeting {
    bool shared, unable, no_invitation;
    int no_join;
    bool direct;
    int status, sharers;
};

/* Each part is a number of bytes that no page or cache line divides. */
static int gather_parts(const struct Peers *p)
{
    enum { BYTES = 1001 };
    uint8_t parts[TEAM_MAX * BYTES] = {0}, host[TEAM_MAX * BYTES] = {0};
    for (int i = 0; i < BYTES; i++) parts[p->team->rank * BYTES + i] = (uint8_t)(i + p->team->rank);
    TRY(peers_gather(p, parts, BYTES, host));
    for (int r = 0; r < p->team->size; r++)
        for (int i = 0; i < BYTES; i++)
            if (parts[r * BYTES + i] != (uint8_t)(i + r))
                return err_set(PC_EINTERNAL, "byte %d of rank %d", i, r);
    return PC_OK;
}

static int meet(struct Team *t, void *user)
{
    const struct Meeting *m = user;
    struct Peers p;
    struct Engine *e = open_case(&base);
    memset(&fake, 0, sizeof fake);
    fake.own_memory = true;
    fake.shared = m->shared;
    fake.unable = m->unable && t->rank == 1;
    fake.no_invitation = m->no_invitation;
    fake.no_join = m->no_join;
    int status = peers_open(&p, fake_backend(), e->dev, t);
    if (status == PC_OK && (p.direct != m->direct || p.sharers != (t->size > 1 ? m->sharers : 1)))
        status = err_set(PC_EINTERNAL, "direct %d, %d sharers", p.direct, p.sharers);
    if (status == PC_OK && t->size > 1 && fake.divided != (m->sharers > 1 ? m->sharers : 0))
        status = err_set(PC_EINTERNAL, "divided by %d", fake.divided);
    if (status == PC_OK && t->size > 1 && !p.none == !m->direct)
        status = err_set(PC_EINTERNAL, "said '%s'", p.none ? p.none : "nothing");
    if (status == PC_OK) status = gather_parts(&p);
    engine_close(e);
    return status;
}

static int meet_other(struct Team *t, void *user)
{
    return code_of(team_close(t, meet(t, user), say_nothing, code_of));
}

static void test_meeting(void **state)
{
    (void)state;
    for (int size = 1; size <= 4; size++) {
        const struct Meeting all[] = {{.direct = size > 1, .sharers = 1},
                                      {.shared = true, .sharers = size},
                                      {.unable = true, .sharers = 1},
                                      {.no_invitation = true, .sharers = 1},
                                      {.no_join = 1, .status = PC_EDEVICE}};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
            struct Ranks r;
            struct Meeting m = all[i];
            if (size == 1 && i > 0) continue;
            ranks_start(&r, size, meet_other, &m);
            int status = meet(&r.team, &m), end;
            if (status != m.status) fail_msg("%d ranks, meeting %zu: %s", size, i, err_text());
            end = team_close(&r.team, status, say_nothing, code_of);
            assert_int_equal(end, m.status);
            for (int k = 1; k < size; k++) assert_int_equal(ranks_wait(&r, k), code_of(end));
        }
    }
}

static void test_faults(void **state)
{
    (void)state;
    struct Team t = {.size = 2};
    struct Peers p;
    struct Engine *e = open_case(&base);
    mem_fail_after(1);
    assert_int_equal(peers_open(&p, fake_backend(), e->dev, &t), PC_ENOMEM);
    mem_fail_after(0);
    engine_close(e);
}

/* ==== Runs ==== */

/* By every way, the same as alone. */
static void check_ways(struct Case c)
{
    struct Report one, all[TEAM_MAX];
    c.backend = NULL;
    must(run_team(&c, 1, &one));
    c.backend = fake_backend();
    for (int way = 0; way < 3; way++) {
        memset(&fake, 0, sizeof fake);
        fake.own_memory = way > 0;
        fake.unable = way == 2; /* through the host */
        for (int size = 2; size <= 4; size++) {
            struct Report plain[TEAM_MAX];
            struct Case without = c;
            fake.queued = fake.waited = fake.copied = 0;
            must(run_team(&c, size, all));
            without.backend = NULL;
            must(run_team(&without, size, plain));
            for (int r = 0; r < (c.answer == ANSWER_ALL ? size : 1); r++)
                same_bits(&plain[0].o, &all[r].o);
            assert_memory_equal(one.o.kept, all[0].o.kept, sizeof one.o.kept);
            assert_true((fake.queued > 0) == (way < 2));
            if (c.answer == ANSWER_LEAD) assert_true((fake.copied > 0) == (way < 2));
        }
    }
}

static void test_ship(void **state)
{
    (void)state;
    for (int kv = KV_AUTO; kv <= KV_Q4; kv++) {
        struct Case c = base;
        c.keep = KEEP_ALL;
        c.kv_type = (enum KvType)kv;
        check_ways(c);
        c.cap = CAP_OFF;
        check_ways(c);
    }
}

static void test_parts(void **state)
{
    (void)state;
    struct Case c = base;
    c.keep = 5;
    c.precision = PRECISION_F32;
    c.answer = ANSWER_ALL;
    check_ways(c);
    c.n_calib = 2;
    check_ways(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_meeting),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_ship),
        cmocka_unit_test(test_parts),
    };
    log_set(LOG_ERROR);
    return cmocka_run_group_tests_name("peers", tests, NULL, NULL) != 0;
}
