use proptest::prelude::*;

use super::*;

/// The least damage by trying everything.
fn exhaustive(sites: &[Vec<Choice>], budget: u64) -> Option<f64> {
    let Some((first, rest)) = sites.split_first() else {
        return Some(0.0);
    };
    first
        .iter()
        .filter(|choice| choice.value.is_finite())
        .filter_map(|choice| {
            let left = budget.checked_sub(choice.cost)?;
            Some(choice.value + exhaustive(rest, left)?)
        })
        .min_by(f64::total_cmp)
}

fn cost(sites: &[Vec<Choice>], picked: &[usize]) -> u64 {
    sites.iter().zip(picked).map(|(site, &i)| site[i].cost).sum()
}

fn damage(sites: &[Vec<Choice>], picked: &[usize]) -> f64 {
    sites.iter().zip(picked).map(|(site, &i)| site[i].value).sum()
}

fn assert_within_and_spent(sites: &[Vec<Choice>], picked: &[usize], budget: u64) {
    let left = budget.checked_sub(cost(sites, picked)).expect("over budget");
    for (site, &now) in sites.iter().zip(picked) {
        for choice in site {
            let harmless = choice.cost > site[now].cost && choice.value <= site[now].value;
            assert!(
                !harmless || choice.cost - site[now].cost > left,
                "{left} left, {choice:?} fits"
            );
        }
    }
}

/// Levels with falling damage, as curves give them, convex or not.
fn curves(sites: usize, levels: usize, unit: u64, seed: u64) -> Vec<Vec<Choice>> {
    let mut state = seed | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    (0..sites)
        .map(|_| {
            let (scale, power, step) = (random() + 0.01, 0.5 + 4.0 * random(), 1.0 + random());
            let unit = (unit as f64 * step) as u64;
            (0..=levels)
                .map(|level| {
                    let gone = 1.0 - level as f64 / levels as f64;
                    let bump = 0.02 * random() * gone;
                    Choice {
                        cost: unit * level as u64,
                        value: scale * (gone.powf(power) + bump),
                    }
                })
                .collect()
        })
        .collect()
}

fn any_choice() -> impl Strategy<Value = Choice> {
    let value = prop_oneof![
        8 => (0_i32..20).prop_map(f64::from),
        8 => -1.0..10.0,
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
    ];
    (0_u64..40, value).prop_map(|(cost, value)| Choice { cost, value })
}

fn any_sites() -> impl Strategy<Value = Vec<Vec<Choice>>> {
    prop::collection::vec(prop::collection::vec(any_choice(), 1..6), 0..6)
}

proptest! {
    #[test]
    fn nothing_beats_it(sites in any_sites(), budget in 0_u64..160) {
        let picked = allocate(&sites, budget);
        match exhaustive(&sites, budget) {
            None => prop_assert!(picked.is_none()),
            Some(least) => {
                let picked = picked.expect("a solution");
                assert_within_and_spent(&sites, &picked, budget);
                let damage = damage(&sites, &picked);
                prop_assert!((damage - least).abs() < 1e-9, "{} against {}", damage, least);
            }
        }
    }

    #[test]
    fn thinned_it_still_keeps_the_budget(
        seed in any::<u64>(), sites in 1_usize..12, levels in 1_usize..20, share in 0.0..1.1,
    ) {
        let sites = curves(sites, levels, 1_000_003, seed);
        let whole: u64 = sites.iter().map(|site| site[levels].cost).sum();
        let budget = (whole as f64 * share) as u64;
        let exact = allocate(&sites, budget).expect("zero costs nothing");
        let thinned = allocate_with(&sites, budget, 4, 3).expect("zero costs nothing");
        assert_within_and_spent(&sites, &exact, budget);
        assert_within_and_spent(&sites, &thinned, budget);
        let range: f64 = sites.iter().map(|site| site[0].value).sum();
        let (exact, thinned) = (damage(&sites, &exact), damage(&sites, &thinned));
        prop_assert!(exact <= thinned + 1e-9);
        // Four states of three sites leave little to choose from: draws have passed a tenth.
        prop_assert!(thinned <= exact + 0.25 * range, "{} against {}", thinned, exact);
    }
}

#[test]
fn a_plateau_is_spent_and_a_tie_goes_to_the_first() {
    let flat: Vec<Choice> = (0..5).map(|i| Choice { cost: i, value: 1.0 }).collect();
    assert_eq!(allocate(&[flat.clone(), flat], 6), Some(vec![4, 2]));
    let equal = vec![Choice { cost: 1, value: 1.0 }; 3];
    assert_eq!(allocate(&[equal], 9), Some(vec![0]));
    assert_eq!(allocate(&[], 0), Some(vec![]));
    assert_eq!(allocate(&[vec![]], 9), None);
}

#[test]
fn costs_near_the_largest_integer_do_not_overflow() {
    let site = |cost| vec![Choice { cost: 0, value: 2.0 }, Choice { cost, value: 1.0 }];
    let sites = vec![site(u64::MAX), site(u64::MAX / 2), site(u64::MAX / 2)];
    let picked = allocate(&sites, u64::MAX).unwrap();
    assert_eq!(damage(&sites, &picked), 4.0);
    let heavy = vec![
        vec![Choice {
            cost: u64::MAX,
            value: 0.0
        }];
        2
    ];
    assert_eq!(allocate(&heavy, u64::MAX), None);
}

#[test]
fn many_sites_and_levels_take_no_time() {
    for (sites, levels) in [(24, 64), (100, 64), (24, 3072), (100, 3072), (100, 8)] {
        let sites = curves(sites, levels, 768 * 128 * 2, 7);
        let whole: u64 = sites.iter().map(|site| site[levels].cost).sum();
        for share in [0.3, 0.6, 0.9] {
            let budget = (whole as f64 * share) as u64;
            let start = std::time::Instant::now();
            let picked = allocate(&sites, budget).unwrap();
            let took = start.elapsed();
            assert_within_and_spent(&sites, &picked, budget);
            // A fraction of this where nothing else runs.
            assert!(
                took.as_secs_f64() < 10.0,
                "{took:?} for {} x {levels}",
                sites.len()
            );
            println!("{} x {levels} at {share}: {took:?}", sites.len());
        }
    }
}
