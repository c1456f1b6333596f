//! Decisions at their bounds, and over many random histories.

use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const ALL: Offset = Offset::new(u64::MAX);

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

/// Segments of ten rows each, of these bytes and newest event times in seconds.
fn facts(segments: &[(u64, i64)]) -> PartitionFacts {
    let segment = |(number, (bytes, last)): (u64, &(u64, i64))| Sealed {
        start: Offset::new(number * 10),
        end: Offset::new(number * 10 + 10),
        rows: RowCount::new(10),
        bytes: *bytes,
        rowtime: Some((*last * 1_000_000 - 1, *last * 1_000_000)),
        is_damaged: false,
    };
    PartitionFacts { segments: (0..).zip(segments).map(segment).collect(), ..PartitionFacts::default() }
}

fn start(facts: &PartitionFacts, policy: &UpkeepPolicy, hold: u64, now: i64) -> Option<u64> {
    decide(facts, policy, Offset::new(hold), at(now)).offset_start.map(Offset::value)
}

#[test]
fn segments_go_when_their_newest_event_is_older_than_the_retention() {
    let policy = UpkeepPolicy { retention: Some(Span::from_secs(100)), ..UpkeepPolicy::default() };
    let facts = facts(&[(MIB, 10), (MIB, 30), (MIB, 20), (MIB, 90)]);
    let start = |now| start(&facts, &policy, u64::MAX, now);
    assert_eq!([start(0), start(110), start(111), start(121)], [None, None, Some(10), Some(10)]);
    // The third is old enough before the second, and waits for it.
    assert_eq!([start(130), start(131), start(190), start(191)], [Some(10), Some(30), Some(30), Some(40)]);
    // A clock that steps back removes nothing.
    assert_eq!(start(-1_000_000), None);
}

#[test]
fn bytes_are_kept_whatever_their_age_and_memory_counts() {
    let policy = UpkeepPolicy { retention_bytes: Some(ByteSize::new(3 * MIB)), ..UpkeepPolicy::default() };
    let mut facts = facts(&[(MIB, 10), (MIB, 10), (MIB, 10), (MIB, 10)]);
    assert_eq!(start(&facts, &policy, u64::MAX, 0), Some(10), "three are left");
    facts.memory_bytes = 2 * MIB - 1;
    assert_eq!(start(&facts, &policy, u64::MAX, 0), Some(20));
    facts.memory_bytes = 2 * MIB;
    assert_eq!(start(&facts, &policy, u64::MAX, 0), Some(30));
    facts.memory_bytes = 0;
    facts.segments.pop();
    assert_eq!(start(&facts, &policy, u64::MAX, 0), None, "what is kept is not less");
}

#[test]
fn a_query_holds_what_it_would_read_again() {
    let policy = UpkeepPolicy { retention: Some(Span::from_secs(1)), ..UpkeepPolicy::default() };
    let facts = facts(&[(MIB, 0), (MIB, 0), (MIB, 0)]);
    for (hold, expected) in [(0, None), (9, None), (10, Some(10)), (29, Some(20)), (30, Some(30))] {
        assert_eq!(start(&facts, &policy, hold, 100), expected, "held at {hold}");
    }
}

#[test]
fn old_rows_in_memory_ask_for_a_seal_once_nothing_is_before_them() {
    let policy = UpkeepPolicy { retention: Some(Span::from_secs(10)), ..UpkeepPolicy::default() };
    let mut facts = facts(&[(MIB, 5)]);
    (facts.memory_bytes, facts.memory_rowtime_last) = (100, Some(at(8).micros()));
    let actions = |now| decide(&facts, &policy, ALL, at(now));
    assert_eq!((actions(16).offset_start, actions(16).needs_seal), (Some(Offset::new(10)), false));
    assert_eq!((actions(19).offset_start, actions(19).needs_seal), (Some(Offset::new(10)), true));
    let forever = decide(&facts, &UpkeepPolicy::default(), ALL, at(1_000_000));
    assert_eq!(forever, UpkeepActions::default());
}

fn merged(sizes: &[u64], policy: &UpkeepPolicy) -> Option<(u64, u64)> {
    let segments: Vec<(u64, i64)> = (0..).zip(sizes).map(|(number, bytes)| (*bytes, number)).collect();
    let range = decide(&facts(&segments), policy, ALL, at(0)).rewrite?;
    Some((range.offsets.start.value() / 10, range.offsets.end.value() / 10))
}

#[test]
fn eight_neighbours_of_a_level_become_one() {
    let none = UpkeepPolicy::default();
    let small = 50 << 10;
    assert_eq!(merged(&[small; 7], &none), None);
    assert_eq!(merged(&[small; 9], &none), Some((0, 8)));
    // Larger ones are not written again for a few small ones beside them.
    assert_eq!(merged(&[MIB, small, small, small, small, small, small, small], &none), None);
    assert_eq!(merged(&[&[MIB], &[small; 8][..]].concat(), &none), Some((1, 9)));
    // Small ones between larger ones go with them.
    let between: Vec<u64> = (0..15).map(|number| if number % 2 == 0 { MIB } else { small }).collect();
    assert_eq!(merged(&between, &none), Some((0, 15)));
    // Full ones are left alone, and fewer reach the target.
    assert_eq!(merged(&[200 * MIB; 20], &none), None);
    assert_eq!(merged(&[64 * MIB; 4], &none), None);
    assert_eq!(merged(&[64 * MIB; 5], &none), Some((0, 4)));
}

#[test]
fn merged_segments_leave_retention_something_to_take_away() {
    let bytes = UpkeepPolicy { retention_bytes: Some(ByteSize::new(4 * MIB)), ..UpkeepPolicy::default() };
    assert_eq!(merged(&[MIB / 4; 4], &bytes), None);
    assert_eq!(merged(&[MIB / 4; 5], &bytes), Some((0, 4)), "a quarter of four MiB");
    // Event times are a second apart; an eighth of this retention is two seconds.
    let time = UpkeepPolicy { retention: Some(Span::from_secs(24)), ..UpkeepPolicy::default() };
    assert_eq!(merged(&[1_000; 20], &time), Some((0, 3)));
}

fn compaction(compacted: u64, sizes: &[u64], hold: u64) -> Option<u64> {
    let segments: Vec<(u64, i64)> = sizes.iter().map(|bytes| (*bytes, 0)).collect();
    let mut facts = facts(&segments);
    facts.upkeep.compacted_upto = Offset::new(compacted * 10);
    let policy = UpkeepPolicy { compaction: Some(Span::from_secs(100)), ..UpkeepPolicy::default() };
    let range = decide(&facts, &policy, Offset::new(hold), at(0)).rewrite?;
    range.tombstones_upto.map(|_| range.offsets.end.value() / 10)
}

#[test]
fn compaction_waits_until_half_the_bytes_are_dirty() {
    assert_eq!(compaction(0, &[MIB], u64::MAX), Some(1));
    assert_eq!(compaction(1, &[MIB], u64::MAX), None);
    assert_eq!(compaction(1, &[MIB, MIB / 2, MIB / 4], u64::MAX), None);
    assert_eq!(compaction(1, &[MIB, MIB / 2, MIB / 2], u64::MAX), Some(3));
    // It ends where a query has not read yet.
    assert_eq!(compaction(1, &[MIB, MIB / 2, MIB / 2], 29), Some(2));
    assert_eq!(compaction(1, &[MIB, MIB / 2, MIB / 2], 19), None);
}

#[test]
fn tombstones_that_are_due_are_compacted_away_once() {
    let policy = UpkeepPolicy { compaction: Some(Span::from_secs(100)), ..UpkeepPolicy::default() };
    let mut facts = facts(&[(MIB, 0), (1_000, 0)]);
    facts.upkeep = PartitionUpkeep::default().compacted(Offset::new(10), at(50), 3, Offset::ZERO);
    let due = |facts: &PartitionFacts, now| decide(facts, &policy, ALL, at(now)).rewrite;
    assert_eq!(due(&facts, 149), None);
    let range = due(&facts, 150).expect("due");
    assert_eq!((range.offsets, range.tombstones_upto), (Offset::ZERO..Offset::new(10), Some(Offset::new(10))));
    facts.upkeep = facts.upkeep.compacted(Offset::new(10), at(150), 0, Offset::new(10));
    assert_eq!(due(&facts, 10_000), None);
}

#[test]
fn damaged_segments_are_neither_merged_nor_compacted() {
    let mut facts = facts(&[(1_000, 0); 8]);
    facts.segments[3].is_damaged = true;
    assert_eq!(decide(&facts, &UpkeepPolicy::default(), ALL, at(0)).rewrite, None);
    let policy = UpkeepPolicy { compaction: Some(Span::from_secs(1)), ..UpkeepPolicy::default() };
    assert_eq!(decide(&facts, &policy, ALL, at(0)).rewrite, None);
}

/// Merges until nothing is left to merge; the bytes written.
fn merge_all(facts: &mut PartitionFacts, policy: &UpkeepPolicy) -> u64 {
    let mut written = 0;
    while let Some(range) = decide(facts, policy, ALL, at(0)).rewrite {
        let is_input = |segment: &&Sealed| segment.start >= range.offsets.start && segment.end <= range.offsets.end;
        let inputs: Vec<Sealed> = facts.segments.iter().filter(is_input).copied().collect();
        assert!(inputs.len() > 1, "a merge makes fewer segments");
        let bytes: u64 = inputs.iter().map(|segment| segment.bytes).sum();
        assert!(bytes == range.bytes.value() && bytes <= SEGMENT_BYTES_TARGET.value());
        let first = facts.segments.iter().position(|segment| segment.start == range.offsets.start).unwrap();
        let rows = RowCount::new(range.offsets.end.since(range.offsets.start).value());
        let one = Sealed { start: range.offsets.start, end: range.offsets.end, rows, bytes, ..inputs[0] };
        facts.segments.splice(first..first + inputs.len(), [one]);
        written += bytes;
    }
    written
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn merging_writes_each_byte_a_few_times_and_leaves_few_segments(
        sizes in prop::collection::vec(prop_oneof![
            6 => 1_000u64..70_000, 2 => 70_000u64..2_000_000, 1 => 2_000_000u64..80_000_000,
        ], 1..600),
    ) {
        let policy = UpkeepPolicy::default();
        let mut state = PartitionFacts::default();
        let (mut sealed, mut written) = (0, 0);
        for (number, bytes) in (0..).zip(&sizes) {
            let one = facts(&[(*bytes, 0)]).segments[0];
            let (start, end) = (Offset::new(number * 10), Offset::new(number * 10 + 10));
            state.segments.push(Sealed { start, end, ..one });
            sealed += bytes;
            written += merge_all(&mut state, &policy);
        }
        prop_assert!(written <= sealed * u64::from(LEVELS), "{written} of {sealed}");
        let full = sealed * 2 / SEGMENT_BYTES_TARGET.value() + 1;
        // Between larger segments, up to seven of each smaller level.
        let most = (full + 1) * 8u64.pow(2) * u64::from(LEVELS);
        prop_assert!((state.segments.len() as u64) <= most, "{} segments", state.segments.len());
        prop_assert!(state.segments.windows(2).all(|pair| pair[0].end == pair[1].start));
    }

    #[test]
    fn retention_keeps_what_it_must_and_holds(
        segments in prop::collection::vec((1u64..100, 0i64..1_000), 0..20),
        memory in 0u64..50, kept in 0u64..500, retention in 1i64..500, hold in 0u64..220, now in 0i64..2_000,
    ) {
        let mut facts = facts(&segments);
        facts.memory_bytes = memory;
        let policy = UpkeepPolicy {
            retention: Some(Span::from_secs(retention)),
            retention_bytes: Some(ByteSize::new(kept)),
            compaction: None,
        };
        let gone = start(&facts, &policy, hold, now).map_or(0, |start| start as usize / 10);
        let left = |from: usize| segments[from..].iter().map(|(bytes, _)| bytes).sum::<u64>() + memory;
        prop_assert!(gone as u64 * 10 <= hold);
        for (number, (_, last)) in segments.iter().enumerate().take(gone) {
            prop_assert!(*last < now - retention || left(number + 1) >= kept);
        }
        if let Some((_, last)) = segments.get(gone).filter(|_| (gone as u64 + 1) * 10 <= hold) {
            prop_assert!(*last >= now - retention && left(gone + 1) < kept, "one more could go");
        }
        // An earlier clock never removes more.
        prop_assert!(start(&facts, &policy, hold, now - 100).unwrap_or(0) as usize <= gone * 10);
    }
}
