/* test_calibrate_choose.c - choices of heads as a whole: joint runs, the order in which heads go against greedy choice by
 * brute force, how many stay within a tolerance, exchanges around the cut.
 */
#include "calibrate_support.h"

static struct HeadMap ablated(struct Study *st)
{
    struct HeadMap map;
    double unit;
    must(study_scores(st, HEADS_ALONE, &map, &unit));
    return map;
}

static struct Joint joint_of(struct Study *st, const struct HeadMap *map, double ratio)
{
    uint8_t *keep = malloc((size_t)n_heads(st));
    struct Joint out, full;
    must(headmap_keep(map, ratio, 0, keep));
    must(study_joint(st, &first, st->opt.samples, keep, 1, &out, &full));
    free(keep);
    return out;
}

static void check_joint(struct Engine *e)
{
    struct StudyOptions o = options();
    o.samples = 2;
    struct Study st = open_study(e, o);
    struct HeadMap map = ablated(&st), turned = ablated(&st);
    struct Joint full, all = joint_of(&st, &map, 1), none = joint_of(&st, &map, 0);
    uint8_t *keep = calloc(2, (size_t)n_heads(&st));
    struct Joint two[2];
    must(headmap_keep(&map, 0.5, 0, keep + n_heads(&st)));
    must(study_joint(&st, &first, 2, keep, 2, two, &full));
    assert_true(all.kl == 0 && all.nll == full.nll && all.exact == full.exact);
    assert_true(all.right == full.right && full.nll > 0 && full.right <= 1);
    assert_true(two[0].kl == none.kl && two[0].nll == none.nll);
    must(headmap_invert(&turned));
    double half = joint_of(&st, &map, 0.5).kl, inverted = joint_of(&st, &turned, 0.5).kl;
    assert_true(two[1].kl == half && half > 0);
    if (!(inverted > 1.5 * half)) fail_msg("inverted %g, as found %g", inverted, half);
    free(keep);
    headmap_close(&map);
    headmap_close(&turned);
    study_close(&st);
}

static void test_joint(void **state)
{
    (void)state;
    each_engine(check_joint);
}

/* Of the heads that are left the one whose going hurts least, with those that went before. Returns its joint KL. */
static double next_to_go(struct Study *st, uint8_t *kept, int *gone)
{
    double least = INFINITY;
    for (int h = 0; h < n_heads(st); h++) {
        struct Joint out, full;
        if (!kept[h]) continue;
        kept[h] = 0;
        must(study_joint(st, &first, 1, kept, 1, &out, &full));
        kept[h] = 1;
        if (out.kl < least) least = out.kl, *gone = h;
    }
    kept[*gone] = 0;
    return least;
}

/* Few heads go one at a time, each time after all that are left were tried. */
static void check_descent(struct Engine *e)
{
    struct Study st = open_study(e, options());
    struct HeadMap map;
    double unit, most = 0;
    int n = n_heads(&st), gone = 0;
    uint8_t *kept = malloc((size_t)n);
    memset(kept, 1, (size_t)n);
    assert_int_equal(st.opt.samples, 1);
    assert_in_range(n, 4, 11);
    must(study_scores(&st, HEADS_ABLATE, &map, &unit));
    for (int left = n; left > 0; left--) {
        double kl = next_to_go(&st, kept, &gone), got = (double)map.scores[gone] * unit;
        most = fmax(most * (1 + 1e-6), kl); /* what went later is needed more, whatever it cost */
        if (fabs(got - most) > 1e-5 * most)
            fail_msg("%s, head %d: %g, by hand %g", e->model.cfg.arch, gone, got, most);
    }
    assert_string_equal(map.method, "ablate");
    free(kept);
    headmap_close(&map);
    study_close(&st);
}

static void test_descent(void **state)
{
    (void)state;
    each_engine(check_descent);
}

static void check_tolerance(struct Engine *e)
{
    struct Study st = open_study(e, options());
    struct HeadMap map = ablated(&st);
    struct Joint at;
    double ratio, half = joint_of(&st, &map, 0.5).kl;
    int n = n_heads(&st);
    must(study_tolerance(&st, &map, &(struct Tolerance){false, 1e9}, &ratio, &at));
    assert_true(ratio == 0 && at.kl > 0);
    must(study_tolerance(&st, &map, &(struct Tolerance){false, 0}, &ratio, &at));
    assert_true(ratio == 1 && at.kl == 0);
    must(study_tolerance(&st, &map, &(struct Tolerance){false, half}, &ratio, &at));
    assert_true(ratio > 0 && ratio <= 0.5 && at.kl <= half);
    assert_true(at.kl == joint_of(&st, &map, ratio).kl);
    assert_true(joint_of(&st, &map, ratio - 1.0 / n).kl > half);
    must(study_tolerance(&st, &map, &(struct Tolerance){true, 1}, &ratio, &at));
    assert_true(ratio == 0); /* own answers are the only exact ones, and all may go */
    st.opt.passkeys = 1;
    assert_int_equal(study_tolerance(&st, &map, &(struct Tolerance){true, 1}, &ratio, &at),
                     PC_ERANGE); /* these models spell nothing */
    assert_non_null(strstr(err_text(), "spells no passkey of 3 words"));
    headmap_close(&map);
    study_close(&st);
}

static void test_tolerance(void **state)
{
    (void)state;
    each_engine(check_tolerance);
}

/* Begins from a poor map, so that exchanges have something to gain. */
static void check_refine(struct Engine *e)
{
    struct Study st = open_study(e, options());
    struct HeadMap map;
    double unit;
    int gained = 0, kept;
    for (uint64_t seed = 1; seed < 3; seed++) {
        st.opt.seed = seed;
        must(study_scores(&st, HEADS_RANDOM, &map, &unit));
        double before = joint_of(&st, &map, 0.5).kl;
        must(study_refine(&st, &map, 0.5, 40, &kept));
        double after = joint_of(&st, &map, 0.5).kl;
        assert_true(kept ? after < before : after == before);
        gained += kept;
        headmap_close(&map);
    }
    assert_true(gained > 0);
    study_close(&st);
}

static void test_refine(void **state)
{
    (void)state;
    each_engine(check_refine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_joint),
        cmocka_unit_test(test_descent),
        cmocka_unit_test(test_tolerance),
        cmocka_unit_test(test_refine),
    };
    return cmocka_run_group_tests(tests, make_text, free_text);
}
