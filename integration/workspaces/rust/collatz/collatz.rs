//! Lengths of Collatz walks.
use std::iter::successors;

pub fn steps(start: u64) -> u64 {
    successors(Some(start), |&n| match n {
        1 => None,
        even if even % 2 == 0 => Some(even / 2),
        odd => Some(3 * odd + 1),
    })
    .count() as u64
        - 1
}
