//! Every aggregate: the same results however the log is cut into steps, and wherever state is saved and restored.

use super::*;
use datafusion::functions_aggregate::all_default_aggregate_functions;
use std::collections::BTreeMap;

/// A call of each aggregate, by name; the empty text for one that is refused.
fn calls(name: &str) -> Vec<String> {
    let list: &[&str] = match name {
        "grouping" => return Vec::new(),
        "corr" | "covar_samp" | "covar_pop" => &["{}(v, n)", "{}(v, n) filter (where n > 3)"],
        name if name.starts_with("regr_") => &["{}(v, n)"],
        "approx_percentile_cont" => &["{}(0.4) within group (order by v)"],
        "approx_percentile_cont_with_weight" => &["{}(abs(n) + 1, 0.4) within group (order by v)"],
        "percentile_cont" => &["{}(0.4) within group (order by v)", "{}(0.4) within group (order by v desc)"],
        "string_agg" => {
            &["{}(k, ',')", "{}(k, ',' order by v)", "{}(k, ',' order by n desc, v)", "{}(distinct k, ',')"]
        }
        "nth_value" => {
            &["{}(v, 2)", "{}(v, 2 order by n)", "{}(k, -2 order by n desc)", "{}(v, 3) filter (where n > 2)"]
        }
        "bool_and" | "bool_or" => &["{}(n > 3)"],
        "bit_and" | "bit_or" | "bit_xor" => &["{}(n)", "{}(distinct n)"],
        "array_agg" => {
            &["{}(v)", "{}(k order by v)", "{}(v order by n desc)", "{}(distinct n)", "{}(k) filter (where n > 3)"]
        }
        "first_value" | "last_value" => &[
            "{}(v)",
            "{}(v order by n)",
            "{}(k order by n desc)",
            "{}(k)",
            "{}(k) ignore nulls",
            "{}(n order by k, v)",
        ],
        "min" | "max" => &["{}(v)", "{}(n)", "{}(k)", "{}(distinct k)", "{}(rowtime)", "{}(k) filter (where n > 3)"],
        "count" => {
            &["{}(*)", "{}(v)", "{}(distinct n)", "{}(distinct k)", "{}(distinct v)", "{}(*) filter (where n > 3)"]
        }
        "sum" | "avg" => &[
            "{}(v)",
            "{}(n)",
            "{}(distinct v)",
            "{}(distinct n)",
            "{}(v) filter (where n > 3)",
            "{}(cast(n as decimal(20, 4)))",
        ],
        "median" => &["{}(v)", "{}(n)", "{}(distinct v)"],
        "approx_distinct" => &["{}(k)", "{}(n)"],
        _ => &["{}(v)"],
    };
    list.iter().map(|text| text.replace("{}", name)).collect()
}

/// Digests are the same with and without a restart, but depend on how the log is cut.
fn is_approximate(call: &str) -> bool {
    call.starts_with("approx_percentile") || call.starts_with("approx_median")
}

fn events(seed: u64, count: usize) -> Vec<Event> {
    let mut random = Random::new(seed);
    let mut event = |index: usize| {
        let k = (random.below(8) > 0).then(|| format!("k{}", random.below(5)));
        let v = (random.below(8) > 0).then(|| random.double());
        let n = (random.below(8) > 0).then(|| random.below(7) as i64);
        let at = (index as i64) * 3 + random.below(40) as i64;
        Event { partition: random.below(2) as u32, at, k, v, n, is_gone: false }
    };
    (0..count).map(&mut event).collect()
}

/// Runs `events` cut at `cuts`, restarting after the steps `is_restart` names; the lines of each step.
fn outputs(query: &Query, events: &[Event], cuts: &[usize], is_restart: impl Fn(usize) -> bool) -> Vec<Vec<String>> {
    let mut run = Run::new(query);
    let mut start = 0;
    let mut outputs = Vec::new();
    for (step, end) in cuts.iter().chain([&events.len()]).enumerate() {
        outputs.push(run.lines(&events[start..*end]));
        if is_restart(step) {
            run.restart();
        }
        start = *end;
    }
    outputs
}

fn cuts(random: &mut Random, count: usize, most: u64) -> Vec<usize> {
    let mut cuts: Vec<usize> = (0..random.below(most)).map(|_| random.below(count as u64 + 1) as usize).collect();
    cuts.sort_unstable();
    cuts
}

/// The last line of each key; the key comes first in a line.
fn table(outputs: &[Vec<String>], key_words: usize) -> BTreeMap<String, String> {
    let key = |line: &String| line.split(' ').take(key_words).collect::<Vec<_>>().join(" ");
    outputs.iter().flatten().map(|line| (key(line), line.clone())).collect()
}

fn query(call: &str) -> Query {
    let select = [("k", "k"), ("windowstart", "windowstart"), ("windowend", "windowend"), ("a", "a")];
    let mut query = Query::select(&select).group_by(&[("k", "k")], &[("a", call)]).window(60, Some(20));
    query.partitions = 2;
    query
}

fn check(call: &str) {
    let query = query(call);
    for seed in 1..=3 {
        let events = events(seed, 100);
        let whole = outputs(&query, &events, &[], |_| false);
        let mut random = Random::new(seed + 100);
        for most in [3, 30] {
            let cuts = cuts(&mut random, events.len(), most);
            let plain = outputs(&query, &events, &cuts, |_| false);
            if !is_approximate(call) {
                assert_eq!(table(&plain, 3), table(&whole, 3), "{call}: cuts {cuts:?} of seed {seed}");
            }
            assert_eq!(outputs(&query, &events, &cuts, |_| true), plain, "{call}: a restart after every step");
            assert_eq!(outputs(&query, &events, &cuts, |step| step % 3 == 1), plain, "{call}: restarts");
        }
    }
}

fn check_all(is_wanted: impl Fn(&str) -> bool) {
    let mut checked = 0;
    for function in all_default_aggregate_functions().iter().filter(|function| is_wanted(function.name())) {
        for call in calls(function.name()) {
            check(&call);
            checked += 1;
        }
    }
    assert!(checked > 0);
}

#[test]
fn simple_aggregates_do_not_depend_on_steps_or_restarts() {
    check_all(|name| matches!(name, "count" | "sum" | "avg" | "min" | "max"));
}

#[test]
fn statistical_aggregates_do_not_depend_on_steps_or_restarts() {
    check_all(|name| {
        matches!(name, "corr" | "var" | "var_pop" | "stddev" | "stddev_pop" | "covar_pop" | "covar_samp")
            || name.starts_with("regr_")
    });
}

#[test]
fn ordered_aggregates_do_not_depend_on_steps_or_restarts() {
    check_all(|name| {
        matches!(name, "first_value" | "last_value" | "nth_value" | "array_agg" | "string_agg" | "any_value")
    });
}

#[test]
fn holistic_aggregates_do_not_depend_on_steps_or_restarts() {
    check_all(|name| name.starts_with("approx_") || matches!(name, "median" | "percentile_cont"));
}

#[test]
fn bitwise_aggregates_do_not_depend_on_steps_or_restarts() {
    check_all(|name| name.starts_with("bit_") || name.starts_with("bool_"));
}

#[test]
fn every_aggregate_is_checked_or_refused() {
    let groups = [
        "count sum avg min max",
        "corr var var_pop stddev stddev_pop covar_pop covar_samp",
        "first_value last_value nth_value array_agg string_agg any_value",
        "median percentile_cont grouping",
    ];
    let is_known = |name: &str| {
        groups.iter().any(|group| group.split(' ').any(|known| known == name))
            || ["regr_", "approx_", "bit_", "bool_"].iter().any(|prefix| name.starts_with(prefix))
    };
    for function in all_default_aggregate_functions() {
        assert!(is_known(function.name()), "{}", function.name());
    }
}

#[test]
fn moments_equal_those_of_the_bounded_engine() {
    use datafusion::logical_expr::EmitTo;
    let events = events(7, 200);
    let pairs: Vec<(f64, f64)> = events.iter().filter_map(|event| Some((event.v?, event.n? as f64))).collect();
    let first: ArrayRef = Arc::new(Float64Array::from_iter_values(pairs.iter().map(|pair| pair.0)));
    let second: ArrayRef = Arc::new(Float64Array::from_iter_values(pairs.iter().map(|pair| pair.1)));
    let double = arrow::datatypes::DataType::Float64;
    for function in all_default_aggregate_functions() {
        use crate::stream::moments::{Moment, Moments};
        use datafusion::logical_expr::GroupsAccumulator;
        let Some(moment) = Moment::of(function.name(), std::slice::from_ref(&double), &double) else { continue };
        let is_single = function.name().starts_with("var") || function.name().starts_with("stddev");
        let arguments =
            if is_single { vec![Arc::clone(&first)] } else { vec![Arc::clone(&first), Arc::clone(&second)] };
        let fields: Vec<_> =
            arguments.iter().map(|_| arrow::datatypes::Field::new("a", double.clone(), true)).collect();
        let schema = Arc::new(arrow::datatypes::Schema::new(fields));
        let columns = (0..arguments.len())
            .map(|index| Arc::new(datafusion::physical_expr::expressions::Column::new("a", index)) as _)
            .collect();
        let theirs = datafusion::physical_expr::aggregate::AggregateExprBuilder::new(Arc::clone(&function), columns);
        let mut theirs = theirs.schema(schema).alias("a").build().unwrap().create_accumulator().unwrap();
        theirs.update_batch(&arguments).unwrap();
        let mut ours = Moments::new(moment);
        ours.update_batch(&arguments, &vec![0; pairs.len()], None, 1).unwrap();
        let ours = ours.evaluate(EmitTo::All).unwrap();
        let theirs = theirs.evaluate().unwrap().to_array().unwrap();
        assert_eq!(&ours, &theirs, "{}", function.name());
    }
}
