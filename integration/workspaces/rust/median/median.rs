//! The middle of a collection.
use std::collections::BTreeMap;

/// The upper median; nothing for an empty collection.
pub fn of<I: IntoIterator<Item = u64>>(values: I) -> Option<u64> {
    let mut counts = BTreeMap::new();
    let mut total = 0usize;
    for value in values {
        *counts.entry(value).or_insert(0usize) += 1;
        total += 1;
    }
    let mut seen = 0;
    counts.into_iter().find_map(|(value, count)| {
        seen += count;
        (seen > total / 2).then_some(value)
    })
}

pub fn of_primes_below(end: usize) -> Option<u64> {
    of(primes::below(end))
}
