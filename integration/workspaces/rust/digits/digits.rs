//! Sums over the decimal digits of anything that prints as a number.
use std::fmt::Display;

pub fn sum<N: Display>(number: N) -> u64 {
    number.to_string().chars().filter_map(|c| c.to_digit(10)).map(u64::from).sum()
}
